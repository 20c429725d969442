"""Whether an option of a param group has changed since somebody last looked at it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opdf_compile.training.optimizer.weight_state import equal


@dataclass(frozen=True)
class Look:
    """An option at the last look.

    Attributes:
        value: What stood there; of a list or a dict a copy.
        version: Of a tensor, how often it had been written to.
    """

    value: Any
    version: int

    @classmethod
    def at(cls, value: Any) -> Look:
        """Look at an option."""
        if isinstance(value, Tensor):
            return cls(value, _version(value))
        return cls(copy.copy(value) if isinstance(value, list | dict) else value, 0)

    def changed(self, value: Any) -> bool:
        """Whether the option is another one now.

        A tensor is, when another one stands there or somebody wrote into it: comparing values would
        wait for the device in each step.
        """
        if isinstance(value, Tensor):
            return self.value is not value or self.version != _version(value)
        return not (self.value is value or equal(self.value, value))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def put(group: dict[str, Any], key: str, value: Any, *, fresh: bool = False) -> None:
    """Give a group an option, as torch's schedulers do: a number is written into a tensor.

    Whoever keeps a tensor there (a compiled or captured step) needs it to stay one.

    Where `fresh`, the tensor may be the user's own, which other groups hold as well: it is not
    written to, another takes its place.
    """
    present = group.get(key)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (isinstance(present, Tensor) and number):
        group[key] = value
    elif fresh:
        group[key] = torch.full_like(present, value)
    else:
        present.fill_(value)
