"""The finished runs of the study on text as paired scores, for the common table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quality.rows import Scores

TASK = "lee-minilm"
# Cosine to the teacher on held-out sentences, and correlation with what people say of documents.
ENDPOINTS = {"cosine": "test_cosine", "people": "people"}
PLAIN = "plain"
# What the common table calls a method here, and whether its endpoints are those of the average.
_AVERAGED = ("plain + ema",)


def scores_of(result: Mapping[str, Any]) -> list[Scores]:
    """Every method against plain distillation, in every setting that was finished.

    Args:
        result: The JSON of ``python benchmarks/quality/text run``.
    """
    lengths = sorted({cell["steps"] for cell in result["cells"]})
    names = dict(zip(lengths, ("short", "long") if len(lengths) == 2 else lengths, strict=True))
    found = []
    for start, steps in sorted({(cell["start"], cell["steps"]) for cell in result["cells"]}):
        finals = _finals(result, start, steps)
        if PLAIN not in finals:
            continue
        for endpoint, key in ENDPOINTS.items():
            theirs = _values(finals, PLAIN, key)
            found += [
                Scores(
                    task=TASK,
                    start=start,
                    length=str(names[steps]),
                    method=method,
                    baseline=PLAIN,
                    endpoint=endpoint,
                    ours=_values(finals, method, key),
                    theirs=theirs,
                    optimizer="adamw",
                )
                for method in finals
                if method != PLAIN
            ]
            found += _against_longer(finals, start, str(names[steps]), endpoint, key)
    return found


def _finals(result: Mapping[str, Any], start: str, steps: int) -> dict[str, Any]:
    cells = [c for c in result["cells"] if (c["start"], c["steps"]) == (start, steps)]
    finals = {name: runs for cell in cells for name, runs in cell["finals"].items()}
    untouched = next((c["untouched"] for c in cells if c.get("untouched")), None)
    return finals if untouched is None else {**finals, "no training": {"runs": untouched}}


def _values(finals: Mapping[str, Any], method: str, key: str) -> tuple[float, ...]:
    name = f"ema_{key}" if method in _AVERAGED else key
    return tuple(float(run[name]) for run in finals[method]["runs"])


def _against_longer(
    finals: Mapping[str, Any], start: str, length: str, endpoint: str, key: str
) -> list[Scores]:
    """The over-parameterised methods against plain steps for the same time."""
    longer = "plain, equal wall-clock"
    if longer not in finals:
        return []
    return [
        Scores(
            TASK,
            start,
            length,
            method,
            longer,
            endpoint,
            _values(finals, method, key),
            _values(finals, longer, key),
            "adamw",
        )
        for method in ("mpo", "svd")
        if method in finals
    ]


def edges_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Winners of the search that lie at the edge of all that was tried, and on which axes."""
    lengths = sorted({cell["steps"] for cell in result["cells"]})
    found = []
    for cell in result["cells"]:
        best, trials = cell["search"]["best"], cell["search"]["trials"]
        axes = [name for name, axis in _AXES.items() if _at_edge(best, trials, axis)]
        if axes:
            length = "short" if cell["steps"] == lengths[0] else "long"
            place = {"task": TASK, "optimizer": "adamw", "length": length, "start": cell["start"]}
            found.append({**place, "method": cell["method"], "axes": axes})
    return found


_AXES = {"rate": "lr", "decay": "weight_decay", "momentum": "momentum"}


def _at_edge(best: Mapping[str, float], trials: list[Mapping[str, float]], axis: str) -> bool:
    """No decay at all is a natural end, and no edge."""
    tried = [trial[axis] for trial in trials]
    ends = {max(tried)} if axis == "weight_decay" else {min(tried), max(tried)}
    return best[axis] in ends
