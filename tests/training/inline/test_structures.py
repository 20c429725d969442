"""What a model may take and return: through trace, plan, expand, train, eval, fold and export."""

from __future__ import annotations

import copy
from collections import namedtuple
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.io.saved.expanded_file import save_expanded

Point = namedtuple("Point", ["a", "b"])


@dataclass
class Batch:
    ids: Tensor
    mask: Tensor | None = None


@dataclass
class Result:
    logits: Tensor
    parts: dict[str, Tensor]


class Student(nn.Module):
    """Two weights; each student below reads them from inputs of another form."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.table = nn.Embedding(10, 16)


class Lists(Student):
    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [self.linear(x) for x in xs]


class Tuples(Student):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Any:
        return self.linear(pair[0]), (pair[1], self.linear(pair[0] + 1))


class Named(Student):
    def forward(self, point: Point) -> Point:
        return Point(self.linear(point.a), point.b + 1)


class Dicts(Student):
    def forward(self, d: dict[str, Any]) -> dict[str, Any]:
        return {"y": self.linear(d["x"]), "deep": {"z": [self.linear(d["in"]["w"])]}}


class Dataclasses(Student):
    def forward(self, batch: Batch) -> Result:
        hidden = self.linear(self.table(batch.ids))
        if batch.mask is not None:
            hidden = hidden * batch.mask[..., None]
        return Result(hidden, {"sum": hidden.sum(-1)})


class Optional(Student):
    def forward(self, x: Tensor, mask: Tensor | None = None, other: Tensor | None = None) -> Any:
        hidden = self.linear(x)
        return {"y": hidden if mask is None else hidden * mask, "none": other}


class Constants(Student):
    def forward(self, x: Tensor, k: int, f: float, flag: bool, mode: str = "a") -> Any:
        hidden = self.linear(x) * k + f
        return {
            "y": hidden if flag and mode == "a" else -hidden,
            "n": k,
            "mode": mode,
            "flag": flag,
        }


class Booleans(Student):
    def forward(self, ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(keep[..., None], self.linear(self.table(ids)), 0.0), keep.logical_not()


class Scalars(Student):
    def forward(self, x: Tensor, scale: Tensor) -> Any:
        return {"y": self.linear(x) * scale, "rows": x.shape[0]}


class Letters(Student):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.linear(x) @ self.linear(y).transpose(1, 2)


class Collects(Student):
    def forward(self, *xs: Tensor, gain: float = 1.0, **more: Tensor) -> Tensor:
        return self.linear(xs[0] + xs[1]) * gain + more["bias"]


class Nothing(Student):
    def forward(self) -> Tensor:
        return self.linear(self.table.weight)


@dataclass(frozen=True)
class Case:
    """One form of inputs and outputs, with the names that the ONNX file has."""

    student: type[Student]
    args: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    dynamic: Any = None
    rung: str = "dynamic"
    quick: bool = False


def x(*size: int) -> Tensor:
    return torch.randn(size or (3, 16), generator=torch.Generator().manual_seed(len(size)))


IDS, MASK = torch.ones(3, 4, dtype=torch.int64), torch.tensor([[True, False, True, True]] * 3)
CASES = [
    Case(Lists, ([x(), x()],), ("xs_0", "xs_1"), ("output_0", "output_1")),
    Case(Tuples, ((x(), x()),), ("pair_0", "pair_1"), ("output_0", "output_1_0", "output_1_1")),
    Case(Named, (Point(x(), x()),), ("point_a", "point_b"), ("a", "b")),
    Case(Dicts, ({"x": x(), "in": {"w": x()}},), ("d_x", "d_in_w"), ("y", "deep_z_0")),
    Case(Dataclasses, (Batch(IDS, MASK),), ("batch_ids", "batch_mask"), ("logits", "parts_sum")),
    Case(Dataclasses, (Batch(IDS),), ("batch_ids",), ("logits", "parts_sum"), quick=True),
    Case(Optional, (x(),), ("x",), ("y",)),
    Case(Optional, (x(), None), ("x",), ("y",), {"other": None}),
    Case(Optional, (x(),), ("x", "mask"), ("y",), {"mask": x()}),
    Case(Constants, (x(), 2, 0.5, True), ("x",), ("y",), {"mode": "a"}),
    Case(
        Booleans,
        (IDS, MASK),
        ("ids", "keep"),
        ("output_0", "output_1"),
        dynamic={"ids": ("B", "S"), "keep": ("B", "S")},
    ),
    Case(Scalars, (x(), torch.tensor(2.0)), ("x", "scale"), ("y",)),
    Case(
        Letters,
        (x(2, 5, 16), x(2, 7, 16)),
        ("x", "y"),
        ("output",),
        dynamic={"x": ("B", "S", 16), "y": ("B", "T", 16)},
    ),
    Case(
        Collects,
        (x(), x()),
        ("xs_0", "xs_1", "bias"),
        ("output",),
        {"gain": 2.0, "bias": x()},
        quick=True,
    ),
    Case(Collects, (x(1, 16), x(1, 16)), ("xs_0", "xs_1", "bias"), ("output",), {"bias": x(1, 16)}),
    Case(Nothing, (), (), ("output",), rung="static"),
]


def named(case: Case) -> str:
    return f"{case.student.__name__}-{len(case.inputs)}"


def quick_first(cases: list[Case]) -> list[Any]:
    return [pytest.param(c, id=named(c), marks=() if c.quick else pytest.mark.slow) for c in cases]


@pytest.mark.parametrize("case", quick_first(CASES))
def test_every_form_is_traced_expanded_trained_and_folded(case: Case, tmp_path: Path) -> None:
    student = case.student()
    traced = opdf.trace(student, case.args, case.kwargs, dynamic=case.dynamic)
    assert traced.rung == case.rung
    assert traced.input_names == case.inputs
    expanded = opdf.expand(traced, opdf.plan(traced, include=("linear.*",), cores=2))
    for phase in (True, False):
        agree(
            expanded.train(phase)(*case.args, **case.kwargs),
            student.train(phase)(*case.args, **case.kwargs),
        )
    loss = sum(
        leaf.sum()
        for leaf in tensors(expanded.train()(*case.args, **case.kwargs))
        if leaf.requires_grad
    )
    loss.backward()
    assert all(core.grad is not None for core in expanded.cores("linear.weight"))
    save_expanded(expanded, tmp_path / "student.pt2")
    assert {"model", "eval"} <= set(opdf_programs(tmp_path / "student.pt2"))
    torch.testing.assert_close(opdf.fold(expanded).linear.weight, student.linear.weight)


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(c, id=named(c)) for c in CASES])
def test_every_form_is_exported_with_its_names(case: Case, tmp_path: Path) -> None:
    import onnx

    untouched = case.student()
    student = copy.deepcopy(untouched)
    with torch.no_grad():
        student.linear.weight.mul_(1.01)
    options: Any = {"reference": untouched, "dynamic": case.dynamic}
    opdf.export_onnx(student, case.args, tmp_path / "out", case.kwargs, **options)
    graph = onnx.load(tmp_path / "out" / "student.onnx").graph
    assert tuple(value.name for value in graph.input) == case.inputs
    assert tuple(value.name for value in graph.output) == case.outputs
    free = {
        name
        for name, axes in opdf.trace(
            student, case.args, case.kwargs, dynamic=case.dynamic
        ).axis_names.items()
        if axes
    }
    dims = {v.name: [d.dim_param for d in v.type.tensor_type.shape.dim] for v in graph.input}
    assert {name for name, sizes in dims.items() if any(sizes)} == free
    report = opdf.verify(tmp_path / "out", only="structure,numerics")
    assert report.verdict == "pass", str(report)


def test_calls_by_other_ways_reach_the_inputs_of_args_and_kwargs() -> None:
    student = Collects().eval()
    traced = opdf.trace(student, (x(), x()), {"bias": x()})
    expanded = opdf.expand(traced, opdf.plan(traced, cores=3, include=("linear.*",))).eval()
    agree(expanded(x(5, 16), x(5, 16), bias=x(5, 16)), student(x(5, 16), x(5, 16), bias=x(5, 16)))
    with pytest.raises(
        opdf.UserError, match="the call gives xs_0, bias, .* traced with xs_0, xs_1, bias"
    ):
        expanded(x(), bias=x())
    assert "forward" not in vars(student)


def agree(found: Any, wanted: Any) -> None:
    left, right = pytree.tree_flatten(found), pytree.tree_flatten(wanted)
    assert left[1] == right[1]
    assert type(found) is type(wanted)
    for a, b in zip(left[0], right[0], strict=True):
        if isinstance(b, Tensor):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        else:
            assert a == b


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def opdf_programs(path: Path) -> dict[str, Any]:
    from opdf_compile.io.models.spec import load_model

    return load_model(str(path)).programs
