"""The claims of the other systems of the field, tried again.

Usage: python benchmarks/claims [--only NAME,NAME] [--whole] [--json FILE]
       python benchmarks/claims --page docs/claims.md   (from benchmarks/results/claims-*.json)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench import options as cli
from bench.reporting import Report, environment
from rich import box
from rich.table import Table

from claims.claim import Finding
from claims.page import write_page
from claims.registry import NAMES, system

SCHEMA = "opdf-claims/1"
RESULTS = Path(__file__).parents[1] / "results"


def committed(name: str) -> list[dict[str, Any]]:
    """The rows of a system's whole run."""
    text = (RESULTS / f"claims-{name}.json").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = json.loads(text)["rows"]
    return rows


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(
        prog="benchmarks/claims", description="The claims of other systems, each tried."
    )
    cli.choices(made, "--only", NAMES, NAMES)
    made.add_argument("--whole", action="store_true", help="all seeds; the committed figures")
    made.add_argument("--json", metavar="FILE", help="write the figures as JSON; - is stdout")
    made.add_argument("--page", metavar="FILE", help="write the table from the results, and end")
    return made.parse_args(words)


def _shown(findings: Sequence[Finding]) -> Table:
    made = Table(title="Claims", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("system", "claim", "measured", "95 %", "seeds", "verdict"):
        made.add_column(column, overflow="fold")
    for found in findings:
        claim = found.claim
        made.add_row(
            claim.system,
            claim.says,
            f"{found.figure:.3g} {claim.unit}. {found.remark}",
            f"{found.ci_low:.3g} to {found.ci_high:.3g}",
            str(found.seeds),
            found.verdict,
        )
    return made


def _measured(options: argparse.Namespace, report: Report) -> list[Finding]:
    findings: list[Finding] = []
    with report.progress("claims") as bar:
        for place, name in enumerate(options.only):

            def told(what: str, share: float, name: str = name, place: int = place) -> None:
                bar.callback(f"{name}: {what}", (place + share) / len(options.only))

            told("begins", 0.0)
            findings += system(name).measure(not options.whole, told)
    return findings


def main(words: Sequence[str] | None = None) -> int:
    """Run the experiments that were asked for."""
    options = _options(words)
    if options.page:
        write_page(Path(options.page), [row for name in NAMES for row in committed(name)])
        return 0
    report = Report(SCHEMA, options.json)
    findings = _measured(options, report)
    report.show(_shown(findings))
    report.write(
        environment(torch.device("cpu"), vars(options)), [found.row() for found in findings]
    )
    return 0
