"""Which outputs of an ONNX file depend on random numbers that the file itself draws."""

from __future__ import annotations

from opdf_compile.artefacts import Node, nodes_behind
from opdf_compile.parity.model_file import ModelFile, PathLike

# Every operator of ONNX, and of ONNX Runtime's own domain, whose result its inputs do not fix.
_DRAWING = frozenset(
    {
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        *("Bernoulli", "Multinomial", "Sampling"),
    }
)
# They draw in training only, which inputs 1 (ratio) and 2 (training_mode) switch.
_DROPOUTS = frozenset({"Dropout", "BitmaskDropout"})
_FIRST_WITH_INPUTS, _FIRST_WITHOUT_IS_TEST = 12, 7


def drawing_outputs(model: PathLike) -> dict[str, str]:
    """By output that depends on random numbers, the nodes that draw them.

    Raises:
        ArtefactError: It is no valid ONNX model.
    """
    view = ModelFile.of(model).view
    drawing = {node for node in view.nodes if _draws(node)}
    if not drawing:
        return {}
    found = {value.name: nodes_behind([value]) & drawing for value in view.main.outputs}
    return {name: _words(nodes) for name, nodes in found.items() if nodes}


def _words(nodes: set[Node]) -> str:
    shown = sorted(map(str, nodes))
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _draws(node: Node) -> bool:
    if node.function is not None:
        return False  # A local function may have any name; its body tells.
    if node.op in _DRAWING:
        return True
    return node.op in _DROPOUTS and not _is_quiet(node)


def _is_quiet(node: Node) -> bool:
    """Whether a dropout keeps everything."""
    opset = node.graph.opsets.get("", _FIRST_WITH_INPUTS)
    if not node.proto.domain and opset < _FIRST_WITH_INPUTS:
        # Not `node.attributes`: in a function's body the caller may give the value.
        flags = {a.name: a.i for a in node.proto.attribute}
        return opset >= _FIRST_WITHOUT_IS_TEST or bool(flags.get("is_test", 0))
    mode = _number(node, 2, absent=0.0)
    return mode == 0.0 or _number(node, 1, absent=0.5) == 0.0


def _number(node: Node, place: int, absent: float) -> float | None:
    """A constant operand; None where only a run can tell."""
    value = node.inputs[place] if place < len(node.inputs) else None
    if value is None or value.is_absent:
        return absent
    if value.constant is None or value.input_of is not None:
        return None
    from onnx import numpy_helper

    return float(
        numpy_helper.to_array(value.constant.proto, value.constant.graph.folder).reshape(-1)[0]
    )
