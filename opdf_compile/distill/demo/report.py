"""The demo's findings as JSON and as a page: both accuracies as they are, whichever is higher."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from opdf_compile.distill.demo.outcomes import METHODS, NAMES, MethodRuns, Outcomes
from opdf_compile.parity import ParityReport, plain
from opdf_compile.tables import markdown_table

SCHEMA = "opdf-demo/1"


def demo_json(race: Outcomes) -> dict[str, Any]:
    """What was trained and what it reached, as plain values; accuracies are 0 to 1."""
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "images": race.sizes,
        "teacher_accuracy": race.teacher_accuracy,
        "plain": _method_json(race.plain),
        "overparam": _method_json(race.overparam),
        "differences": race.differences,
        "finding": finding(race),
        "plan": race.plan.to_json()["totals"],
    }
    return {key: plain(value) for key, value in values.items()}


def _method_json(outcome: MethodRuns) -> dict[str, Any]:
    return {
        "rate": outcome.rate,
        "rate_at_edge_of_grid": outcome.at_edge,
        "validation_accuracies_by_rate": {f"{r:g}": a for r, a in outcome.validation.items()},
        "test_accuracy": outcome.accuracy,
        "test_accuracies": outcome.accuracies,
        "exported_test_accuracy": outcome.accuracies[0],
        "seconds_per_run": outcome.seconds,
    }


def finding(race: Outcomes) -> str:
    """One sentence on the difference, with what it rests on."""
    gaps, count = race.differences, len(race.differences)
    mean = fmean(gaps)
    listed = ", ".join(f"{100 * gap:+.2f}" for gap in gaps)
    if all(gap == 0 for gap in gaps):
        return f"Both methods reach the same test accuracy with every one of {_seeds(count)}."
    start = (
        f"On average over {_seeds(count)} the over-parameterised student is "
        f"{abs(100 * mean):.2f} points {'higher' if mean > 0 else 'lower'} ({listed})"
    )
    if count > 1 and (all(gap > 0 for gap in gaps) or all(gap < 0 for gap in gaps)):
        return f"{start}; every seed agrees on the direction."
    reason = "one seed decides nothing" if count == 1 else "the seeds do not agree on the direction"
    return f"{start}; {reason}, so these runs do not say which method is better."


def accuracy_rows(race: Outcomes) -> list[tuple[str, ...]]:
    """Cells: student, learning rate, mean test accuracy, range over the seeds, exported seed."""
    return [
        (
            NAMES[method],
            f"{outcome.rate:g}",
            f"{outcome.accuracy:.2%}",
            f"{min(outcome.accuracies):.2%} to {max(outcome.accuracies):.2%}",
            f"{outcome.accuracies[0]:.2%}",
        )
        for method in METHODS
        for outcome in [getattr(race, method)]
    ]


def demo_markdown(race: Outcomes, report: ParityReport, plots: tuple[str, str, str]) -> str:
    """The page report.md.

    Args:
        race: What was trained.
        report: The verdict on the bundle.
        plots: File names of the training, parameters and latency plots.
    """
    training, parameters, latency = plots
    sections = [
        "# opdf-compile demo: handwritten digits",
        _opening(race),
        report.to_markdown().rstrip(),
        f"![latency]({latency})",
        "## Accuracy",
        markdown_table([ACCURACY_HEAD, *accuracy_rows(race)]),
        f"Test accuracy on {race.sizes['test']} images that no choice looked at (one image is "
        f"{100 / race.sizes['test']:.2f} points), after folding. The teacher reaches "
        f"{race.teacher_accuracy:.2%}.",
        finding(race),
        f"![training curves]({training})",
        "## Learning rates",
        _rates(race),
        "## Parameters",
        race.plan.totals() + ".",
        _time(race),
        f"![parameters]({parameters})",
    ]
    return "\n\n".join(sections) + "\n"


ACCURACY_HEAD = ("student", "learning rate", "mean", "range over seeds", "exported (first seed)")


def _opening(race: Outcomes) -> str:
    sizes = ", ".join(f"{size} {name}" for name, size in race.sizes.items())
    epochs = len(race.plain.curves[0].loss)
    return (
        f"A teacher was trained on real 8 x 8 images ({sizes}). Then one small student was "
        "distilled from it in two ways with the same start weights, the same order of images and "
        f"the same number of optimizer steps ({epochs} epochs): as it is, and over-parameterised. "
        "`student.onnx` is the over-parameterised one, folded; `reference.onnx` is the one that "
        "was never expanded."
    )


def _rates(race: Outcomes) -> str:
    rows = [
        (f"{rate:g}", *(_validation(getattr(race, m), rate) for m in METHODS))
        for rate in race.plain.validation
    ]
    edges = [NAMES[m] for m in METHODS if getattr(race, m).at_edge]
    note = (
        f"The choice for {' and '.join(edges)} lies at the edge of the grid: a better rate may lie "
        "beyond it."
        if edges
        else "Both choices lie inside the grid."
    )
    return (
        "The best learning rate for weights is not the best for cores, so each method chose its "
        "own from one grid, by the mean accuracy on the validation split (bold).\n\n"
        + markdown_table([("learning rate", *(NAMES[m] for m in METHODS)), *rows])
        + f"\n\n{note}"
    )


def _time(race: Outcomes) -> str:
    ratio = race.overparam.seconds / race.plain.seconds
    return (
        f"Equal steps are not equal time: a run took {race.plain.seconds:.2f} s plain and "
        f"{race.overparam.seconds:.2f} s over-parameterised ({ratio:.2f}x; the prediction counts "
        "arithmetic, and a student this small spends its time on starting operations)."
    )


def _validation(outcome: MethodRuns, rate: float) -> str:
    text = f"{fmean(outcome.validation[rate]):.2%}"
    return f"**{text}**" if rate == outcome.rate else text


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"
