"""The page docs/parity.md, from the JSON files in benchmarks/results.

The page is a function of the JSON alone, and a test holds it to that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exports.page import model_lines

from calibration.inconclusive import halving_lines
from calibration.pairs import PAIRS, right_latency
from calibration.prose import HEAD, LATENCY, PENDING, REPEAT, STRUCTURE, UNFOLDED
from calibration.rates import VERDICTS, counted, grouped, opposite, share
from opdf_compile.io.files import atomic_write

RESULTS = Path(__file__).parents[1] / "results"
FILES = ("verdicts-cpu", "verdicts-cuda", "parity-cuda", "parity-cpu")

Results = Mapping[str, dict[str, Any]]


def read_results(folder: Path = RESULTS) -> Results:
    """The JSON files that exist, by name."""
    paths = {name: folder / f"{name}.json" for name in FILES}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in paths.items()
        if path.exists()
    }


def write_page(path: Path) -> None:
    """Write the page."""
    with atomic_write(path) as temporary:
        temporary.write_text(page(read_results()), encoding="utf-8")


def page(results: Results) -> str:
    """The whole page.

    Args:
        results: The JSON files by name; what is missing is said to be pending.
    """
    lines = [*HEAD]
    for name, title in (("verdicts-cpu", "one CPU core"), ("verdicts-cuda", "a GPU")):
        lines += ["", f"## How often each verdict is right, on {title}", ""]
        lines += _verdicts(results[name]) if name in results else [PENDING]
    lines += ["", "## A graph that was never folded", "", UNFOLDED]
    for name, title in (("parity-cuda", "a GPU"), ("parity-cpu", "one CPU core")):
        if name in results or name == "parity-cuda":
            lines += ["", f"## Real models on {title}", ""]
            lines += model_lines(results[name], name) if name in results else [PENDING]
    lines += ["", "## How to repeat it", "", *REPEAT]
    return "\n".join(lines) + "\n"


def _verdicts(value: Mapping[str, Any]) -> list[str]:
    groups = grouped(value["rows"])
    latency = {key: rows for key, rows in groups.items() if key[2] is not None}
    lines = [*_conditions(value), "", LATENCY, "", *_latency_table(value, latency)]
    lines += ["", *halving_lines(latency)]
    return [*lines, "", STRUCTURE, "", *_parts_table(value["rows"])]


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
                f'The network of "{label}" has {size["channels"]} channels, images of '
                f"{size['image']} pixels, batch {size['batch']}; one run took "
                f"{truth['reference_ms']:.2f} ms."
            )
    return [line.strip() for line in lines]


def _latency_table(value: Mapping[str, Any], groups: Mapping[Any, Any]) -> list[str]:
    titles = ("candidate", "size", "true ratio [95 %]", "right", "budget", "n", *VERDICTS)
    lines = _header(*titles, "wrong [95 %]", left=4)
    for (name, label, budget), rows in groups.items():
        truth = value.get("truth", {}).get(label, {}).get(name)
        right = right_latency(PAIRS[name], truth, value["margin"])
        found = counted(rows, "latency")
        wrong = "-" if right in (None, "either") else str(share(found[opposite(right)], len(rows)))
        ratio = "-" if truth is None else _interval(truth)
        seen = (str(found[verdict]) for verdict in VERDICTS)
        cells = (PAIRS[name].what, label, ratio, right or "-", f"{budget:g} s", str(len(rows)))
        lines.append(_line(*cells, *seen, wrong))
    return lines


def _parts_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = _header("candidate", "refuted by", "n", "structure right", "numerics right", left=2)
    for name, pair in PAIRS.items():
        # Each repetition once: budgets concern latency only.
        seen = {(r["size"], r["repetition"]): r for r in rows if r["pair"] == name}.values()
        if not seen:
            continue
        right = (
            str(share(counted(seen, part)[getattr(pair, part)], len(seen)))
            for part in ("structure", "numerics")
        )
        lines.append(_line(pair.what, pair.refuted_by, str(len(seen)), *right))
    return lines


def _interval(truth: Mapping[str, Any]) -> str:
    return f"{truth['ratio']:.4f} [{truth['ci_low']:.4f}, {truth['ci_high']:.4f}]"


def _header(*titles: str, left: int) -> list[str]:
    rule = [":--" if place < left else "--:" for place in range(len(titles))]
    return [_line(*titles), _line(*rule)]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
