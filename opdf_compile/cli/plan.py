"""`opdf-compile plan`: decide, print and write which weight gets which chain, at which cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opdf_compile.cli import options as o
from opdf_compile.cli.formats import count, dimensions, table
from opdf_compile.cli.loading import ModelOptions, ladder, load_traced, rules_given, usual_cores
from opdf_compile.cli.terminal import opened

if TYPE_CHECKING:
    from rich.table import Table

    from opdf_compile.planning import Plan

NAME = "plan"
EXAMPLES = (
    "$ opdf-compile plan 'timm:resnet18?num_classes=10' -o plan.json --scale 2\n\n"
    "$ opdf-compile plan student.pt2 -o plan.json --cores 3 --exclude 'head.*'\n\n"
    "$ opdf-compile plan student.pt2 -o plan.json --parametrization 'spectral(rank=8)'\n\n"
    "$ opdf-compile plan student.pt2 -o plan.json --rule 'head.*=none' --rule 'blocks.*=gains'"
)


def command(
    model: o.Model,
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", metavar="plan.json", help="The plan to write.", show_default=False
        ),
    ],
    scale: Annotated[
        float | None,
        typer.Option(metavar="S", help="Training parameters per deployed parameter."),
    ] = None,
    cores: Annotated[int | None, typer.Option(metavar="N", help="Cores per weight.")] = None,
    overhead: Annotated[
        float | None,
        typer.Option(metavar="R", help="Cost of a training step, 1.2 for 20 % over the plain one."),
    ] = None,
    parametrization: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="mpo, or another of the registry: delta, do_conv, gains, ham, hyperball, md, "
            "orepa, powerprop, repopt, shared, spectral, svd, wide. Or branches beside a "
            "convolution and its BatchNorm: acnet, dbb, dilated, mobileone, repvgg. Options stand "
            "in brackets: 'wide(expansion=8)'. For the weights that no --rule names; mpo if it is "
            "left out.",
        ),
    ] = None,
    rule: o.Rule = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Take these weights only; repeatable."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Leave these weights; repeatable.")
    ] = None,
    weights: o.Weights = None,
    input: o.Input = None,
    inputs: o.InputFile = None,
    size: o.Size = None,
    trust_pickle: o.TrustPickle = False,
    json: o.Json = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Decide which weight gets which cores, and write the decision as an editable plan.

    At most one of --scale, --cores and --overhead says how much. Without them, and without
    --parametrization and --rule, each weight gets 3 cores; with a batch of yours in --input or
    --inputs at most as many as cost no more than a quarter of its own training step on it. If that
    is none for every weight, each gets 3 after all, with a warning.
    """
    with opened(json, quiet=quiet, verbose=verbose, debug=debug) as terminal:
        asked = ModelOptions(model, weights, tuple(input or ()), inputs, size, trust_pickle)
        from opdf_compile.planning import Rules, cost_warning, plan

        rules = rules_given(rule)
        if all(value in (None, {}) for value in (cores, scale, overhead, parametrization, rules)):
            cores = usual_cores(asked)
        Rules.of(rules, parametrization)  # What is not known is told before the model is traced.
        traced = load_traced(terminal, asked)

        with terminal.busy("planning"):
            made = plan(
                traced,
                scale=scale,
                cores=cores,
                overhead=overhead,
                include=tuple(include or ()),
                exclude=tuple(exclude or ()),
                parametrization=parametrization,
                rules=rules,
            )
        made.save(out)
        left = f"{len(made.refusals)} weights left alone"
        terminal.show(plan_table(made), made.totals(), left, *made.left(), *ladder(traced))
        dear = cost_warning(made)
        if dear is not None:
            terminal.warn(dear)
        terminal.show(f"Wrote {out}")
        terminal.result(made.to_json())


def plan_table(plan: Plan) -> Table:
    """One row per weight: its modes, and what it costs."""
    head = ("weight", "by", "shape", "modes (out x in)", "deployed", "trained", "FLOPs/step")
    rows = table("Plan", *head, numbers=head[4:])
    for entry in plan.decisions:
        rows.add_row(
            entry.key,
            entry.parametrization,
            dimensions(entry.spec.shape),
            entry.modes,
            f"{entry.deployed:,}",
            f"{entry.cost.parameters:,}",
            count(entry.cost.step_flops),
        )
    return rows
