"""The part of docs/parity.md about real models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exports.models import MODELS

_TITLES = (
    *("model", "batch", "verdict", "structure", "numerics", "latency"),
    *("ratio [90 %]", "control [90 %]", "ms, reference", "ms, candidate"),
    *("MiB, reference", "MiB, candidate", "cold start ms, reference", "cold start ms, candidate"),
)
_WORDS = 6


def model_lines(value: Mapping[str, Any], name: str) -> list[str]:
    """Conditions, picture and table.

    Args:
        value: The JSON of parity.py.
        name: "parity-cuda" or "parity-cpu"; the picture is named after it.
    """
    found = value["environment"]
    device, versions = found["device"], found["versions"]
    about = [
        device["name"],
        *(f"{what} {device[key]}" for key, what in _DEVICE.items() if device.get(key)),
        *(f"{library} {versions[library]}" for library in ("onnxruntime", "torch")),
        found["date"],
    ]
    rule = [":--" if place < _WORDS else "--:" for place in range(len(_TITLES))]
    return [
        f"{', '.join(about)}; margin {value['margin']:g}. Random weights, two training steps, "
        "images of 224 x 224 pixels, texts of 128 tokens. The control is the reference against "
        "itself.",
        "",
        f"![Ratios with their intervals]({name.replace('-', '_')}.png)",
        "",
        _line(*_TITLES),
        _line(*rule),
        *(_row(row) for row in _ordered(value["rows"])),
    ]


_DEVICE = {"driver": "driver", "cuda": "CUDA", "cudnn": "cuDNN"}


def _ordered(rows: Any) -> list[Any]:
    places = {name: place for place, name in enumerate(MODELS)}
    return sorted(rows, key=lambda row: (places[row["model"]], row["batch"]))


def _row(row: Mapping[str, Any]) -> str:
    if "latency" not in row:
        return _line(row["model"], str(row["batch"]), "error", row["error"], *("-",) * 10)
    found = row["latency"]
    sides = ("reference", "candidate")
    memory = (found["memory"][side] for side in sides)
    return _line(
        row["model"],
        str(row["batch"]),
        row["verdict"],
        *(row[part]["verdict"] for part in ("structure", "numerics", "latency")),
        _interval(found),
        _interval(found["control"]),
        *(f"{found[f'{side}_ms']:.3f}" for side in sides),
        *("-" if count is None else f"{count / 2**20:.0f}" for count in memory),
        *(f"{found['cold_start_ms'][side]:.0f}" for side in sides),
    )


def _interval(found: Mapping[str, Any]) -> str:
    return f"{found['ratio']:.4f} [{found['ci_low']:.4f}, {found['ci_high']:.4f}]"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
