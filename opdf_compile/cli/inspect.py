"""`opdf-compile inspect`: every weight, as a match or as a refusal with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opdf_compile.cli import options as o
from opdf_compile.cli.formats import count, dimensions, table
from opdf_compile.cli.loading import ModelOptions, ladder, load_traced
from opdf_compile.cli.terminal import opened

if TYPE_CHECKING:
    from rich.table import Table

    from opdf_compile.graph import MatchReport

NAME = "inspect"
EXAMPLES = (
    "$ opdf-compile inspect 'timm:resnet18?num_classes=10'\n\n"
    "$ opdf-compile inspect hf:my-bert --input input_ids=BxS:int64 --size B=2,S=24"
)


def command(
    model: o.Model,
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
    """Show which weights can be over-parameterised, and why the others cannot."""
    with opened(json, quiet=quiet, verbose=verbose, debug=debug) as terminal:
        asked = ModelOptions(model, weights, tuple(input or ()), inputs, size, trust_pickle)
        traced = load_traced(terminal, asked)
        from opdf_compile.graph import match

        report = match(traced)
        terminal.show(matches(report), *refusals(report), totals(report), *ladder(traced))
        terminal.result(report.to_json() | {"model": model, "rungs": dict(traced.rungs)})


def matches(report: MatchReport) -> Table:
    """The weights that can be over-parameterised."""
    head = ("weight", "op", "shape", "parameters", "FLOPs", "uses")
    rows = table("Matches", *head, numbers=head[3:])
    for found in report.matches:
        uses = len([use for use in found.uses if use.phase == "train"]) or len(found.uses)
        rows.add_row(
            " = ".join((found.key, *found.aliases)),
            found.reading,
            dimensions(found.shape),
            f"{found.parameters:,}",
            count(found.flops),
            str(uses),
        )
    return rows


def refusals(report: MatchReport) -> list[Table]:
    """The weights left alone, each with its sentence; no table when there are none."""
    if not report.refusals:
        return []
    rows = table("Refusals", "weight", "shape", "reason")
    for refused in report.refusals:
        rows.add_row(refused.key, dimensions(refused.shape), refused.reason)
    return [rows]


def totals(report: MatchReport) -> str:
    """One line that sums up the report."""
    parameters = sum(found.parameters for found in report.matches)
    flops = sum(found.flops for found in report.matches)
    return (
        f"{len(report.matches)} matches ({parameters:,} parameters, {count(flops)} FLOPs forward), "
        f"{len(report.refusals)} refusals"
    )
