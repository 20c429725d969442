"""The default plan: no weight costs more than 1.25 times its own plain step, and each says why.

The oracles: FLOPs by hand, torch's counter over real forwards and backwards, and hooks that count
the rows that a layer sees.
"""

from __future__ import annotations

import functools
from logging import LogRecord
from typing import Any

import pytest
import torch
from quick import quick
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import opdf_compile as opdf
from opdf_compile.errors import PlanError
from opdf_compile.graph.rows import Match, Use
from opdf_compile.planning.affordable import affordable, assumed_rows
from opdf_compile.planning.entry import PlanEntry
from opdf_compile.planning.rules import Rules

USUAL = Rules.of(None).given[0]


def square(rows: int) -> Match:
    """A Linear of 64 x 64, whose bonds are the powers of 2."""
    use = Use("train", "linear", "aten.linear.default", flops=2 * rows * 64 * 64)
    return Match("weight", (64, 64), "float32", uses=(use,))


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        # The budget is a quarter of 6 R 64^2. Three cores of bond D compose at 6 (64^2 D + D^3),
        # two at 6 64^2 D, and fewer than 82 parameters more (2 %) are not worth it.
        (4096, (3, 64)),
        (512, (3, 64)),
        (511, (2, 64)),
        (256, (2, 64)),
        (255, (3, 32)),
        (160, (3, 32)),
        (159, (2, 32)),
        (128, (2, 32)),
        (127, (3, 16)),
        (68, (3, 16)),
        (67, (2, 16)),
        (64, (2, 16)),
        (63, (3, 8)),
        (33, (3, 8)),
        (32, None),
        (1, None),
    ],
)
def test_rows_decide_what_a_weight_gets(rows: int, wanted: tuple[int, int] | None) -> None:
    spec: Any = affordable([(square(rows), USUAL)]).get("weight")
    assert (spec and (len(spec.out_modes), max(spec.chain.bonds))) == wanted


def flops(work: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        work().sum().backward()
    return counter.get_total_flops()


LAYERS = {
    "linear": (nn.Linear(48, 64, bias=False), (256, 48), 256),
    "conv": (nn.Conv2d(8, 16, 3, padding=1, bias=False), (4, 8, 12, 12), 4 * 12 * 12),
    "strided": (nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), (9, 8, 12, 12), 9 * 36),
}


