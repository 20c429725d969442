"""What a verification found: a frozen value with a verdict, an exit code and a JSON form."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from opdf_compile.files import atomic_write
from opdf_compile.parity.latency.latency_result import LatencyResult
from opdf_compile.parity.latency.ratio_interval import Decision
from opdf_compile.parity.metric.metric_result import MetricResult
from opdf_compile.parity.numerics.numerics_result import NumericsResult

if TYPE_CHECKING:
    from opdf_compile.parity.structure.picture import Neighbourhood

SCHEMA = "opdf-report/1"
ASPECTS = ("structure", "numerics", "latency", "metric")


@dataclass(frozen=True)
class OptimisedGraphs:
    """What the runtime makes of the two graphs when it loads them.

    Attributes:
        verdict: "same", "differ" or "not_compared".
        provider: The execution provider whose rewrites ran.
        nodes: Nodes of the candidate's graph after them.
        differences: What differs, or why nothing was compared, in sentences.
    """

    verdict: str = "not_compared"
    provider: str | None = None
    nodes: int | None = None
    differences: tuple[str, ...] = ()


@dataclass(frozen=True)
class StructurePart:
    """Whether the candidate's graph is the reference's.

    Attributes:
        verdict: "pass", "fail" or "not_asked".
        nodes: Nodes of the candidate's graph.
        differences: What differs, in sentences; also a file whose hash is not the manifest's.
        optimised: The graphs after the runtime's own optimisation; it refutes nothing.
        picture: The first difference, to be drawn; not in the JSON.
    """

    verdict: str = "not_asked"
    nodes: int | None = None
    differences: tuple[str, ...] = ()
    optimised: OptimisedGraphs | None = None
    picture: Neighbourhood | None = field(default=None, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The values under the report's keys."""
        return {
            "verdict": self.verdict,
            "nodes": self.nodes,
            "differences": self.differences,
            "optimised": None if self.optimised is None else asdict(self.optimised),
        }


@dataclass(frozen=True)
class ParityResult:
    """What was found; the forms for people are `ParityReport`'s, whose attributes these are."""

    schema: ClassVar[str] = SCHEMA
    verdict: Decision
    structure: StructurePart = field(default_factory=StructurePart)
    numerics: NumericsResult = field(default_factory=NumericsResult)
    latency: LatencyResult = field(default_factory=LatencyResult)
    metric: MetricResult = field(default_factory=MetricResult)
    environment: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.verdict == "pass"

    @property
    def exit_code(self) -> int:
        """What the command line exits with.

        0 parity; 1 refuted; 4 numerics not checked; 3 latency or metric inconclusive, or 1 where
        the caller chose `on_inconclusive="fail"`. When numerics was not checked *and* another part
        is inconclusive, the missing evidence is named (4): no repetition would mend it.
        """
        if self.verdict == "fail":
            return 1
        undecided = "inconclusive" in (self.latency.verdict, self.metric.verdict)
        options = self.environment.get("options", {})
        if undecided and options.get("on_inconclusive") == "fail":
            return 1
        if self.numerics.verdict == "not_checked":
            return 4
        return 3 if undecided else 0

    def to_json(self) -> dict[str, Any]:
        """Plain values under the contract's keys; what is no finite number is null."""
        values = {
            "schema": self.schema,
            "verdict": self.verdict,
            "structure": self.structure.to_json(),
            "numerics": self.numerics.to_json(),
            "latency": self.latency.to_json(),
            "metric": self.metric.to_json(),
            "environment": self.environment,
            "files": self.files,
        }
        return {key: plain(value) for key, value in values.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON form, whole or not at all.

        Raises:
            ArtefactError: The path cannot be written.
        """
        text = json.dumps(self.to_json(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        with atomic_write(Path(path)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def overall(structure: str, numerics: str, latency: str, metric: str = "not_asked") -> Decision:
    """The whole verdict from the verdicts of the parts that were asked for."""
    verdicts = (structure, numerics, latency, metric)
    if "fail" in verdicts:
        return "fail"
    if any(verdict in ("inconclusive", "not_checked") for verdict in verdicts):
        return "inconclusive"
    return "pass"


def plain(value: Any) -> Any:
    """The value as JSON knows it: mappings, lists, finite numbers; NaN and infinities are null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    number = float(value)
    return number if math.isfinite(number) else None
