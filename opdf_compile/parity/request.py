"""What the caller of `verify` asked for, checked before a file is opened or a second is spent."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opdf_compile.errors import InputError
from opdf_compile.parity.latency.measure import SEED, Progress, check_budget
from opdf_compile.parity.latency.ratio_interval import LATENCY_RULES, LatencyRule
from opdf_compile.parity.latency.shape_option import Shape, parse_shapes
from opdf_compile.parity.metric.function import Function, Metric, as_metric
from opdf_compile.parity.metric.paired import Claim
from opdf_compile.parity.metric.rows import Samples
from opdf_compile.parity.model_file import PathLike
from opdf_compile.parity.report.parity_result import ASPECTS
from opdf_compile.parity.runtime.protocol import Device
from opdf_compile.parity.runtime.registry import resolve_device

_PROCESSORS, _ON_PROCESSOR, _ON_ACCELERATOR = ("cpu", "wasm"), 0.05, 0.02
# Half a point of an accuracy.
METRIC_MARGIN = 0.005
ON_INCONCLUSIVE = ("warn", "fail")

ShapeOption = str | Sequence[str | Mapping[str, Shape]]


@dataclass(frozen=True)
class Request:
    """The caller's options, checked.

    Attributes:
        device: Where to run.
        margin: Allowed relative difference in latency.
        latency: "no-slower" or "equal".
        on_inconclusive: "warn" or "fail".
        budget: Seconds for the latency measurement.
        asked: The parts of the verdict.
        shapes: What `--shapes` asked for; empty takes the check data's first sample.
        plot: Where to draw, or None.
        progress: Called with a sentence and the share that is done.
        samples: The user's rows, or None for those of the check data.
        metric: The user's metric, or None.
        claim: What the metric is to show.
    """

    device: Device
    margin: float
    latency: LatencyRule
    on_inconclusive: str
    budget: float
    asked: tuple[str, ...]
    shapes: tuple[Mapping[str, Shape], ...]
    plot: Path | None
    progress: Progress
    samples: Samples | None
    metric: Metric | None
    claim: Claim

    def options(self) -> dict[str, Any]:
        """What the report records of it."""
        return {
            "only": list(self.asked),
            "margin": self.margin,
            "latency": self.latency,
            "on_inconclusive": self.on_inconclusive,
            "budget": self.budget,
            "shapes": [
                {name: list(sizes) for name, sizes in shape.items()} for shape in self.shapes
            ],
            "samples": _named(self.samples),
            "metric": None if self.metric is None else self.metric.name,
            "metric_margin": self.claim.margin,
            "higher_is_better": self.claim.higher_is_better,
            "seed": SEED,
            "threads": None,  # The runtime's own choice.
        }


def checked_request(
    device: str,
    margin: float | str,
    latency: LatencyRule,
    on_inconclusive: str,
    budget: float,
    only: Iterable[str] | str | None,
    shapes: ShapeOption | None,
    plot: PathLike | None,
    progress: Progress | None,
    runtime: str,
    samples: Samples | None = None,
    metric: str | Function | None = None,
    metric_margin: float = METRIC_MARGIN,
    higher_is_better: bool = True,
) -> Request:
    """Check every option of `verify`.

    Raises:
        ArtefactError: The file of the metric is missing.
        DeviceError: The device cannot be used.
        InputError: An option has no meaning, or the metric cannot be imported.
    """
    if latency not in LATENCY_RULES:
        raise InputError(f"latency is {latency!r}; give {' or '.join(LATENCY_RULES)}")
    if on_inconclusive not in ON_INCONCLUSIVE:
        raise InputError(
            f"on_inconclusive is {on_inconclusive!r}; give {' or '.join(ON_INCONCLUSIVE)}"
        )
    check_budget(budget)
    asked = _asked(only, metric is not None)
    _require_a_use(samples, asked)
    claim = Claim(_metric_margin(metric_margin), bool(higher_is_better))
    number = _margin(margin)
    target = None if plot is None else _plot_target(Path(plot), asked)
    judge = None if metric is None else as_metric(metric)
    # Last, since it may start a session on the device.
    where = resolve_device(device, runtime)
    return Request(
        device=where,
        margin=auto_margin(where) if number is None else number,
        latency=latency,
        on_inconclusive=on_inconclusive,
        budget=float(budget),
        asked=asked,
        shapes=_shapes(shapes, asked),
        plot=target,
        progress=progress or (lambda text, share: None),
        samples=samples,
        metric=judge,
        claim=claim,
    )


def _asked(only: Iterable[str] | str | None, metric: bool) -> tuple[str, ...]:
    if only is None:
        return ASPECTS if metric else tuple(part for part in ASPECTS if part != "metric")
    words = only.split(",") if isinstance(only, str) else list(only)
    names = [str(word).strip() for word in words]
    unknown = [name for name in names if name not in ASPECTS]
    if unknown or not names:
        found = repr(unknown[0]) if unknown else "empty"
        raise InputError(f"only is {found}; give one or more of {', '.join(ASPECTS)}")
    if metric != ("metric" in names):
        found = "leaves out the metric that was given" if metric else "asks for the metric"
        remedy = "ask for metric too" if metric else "give metric= (--metric FILE.py:callable)"
        raise InputError(f"only= {found}; {remedy}")
    return tuple(part for part in ASPECTS if part in names)


def _require_a_use(samples: Samples | None, asked: tuple[str, ...]) -> None:
    if samples is not None and not {"numerics", "metric"} & set(asked):
        raise InputError(
            "samples are for numerics and the metric, which only= leaves out; ask for one of them"
        )


def _metric_margin(margin: float) -> float:
    try:
        number = math.nan if isinstance(margin, bool) else float(margin)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(
            f"the metric's margin is {margin!r}; give what the metric may be worse by, a number "
            "above 0"
        )
    return number


def _named(samples: Samples | None) -> str | None:
    """Samples as the report names them."""
    if samples is None or isinstance(samples, Mapping):
        return None if samples is None else "arrays"
    return os.fspath(samples)


def auto_margin(device: Device) -> float:
    """The difference in latency that is allowed where the user names none."""
    return _ON_PROCESSOR if device.name in _PROCESSORS else _ON_ACCELERATOR


def _margin(margin: float | str) -> float | None:
    """The margin as a number; None where the device decides."""
    if margin == "auto":
        return None
    try:
        number = math.nan if isinstance(margin, bool) else float(margin)
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 < number <= 1.0:
        raise InputError(f"margin is {margin!r}; give auto or a number above 0 and at most 1")
    return number


def _shapes(shapes: ShapeOption | None, asked: tuple[str, ...]) -> tuple[Mapping[str, Shape], ...]:
    """The shapes as mappings; the command line gives them as text."""
    given = (shapes,) if isinstance(shapes, str) else tuple(shapes or ())
    if given and "latency" not in asked:
        raise InputError("shapes are for latency, which only= leaves out; ask for latency too")
    texts = [shape for shape in given if isinstance(shape, str)]
    if texts and len(texts) < len(given):
        raise InputError("shapes mixes text and mappings; give one kind")
    if texts:
        return tuple(parse_shapes(texts))
    return tuple(
        {name: tuple(sizes) for name, sizes in shape.items()}
        for shape in given
        if not isinstance(shape, str)
    )


def _plot_target(path: Path, asked: tuple[str, ...]) -> Path:
    from opdf_compile.parity.report.figures import plot_target

    if not {"latency", "structure"} & set(asked):
        raise InputError(
            "a plot shows latency, or how two graphs differ, and only= leaves out both; ask for "
            "one of them"
        )
    return plot_target(path)
