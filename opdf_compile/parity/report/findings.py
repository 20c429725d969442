"""What a report says, as cells and sentences; every form for people is made of these."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from opdf_compile.parity.latency.shape_option import shape_text
from opdf_compile.parity.runtime.registry import DEFAULT

if TYPE_CHECKING:
    from opdf_compile.parity.latency.latency_result import LatencyResult, ShapeResult
    from opdf_compile.parity.metric.metric_result import MetricResult
    from opdf_compile.parity.numerics.numerics_result import NumericsResult, OutputError
    from opdf_compile.parity.report.parity_result import ParityResult, StructurePart

Cells = tuple[str, ...]

_MEANING = {
    "pass": "parity holds",
    "fail": "parity is refuted",
    "inconclusive": "parity is not decided",
}
_OPTIMISED = {
    "same": "also after the runtime's optimisation",
    "differ": "other graphs after the runtime's optimisation",
    "not_compared": "not compared after the runtime's optimisation",
}
# In a cell of two figures the candidate's stands first, as in the ratio.
SHAPE_HEAD = (
    *("shape", "verdict", "ratio", "90 % interval", "control"),
    *("ms; reference", "samples/s; reference", "memory; reference"),
)
METRIC_HEAD = ("against", "verdict", "candidate", "baseline", "difference", "90 % interval", "rows")
COST_HEAD = ("also measured", "candidate", "reference", "ratio")
_SIDES = ("candidate", "reference")
_SIDE_NAMES = {"torch": "the torch model", "reference": "the reference"}
FILE_HEAD = ("file", "sha256", "bytes", "opset", "exporter")


def meaning(report: ParityResult) -> str:
    """What the verdict says, and what it leaves out."""
    parts = {
        "structure": report.structure.verdict,
        "numerics": report.numerics.verdict,
        "latency": report.latency.verdict,
    }
    left_out = [name for name, verdict in parts.items() if verdict == "not_asked"]
    limits = f" ({' and '.join(left_out)} not asked)" if left_out else ""
    return _MEANING[report.verdict] + limits


def verdict_rows(report: ParityResult) -> list[Cells]:
    """Cells of the table: part, verdict, finding; the metric where there is one."""
    metric = report.metric
    rows = [] if metric.claim is None else [("metric", metric.verdict, _metric(metric))]
    return [
        ("structure", _spaced(report.structure.verdict), _structure(report.structure)),
        ("numerics", _spaced(report.numerics.verdict), _numerics(report.numerics)),
        ("latency", _spaced(report.latency.verdict), _latency(report.latency)),
        *rows,
    ]


def metric_rows(metric: MetricResult) -> list[Cells]:
    """A head and a row for each side that the candidate was compared with; empty without any."""
    if metric.claim is None:
        return []
    made = [
        (
            _SIDE_NAMES[side],
            found.verdict,
            f"{metric.scores['candidate']:.6g}",
            f"{metric.scores[side]:.6g}",
            f"{found.difference:+.3g}",
            f"{found.low:+.3g} to {found.high:+.3g}",
            f"{metric.samples:,}" + (f", {found.needed:,} needed" if found.needed else ""),
        )
        for side, found in metric.against.items()
    ]
    return [METRIC_HEAD, *made]


def shape_rows(latency: LatencyResult) -> list[Cells]:
    """A head and a row for each shape that was measured; empty where nothing was.

    Columns that no shape fills (memory on a device that does not tell it) are left out.
    """
    if not latency.per_shape:
        return []
    made = [SHAPE_HEAD, *(_shape_row(shape) for shape in latency.per_shape)]
    columns = list(zip(*made[1:], strict=True))
    filled = [index for index, column in enumerate(columns) if set(column) != {"-"}]
    return [tuple(row[index] for index in filled) for row in made]


def cost_rows(report: ParityResult) -> list[Cells]:
    """A head and a row each for cold start and file size, which decide nothing; may be empty."""
    latency, made = report.latency, []
    start = latency.cold_start_ms
    if start:
        ratio = "-"
        if latency.cold_start is not None:
            found = latency.cold_start
            ratio = f"{found.ratio:.3f} [{found.low:.3f}, {found.high:.3f}]"
        made.append(("cold start", *(f"{start[side]:.1f} ms" for side in _SIDES), ratio))
    size = latency.file_bytes
    if size:
        made.append(("file size", *(_bytes(size[side]) for side in _SIDES), _ratio(size)))
    return [COST_HEAD, *made] if made else []


def file_rows(files: Mapping[str, Mapping[str, Any]]) -> list[Cells]:
    """Name, whole hash, bytes, opset and exporter of each file."""
    return [
        (
            name,
            str(entry["sha256"]),
            f"{entry['bytes']:,}",
            str(entry.get("opset") or "-"),
            str(entry.get("exporter") or "-"),
        )
        for name, entry in files.items()
    ]


def about(report: ParityResult) -> str:
    """Which model was compared with which, before the facts; empty where no file is known."""
    models = [name for name in report.files if name.endswith(".onnx")]
    return f"{' against '.join(models)}; " if models else ""


def verify_command(report: ParityResult) -> str:
    """The command line that asks the same question of the same files."""
    models = [name for name in report.files if name.endswith(".onnx")] or ["CANDIDATE.onnx"]
    options = report.environment.get("options", {})
    device = report.environment.get("device", {}).get("name", "auto")
    parts = ["opdf-compile verify", shlex.quote(models[0])]
    parts += [f"--reference {shlex.quote(name)}" for name in models[1:2]]
    runtime = report.environment.get("runtime", {}).get("name", DEFAULT)
    # Other runtimes may have devices that --device does not know.
    option = ("--device", device) if runtime == DEFAULT else ("--runtime", f"{runtime}:{device}")
    parts.append(shlex.join(map(str, option)))
    numbers = {name: options.get(name) for name in ("margin", "latency", "budget")}
    parts += [f"--{name} {words(value)}" for name, value in numbers.items() if value]
    if options.get("only") and len(options["only"]) < len(verdict_rows(report)):
        parts.append(f"--only {','.join(options['only'])}")
    parts += _metric_options(options)
    parts += [f"--shapes {shlex.quote(text)}" for text in _shape_options(options)]
    return " ".join(parts)


def _metric_options(options: Mapping[str, Any]) -> list[str]:
    samples, metric = options.get("samples"), options.get("metric")
    # Arrays and functions were given in Python; the command line has files for them.
    samples = "SAMPLES.npz" if samples == "arrays" else samples
    metric = metric if not metric or ":" in metric else f"METRIC.py:{metric}"
    parts = [f"--samples {shlex.quote(samples)}"] if samples else []
    if metric:
        parts.append(f"--metric {shlex.quote(metric)} --metric-margin {options['metric_margin']}")
        parts += [] if options["higher_is_better"] else ["--lower-is-better"]
    return parts


def _shape_options(options: Mapping[str, Any]) -> list[str]:
    """The shapes that were asked for, as the command line takes them: one option an input."""
    columns: dict[str, list[str]] = {}
    for shape in options.get("shapes", ()):
        for name, sizes in shape.items():
            columns.setdefault(name, []).append("x".join(map(str, sizes)))
    return [f"{name}={','.join(sizes)}" for name, sizes in columns.items()]


def facts(report: ParityResult) -> str:
    """Where it was measured and with what, on one line."""
    device = report.environment.get("device", {})
    versions = report.environment.get("versions", {})
    where = f"{device.get('name', '-')} ({device.get('chosen_because', '-')})"
    runtime = report.environment.get("runtime", {})
    name = runtime.get("name", DEFAULT)
    precision = f", computing in {found}" if (found := runtime.get("precision")) else ""
    return f"device {where}, {name} {versions.get(name, '-')}{precision}"


def footnotes(report: ParityResult) -> list[str]:
    """What a reader of the verdict should know."""
    return [str(note) for note in report.environment.get("notes", ())]


def words(value: Any) -> str:
    """A value of the environment as people read it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={words(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        inner = "x" if value and all(isinstance(item, int) for item in value) else ", "
        return inner.join(words(item) for item in value) or "none"
    return str(value)


def _spaced(verdict: str) -> str:
    return verdict.replace("_", " ")


def _structure(part: StructurePart) -> str:
    if part.verdict == "not_asked" and not part.differences:
        return "-"
    nodes = "" if part.nodes is None else f"{part.nodes:,} nodes, "
    count = len(part.differences)
    if count:
        return nodes + f"{count} difference{'s' * (count > 1)}"
    after = "" if part.optimised is None else f", {_OPTIMISED[part.optimised.verdict]}"
    return f"{nodes}same graph{after}"


def _numerics(part: NumericsResult) -> str:
    if part.verdict == "not_asked":
        return "-"
    worst = part.decided_by
    if part.verdict == "not_checked":
        if worst is not None and worst.unjudged:
            return f"output {worst.output!r} was not judged: {worst.unjudged}"
        if part.samples is not None:
            return part.reason
        return "no check data; export writes it beside the model, or give it with --check"
    if worst is not None and worst.problem:
        return f"output {worst.output!r}: {worst.problem}"
    error, allowed, floor = part.max_abs_error, part.tolerance, part.noise_floor
    if worst is not None:
        error, allowed, floor = worst.max_abs, worst.tolerance_max, worst.floor_max
    found = (
        f"error {_short(error)} of {_short(allowed)} allowed, noise floor {_short(floor)}, "
        f"{part.samples} samples"
    )
    return found + _which(part, worst)


def _which(part: NumericsResult, worst: OutputError | None) -> str:
    """Which of several outputs the figures are of, and where it fails."""
    if worst is None:
        return ""
    text = ""
    if len(part.outputs) > 1:
        text = f"; output {worst.output!r}, the closest of {len(part.outputs)}"
    if part.verdict != "fail":
        return text
    text = f"; output {worst.output!r}"
    if worst.max_abs <= worst.tolerance_max:
        text += f", RMS error {_short(worst.rms)} of {_short(worst.tolerance_rms)} allowed"
    return text if worst.element is None else f"{text}, {worst.element}"


def _latency(part: LatencyResult) -> str:
    if part.control is None:
        return "-"
    control = part.control
    found = (
        f"{part.ratio:.3f}x [{part.ci_low:.3f}, {part.ci_high:.3f}], {part.rule} within "
        f"{part.margin:g}; control {control.ratio:.3f}x [{control.low:.3f}, {control.high:.3f}]; "
        f"{part.candidate_ms:.3f} ms against {part.reference_ms:.3f} ms; {part.sessions} sessions "
        f"of {part.rounds} rounds"
    )
    if len(part.per_shape) < 2:
        return found
    decided = next((s for s in part.per_shape if s.ci_high == part.ci_high), part.per_shape[0])
    return f"{found}; worst of {len(part.per_shape)} shapes: {shape_text(decided.shape)}"


def _metric(part: MetricResult) -> str:
    """Both differences, each with its interval, and the limit that they are held against."""
    if part.claim is None:
        return "-"
    found = "; ".join(
        f"{d.difference:+.3g} [{d.low:+.3g}, {d.high:+.3g}] against {_SIDE_NAMES[side]}"
        for side, d in part.against.items()
    )
    better = "higher" if part.claim.higher_is_better else "lower"
    return (
        f"{part.name} {part.scores['candidate']:.4g}, {better} is better; {found}; worse by at "
        f"most {part.claim.margin:g}, {part.samples:,} rows"
    )


def _shape_row(shape: ShapeResult) -> Cells:
    control = shape.control
    return (
        shape_text(shape.shape),
        shape.verdict,
        f"{shape.ratio:.3f}",
        f"{shape.ci_low:.3f} to {shape.ci_high:.3f}",
        f"{control.low:.3f} to {control.high:.3f}",
        f"{shape.candidate_ms:.3f}; {shape.reference_ms:.3f}",
        _both(*(_rate(shape.throughput.get(side)) for side in _SIDES)),
        _both(*(_bytes(shape.memory.get(side)) for side in _SIDES)),
    )


def _short(value: float | None) -> str:
    """Two digits, or a dash."""
    return "-" if value is None else f"{value:.2g}"


def _both(candidate: str, reference: str) -> str:
    """Two figures in one cell; a dash where neither is known."""
    return "-" if candidate == reference == "-" else f"{candidate}; {reference}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def _ratio(sides: Mapping[str, float]) -> str:
    return f"{sides['candidate'] / sides['reference']:.3f}" if sides["reference"] else "-"


def _bytes(value: int | None) -> str:
    """Bytes as people read them: 44.8 MB."""
    if value is None:
        return "-"
    size, unit = float(value), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{value} B" if unit == "B" else f"{size:.3g} {unit}"
