"""Tools that take an exported file: each a function from the file to what came of it.

A function writes its result into a folder and returns the file that computes the same, or what the
tool itself computed. What a tool raises is its refusal.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

Feeds = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Trial:
    """What a tool is given.

    Attributes:
        file: The exported file, in a bundle.
        feeds: Inputs by name.
        folder: An empty folder.
        interpreter: A Python that has optimum-onnx; empty where there is none.
    """

    file: Path
    feeds: Feeds
    folder: Path
    interpreter: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        outputs: What the result computes; empty where only the file was looked at.
        counts: Operators of the result.
    """

    outputs: list[np.ndarray[Any, Any]] = field(default_factory=list)
    counts: Mapping[str, int] = field(default_factory=dict)


class Missing(Exception):
    """The tool is not installed here."""


def outputs_of(file: Path | str, feeds: Feeds) -> list[np.ndarray[Any, Any]]:
    """What ONNX Runtime computes on the CPU."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, dict(feeds))]


def _computed(file: Path, trial: Trial) -> Outcome:
    import onnx

    counts = Counter(node.op_type for node in onnx.load(file).graph.node)
    return Outcome(outputs_of(file, trial.feeds), counts)


def dynamic(trial: Trial) -> Outcome:
    """8-bit weights, activations measured in each run."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(trial.file, trial.folder / "q.onnx")
    return _computed(trial.folder / "q.onnx", trial)


def static(trial: Trial) -> Outcome:
    """8 bits with ranges from one batch."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Once(CalibrationDataReader):  # type: ignore[misc]
        left = [dict(trial.feeds)]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    quantize_static(trial.file, trial.folder / "q.onnx", Once())
    return _computed(trial.folder / "q.onnx", trial)


def half(trial: Trial) -> Outcome:
    """Weights in float16."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    made = convert_float_to_float16(onnx.load(trial.file), keep_io_types=True)
    onnx.save(made, trial.folder / "h.onnx")
    return _computed(trial.folder / "h.onnx", trial)


def merged(trial: Trial) -> Outcome:
    """With itself, under a prefix."""
    import onnx

    other = onnx.compose.add_prefix(onnx.load(trial.file), "other/")
    made = onnx.compose.merge_models(onnx.load(trial.file), other, io_map=[])
    onnx.checker.check_model(made, full_check=True)
    return Outcome(counts=Counter(node.op_type for node in made.graph.node))


def converted(trial: Trial) -> Outcome:
    """From the recommended opset to 17."""
    import onnx

    made = onnx.version_converter.convert_version(onnx.load(trial.file), 17)
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, trial.folder / "c.onnx")
    return _computed(trial.folder / "c.onnx", trial)


def slimmed(trial: Trial) -> Outcome:
    """Constants folded, operators fused."""
    import onnx
    import onnxslim  # type: ignore[import-not-found]

    onnx.save(onnxslim.slim(str(trial.file)), trial.folder / "s.onnx")
    return _computed(trial.folder / "s.onnx", trial)


def openvino(trial: Trial) -> Outcome:
    """Compiled for the CPU, in float32."""
    import openvino as ov

    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(str(trial.file), "CPU", hint)
    found = compiled(dict(trial.feeds))
    return Outcome([np.asarray(found[port]) for port in compiled.outputs])


_OPTIMUM = """
import json, pathlib, sys
import numpy, torch
from optimum.onnxruntime import ORTModelForCustomTasks

folder, work = map(pathlib.Path, sys.argv[1:])
model = ORTModelForCustomTasks.from_pretrained(folder)
feeds = {name: torch.from_numpy(array) for name, array in numpy.load(work / "in.npz").items()}
found = model(**feeds)
arrays = {f"o{place}": numpy.asarray(value) for place, value in enumerate(found.values())}
numpy.savez(work / "out.npz", **arrays)
print(json.dumps(model.path.name))
"""


def optimum(trial: Trial) -> Outcome:
    """optimum-onnx, given the bundle's folder and nothing else."""
    if not trial.interpreter:
        raise Missing
    np.savez(trial.folder / "in.npz", **dict(trial.feeds))  # type: ignore[arg-type]
    words = [trial.interpreter, "-c", _OPTIMUM, str(trial.file.parent), str(trial.folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    chosen = json.loads(done.stdout.strip().splitlines()[-1])
    if chosen != trial.file.name:
        raise RuntimeError(f"it loaded {chosen}")
    with np.load(trial.folder / "out.npz") as found:
        return Outcome([found[f"o{place}"] for place in range(len(found.files))])


@dataclass(frozen=True)
class Tool:
    """A row of the table.

    Attributes:
        title: What the table calls it.
        package: Whose version counts.
        run: Tries it.
        tight: Whether it promises the same numbers, up to rounding.
    """

    title: str
    package: str
    run: Callable[[Trial], Outcome]
    tight: bool = True


TOOLS: Mapping[str, Tool] = {
    "dynamic": Tool("`quantize_dynamic`", "onnxruntime", dynamic, tight=False),
    "static": Tool("`quantize_static`", "onnxruntime", static, tight=False),
    "half": Tool("float16 by `onnxruntime.transformers`", "onnxruntime", half, tight=False),
    "merged": Tool("`onnx.compose.merge_models`", "onnx", merged),
    "converted": Tool("`onnx.version_converter` to 17", "onnx", converted),
    "slimmed": Tool("onnxslim", "onnxslim", slimmed),
    "openvino": Tool("OpenVINO on a CPU", "openvino", openvino),
    "optimum": Tool("optimum-onnx, given the folder", "optimum-onnx", optimum),
}


def version(package: str, interpreter: str = "") -> str | None:
    """The version of a package: of onnxruntime in either build, of optimum-onnx in its Python."""
    if package == "optimum-onnx":
        return _version_in(interpreter, package) if interpreter else None
    names = ("onnxruntime-gpu", "onnxruntime") if package == "onnxruntime" else (package,)
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _version_in(interpreter: str, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
