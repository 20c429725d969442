"""Parts of one form composed together: what is of one form, and that the batch is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from quick import covering
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from opdf_compile.errors import InputError, PlanError
from opdf_compile.parametrizations.registry import registered
from opdf_compile.passes.batch import batched, form, group
from opdf_compile.passes.hoist import ProgramPart, program_parts, weight_program
from opdf_compile.planning.choose import plan
from opdf_compile.planning.plans import Plan
from opdf_compile.training.hoisted import batching
from opdf_compile.training.hoisted.batching import make_units
from opdf_compile.training.hoisted.binding import Bound

Makes = Callable[[str], Any]


class Layers(nn.Module):
    """Twins of every kind: linear, convolution, grouped convolution; and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(12, 8) for _ in range(3))
        self.wide = nn.Linear(8, 12)
        self.conv = nn.ModuleList(nn.Conv2d(8, 12, 3) for _ in range(2))
        self.grouped = nn.ModuleList(nn.Conv2d(8, 12, 3, groups=4) for _ in range(2))


def parts_of(model: nn.Module, made: Plan) -> tuple[tuple[ProgramPart, ...], dict[str, Tensor]]:
    cores: dict[str, Tensor] = {}
    for entry in made.entries:
        weight = model.get_parameter(entry.key).detach()
        values = registered(entry.parametrization).decompose(weight, entry.spec)
        cores.update(zip(entry.core_names, values, strict=True))
    return program_parts(weight_program(made), [entry.key for entry in made.entries]), cores


def together(_part: ProgramPart) -> None:
    return None


def keys(groups: list[tuple[ProgramPart, ...]]) -> list[list[str]]:
    return [[key for part in members for key in part.keys] for members in groups]


@pytest.fixture
def layers() -> Layers:
    return Layers()


def test_parts_of_one_form_come_together_in_order(layers: Layers) -> None:
    parts, cores = parts_of(layers, plan(layers, cores=3, min_size=1))
    assert keys(group(parts, cores, together)) == [
        ["linear.0.weight", "linear.1.weight", "linear.2.weight"],
        ["wide.weight"],
        ["conv.0.weight", "conv.1.weight"],
        ["grouped.0.weight", "grouped.1.weight"],
    ]


def test_what_separates_keeps_apart(layers: Layers) -> None:
    parts, cores = parts_of(layers, plan(layers, cores=3, min_size=1))
    found = keys(group(parts, cores, lambda part: part.keys[0] == "linear.1.weight"))
    assert found[:2] == [["linear.0.weight", "linear.2.weight"], ["linear.1.weight"]]


def test_dtypes_devices_and_shapes_keep_apart(layers: Layers) -> None:
    parts, cores = parts_of(layers, plan(layers, include=["linear.*"], cores=3, min_size=1))
    first, second, third = parts
    assert form(first, cores) == form(second, cores)
    for change in (Tensor.double, lambda c: c.to("meta"), lambda c: c[..., None]):
        other = {**cores, **{name: change(cores[name]) for name in second.cores}}
        assert form(first, other) != form(second, other)
        assert keys(group(parts, other, together)) == [
            ["linear.0.weight", "linear.2.weight"],
            ["linear.1.weight"],
        ]
    assert third.keys == ("linear.2.weight",)


def test_equal_shapes_with_other_ops_keep_apart(layers: Layers) -> None:
    """The same cores, and a weight stored the other way round or in another dtype."""
    (one,), cores = parts_of(layers, plan(layers, include=["linear.0.weight"], cores=2))
    for place, value in ((2, torch.float16), (0, torch.ops.aten.neg.default)):
        graph = Graph()
        mapped: dict[Any, Any] = {}
        graph.output(graph.graph_copy(one.graph, mapped))
        cast = [node for node in graph.nodes if node.op == "call_function"][-1]
        if place:
            cast.args = (cast.args[0], value)
        else:
            cast.target, cast.args = value, (cast.args[0],)
        other = ProgramPart(graph, ("other",), one.cores)
        assert form(other, cores) != form(one, cores)


def test_names_do_not_tell_forms_apart(layers: Layers) -> None:
    (one,), cores = parts_of(layers, plan(layers, include=["linear.0.weight"], cores=2))
    graph = Graph()
    graph.output(graph.graph_copy(one.graph, {}))
    for index, node in enumerate(graph.nodes):
        node.name = f"renamed_{index}"
    assert form(ProgramPart(graph, ("other",), one.cores), cores) == form(one, cores)


def test_a_part_of_several_weights_is_never_batched() -> None:
    program = Graph()
    s = program.get_attr("s")
    a = program.call_function(torch.ops.aten.neg.default, (s,))
    b = program.call_function(torch.ops.aten.abs.default, (s,))
    program.output((a, b))
    (part,) = program_parts(program, ["a", "b"])
    assert form(part, {"s": torch.zeros(2)}) == ("a", "b")


