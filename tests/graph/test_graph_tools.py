"""Names, FLOPs, dumps, edits and shared tensors, each against an answer written by hand."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.utils.flop_counter import FlopCounterMode

from opdf_compile.graph.dump import dump
from opdf_compile.graph.edit import attribute, is_persistent, set_attribute
from opdf_compile.graph.flops import forward_flops, step_flops
from opdf_compile.graph.recorded import recorded_inputs
from opdf_compile.graph.sharing import deep_copy, memory_key, unify
from opdf_compile.graph.signature import output_names, plain_spec
from opdf_compile.graph.tracing import trace

Point = namedtuple("Point", ["x", "y"])


@dataclass
class Output:
    """A dataclass that torch.export knows."""

    logits: Tensor
    loss: Tensor | None = None


torch.export.register_dataclass(Output, serialized_type_name="test_graph_tools.Output")
T = torch.zeros(1)


@pytest.mark.parametrize(
    ("value", "names", "plain"),
    [
        (T, ["output"], T),
        ((T, T), ["output_0", "output_1"], (T, T)),
        ({"a.b": T, "c": [T, T]}, ["a_b", "c_0", "c_1"], {"a.b": T, "c": [T, T]}),
        (OrderedDict(a=T), ["a"], {"a": T}),
        (Point(T, (T,)), ["x", "y_0"], (T, (T,))),
        (Output(T), ["logits"], {"logits": T}),
        (Output(T, T), ["logits", "loss"], {"logits": T, "loss": T}),
    ],
    ids=str,
)
def test_output_names_and_plain_outputs(value: object, names: list[str], plain: object) -> None:
    leaves, spec = pytree.tree_flatten(value)
    assert output_names(spec) == names
    assert pytree.tree_unflatten(leaves, plain_spec(spec)) == plain


def test_a_registered_dataclass_is_traced() -> None:
    class Returns(nn.Module):
        def forward(self, x: Tensor) -> Output:
            return Output(x + 1)

    traced = trace(Returns(), (torch.randn(2, 2),))
    assert traced.output_names == ("logits",)
    assert isinstance(traced.graphs["eval"](torch.ones(3, 2)), Output)


def test_dump_of_a_small_model() -> None:
    traced = trace(nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5)), (torch.randn(2, 8),))
    assert dump(traced.graphs["train"], shapes=False).splitlines() == [
        "%0 : get_attr 0.weight",
        "%1 : get_attr 0.bias",
        "%2 : placeholder input",
        "%3 : aten.linear.default(%2, %0, %1)",
        "%4 : aten.dropout.default(%3, 0.5, True)",
        "return (%4)",
    ]
    shaped = dump(traced.graphs["eval"]).splitlines()
    assert shaped[0] == "%0 : get_attr 0.weight [4, 8] float32"
    assert re.fullmatch(
        r"%4 : aten\.dropout\.default\(%3, 0\.5, False\) \[s\d+, 4\] float32", shaped[4]
    )


def test_dump_indents_nested_graphs() -> None:
    class NoGrad(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.linear(x)

    lines = dump(trace(NoGrad(), (torch.randn(2, 4),)).graphs["eval"], shapes=False).splitlines()
    nested = [line for line in lines if line.startswith("    ")]
    assert any("aten.linear.default" in line for line in nested)
    assert nested[-1].strip().startswith("return ")


class InRegions(nn.Module):
    """Two layers in a nested graph, and one that sees what is detached from them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.second(self.first(x))
        return y, self.third(y.detach().float())


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), (5, 8)),
        (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(6, 4, 2)), (2, 4, 7, 7)),
        # Of attention a whole step is counted below.
        pytest.param(
            *(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (2, 5, 16)),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_flops_agree_with_the_counter_of_torch(model: nn.Module, size: tuple[int, ...]) -> None:
    x = torch.randn(size)
    graph = trace(model, (x,)).graphs["train"]
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert forward_flops(graph) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), (5, 8)),
        # Without groups, which the counter leaves out of a kernel's gradient.
        (nn.Sequential(nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(6, 4, 2)), (2, 4, 7, 7)),
        (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (2, 5, 16)),
        (
            nn.Sequential(
                nn.Linear(8, 6).requires_grad_(False),
                nn.Linear(6, 3),
                nn.Linear(3, 5).requires_grad_(False),
            ),
            (5, 8),
        ),
        (InRegions(), (5, 8)),
    ],
    ids=["linear", "convolution", "transformer", "frozen", "regions"],
)
def test_flops_of_a_step_agree_with_the_counter_of_torch(
    model: nn.Module, size: tuple[int, ...]
) -> None:
    """No gradient goes to the input of the first layer, nor through what is frozen or detached."""
    x = torch.randn(size)
    graph = trace(model, (x,)).graphs["train"]
    with FlopCounterMode(display=False) as counter:
        sum(part.sum() for part in pytree.tree_leaves(model(x))).backward()
    assert step_flops(graph) == counter.get_total_flops() < 3 * forward_flops(graph)


