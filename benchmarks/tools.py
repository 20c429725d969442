"""What neighbouring tools do with exported files: who takes them, and what they compute then.

Each model is exported as a bundle, moved a little from its reference as training would, and its
file is given to each tool. The figure is the largest difference from the file as exported, over the
largest output. For `quantize_dynamic` the Linears that became 8-bit are counted, in torch's own
export of the same model too. A tool that is not installed has no row; optimum-onnx wants an
environment of its own, whose Python `--optimum` names.

Usage: python benchmarks/tools.py [--models M,M] [--optimum PYTHON] [--json FILE]
       python benchmarks/tools.py --page docs/onnx.md   (from the JSON in benchmarks/results)
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import options as cli
from bench.reporting import Report, environment, table
from exports.models import MODELS, TRIED, Batch
from exports.neighbours import TOOLS, Feeds, Missing, Trial, outputs_of, version
from exports.tools_page import write_page
from torch import nn

import opdf_compile as opdf
from opdf_compile.errors import ExportError

SCHEMA = "opdf-tools/1"
# What a few roundings in another order may do to a deep network's output.
_TIGHT = 1e-3
_SAMPLES, _MOVED = 2, 0.01
_LINEARS = ("MatMul", "Gemm")


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line."""
    made = cli.parser("tools.py", "what other tools take", models=TRIED, known=tuple(MODELS))
    made.add_argument("--optimum", metavar="PYTHON", default="", help="a Python with optimum-onnx")
    made.add_argument("--page", metavar="FILE", help="write the table from the results, and end")
    options = cli.parse(made, words)
    if options.page:
        write_page(Path(options.page))
        return
    report = Report(SCHEMA, options.json)
    plain = {key: value for key, value in vars(options).items() if key != "optimum"}
    before = environment(options.device, plain)
    versions = {t.package: version(t.package, options.optimum) for t in TOOLS.values()}
    rows: list[dict[str, Any]] = []
    with report.progress("tools") as bar:
        for place, name in enumerate(options.models):
            bar.callback(name, place / len(options.models))
            rows += try_all(name, options.optimum)
    shown = table("Other tools", "model", "tool", "result", "difference", "8-bit", left=3)
    for row in rows:
        share, count = row["difference"], row["int8"]
        figures = ("-" if share is None else f"{share:.1e}", "-" if count is None else str(count))
        shown.add_row(row["model"], row["tool"], row["result"], *figures)
    report.show(shown)
    report.write(before, rows, tools=versions)


def try_all(name: str, interpreter: str) -> list[dict[str, Any]]:
    """The rows of one model."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        torch.manual_seed(0)
        student, batch = _moved(MODELS[name].build().eval()), MODELS[name].batch(_SAMPLES)
        feeds = {key: value.numpy() for key, value in batch.items()}
        file, raw = _export(name, student, batch, folder)
        wanted = outputs_of(file, feeds)
        found = [_try(tool, file, feeds, wanted, folder, interpreter) for tool in TOOLS]
        rows = [{"model": name, **row} for row in found if row]
        theirs = _try("dynamic", raw, feeds, wanted, folder, "") or {}
        counted = {"linears": _linears(file), "torch_int8": theirs.get("int8")}
        rows.append({"model": name, **_older(student, batch, folder, wanted)})
        return [{**row, **counted} for row in rows]


def _moved(untouched: nn.Module) -> nn.Module:
    """What training does to a model, as far as a file could notice."""
    with torch.no_grad():
        for parameter in untouched.parameters():
            parameter.add_(_MOVED * torch.randn_like(parameter))
    return untouched


def _export(name: str, student: nn.Module, batch: Batch, folder: Path) -> tuple[Path, Path]:
    """Our bundle's file, and torch's own export."""
    # optimum-onnx wants a configuration, and asks it for nothing here.
    config = folder / "config.json"
    config.write_text('{"model_type": "bert"}')
    untouched = MODELS[name].build().eval()
    bundle = opdf.export_onnx(
        student, batch, folder / "bundle", reference=untouched, extra_files=[config]
    )
    raw = folder / "torch.onnx"
    options: dict[str, Any] = {"dynamo": True, "verbose": False, "external_data": False}
    torch.onnx.export(student, (), str(raw), kwargs=batch, **options)
    return bundle / "student.onnx", raw


def _older(student: nn.Module, batch: Batch, folder: Path, wanted: Sequence[Any]) -> dict[str, Any]:
    """The row of an export for opset 17."""
    row = {"tool": "opset 17", "int8": None}
    try:
        file = opdf.export_onnx(student, batch, folder / "older.onnx", opset=17)
    except ExportError as error:
        return {**row, "result": "refused", "reason": str(error), "difference": None}
    share = _share(outputs_of(file, {key: value.numpy() for key, value in batch.items()}), wanted)
    return {**row, "result": _judged(share, tight=True), "reason": None, "difference": share}


def _try(
    key: str, file: Path, feeds: Feeds, wanted: Sequence[Any], folder: Path, interpreter: str
) -> dict[str, Any] | None:
    """One cell; None where the tool is not installed."""
    tool = TOOLS[key]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        try:
            outcome = tool.run(Trial(file, feeds, Path(place), interpreter))
        except (ImportError, Missing):
            return None
        except Exception as error:  # Whatever a tool raises is its answer.
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
            return {"tool": key, "result": "refused", "reason": reason, "difference": None} | {
                "int8": 0 if key == "dynamic" else None
            }
    share = _share(outcome.outputs, wanted) if outcome.outputs else None
    return {
        "tool": key,
        "result": "taken" if share is None else _judged(share, tight=tool.tight),
        "reason": None,
        "difference": share,
        "int8": outcome.counts.get("MatMulInteger", 0) if key == "dynamic" else None,
    }


def _judged(share: float, *, tight: bool) -> str:
    return "other numbers" if tight and share > _TIGHT else "taken"


def _share(found: Sequence[Any], wanted: Sequence[Any]) -> float:
    """The largest difference over the largest output."""
    both = zip(found, wanted, strict=True)
    pairs = [(np.asarray(f, np.float64), np.asarray(w, np.float64)) for f, w in both]
    return max(float(np.abs(f - w).max() / np.abs(w).max()) for f, w in pairs)


def _linears(file: Path) -> int:
    """Products with a stored matrix."""
    import onnx

    graph = onnx.load(file).graph
    stored = {tensor.name for tensor in graph.initializer}
    return sum(node.op_type in _LINEARS and node.input[1] in stored for node in graph.node)


if __name__ == "__main__":
    main()
