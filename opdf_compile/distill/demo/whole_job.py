"""The whole job on real handwritten digits: teacher, two students, fold, export, verify, report."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opdf_compile.artefacts import is_bundle
from opdf_compile.distill.demo.comparing import race
from opdf_compile.distill.demo.outcomes import Budget, Outcomes
from opdf_compile.distill.demo.report import demo_json, demo_markdown
from opdf_compile.distill.demo.training_plots import plot_parameters, plot_training
from opdf_compile.distill.engine import Say
from opdf_compile.files import atomic_folder
from opdf_compile.io import build_export, write_bundle
from opdf_compile.parity import ParityReport, check_budget, verify

TRAINING_PLOT, PARAMETERS_PLOT, LATENCY_PLOT = (
    "training_curves.png",
    "parameters.png",
    "latency.png",
)
REPORTS = ("report.html", "report.json", "report.md")
# Where training and export end, as shares of the whole.
_TRAINED, _EXPORTED = 0.6, 0.7


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demo found; accuracies are on the test split, means over the seeds.

    Attributes:
        report: The parity verdict on the bundle.
        race: Both methods' rates, curves and accuracies.
        files: Every file of the bundle, in the order of their names.
    """

    report: ParityReport
    race: Outcomes
    files: tuple[Path, ...]

    def to_json(self) -> dict[str, Any]:
        """The report's keys, and what was trained under the key "demo"."""
        return {**self.report.to_json(), "demo": demo_json(self.race)}


def run_demo(
    out_dir: str | os.PathLike[str],
    *,
    budget: Budget | None = None,
    latency_budget: float = 30.0,
    progress: Say | None = None,
) -> DemoResult:
    """Run the whole job and write a bundle with report and plots.

    Args:
        out_dir: The folder to write, all or nothing; an older bundle there is replaced.
        budget: What training may spend; the default takes about a minute on one core.
        latency_budget: Seconds that the latency measurement may take.
        progress: Called with a sentence and the share that is done.

    Returns:
        The verdict and the accuracies, whichever is higher.

    Raises:
        ArtefactError: The folder cannot be written, or holds files that are no bundle's.
        InputError: The latency budget has no meaning.
        UserError: scikit-learn is not installed.

    Example:
        >>> run_demo("demo-out").report.verdict  # doctest: +SKIP
        'pass'
    """
    check_budget(latency_budget)
    say = progress or (lambda text, share: None)
    target = Path(out_dir)
    # The folder is claimed first, so that a refusal costs no minute of training.
    with atomic_folder(target, replaceable=is_bundle) as folder:
        found = race(budget or Budget(), _part(say, 0.0, _TRAINED))
        say("exporting student and reference", _TRAINED)
        _export(found, folder, target)
        report = verify(
            folder,
            budget=latency_budget,
            plot=folder / LATENCY_PLOT,
            progress=_part(say, _EXPORTED, 1.0),
        )
        plot_training(found, folder / TRAINING_PLOT)
        plot_parameters(found.plan, found.plain.student, folder / PARAMETERS_PLOT)
        names = sorted([*(file.name for file in folder.iterdir()), *REPORTS])
        result = DemoResult(report, found, tuple(target / name for name in names))
        _write_reports(result, folder)
    return result


def _part(say: Say, start: float, end: float) -> Say:
    """A stage's own progress as a part of the whole."""
    return lambda text, share: say(text, start + (end - start) * share)


def _export(found: Outcomes, folder: Path, target: Path) -> None:
    """Write the bundle: what ships and, for a look at both, the plain student beside it."""
    write_bundle(
        folder,
        build_export(found.overparam.student, (found.example,)),
        build_export(found.plain.student, (found.example,)),
        plan=found.plan.to_json(),
        becomes=target,
        side_by_side=True,
    )


def _write_reports(result: DemoResult, folder: Path) -> None:
    text = json.dumps(result.to_json(), indent=2, allow_nan=False, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    plots = (TRAINING_PLOT, PARAMETERS_PLOT, LATENCY_PLOT)
    page = demo_markdown(result.race, result.report, plots)
    (folder / "report.md").write_text(page, encoding="utf-8")
    result.report.save_html(folder / "report.html")
    result.report.record_in_card(folder)
