"""trace: both phases over one set of parameters, names, dynamic axes, the ladder, its errors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from opdf_compile.errors import InputError, TraceError
from opdf_compile.graph.tracing import PHASES, trace


def block() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))


class Attention(nn.Module):
    """Two named inputs, a keyword-only one, and an output with keys."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 3)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, scale: float = 1.0
    ) -> dict[str, Tensor]:
        hidden = self.table(input_ids) * scale
        if attention_mask is not None:
            hidden = hidden * attention_mask.unsqueeze(-1)
        return {"logits": self.head(hidden), "last_hidden_state": hidden}


def test_graphs_share_parameters_and_buffers_with_the_source() -> None:
    model = block()
    traced = trace(model, (torch.randn(4, 8),))
    for phase in PHASES:
        graph = traced.graphs[phase]
        for name, parameter in model.named_parameters():
            assert graph.get_parameter(name) is parameter
        for name, buffer in model.named_buffers():
            assert graph.get_buffer(name) is buffer


def test_phases_differ_in_dropout_and_batch_norm() -> None:
    model = block()
    traced = trace(model, (torch.randn(4, 8),))
    x = torch.randn(16, 8)
    model.eval()
    torch.testing.assert_close(traced.graphs["eval"](x), model(x))
    assert not torch.allclose(traced.graphs["train"](x), traced.graphs["train"](x))


def test_trace_leaves_the_model_the_inputs_and_the_random_state_as_they_were() -> None:
    model = block().train()
    model[1].eval()
    flags = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    ids = [id(parameter) for parameter in model.parameters()]
    x = torch.randn(4, 8)
    before = torch.get_rng_state()
    trace(model, (x,))
    assert torch.equal(before, torch.get_rng_state())
    assert [module.training for module in model.modules()] == flags
    assert ids == [id(parameter) for parameter in model.parameters()]
    assert vars(x) == {}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_a_batch_norm_frozen_by_the_caller_stays_in_eval_in_the_train_graph() -> None:
    model = block().train()
    model[1].eval()
    traced = trace(model, (torch.randn(4, 8),))
    before = model[1].running_mean.clone()
    traced.graphs["train"](torch.randn(16, 8) + 5)
    assert torch.equal(model[1].running_mean, before)
    assert model[1].num_batches_tracked == 0
    # The control: without the flag the same graph moves its statistics.
    model[1].train()
    trace(model, (torch.randn(4, 8),)).graphs["train"](torch.randn(16, 8) + 5)
    assert model[1].num_batches_tracked == 1


def test_an_example_of_batch_one_keeps_the_batch_dynamic() -> None:
    traced = trace(nn.Linear(8, 4), (torch.randn(1, 8),))
    assert (traced.rung, traced.notes) == ("dynamic", ())
    assert traced.axis_names == {"input": {0: "batch_size"}}
    for batch in (1, 2, 7):
        assert traced.graphs["eval"](torch.randn(batch, 8)).shape == (batch, 4)
    args, _kwargs = traced.example()
    assert args[0].shape == (2, 8)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5)), {}),
        ((torch.ones(2, 5, dtype=torch.int64),), {"attention_mask": torch.ones(2, 5)}),
        (
            {"input_ids": torch.ones(2, 5, dtype=torch.int64), "attention_mask": torch.ones(2, 5)},
            {},
        ),
    ],
)
def test_names_come_from_forward_and_from_the_output(args: object, kwargs: dict) -> None:
    traced = trace(Attention(), args, kwargs)
    assert traced.input_names == ("input_ids", "attention_mask")
    assert traced.output_names == ("logits", "last_hidden_state")


def test_letters_name_axes_and_numbers_fix_them() -> None:
    batch = {"input_ids": torch.ones(2, 6, dtype=torch.int64), "attention_mask": torch.ones(2, 6)}
    both = {"input_ids": ("B", "S"), "attention_mask": ("B", "S")}
    traced = trace(Attention(), batch, dynamic=both)
    assert traced.axis_names == {name: {0: "B", 1: "S"} for name in both}
    shapes = [
        tuple(map(str, node.meta["val"].shape))
        for node in traced.programs["eval"].graph.nodes
        if node.op == "placeholder" and node.name in both
    ]
    assert shapes[0] == shapes[1], "equal letters are one symbol where the model joins them"
    fixed = trace(Attention(), batch, dynamic=dict.fromkeys(both, ("B", 6)))
    assert fixed.axis_names == {name: {0: "B"} for name in both}
    assert trace(Attention(), batch, dynamic=False).axis_names == {name: {} for name in both}


def test_nested_inputs_are_named_by_their_path() -> None:
    class Nested(nn.Module):
        def forward(self, states: dict, count: int) -> dict:
            total = states["a"] + states["b"][0]
            return {"sum": total, "parts": (states["a"][:count],)}

    x = torch.randn(3, 4)
    traced = trace(Nested(), ({"a": x, "b": [x]}, 2))
    assert traced.input_names == ("states_a", "states_b_0")
    assert traced.output_names == ("sum", "parts_0")


def test_outputs_of_tuples_and_lone_tensors() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, x + 2

    assert trace(Pair(), (torch.randn(2, 2),)).output_names == ("output_0", "output_1")
    assert trace(nn.ReLU(), torch.randn(2, 2)).output_names == ("output",)


class Fixes(nn.Module):
    """forward takes one batch only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(4, 8))


class Broadcasts(nn.Module):
    """The second input has one row: widening it to two breaks forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.linear(x) * scale.expand(1)


