"""A report in which everything passed, and names that would be markup if they were not escaped."""

from __future__ import annotations

from typing import Any

import numpy as np

from opdf_compile.parity.latency.latency_result import LatencyResult, ShapeResult
from opdf_compile.parity.latency.ratio_interval import Interval
from opdf_compile.parity.numerics.numerics_result import NumericsResult
from opdf_compile.parity.report.parity_report import ParityReport
from opdf_compile.parity.report.parity_result import StructurePart

SERIES: dict[str, Any] = {
    "reference": np.array([[2e-4, 2.1e-4, 1.9e-4], [2e-4, 2.2e-4, 2e-4]]),
    "candidate": np.array([[2e-4, 2.0e-4, 1.9e-4], [2.1e-4, 2.2e-4, 2e-4]]),
    "control": np.array([[2e-4, 2.0e-4, 2.1e-4], [2e-4, 2.1e-4, 2e-4]]),
}
SHAPE = ShapeResult(
    shape={"x": (2, 8)},
    verdict="pass",
    ratio=1.003,
    ci_low=0.991,
    ci_high=1.015,
    control=Interval(0.999, 0.988, 1.011),
    sessions=2,
    rounds=3,
    reference_ms=0.2034,
    candidate_ms=0.204,
    throughput={"reference": 9833.0, "candidate": 9804.0},
    memory={"reference": 1_500_000, "candidate": None},
    seconds=SERIES,
)
MEASURED = LatencyResult(
    verdict="pass",
    device="cpu",
    provider="CPUExecutionProvider",
    ratio=1.003,
    ci_low=0.991,
    ci_high=1.015,
    margin=0.05,
    rule="no-slower",
    control=Interval(0.999, 0.988, 1.011),
    sessions=2,
    rounds=3,
    reference_ms=0.2034,
    candidate_ms=0.204,
    per_shape=(SHAPE,),
    cold_start_ms={"reference": 12.0, "candidate": 12.5},
    cold_start=Interval(1.04, 0.9, 1.2),
    file_bytes={"reference": 1000, "candidate": 1001},
    seconds=SERIES,
    notes=("the verdict was clear",),
)
FULL = ParityReport(
    verdict="pass",
    structure=StructurePart("pass", 412),
    numerics=NumericsResult("pass", 3.1e-7, 2.2e-7, 3e-7, 1.2e-6, 4),
    latency=MEASURED,
    environment={
        "versions": {"onnxruntime": "1.31.1"},
        "device": {"name": "cpu", "chosen_because": "asked for"},
        "options": {"on_inconclusive": "warn"},
        "notes": ["the verdict was clear"],
    },
    files={
        "student.onnx": {"sha256": "a" * 64, "bytes": 1234, "opset": 18, "exporter": "torch.onnx 2"}
    },
)
MARKED = "<mark>name</mark> | & ` \" '"
