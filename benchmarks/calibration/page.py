"""The page docs/parity.md, from the JSON files in benchmarks/results.

The page is a function of the JSON alone, and a test holds it to that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.reporting import ratio
from exports.forest import draw
from exports.page import model_lines

from calibration.inconclusive import halving_lines
from calibration.other_runtimes import PREFIX, runtime_lines
from calibration.pairs import PAIRS, right_latency
from calibration.prose import (
    FOLDED,
    HEAD,
    LATENCY,
    METRIC,
    OWN_BRANCHES,
    PENDING,
    QUANTISED,
    REPEAT,
    RUNTIMES,
    STRUCTURE,
    UNFOLDED,
)
from calibration.rates import VERDICTS, counted, grouped, opposite, share
from opdf_compile.files.atomic import atomic_write

RESULTS = Path(__file__).parents[1] / "results"
FILES = ("verdicts-cpu", "verdicts-cuda", "parity-cuda", "parity-cpu")

Results = Mapping[str, dict[str, Any]]


def read_results(folder: Path = RESULTS) -> Results:
    """The JSON files that exist, by name."""
    paths = {name: folder / f"{name}.json" for name in FILES}
    paths |= {path.stem: path for path in sorted(folder.glob(f"{PREFIX}*.json"))}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in paths.items()
        if path.exists()
    }


def write_page(path: Path) -> None:
    """Write the page, and beside it the picture of every table of real models."""
    results = read_results()
    with atomic_write(path) as temporary:
        temporary.write_text(page(results), encoding="utf-8")
    for name in results:
        if name.startswith("parity-"):
            draw(results[name], path.parent / f"{name.replace('-', '_')}.png")


def page(results: Results) -> str:
    """The whole page.

    Args:
        results: The JSON files by name; what is missing is said to be pending.
    """
    lines = [*HEAD]
    for name, title in (("verdicts-cpu", "one CPU core"), ("verdicts-cuda", "a GPU")):
        lines += ["", f"## How often each verdict is right, on {title}", ""]
        lines += _verdicts(results[name]) if name in results else [PENDING]
    lines += ["", "## A graph that was never folded", "", UNFOLDED, "", OWN_BRANCHES]
    lines += ["", "## Did the fold happen?", "", *FOLDED]
    for name, title in (("parity-cuda", "a GPU"), ("parity-cpu", "one CPU core")):
        if name in results or name == "parity-cuda":
            lines += ["", f"## Real models on {title}", ""]
            lines += model_lines(results[name], name) if name in results else [PENDING]
    lines += ["", "## A metric of yours", "", *METRIC]
    others = {
        name.removeprefix(PREFIX): value
        for name, value in results.items()
        if name.startswith(PREFIX)
    }
    lines += ["", "## In another runtime", "", *RUNTIMES, ""]
    lines += runtime_lines(others) if others else [PENDING]
    lines += ["", "## A quantised pair", "", *QUANTISED]
    lines += ["", "## How to repeat it", "", *REPEAT]
    return "\n".join(lines) + "\n"


def _verdicts(value: Mapping[str, Any]) -> list[str]:
    groups = grouped(value["rows"])
    latency = {key: rows for key, rows in groups.items() if key[2] is not None}
    blocks = (
        _conditions(value),
        [LATENCY],
        _latency_table(value, latency),
        _summary(latency),
        halving_lines(latency),
        [STRUCTURE],
        _parts_table(value["rows"]),
    )
    return [line for block in blocks if block for line in (*block, "")][:-1]


def _conditions(value: Mapping[str, Any]) -> list[str]:
    """Machine, versions, date, margin, and the note of the run."""
    found = value["environment"]
    versions = found["versions"]
    lines = [
        f"{found['device']['name']}, onnxruntime {versions['onnxruntime']}, torch "
        f"{versions['torch']}, {found['date']}; margin {value['margin']:g}. {value.get('note', '')}"
    ]
    for label, size in value.get("sizes", {}).items():
        truth = value.get("truth", {}).get(label, {}).get("identical")
        if truth is not None:
            lines.append(
                f'- The network of "{label}" has {size["channels"]} channels, images of '
                f"{size['image']} pixels, batch {size['batch']}; one run took "
                f"{truth['reference_ms']:.2f} ms."
            )
    return [lines[0].strip(), "", *lines[1:]]


def _latency_table(value: Mapping[str, Any], groups: Mapping[Any, Any]) -> list[str]:
    titles = ("candidate", "size", "true ratio [95 %]", "right", "budget", "n", *VERDICTS)
    lines = _header(*titles, "wrong [95 %]", left=4)
    for (name, label, budget), rows in groups.items():
        truth = value.get("truth", {}).get(label, {}).get(name)
        right = right_latency(PAIRS[name], truth, value["margin"])
        found = counted(rows, "latency")
        wrong = "-" if right in (None, "either") else str(share(found[opposite(right)], len(rows)))
        true = "-" if truth is None else ratio(truth)
        seen = (str(found[verdict]) for verdict in VERDICTS)
        cells = (PAIRS[name].what, label, true, right or "-", f"{budget:g} s", str(len(rows)))
        lines.append(_line(*cells, *seen, wrong))
    return lines


def _summary(groups: Mapping[Any, Any]) -> list[str]:
    """What was wrong over all sizes and budgets, and how often the interval held the truth."""
    lines = []
    for name, wrong, what in (
        ("identical", "fail", "Identical pairs that were called `fail`"),
        ("slower-10", "pass", "Truly 10 % slower candidates that were called `pass`"),
    ):
        rows = _rows_of(name, groups)
        if rows:
            found = counted(rows, "latency")
            undecided = share(found["inconclusive"], len(rows))
            lines.append(
                f"- {what}: {found[wrong]} of {len(rows)}, {share(found[wrong], len(rows))}; "
                f"inconclusive: {found['inconclusive']}, {undecided}."
            )
    same = _rows_of("identical", groups)
    if same:
        held = sum(row["ci_low"] <= 1.0 <= row["ci_high"] for row in same)
        lines.append(
            f"- The 90 % interval of an identical pair held 1 in {held} of {len(same)} runs, "
            f"{share(held, len(same))}."
        )
    return ["Over all sizes and budgets:", "", *lines] if lines else []


def _rows_of(name: str, groups: Mapping[Any, Any]) -> list[Mapping[str, Any]]:
    return [row for (pair, *_), rows in groups.items() if pair == name for row in rows]


def _parts_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = _header("candidate", "refuted by", "n", "structure right", "numerics right", left=2)
    for name, pair in PAIRS.items():
        # These parts are functions of the files: equal files count once.
        found = (row for row in rows if row["pair"] == name)
        seen = {(row["size"], pair.draw(row["repetition"])): row for row in found}.values()
        if not seen:
            continue
        right = [counted(seen, part)[getattr(pair, part)] for part in ("structure", "numerics")]
        # Only what is drawn at random has a probability.
        cells = [str(share(n, len(seen))) if pair.drawn else f"{n} of {len(seen)}" for n in right]
        lines.append(_line(pair.what, pair.refuted_by, str(len(seen)), *cells))
    return lines


def _header(*titles: str, left: int) -> list[str]:
    rule = [":--" if place < left else "--:" for place in range(len(titles))]
    return [_line(*titles), _line(*rule)]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