def test_a_model_that_fixes_its_batch_falls_to_a_lower_rung_and_says_so() -> None:
    traced = trace(Fixes(), (torch.randn(4, 8),))
    assert traced.rung == "auto"
    assert traced.notes == (
        "axis 0 (batch_size) of x is fixed at 4: the model does not allow another size there",
    )
    assert traced.axis_names == {"x": {}}


def test_one_axis_that_cannot_be_widened_leaves_the_others_dynamic() -> None:
    traced = trace(Broadcasts(), (torch.randn(3, 8), torch.ones(1)))
    assert traced.rung == "auto-given"
    assert traced.axis_names == {"x": {0: "batch_size"}, "scale": {}}
    assert "axis 0 (scale_axis_0) of scale is fixed at 1" in traced.notes[-1]
    assert traced.graphs["eval"](torch.randn(5, 8), torch.ones(1)).shape == (5, 8)


def test_the_static_rung_is_static() -> None:
    class OneBatch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] != 1:
                raise ValueError("one row only")
            return x * 2

    traced = trace(OneBatch(), (torch.randn(1, 8),))
    assert traced.rung == "static"
    assert traced.axis_names == {"x": {}}
    assert "the rung 'auto' did not hold: one row only, at test_trace.py:" in traced.notes[0]
    assert "is fixed at 1" in traced.notes[-1]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else x


def test_a_failed_rung_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert trace(Branches(), (torch.randn(4, 8),)).rung == "module"
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("model", "args", "dynamic", "error", "sentence"),
    [
        (
            nn.Linear(8, 8),
            (torch.randn(4, 7),),
            None,
            TraceError,
            r"Linear rejects the example inputs input=4x7:float32 \(RuntimeError: mat1 and mat2 .*"
            r"correct their shapes and dtypes",
        ),
        (
            nn.Linear(8, 8),
            (torch.randn(4, 8), torch.randn(1)),
            None,
            InputError,
            r"do not fit forward\(input: torch.Tensor\).*: too many positional arguments; name the",
        ),
        (
            nn.Linear(8, 8),
            (),
            None,
            InputError,
            r"needs inputs and no example was given, wanted one for input; .* --input input=2x3",
        ),
        (
            nn.Linear(8, 8),
            {"x": torch.randn(4, 8)},
            None,
            InputError,
            r"do not fit forward.*; name the inputs as forward names them",
        ),
        (
            nn.Linear(8, 8),
            (torch.randn(4, 8),),
            {"x": ("B", 8)},
            InputError,
            r"dynamic names the input 'x', the tensor inputs are input; use one of these names",
        ),
        (
            nn.Linear(8, 8),
            (torch.randn(4, 8),),
            {"input": ("B",)},
            InputError,
            r"dynamic gives 1 axes for 'input', the example has 2; give one letter or number per",
        ),
        (
            nn.Linear(8, 8),
            "text",
            None,
            InputError,
            r"example inputs are a str, wanted a tuple .*; pass \(x,\) or \{'x': x\}",
        ),
        (
            "model",
            (),
            None,
            TraceError,
            r"the model is a str, wanted a torch.nn.Module or a torch.export.ExportedProgram",
        ),
        (
            {"eval": None},
            (),
            None,
            TraceError,
            r"the archive holds the programs eval, wanted one called 'model'",
        ),
    ],
)
def test_errors(
    model: object, args: object, dynamic: object, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        trace(model, args, dynamic=dynamic)  # type: ignore[arg-type]


def test_a_batch_and_kwargs_that_clash() -> None:
    with pytest.raises(InputError, match="the batch and kwargs both give 'input'"):
        trace(nn.Linear(8, 8), {"input": torch.randn(2, 8)}, {"input": torch.randn(2, 8)})


def test_a_program_is_taken_as_it_is() -> None:
    model = block().eval()
    shapes = {"input": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(model, (torch.randn(3, 8),), dynamic_shapes=shapes, strict=False)
    traced = trace(program)
    assert traced.source is program
    assert traced.rung == "given"
    assert traced.notes == ("one program: its graph serves train and eval alike",)
    assert traced.input_names == ("input",)
    assert traced.axis_names == {"input": {0: "batch_size"}}
    named = trace(program, dynamic={"input": ("rows", 8)})
    assert named.axis_names == {"input": {0: "rows"}}
    x = torch.randn(5, 8)
    torch.testing.assert_close(traced.graphs["train"](x), model(x))


def test_programs_of_two_phases_become_one_set_of_parameters() -> None:
    model = block()
    first = trace(model, (torch.randn(4, 8),))
    apart = {
        name: copy.deepcopy(first.programs[phase])
        for name, phase in (("model", "train"), ("eval", "eval"))
    }
    traced = trace(apart)
    for name, _parameter in model.named_parameters():
        shared = traced.graphs["train"].get_parameter(name)
        assert shared is traced.graphs["eval"].get_parameter(name)


def test_constants_of_one_name_stay_apart_when_programs_are_joined() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            factor = torch.tensor(2.0) if self.training else torch.tensor(3.0)
            return self.linear(x) * factor

    model = Scaled()
    first = trace(model, (torch.randn(4, 8),))
    traced = trace({"model": first.programs["train"], "eval": first.programs["eval"]})
    x = torch.randn(5, 8)
    torch.testing.assert_close(traced.graphs["train"](x), model.linear(x) * 2)
    torch.testing.assert_close(traced.graphs["eval"](x), model.linear(x) * 3)
