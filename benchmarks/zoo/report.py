"""The zoo's figures for people: a line a model, a table, counts, refusals by reason."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.reporting import table

Row = Mapping[str, Any]
_ORDER = ("build", "trace", "match", "plan", "expand", "train", "fold", "export")


def line(row: Row, done: int, total: int) -> str:
    """One model in one line."""
    head = f"[{done:>3}/{total}] {row['name']:<46} {verdict(row):<18}"
    if "matches" not in row:
        return f"{head} {row['reason'] or ''}"
    figures = (
        f"{row.get('rung', '-'):<10} {row['matches']:>4} matches "
        f"{len(row['refusals']):>4} refusals "
        f"{total_seconds(row):>6.1f} s {row['peak_mib']:>6.0f} MiB"
    )
    return f"{head} {figures}" + (f"  {row['reason']}" if row["reason"] else "")


def verdict(row: Row) -> str:
    """How far a model came."""
    if row["status"] != "passed":
        return f"failed: {row['step']}"
    return "folded, exported" if row["export_asked"] else "folded"


def folded(row: Row) -> bool:
    """Whether a model reached fold with every check on the way."""
    return row["reached"] in _ORDER[_ORDER.index("fold") :]


def total_seconds(row: Row) -> float:
    """Seconds of all steps."""
    return float(sum(row["seconds"].values()))


def share(row: Row) -> float | None:
    """The matched part of the Linear and Conv parameters."""
    return row["matched"] / row["weights"] if row.get("weights") else None


def plain_reason(reason: str) -> str:
    """A refusal's reason without the sizes and names that differ from weight to weight."""
    reason = re.sub(r"\s*\(include= takes it all the same\)", "", reason)
    return re.sub(r"\b\d+\b", "N", reason)


def reasons(rows: Sequence[Row]) -> list[tuple[str, int, int]]:
    """Reasons with how many weights and models they concern, the most frequent first."""
    weights: dict[str, int] = {}
    models: dict[str, set[str]] = {}
    for row in rows:
        for refusal in row.get("refusals", ()):
            key = plain_reason(refusal["reason"])
            weights[key] = weights.get(key, 0) + 1
            models.setdefault(key, set()).add(row["name"])
    order = sorted(weights, key=lambda key: (-weights[key], key))
    return [(key, weights[key], len(models[key])) for key in order]


def totals(rows: Sequence[Row]) -> dict[str, Any]:
    """The counts over all models."""
    counted = [row for row in rows if "weights" in row]
    weights, matched, tied = (
        sum(row[key] for row in counted) for key in ("weights", "matched", "tied")
    )
    asked = [row for row in rows if row["export_asked"]]
    times = [total_seconds(row) for row in rows]
    worked = [row["processor_seconds"] for row in rows]
    rungs: dict[str, int] = {}
    for row in rows:
        if "rung" in row:
            rungs[row["rung"]] = rungs.get(row["rung"], 0) + 1
    return {
        "models": len(rows),
        "timm": sum(row["library"] == "timm" for row in rows),
        "transformers": sum(row["library"] == "transformers" for row in rows),
        "folded": sum(folded(row) for row in rows),
        "passed": sum(row["status"] == "passed" for row in rows),
        "failed": [row["name"] for row in rows if row["status"] != "passed"],
        "export_asked": len(asked),
        "export_passed": sum(row["reached"] == "export" for row in asked),
        "attributes_looked_at": sum("date" in row for row in rows),
        "attributes_same": sum("attributes" in row for row in rows),
        "sizes_looked_at": sum("date" in row for row in asked),
        "sizes_run": sum(bool(row.get("export", {}).get("sizes")) for row in asked),
        "matches": sum(row.get("matches", 0) for row in rows),
        "refusals": sum(len(row.get("refusals", ())) for row in rows),
        "silent": sum(len(row.get("silent", ())) for row in rows),
        "linear_conv_parameters": weights,
        "matched_parameters": matched,
        "tied_parameters": tied,
        "matched_share": matched / weights if weights else None,
        "matched_share_of_untied": matched / (weights - tied) if weights > tied else None,
        "rungs": rungs,
        "free_batch": sum(row.get("batch") == "free" for row in rows),
        "median_seconds": round(statistics.median(times), 2) if times else None,
        "seconds": round(sum(times), 1),
        "median_processor_seconds": round(statistics.median(worked), 2) if worked else None,
        "processor_seconds": round(sum(worked), 1),
        "largest_peak_mib": max((row["peak_mib"] or 0.0 for row in rows), default=None),
    }


def result_table(rows: Sequence[Row]) -> Any:
    """One line a model."""
    columns = ("verdict", "rung", "batch", "matches", "refusals", "share", "scale", "cpu s", "MiB")
    made = table("Architectures", "model", *columns, left=4)
    for row in rows:
        found = share(row)
        made.add_row(
            row["name"],
            verdict(row),
            row.get("rung", "-"),
            row.get("batch", "-"),
            str(row.get("matches", "-")),
            str(len(row["refusals"])) if "refusals" in row else "-",
            "-" if found is None else f"{100 * found:.2f} %",
            f"{row['scale']:.2f}" if "scale" in row else "-",
            f"{row['processor_seconds']:.1f}",
            f"{row['peak_mib'] or 0:.0f}",
        )
    return made


def reason_table(rows: Sequence[Row]) -> Any:
    """Refusals by reason."""
    made = table("Refusals by reason", "a weight that", "weights", "models", left=1)
    for reason, weights, models in reasons(rows):
        made.add_row(reason[:110], str(weights), str(models))
    return made


def totals_table(found: Mapping[str, Any]) -> Any:
    """The counts."""
    made = table("In all", "", "", left=1)
    for name, text in total_lines(found):
        made.add_row(name, text)
    return made


def total_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The counts as words and figures."""

    def of(part: int, whole: int) -> str:
        return f"{part} of {whole} ({100 * part / whole:.1f} %)" if whole else "none"

    weights, tied = found["linear_conv_parameters"], found["tied_parameters"]
    rungs = ", ".join(f"{name} {count}" for name, count in sorted(found["rungs"].items()))
    return [
        ("architectures", f"{found['timm']} timm, {found['transformers']} transformers"),
        ("reached fold with every check", of(found["folded"], found["models"])),
        ("exports with equal structure and right numbers", _exports(found)),
        (
            "attributes of every submodule as before the trace",
            of(found["attributes_same"], found["attributes_looked_at"]),
        ),
        (
            "exported files that were right at two other sizes of each free axis",
            of(found["sizes_run"], found["sizes_looked_at"]),
        ),
        ("matches", f"{found['matches']:,}"),
        ("refusals", f"{found['refusals']:,}"),
        ("Linear and Conv weights neither matched nor refused", f"{found['silent']}"),
        ("Linear and Conv parameters", f"{weights:,}"),
        ("of these matched", _share(found["matched_parameters"], weights)),
        ("of these tied to an embedding (refused by default)", _share(tied, weights)),
        (
            "matched, of those that are not tied",
            _share(found["matched_parameters"], weights - tied),
        ),
        ("rungs of the tracer", rungs),
        ("batch axis free", of(found["free_batch"], found["models"])),
        ("processor seconds a model, median", f"{found['median_processor_seconds']}"),
        ("processor seconds in all", f"{found['processor_seconds']:,}"),
        ("seconds a model, median", f"{found['median_seconds']}"),
        ("largest process", f"{found['largest_peak_mib']:.0f} MiB"),
    ]


def _exports(found: Mapping[str, Any]) -> str:
    return f"{found['export_passed']} of {found['export_asked']}"


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / whole:.2f} %)" if whole else f"{part:,}"
