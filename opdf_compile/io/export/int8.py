"""An ONNX model in int8: static quantisation as onnxruntime does it, with QDQ nodes.

Weights are int8 per output channel, activations int8 with a scale per tensor, from the least and
the greatest value that the calibration inputs give. Batch norms are merged into convolutions
before, as a runtime does it: what is rounded is the weight that runs.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Container, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdf_compile.errors import ExportError, InputError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx
    import onnx_ir as ir


def require_quantiser() -> None:
    """Refuse int8 where onnxruntime is not installed.

    Raises:
        InputError: With the command that installs it.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError(
            "int8 is quantised by onnxruntime, which is not installed; install it with pip install "
            '"opdf-compile[gpu]" (or [cpu])'
        )


def quantise(
    model: ir.Model | onnx.ModelProto, feeds: Iterable[Mapping[str, Any]], path: Path
) -> None:
    """Write a model in int8.

    Args:
        model: In float32, from an export.
        feeds: Calibration inputs: a numpy array per input, for each run.
        path: The ``.onnx`` file to write.

    Raises:
        InputError: onnxruntime is not installed.
        ExportError: It cannot quantise the model.
    """
    require_quantiser()
    import onnx
    import onnx_ir as ir
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    proto = model if isinstance(model, onnx.ModelProto) else ir.serde.serialize_model(model)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        whole, merged = Path(folder) / "whole.onnx", Path(folder) / "merged.onnx"
        # As a file: it would put the weights of a model in memory where it does not find them.
        onnx.save_model(proto, str(whole))
        try:
            # Its own shape inference trips over some transformers; that of ONNX does.
            quant_pre_process(whole, merged, skip_symbolic_shape=True)
            suited = onnx.load(merged)
            _write_beta_out(suited.graph)
            _part_shared_weights(suited.graph)
            onnx.save_model(suited, merged)
            quantize_static(
                merged,
                path,
                _reader(feeds),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # onnxruntime raises what its parts do.
            raise ExportError(
                f"onnxruntime cannot quantise the model to int8 ({first_line(error)}), wanted a "
                "float32 graph of operators that it knows; leave int8 out"
            ) from error


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
