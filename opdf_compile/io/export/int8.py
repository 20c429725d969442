"""An ONNX model in int8: static quantisation as onnxruntime does it, with QDQ nodes.

Weights are int8 per output channel, activations int8 with a scale per tensor, from the least and
the greatest value that the calibration inputs give. One scale for a whole weight is there to be
measured against: it is all that some runtimes take. Batch norms are merged into convolutions
before, as a runtime does it: what is rounded is the weight that runs.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import tempfile
from collections.abc import Container, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opdf_compile.errors import ExportError, InputError, first_line
from opdf_compile.extras import requirements_of
from opdf_compile.io.export.lowering import unoptimised

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx
    import onnx_ir as ir

_LOG = logging.getLogger("opdf_compile")


def require_quantiser() -> None:
    """Refuse int8 where onnxruntime is not installed.

    Raises:
        InputError: With the command that installs it.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError(
            "int8 is quantised by onnxruntime, which is not installed; install it with pip install "
            f"{requirements_of('gpu')} (or onnxruntime)"
        )


def quantise(
    model: ir.Model | onnx.ModelProto,
    feeds: Iterable[Mapping[str, Any]],
    path: Path,
    *,
    per_channel: bool = True,
) -> None:
    """Write a model in int8.

    Args:
        model: In float32, from an export.
        feeds: Calibration inputs: a numpy array per input, for each run.
        path: The ``.onnx`` file to write.
        per_channel: A scale for each output channel of a weight; otherwise one for the weight.

    Raises:
        InputError: onnxruntime is not installed.
        ExportError: It cannot quantise the model.
    """
    require_quantiser()
    import onnx
    import onnx_ir as ir
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    proto = model if isinstance(model, onnx.ModelProto) else ir.serde.serialize_model(model)
    runs = iter(feeds)
    calibrating = list(itertools.islice(runs, 1))
    with tempfile.TemporaryDirectory() as folder:
        whole, merged = Path(folder) / "whole.onnx", Path(folder) / "merged.onnx"
        # As a file: it would put the weights of a model in memory where it does not find them.
        onnx.save_model(proto, str(whole))
        try:
            _prepare(whole, merged, calibrating)
            suited = onnx.load(merged)
            _write_beta_out(suited.graph)
            _count_cells_that_are_there(suited.graph)
            _part_shared_weights(suited.graph)
            onnx.save_model(suited, merged)
            with _quiet():
                quantize_static(
                    merged,
                    path,
                    _reader(itertools.chain(calibrating, runs)),
                    quant_format=QuantFormat.QDQ,
                    per_channel=per_channel,
                    activation_type=QuantType.QInt8,
                    weight_type=QuantType.QInt8,
                )
        except Exception as error:  # onnxruntime raises what its parts do.
            raise ExportError(
                f"onnxruntime cannot quantise the model to int8 ({first_line(error)}), wanted a "
                "float32 graph of operators that it knows; leave int8 out"
            ) from error


