"""The part of docs/parity.md about real models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.markdown import table
from bench.reporting import ratio

from exports.models import MODELS

_WORDS = ("model", "batch", "verdict", "structure", "numerics", "latency")
_FIGURES = (
    *("ratio [90 %]", "control [90 %]", "ms, reference", "ms, candidate"),
    *("MiB, reference", "MiB, candidate", "cold start ms, reference", "cold start ms, candidate"),
)
# What a table of results before there was a choice was measured in.
_USUAL = "onnxruntime"
_DEVICE = {"driver": "driver", "cuda": "CUDA", "cudnn": "cuDNN"}


def model_lines(value: Mapping[str, Any], name: str) -> list[str]:
    """Conditions, picture and a table for each runtime.

    Args:
        value: The JSON of parity.py.
        name: "parity-cuda" or "parity-cpu"; the picture is named after it.
    """
    found = value["environment"]
    device, versions = found["device"], found["versions"]
    runtimes = found.get("runtimes", {_USUAL: versions.get(_USUAL)})
    about = [
        device["name"],
        *(f"{what} {device[key]}" for key, what in _DEVICE.items() if device.get(key)),
        *(f"{runtime} {version}" for runtime, version in runtimes.items()),
        f"torch {versions['torch']}",
        found["date"],
    ]
    note = f" {value['note']}" if value.get("note") else ""
    lines = [
        f"{', '.join(about)}; margin {value['margin']:g}. Random weights, two training steps, "
        "images of 224 x 224 pixels, texts of 128 tokens. The control is the reference against "
        f"itself.{note}",
        "",
        f"![Ratios with their intervals]({name.replace('-', '_')}.png)",
        "",
    ]
    for runtime in runtimes:
        rows = [row for row in _ordered(value["rows"]) if row.get("runtime", _USUAL) == runtime]
        if len(runtimes) > 1:
            lines += [f"**{runtime}**", ""]
        lines += [*table((*_WORDS, *_FIGURES), map(_row, rows)), *_reasons(rows)]
    return lines[:-1]


def _ordered(rows: Any) -> list[Any]:
    places = {name: place for place, name in enumerate(MODELS)}
    return sorted(rows, key=lambda row: (places[row["model"]], row["batch"]))


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    what = (row["model"], str(row["batch"]), row["verdict"])
    parts = [row.get(part, {}).get("verdict", "-") for part in ("structure", "numerics")]
    if "latency" not in row:
        return (*what, *parts, *("-",) * (1 + len(_FIGURES)))
    found = row["latency"]
    sides = ("reference", "candidate")
    memory = (found["memory"][side] for side in sides)
    return (
        *what,
        *parts,
        found["verdict"],
        ratio(found),
        ratio(found["control"]),
        *(f"{found[f'{side}_ms']:.3f}" for side in sides),
        *("-" if count is None else f"{count / 2**20:.0f}" for count in memory),
        *(f"{found['cold_start_ms'][side]:.0f}" for side in sides),
    )


def _reasons(rows: list[Mapping[str, Any]]) -> Iterator[str]:
    """What is no figure, in the runtime's or in `verify`'s own words."""
    said = dict.fromkeys(
        f"- {row['model']}: {text}"
        for row in rows
        for text in (row.get("error"), row.get("numerics", {}).get("reason"))
        if text
    )
    if said:
        yield from (*said, "")