def test_flops_of_products_between_activations() -> None:
    class Scores(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.bmm(x, x.transpose(1, 2))

    x = torch.randn(3, 4, 5)
    assert forward_flops(trace(Scores(), (x,)).graphs["eval"]) == 2 * 3 * 4 * 4 * 5


def test_flops_of_nested_graphs_count() -> None:
    class NoGrad(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            with torch.no_grad():
                return super().forward(input)

    assert forward_flops(trace(NoGrad(8, 4), (torch.randn(2, 8),)).graphs["train"]) == 2 * 2 * 8 * 4


def test_register_makes_containers_and_keeps_the_kind() -> None:
    root = nn.Module()
    set_attribute(root, "a.b.w", nn.Parameter(torch.ones(2)))
    set_attribute(root, "a.b.t", torch.zeros(2), persistent=False)
    set_attribute(root, "a.c", nn.Linear(2, 2))
    set_attribute(root, "a.n", 3)
    assert list(root.state_dict()) == ["a.b.w", "a.c.weight", "a.c.bias"]
    assert not is_persistent(root, "a.b.t")
    assert attribute(root, "a.n") == 3
    assert attribute(root, "a.missing.deep") is None


def test_tensors_on_one_memory_are_one() -> None:
    base = torch.randn(4, 4)
    assert memory_key(base) == memory_key(base.view(4, 4))
    assert memory_key(base) != memory_key(base.t())
    assert memory_key(base) != memory_key(base[1:])
    assert memory_key(base) != memory_key(base.clone())
    assert memory_key(torch.empty(0)) is None
    assert memory_key(torch.empty(2, device="meta")) is None


def test_unify_ties_by_name_and_by_memory() -> None:
    first = symbolic_trace(nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)))
    second = copy.deepcopy(first)
    shared = nn.Parameter(first.get_parameter("0.weight").detach())
    first.get_submodule("1").weight = shared
    unify([first, second])
    weights = {id(p) for graph in (first, second) for p in graph.parameters()}
    assert len(weights) == 1
    separate = symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    unify([separate])
    assert separate.get_parameter("0.weight") is not separate.get_parameter("1.weight")


@pytest.mark.filterwarnings("ignore")
def test_deep_copy_takes_what_autograd_computed() -> None:
    model = nn.utils.weight_norm(nn.Linear(4, 4))
    x = torch.randn(2, 4)
    wanted = model(x)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    copied = deep_copy(model)
    torch.testing.assert_close(copied(x), wanted)
    assert copied.weight_g is not model.weight_g


def test_a_program_without_examples_gives_inputs_of_its_shapes(tmp_path: Path) -> None:
    ids = torch.ones(2, 3, dtype=torch.int64)
    program = trace(nn.Embedding(5, 4), (ids,)).programs["eval"]
    program.example_inputs = None
    (drawn,), kwargs = recorded_inputs(program)
    assert (drawn.shape, drawn.dtype, kwargs) == (ids.shape, torch.int64, {})
    program = trace(nn.Linear(5, 4), (torch.randn(2, 5),)).programs["eval"]
    program.example_inputs = None
    first, second = recorded_inputs(program)[0][0], recorded_inputs(program)[0][0]
    assert torch.equal(first, second)