def _prepare(whole: Path, merged: Path, feeds: list[Mapping[str, Any]]) -> None:
    """Merge batch norms and infer shapes; without the merging where it makes another function.

    The runtime's graph passes take some chains for others that look like them (a norm of mean - x
    for a layer norm, 1.31.1), and what they make of the model here would be in the file for good.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # Its own shape inference trips over some transformers; that of ONNX does.
    with _quiet():
        quant_pre_process(whole, merged, skip_symbolic_shape=True)
    if not all(_same(whole, merged, feed) for feed in feeds):
        _LOG.warning(
            "onnxruntime makes another function of the model where it optimises the graph: int8 is "
            "made of the graph as it stands; the runtime goes on doing so in every session with "
            "its default optimisation"
        )
        with _quiet():
            quant_pre_process(whole, merged, skip_symbolic_shape=True, skip_optimization=True)


def _same(first: Path, second: Path, feed: Mapping[str, Any]) -> bool:
    """Whether two files compute the same, each run as it stands.

    Half of the digits are left to rounding, which is far below. Outputs that are drawn at random,
    so that a file differs from itself, say nothing.
    """
    runner = unoptimised(first)
    once, again = runner(feed), runner(feed)
    try:
        others = unoptimised(second)(feed)
    except Exception:  # The first file runs: what was made of it is another model.
        return False
    return all(
        not _near(one, repeated) or _near(one, other)
        for one, repeated, other in zip(once, again, others, strict=True)
    )


def _near(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind != "f":
        return bool((one == other).all())
    room = float(np.finfo(one.dtype).eps) ** 0.5 * (float(np.abs(one).max(initial=0)) or 1.0)
    return bool((np.abs(one - other) <= room).all())


def _count_cells_that_are_there(graph: onnx.GraphProto) -> None:
    """Let an average pool without padding count no padding, which is the same function.

    The last window of `ceil_mode` reaches over the end of the input. Where padding counts, the
    runtime's int8 kernel divides by the cells that are not there, too (1.31.1).
    """
    for node in graph.node:
        told = {a.name: a for a in node.attribute}
        if node.op_type != "AveragePool" or not ("ceil_mode" in told and told["ceil_mode"].i):
            continue
        counted = told.get("count_include_pad")
        if counted is None or not counted.i:
            continue
        same = "auto_pad" in told and told["auto_pad"].s.startswith(b"SAME")
        if not same and not any(told["pads"].ints if "pads" in told else ()):
            counted.i = 0
        else:
            _LOG.warning(
                "the average pool %s counts its padding and rounds its size up: onnxruntime's int8 "
                "kernel divides its last windows by cells that do not exist",
                node.name,
            )


def _write_beta_out(graph: onnx.GraphProto) -> None:
    """Multiply the constant bias of each Gemm by its ``beta``, which the quantiser loses."""
    import onnx

    constants = {constant.name: constant for constant in graph.initializer}
    for node in graph.node:
        betas = [a for a in node.attribute if a.name == "beta" and a.f != 1]
        if node.op_type != "Gemm" or not betas or len(node.input) < 3:
            continue
        bias = constants.get(node.input[2])
        if bias is not None:
            beta = betas[0].f
            values = onnx.numpy_helper.to_array(bias)
            name = _free(f"{bias.name}_by_beta", constants)
            scaled = (values * beta).astype(values.dtype)
            constants[name] = onnx.numpy_helper.from_array(scaled, name)
            graph.initializer.append(constants[name])
            node.input[2], betas[0].f = name, 1.0


def _part_shared_weights(graph: onnx.GraphProto) -> None:
    """Give a weight that is read along two axes, as tied ones are, a copy for the second.

    The quantiser has one set of scales for it, along the output channels of one reader, and the
    runtime takes them for the output channels of the other.
    """
    constants = {constant.name: constant for constant in graph.initializer}
    copies: dict[tuple[str, int], str] = {}
    first: dict[str, int] = {}
    for node in graph.node:
        axis = _output_axis(node)
        if axis is None or (weight := constants.get(node.input[1])) is None:
            continue
        if first.setdefault(weight.name, axis) == axis:
            continue
        key = weight.name, axis
        if key not in copies:
            copies[key] = _free(f"{weight.name}_along_{axis}", constants)
            copy = graph.initializer.add()
            copy.CopyFrom(weight)
            copy.name = copies[key]
            constants[copy.name] = copy
        node.input[1] = copies[key]


def _output_axis(node: onnx.NodeProto) -> int | None:
    """The axis of a weight by which its node's output channels lie; None for other nodes."""
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}.get(node.op_type)


def _free(name: str, taken: Container[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _reader(feeds: Iterable[Mapping[str, Any]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            found = next(self._left, None)
            return None if found is None else dict(found)

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser talks to the root logger, about what was done here already."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
