"""How often latency stays inconclusive, by budget, and the budget that halves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from calibration.rates import counted, halving_budget, share

Key = tuple[str, str, float | None]


def shares_by_budget(
    groups: Mapping[Key, Sequence[Mapping[str, Any]]],
) -> dict[tuple[str, str], list[tuple[float, int, int]]]:
    """Budget, inconclusive and all runs, for every pair and size with more than one budget."""
    found: dict[tuple[str, str], list[tuple[float, int, int]]] = {}
    for (name, label, budget), rows in groups.items():
        if budget is not None:
            count = counted(rows, "latency")["inconclusive"]
            found.setdefault((name, label), []).append((budget, count, len(rows)))
    return {key: sorted(rows) for key, rows in found.items() if len(rows) > 1}


def halving_lines(groups: Mapping[Key, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The paragraph and the list; no lines where one budget was measured only."""
    found = shares_by_budget(groups)
    if not found:
        return []
    return [
        "The share of inconclusive by budget, from separate runs at each budget (not from parts "
        "of longer runs):",
        "",
        *(f"- {name}, {label}: {_row(rows)}" for (name, label), rows in found.items()),
    ]


def _row(rows: Sequence[tuple[float, int, int]]) -> str:
    shares = [(budget, count / total) for budget, count, total in rows]
    parts = [f"{budget:g} s {share(count, total)}" for budget, count, total in rows]
    least = shares[0][0]
    halved = halving_budget(shares)
    if shares[0][1] == 0:
        end = f"none at {least:g} s, so there is nothing to halve"
    elif halved is None:
        end = f"it does not fall to half of its share at {least:g} s within {rows[-1][0]:g} s"
    else:
        end = f"half of the share at {least:g} s is reached at about {halved:.0f} s"
    return f"{', '.join(parts)}; {end}."
