"""Dataclasses that carry tensors into or out of a model, and are unknown to torch.export.

torch.export takes apart tuples, lists, dicts, named tuples and registered classes. A dataclass can
be registered without the help of its author. The registration lasts as long as the process: the
graphs, and an Expanded made of them, return objects of that class.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.utils._pytree as pytree


def register_dataclasses(value: Any) -> tuple[str, ...]:
    """Register every dataclass in a nested value that torch.export does not know yet.

    Returns:
        A sentence for each class that was registered.
    """
    sentences: list[str] = []
    refused: set[type] = set()
    while True:  # Registering one class opens the view on those inside it.
        kinds = {type(leaf) for leaf in pytree.tree_leaves(value)}
        found = {kind for kind in kinds if dataclasses.is_dataclass(kind)}
        fresh = sorted(found - refused, key=lambda cls: cls.__qualname__)
        if not fresh:
            return tuple(sentences)
        for cls in fresh:
            try:
                torch.export.register_dataclass(cls)
            except (ValueError, TypeError, AssertionError):  # Fields that __init__ does not take.
                refused.add(cls)
                continue
            sentences.append(
                f"the dataclass {cls.__qualname__} was registered with torch.export for this "
                "process, so that graphs can take and return it"
            )
