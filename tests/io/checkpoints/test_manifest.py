"""What the manifest says of each tensor: how it lay in memory comes back, and nothing else does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import ArtefactError
from opdf_compile.io.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from opdf_compile.io.checkpoints.manifest import axis_order


class Turned(torch.optim.SGD):
    """Keeps the gradient, its axes turned around in memory, as a factorisation leaves factors."""

    def step(self, closure: Any = None) -> Any:
        for p in (p for group in self.param_groups for p in group["params"]):
            axes = tuple(reversed(range(p.ndim)))
            self.state[p]["turned"] = p.grad.permute(axes).contiguous().permute(axes)
        return super().step(closure)


def stepped() -> opdf.Overparam:
    torch.manual_seed(0)
    student = nn.Linear(12, 8)
    optimizer = opdf.Overparam(student, Turned, lr=0.1, cores=2)
    student(torch.randn(4, 12)).sum().backward()
    optimizer.step()
    return optimizer


def factors(optimizer: opdf.Overparam) -> list[Tensor]:
    state = optimizer.inner.state
    return [state[p]["turned"] for g in optimizer.inner.param_groups for p in g["params"]]


def test_a_tensor_lies_in_memory_as_it_lay_when_it_was_saved(tmp_path: Path) -> None:
    saved, other = stepped(), stepped()
    for factor in factors(other):
        factor.zero_()
    save_checkpoint(tmp_path, saved, step=1)
    load_checkpoint(tmp_path, other)
    turned = [f for f in factors(saved) if not f.is_contiguous()]
    assert len(turned) == 2  # Those of the cores; a bias has one axis.
    for was, now in zip(factors(saved), factors(other), strict=True):
        assert torch.equal(was, now)
        long = [axis for axis, size in enumerate(was.shape) if size > 1]
        assert [was.stride(axis) for axis in long] == [now.stride(axis) for axis in long]


@pytest.mark.parametrize(
    ("tensor", "order"),
    [
        (torch.zeros(3, 4), []),
        (torch.zeros(3, 4).mT, [1, 0]),
        (torch.zeros(2, 3, 4).permute(1, 2, 0), [2, 0, 1]),
        (torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last), [0, 2, 3, 1]),
        (torch.zeros(6, 4)[::2], []),
        (torch.zeros(1, 4).mT, []),
        (torch.zeros(()), []),
    ],
)
def test_order_of(tensor: Tensor, order: list[int]) -> None:
    assert axis_order(tensor) == order


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    for stored in manifest["tensors"].values():
        change(stored)
    file.write_text(json.dumps(manifest))


def test_an_older_manifest_says_nothing_of_it(tmp_path: Path) -> None:
    saved, other = stepped(), stepped()
    rewritten(save_checkpoint(tmp_path, saved, step=1), lambda stored: stored.pop("order"))
    load_checkpoint(tmp_path, other)
    for was, now in zip(factors(saved), factors(other), strict=True):
        assert torch.equal(was, now)
        assert now.is_contiguous()


@pytest.mark.parametrize("order", [[0, 0], [0, 1, 2, 3, 4], [1, 2, 3, 4]])
def test_an_order_that_names_other_axes_is_refused(tmp_path: Path, order: list[int]) -> None:
    optimizer = stepped()
    path = save_checkpoint(tmp_path, optimizer, step=1)
    rewritten(path, lambda stored: stored.update(order=order))
    with pytest.raises(ArtefactError, match="order of the axes of .* names other axes"):
        load_checkpoint(tmp_path, optimizer)
