"""The part of docs/parity.md that counts verdicts in other runtimes than the default one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.markdown import table
from bench.reporting import ratio

from calibration.inconclusive import halving_lines
from calibration.pairs import PAIRS, right_latency
from calibration.rates import VERDICTS, counted, grouped, opposite, share

PREFIX = "verdicts-cpu-"
_LATENCY = ("runtime", "candidate", "size", "true ratio [95 %]", "right", "budget", "n", *VERDICTS)
_PARTS = ("runtime", "candidate", "n", "structure right", "numerics right")

Rows = Sequence[Mapping[str, Any]]
Groups = Mapping[tuple[str, str, float | None], Rows]


def runtime_lines(results: Mapping[str, dict[str, Any]]) -> list[str]:
    """Conditions, the latency table, the budgets that halve, and what numerics noticed.

    Args:
        results: The JSON files of `verdicts.py --runtime`, by runtime.
    """
    groups = {name: grouped(value["rows"]) for name, value in results.items()}
    return [
        *(_conditions(name, value) for name, value in results.items()),
        "",
        *table((*_LATENCY, "wrong [95 %]"), _latency_rows(results, groups)),
        *_halving(groups),
        *table(_PARTS, _part_rows(groups)),
    ][:-1]


def _conditions(name: str, value: Mapping[str, Any]) -> str:
    found = value["environment"]
    times = ", ".join(
        f'{truth["identical"]["reference_ms"]:.2f} ms for a run of the network of "{label}"'
        for label, truth in value.get("truth", {}).items()
        if "identical" in truth
    )
    note = f" {value['note']}" if value.get("note") else ""
    return (
        f"- `{name}` {found['versions'].get(name)}: {found['device']['name']}, {found['date']}, "
        f"margin {value['margin']:g}; {times}.{note}"
    )


def _latency_rows(
    results: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Groups]
) -> Iterator[tuple[str, ...]]:
    for runtime, value in results.items():
        for (name, label, budget), rows in groups[runtime].items():
            truth = value.get("truth", {}).get(label, {}).get(name)
            if budget is None or truth is None:
                continue
            right = right_latency(PAIRS[name], truth, value["margin"])
            found = counted(rows, "latency")
            wrong = "-" if right == "either" else str(share(found[opposite(right)], len(rows)))
            what = (f"`{runtime}`", PAIRS[name].what, label, ratio(truth), right or "-")
            seen = (str(found[verdict]) for verdict in VERDICTS)
            yield (*what, f"{budget:g} s", str(len(rows)), *seen, wrong)


def _halving(groups: Mapping[str, Groups]) -> Iterator[str]:
    """The list of budgets, under one sentence for all runtimes."""
    told = False
    for runtime, found in groups.items():
        lines = halving_lines({key: rows for key, rows in found.items() if key[2] is not None})
        if lines and not told:
            told = True
            yield from lines[:2]
        yield from (f"- `{runtime}`, {line.removeprefix('- ')}" for line in lines[2:])
    if told:
        yield ""


def _part_rows(groups: Mapping[str, Groups]) -> Iterator[tuple[str, ...]]:
    for runtime, found in groups.items():
        for name, rows in _different(found).items():
            pair = PAIRS[name]
            right = [counted(rows, part)[getattr(pair, part)] for part in ("structure", "numerics")]
            cells = (
                str(share(n, len(rows))) if pair.drawn else f"{n} of {len(rows)}" for n in right
            )
            yield (f"`{runtime}`", pair.what, str(len(rows)), *cells)


def _different(groups: Groups) -> dict[str, Rows]:
    """Rows by pair; structure and numerics are functions of the files: equal files count once."""
    found: dict[str, dict[Any, Mapping[str, Any]]] = {}
    for (name, label, _), rows in groups.items():
        for row in rows:
            found.setdefault(name, {})[label, PAIRS[name].draw(row["repetition"])] = row
    return {name: list(rows.values()) for name, rows in found.items()}