@pytest.mark.parametrize(("which", "cores"), covering(["linear", "conv", "grouped"], [2, 3, 5]))
def test_the_batch_equals_one_by_one(layers: Layers, which: str, cores: int) -> None:
    """Values and gradients in float64, to the rounding of sums taken in another order."""
    layers.double()
    made = plan(layers, include=[f"{which}.*"], cores=cores, min_size=1)
    parts, values = parts_of(layers, made)
    values = {n: torch.randn_like(v).requires_grad_() for n, v in values.items()}
    together_graph = GraphModule(nn.Module(), batched(parts[0], len(parts), values))
    stacks = [
        torch.stack([values[part.cores[k]].detach() for part in parts]).requires_grad_()
        for k in range(cores)
    ]
    (stacked,) = together_graph(*stacks)
    single = [
        GraphModule(nn.Module(), part.graph)(*(values[name] for name in part.cores))[0]
        for part in parts
    ]
    torch.testing.assert_close(stacked, torch.stack(single), rtol=1e-13, atol=1e-13)
    cotangent = torch.randn_like(stacked)
    found = torch.autograd.grad(stacked, stacks, cotangent)
    names = [name for part in parts for name in part.cores]
    wanted = dict(
        zip(
            names,
            torch.autograd.grad(torch.stack(single), [values[n] for n in names], cotangent),
            strict=True,
        )
    )
    for k, gradient in enumerate(found):
        rows = torch.stack([wanted[part.cores[k]] for part in parts])
        torch.testing.assert_close(gradient, rows, rtol=1e-12, atol=1e-12)
    # The checker can fail: the rows are not one another's.
    assert not torch.allclose(stacked, stacked.roll(1, 0))


def test_the_batch_is_batched_products_and_no_loop(layers: Layers) -> None:
    parts, cores = parts_of(layers, plan(layers, include=["linear.*"], cores=3, min_size=1))
    targets = [
        str(node.target) for node in batched(parts[0], 3, cores).nodes if node.op == "call_function"
    ]
    assert targets.count("aten.bmm.default") == 2
    assert not any("unbind" in target or "aten.mm" in target for target in targets)


@pytest.mark.parametrize("name", ["power", "triangles", "bitcast"])
def test_parametrizations_of_users_are_batched(made: Makes, name: str) -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(5, 6))
    parts, cores = parts_of(model, made(name).plan(model, "0.weight", "1.weight"))
    (members,) = group(parts, cores, together)
    graph = GraphModule(nn.Module(), batched(parts[0], 2, cores))
    stacks = [
        torch.stack([cores[part.cores[k]] for part in members]) for k in range(len(parts[0].cores))
    ]
    (stacked,) = graph(*stacks)
    torch.testing.assert_close(stacked[0], model[0].weight.detach())
    torch.testing.assert_close(stacked[1], model[1].weight.detach())


def test_the_callers_autocast_does_not_enter_a_batch(layers: Layers) -> None:
    parts, cores = parts_of(layers, plan(layers, include=["linear.*"], cores=3, min_size=1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        graph = batched(parts[0], 3, cores)
    assert "bfloat16" not in str(graph)


# What vmap cannot take.


def pair_of_refused() -> tuple[nn.Module, tuple[ProgramPart, ...], dict[str, Tensor]]:
    """Two parts of one form with an op whose result has no fixed shape."""
    program = Graph()
    weights = []
    for layer in range(2):
        core = program.get_attr(f"{layer}.weight_cores.0")
        kept = program.call_function(torch.ops.aten.nonzero.default, (core,))
        some = program.call_function(torch.ops.aten.select.int, (kept, 1, 0))
        weights.append(program.call_function(torch.ops.aten.to.dtype, (some, torch.float32)))
    program.output(tuple(weights))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    cores = {f"{layer}.weight_cores.0": torch.ones(4) for layer in range(2)}
    return model, program_parts(program, ["0.weight", "1.weight"]), cores


def test_what_vmap_cannot_take_is_a_sentence() -> None:
    _model, parts, cores = pair_of_refused()
    with pytest.raises(
        PlanError,
        match=r"'0.weight' cannot be composed in a batch \(.+\), wanted "
        r"ops that torch.vmap takes; give batched=False",
    ):
        batched(parts[0], 2, cores)


def test_auto_falls_back_to_one_by_one_and_true_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, parts, cores = pair_of_refused()
    made = plan(model, min_size=1)
    bounds = {entry.key: Bound(model, entry) for entry in made.entries}
    with caplog.at_level("INFO", logger="opdf_compile"):
        units = make_units(parts, made, cores, bounds, batched="auto")
    assert [unit.keys for unit in units] == [("0.weight",), ("1.weight",)]
    assert "composed one by one" in caplog.text
    with pytest.raises(PlanError, match="cannot be composed in a batch"):
        make_units(parts, made, cores, bounds, batched=True)


# Which parts are batched.


@pytest.fixture(params=["SMALL", "LARGE"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything is too much, in FLOPs or in entries."""
    monkeypatch.setattr(batching, request.param, 0)
    yield


def units_of(model: nn.Module, wanted: Any) -> list[tuple[str, ...]]:
    made = plan(model, cores=3, min_size=1)
    parts, cores = parts_of(model, made)
    bounds = {entry.key: Bound(model, entry) for entry in made.entries}
    return [unit.keys for unit in make_units(parts, made, cores, bounds, batched=wanted)]


def test_batched_true_false_and_auto(layers: Layers) -> None:
    assert [len(keys) for keys in units_of(layers, True)] == [3, 1, 2, 2]
    assert [len(keys) for keys in units_of(layers, "auto")] == [3, 1, 2, 2]
    assert [len(keys) for keys in units_of(layers, False)] == [1] * 8


@pytest.mark.usefixtures("small")
def test_auto_leaves_large_weights_alone(layers: Layers) -> None:
    assert [len(keys) for keys in units_of(layers, "auto")] == [1] * 8
    assert [len(keys) for keys in units_of(layers, True)] == [3, 1, 2, 2]


@pytest.mark.parametrize("wrong", ["yes", None, 2])
def test_other_values_of_batched_are_refused(layers: Layers, wrong: Any) -> None:
    with pytest.raises(InputError, match=rf"batched is {wrong!r}, wanted True, False or 'auto'"):
        units_of(layers, wrong)
