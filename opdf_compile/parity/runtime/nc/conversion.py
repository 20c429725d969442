"""An ONNX file as ncnn's own two files, which the tool pnnx writes.

    pnnx m.onnx fp16=0   ->   m.ncnn.param  the layers, as text      m.ncnn.bin  their weights
                              m_ncnn.py     which axis of each end is the batch

The last is a program that shows how the files are used. It is read as text and never run.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from opdf_compile.errors import DeviceError
from opdf_compile.parity.model_file import ModelFile

if TYPE_CHECKING:
    import onnx

_TOOL = "pnnx"
DOMAIN = "ncnn"
_WRITTEN = {
    **{"pnnxparam": "m.pnnx.param", "pnnxbin": "m.pnnx.bin", "pnnxonnx": "m.pnnx.onnx"},
    **{"pnnxpy": "m_pnnx.py", "ncnnpy": "m_ncnn.py"},
    **{"ncnnparam": "m.ncnn.param", "ncnnbin": "m.ncnn.bin"},
}
_SECONDS = 600


@dataclass(frozen=True)
class Layer:
    """A line of the text file.

    Attributes:
        kind: Its type, such as "Convolution".
        inputs: Names of what it reads.
        outputs: Names of what it makes.
        options: The rest of the line.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: str


@dataclass(frozen=True)
class Converted:
    """What the tool wrote, for as long as its folder lives.

    Attributes:
        file: What was converted.
        layers: As text.
        weights: Of the layers.
        batch_in: By input, which axis is the batch; a number above all axes where none is.
        batch_out: By output.
    """

    file: ModelFile
    layers: Path
    weights: Path
    batch_in: tuple[int, ...]
    batch_out: tuple[int, ...]

    def read(self) -> Iterator[Layer]:
        """The layers in order."""
        for line in self.layers.read_text(encoding="utf-8").splitlines()[2:]:
            kind, _, reads, makes, *rest = line.split()
            split, end = int(reads), int(reads) + int(makes)
            yield Layer(kind, tuple(rest[:split]), tuple(rest[split:end]), " ".join(rest[end:]))


def tool() -> Path | None:
    """The converter; importing its package would import torch."""
    found = importlib.util.find_spec(_TOOL)
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder) / (f"{_TOOL}.exe" if os.name == "nt" else _TOOL)
        if path.is_file():
            return path
    return None


@contextmanager
def converted(file: ModelFile, *, half: bool) -> Iterator[Converted]:
    """Convert a file into a folder that is gone afterwards.

    Args:
        file: The file.
        half: Round the weights to float16, as the tool does unless told otherwise.

    Raises:
        DeviceError: The tool does not take it.
    """
    with tempfile.TemporaryDirectory(prefix="opdf-pnnx-") as folder:
        paths = {key: Path(folder) / name for key, name in _WRITTEN.items()}
        words = [f"{key}={path}" for key, path in paths.items()]
        command = [str(tool()), str(file.path.absolute()), f"fp16={int(half)}", *words]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise _refused(file, f"no end after {_SECONDS} s") from error
        if done.returncode or not paths["ncnnpy"].is_file():
            lines = (done.stderr or done.stdout).strip().splitlines()
            said = lines[-1][:160] if lines else "it says nothing"
            raise _refused(file, f"exit code {done.returncode}: {said}")
        program = paths["ncnnpy"].read_text(encoding="utf-8")
        yield Converted(
            file,
            paths["ncnnparam"],
            paths["ncnnbin"],
            _axes(r"ex\.input\(.*batch_index=(\d+)", program),
            _axes(r"out\d+\.numpy\(batch_index=(\d+)", program),
        )


def graph_of(layers: Iterable[Layer]) -> onnx.ModelProto:
    """The layers with their options and without weights, as a model of operators of ncnn's own."""
    from onnx import TensorProto, helper

    nodes: list[onnx.NodeProto] = []
    starts: list[str] = []
    made: list[str] = []
    read: set[str] = set()
    for one in layers:
        if not one.inputs:
            starts.append(f"input {one.outputs[0]}")
        reads = one.inputs or starts[-1:]
        nodes.append(
            helper.make_node(one.kind, reads, one.outputs, domain=DOMAIN, options=one.options)
        )
        read.update(one.inputs)
        made += one.outputs
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
        for names in (starts, [name for name in made if name not in read])
    )
    graph = helper.make_graph(nodes, DOMAIN, inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(DOMAIN, 1)], ir_version=8)


def _axes(pattern: str, program: str) -> tuple[int, ...]:
    return tuple(int(axis) for axis in re.findall(pattern, program))


def _refused(file: ModelFile, reason: str) -> DeviceError:
    return DeviceError(f"{_TOOL} cannot convert {file} ({reason}); give another --runtime")