class Scaled(nn.Module):
    """A layer behind a trained number, so that a gradient goes to its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(self.scale * x)


@pytest.mark.parametrize(("first", "factor"), [(True, 4), (False, 6)])
@pytest.mark.parametrize("name", LAYERS)
def test_the_prediction_is_what_torch_counts(name: str, first: bool, factor: int) -> None:
    layer, shape, rows = LAYERS[name]
    model, x = layer if first else Scaled(layer), torch.randn(shape)
    plan = opdf.plan(opdf.trace(model, (x,)))
    (entry,) = plan.entries
    own = factor * rows * layer.weight.numel()
    assert plan.student_step_flops == own == flops(lambda: model(x))
    cores = [core.requires_grad_() for core in entry.decompose(layer.weight)]
    composed = flops(lambda: entry.compose(cores))
    assert plan.overhead == 1 + composed / own <= 1.25
    assert plan.request == {"overhead_per_weight": 1.25}
    # Nothing of the weight is lost, and it has more parameters.
    assert torch.allclose(entry.compose(cores), layer.weight, rtol=0, atol=1e-6)
    assert sum(core.numel() for core in cores) > layer.weight.numel()


def mlp() -> tuple[nn.Module, tuple[int, ...]]:
    layers = (nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return nn.Sequential(*layers), (64, 64)


@functools.cache
def small_batch() -> opdf.Traced:
    """One for all plans of it: planning changes no graph."""
    return opdf.trace(mlp()[0], (torch.zeros(2, 64),))


def timm_model(name: str, *shape: int) -> tuple[nn.Module, tuple[int, ...]]:
    from opdf_compile.io.torchvision_shim import prepare_torchvision

    prepare_torchvision()
    timm = pytest.importorskip("timm")
    return timm.create_model(name), shape


STUDENTS = {
    "mlp": mlp,
    "resnet18": lambda: timm_model("resnet18", 32, 3, 32, 32),
    "mobilenet": lambda: timm_model("mobilenetv3_small_100", 16, 3, 64, 64),
    "vit": lambda: timm_model("vit_tiny_patch16_224", 2, 3, 224, 224),
}


def rows_seen(model: nn.Module, x: Tensor) -> dict[str, int]:
    """How many rows each layer sees, by the name of its weight, in the order of the forward."""
    rows: dict[str, int] = {}

    def see(name: str, layer: nn.Module, output: Tensor) -> None:
        size = output.shape[1] if isinstance(layer, nn.Conv2d) else output.shape[-1]
        rows[f"{name}.weight"] = output.numel() // size

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(lambda m, _i, o, name=name: see(name, m, o))
    with torch.no_grad():
        model.eval()(x)
    return rows


def composed(entry: PlanEntry) -> int:
    """FLOPs of the cheaper order of two or three cores, and of its backward."""
    spec: Any = entry.spec
    sizes = [i * j for i, j in zip(spec.out_modes, spec.in_modes, strict=True)]
    bonds = spec.chain.bonds
    whole = [bonds[k] * sizes[k] * bonds[k + 1] for k in range(len(sizes))]
    if len(sizes) == 2:
        return 6 * whole[0] * sizes[1]
    first = whole[0] * sizes[1] * bonds[2] + sizes[0] * sizes[1] * bonds[2] * sizes[2]
    last = whole[1] * sizes[2] + sizes[0] * bonds[1] * sizes[1] * sizes[2]
    return 6 * min(first, last)


@pytest.mark.parametrize("name", quick(["mlp", "resnet18", "mobilenet", "vit"], {"mlp"}))
def test_every_weight_keeps_its_limit(name: str) -> None:
    model, shape = STUDENTS[name]()
    x = torch.zeros(shape)
    plan = opdf.plan(opdf.trace(model, (x,), phases=("train",)))
    rows = rows_seen(model, x)
    first = next(iter(rows))
    assert {e.key for e in plan.entries} | {r.key for r in plan.refusals} == set(rows)
    for entry in plan.entries:
        assert composed(entry) == entry.cost.step_flops
        # No gradient goes to the input of the first layer.
        own = (4 if entry.key == first else 6) * rows[entry.key] * entry.deployed
        assert composed(entry) <= 0.25 * own
        assert entry.cost.added >= 0.02 * entry.deployed
    assert plan.overhead is not None and 1 < plan.overhead <= 1.25
    for refusal in plan.refusals:
        assert refusal.reason == (
            f"sees {rows[refusal.key]:,} rows of the example batch, too few for a useful chain at "
            "or below 1.25 times its own plain step"
        )


def test_what_is_left_alone_stands_under_the_table() -> None:
    model, shape = mlp()
    plan = opdf.plan(opdf.trace(model, (torch.zeros(shape),)))
    assert [entry.key for entry in plan.entries] == ["4.weight"]
    said = (
        "left alone (sees 64 rows of the example batch, too few for a useful chain at or below "
        "1.25 times its own plain step): 0.weight, 2.weight"
    )
    assert str(plan).splitlines()[-1] == said and said in plan._repr_html_()
    opt = opdf.Overparam(model, torch.optim.SGD, lr=0.1, plan=plan)
    assert str(opt.summary()).count("0.weight sees 64 rows of the example batch") == 1


def test_a_long_list_is_cut() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(11)), nn.Linear(8, 64))
    plan = opdf.plan(opdf.trace(model, (torch.zeros(512, 8),)), include=["11.*"])
    assert plan.left() == [
        "left alone (is not named by include): 0.weight, 1.weight, 2.weight, 3.weight, 4.weight, "
        "5.weight, 6.weight, 7.weight and 3 more"
    ]


def warned(caplog: pytest.LogCaptureFixture) -> list[LogRecord]:
    return [
        one for one in caplog.records if (one.name, one.levelname) == ("opdf_compile", "WARNING")
    ]


def test_an_example_in_which_no_weight_fits_is_one_to_trace_with(
    caplog: pytest.LogCaptureFixture,
) -> None:
    traced = opdf.trace(nn.Linear(64, 64), (torch.zeros(2, 64),))
    found = opdf.plan(traced)
    assert found.to_json() == opdf.plan(traced, cores=3).to_json()
    (record,) = warned(caplog)
    assert record.getMessage() == (
        "none of the weights to plan sees enough rows of the example batch for a chain at or below "
        "1.25 times its own plain step, so each gets 3 cores, as if the example were one to trace "
        "with; trace with the batch that you train with for a plan that fits it, or say cores=3 if "
        "that is what you want"
    )
    with pytest.raises(PlanError, match="no weight is left to plan"):
        opdf.plan(traced, min_size=64 * 64 + 1)


def test_weights_that_are_left_out_do_not_count_as_seeing_enough_rows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A batch pays for the head's chain; it pays for none of the layer that alone is named."""
    model, shape = mlp()
    traced = opdf.trace(model, (torch.zeros(shape),))
    assert [entry.key for entry in opdf.plan(traced).entries] == ["4.weight"]
    assert not warned(caplog)
    named = opdf.plan(traced, include=["0.*"])
    assert named.entries == opdf.plan(traced, cores=3, include=["0.*"]).entries
    (record,) = warned(caplog)
    assert record.getMessage().startswith("none of the weights to plan sees enough rows of ")


@pytest.mark.parametrize(
    "asked",
    [
        {"cores": 3},
        {"cores": 2},
        {"parametrization": "mpo"},
        {"parametrization": "mpo(cores=4)"},
        {"rules": {"*": "mpo"}},
        {"scale": 1.5},
    ],
    ids=str,
)
def test_what_is_named_is_what_it_says_whatever_it_costs(asked: dict[str, Any]) -> None:
    traced = small_batch()
    small = opdf.plan(traced, **asked)
    assert small.entries == opdf.plan(traced.source, **asked).entries
    assert len(small.entries) == 3 and small.overhead is not None and small.overhead > 50


def test_without_a_batch_the_summary_and_the_log_say_what_is_assumed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))
    with caplog.at_level("INFO", logger="opdf_compile"):
        opt = opdf.Overparam(model, torch.optim.SGD, lr=0.1)
    # 12 x 64^3 FLOPs of compose against a quarter of 6 x 64^2 for each row.
    said = (
        "no example batch is known, so each weight is assumed to see enough rows in a step: with "
        "fewer than 512 rows 0.weight takes more than 1.25 times its own plain step; give "
        "plan=opdf.plan(opdf.trace(student, (batch,))) to fit the plan to a batch"
    )
    assert said in opt.summary().lines()
    assert [r.message for r in caplog.records].count(said) == 1
    assert assumed_rows(opdf.plan(model, parametrization="hyperball")) is None
    assert assumed_rows(opdf.plan(opdf.trace(model, (torch.zeros(512, 64),)))) is None
