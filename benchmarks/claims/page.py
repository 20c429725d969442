"""docs/claims.md: its table, from the committed figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.markdown import filled, table

HEAD = (
    "system",
    "claim",
    "task",
    "method, baseline",
    "equal",
    "measured",
    "95 % interval",
    "seeds",
    "verdict",
)


def write_page(page: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put the rows where the page has a place for them."""
    lines = table(HEAD, (_cells(row) for row in rows))
    text = filled(page.read_text(encoding="utf-8"), {"claims": "\n".join(lines).strip()})
    page.write_text(text, encoding="utf-8")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    ends = ", ".join(
        "-" if row[key] is None else f"{row[key]:.3g}" for key in ("ci_low", "ci_high")
    )
    remark = f" {row['remark']}" if row["remark"] else ""
    return (
        f"{row['system']} ({row['source']})",
        row["says"],
        row["task"],
        f"{row['method']}, {row['baseline']}",
        row["equal"],
        f"{row['figure']:.3g} {row['unit']}.{remark}",
        f"[{ends}]",
        str(row["seeds"]),
        row["verdict"],
    )
