"""What a node passes to its operator, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node


def arguments(node: Node) -> Mapping[str, Any]:
    """The arguments of an op by name, defaults filled in; none of a node that is no op."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    found: dict[str, Any] = {}
    for place, argument in enumerate(node.target._schema.arguments):
        given = node.args[place] if place < len(node.args) else argument.default_value
        found[argument.name] = node.kwargs.get(argument.name, given)
    return found
