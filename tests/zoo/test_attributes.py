"""What a trace could leave behind in a module, one kind each, and that the zoo finds it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from zoo.attributes import Attributes
from zoo.checks import CheckFailed


class Keeper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.register_buffer("grid", torch.arange(4.0))
        self.cached: dict[str, Any] = {"sizes": [(1, 2)], "mask": torch.zeros(2)}
        self.table = np.arange(3)
        self.config = SimpleNamespace(depth=2, nested=SimpleNamespace(name="a"))
        self.seen = {1}
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.grid


def _equal_buffer(net: Keeper) -> None:
    net.grid = net.grid.clone()


def _hidden_entry(net: Keeper) -> None:
    net.cached["sizes"].append((3, 4))


def _last_bit(net: Keeper) -> None:
    net.cached["mask"][1] = -0.0


def _hook(net: Keeper) -> None:
    net.inner.register_forward_hook(lambda *_: None)


CHANGES: dict[str, Callable[[Keeper], object]] = {
    r"changed the attribute net\._buffers\.grid": _equal_buffer,
    r"left behind the attribute net\.cached\.sizes\[1\]": _hidden_entry,
    r"changed the attribute net\.cached\.mask": _last_bit,
    r"changed the attribute net\.table": lambda net: net.table.__setitem__(0, 9),
    r"changed the attribute net\.config\.__dict__\.nested\.__dict__\.name": (
        lambda net: setattr(net.config.nested, "name", "b")
    ),
    r"changed the attribute net\.seen": lambda net: net.seen.add(2),
    r"changed the attribute net\.last": lambda net: setattr(net, "last", torch.ones(1)),
    r"left behind the attribute net\.more": lambda net: setattr(net, "more", 1),
    r"took away the attribute net\.last": lambda net: delattr(net, "last"),
    r"left behind the attribute net\.inner\._forward_hooks": _hook,
    r"changed the attribute net\.inner\.training": lambda net: net.inner.eval(),
}


@pytest.mark.parametrize("sentence", CHANGES)
def test_what_is_left_in_a_submodule_is_named(sentence: str):
    whole = nn.ModuleDict({"net": Keeper()})
    before = Attributes.of(whole)
    whole["net"](torch.ones(1, 4))
    before.require_same(whole, "trace")
    CHANGES[sentence](whole["net"])
    with pytest.raises(CheckFailed, match=f"trace {sentence}"):
        before.require_same(whole, "trace")
