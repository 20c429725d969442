"""Changes of an ONNX graph, each a function of the model and a source of chance.

`reorder` is cosmetic. All others make another graph, another function, or both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from opdf_compile.artefacts.record import recorded_parameters, replace_record

if TYPE_CHECKING:
    import onnx

Change = Callable[["onnx.ModelProto", np.random.Generator], None]


def reorder(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Initialisers in another order and under other names."""
    tensors = list(model.graph.initializer)
    renamed = {tensor.name: f"value_{index}" for index, tensor in enumerate(tensors)}
    for tensor in tensors:
        tensor.name = renamed[tensor.name]
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    _record(model, [renamed.get(name, name) for name in _recorded(model)])
    shuffled = [tensors[index] for index in rng.permutation(len(tensors))]
    copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in shuffled]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copies)


def scaled_weight(by: float) -> Change:
    """Every element of one weight off by a relative error."""

    def change(model: onnx.ModelProto, rng: np.random.Generator) -> None:
        tensor = _weight(model, rng)
        _put(tensor, _values(tensor) * np.float32(1.0 + by))

    return change


def scaled_element(by: float) -> Change:
    """One element of one weight off, by a share of the weight's largest element."""

    def change(model: onnx.ModelProto, rng: np.random.Generator) -> None:
        tensor = _weight(model, rng)
        values = _values(tensor).copy()
        values.flat[rng.integers(values.size)] += np.float32(by * np.abs(values).max())
        _put(tensor, values)

    return change


def other_attribute(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """The second convolution pads on the other side: same shapes, other values."""
    node = _nodes(model, "Conv")[1]
    pads = next(value for value in node.attribute if value.name == "pads")
    pads.ints[:] = [2, 1, 0, 1] if rng.integers(2) else [0, 1, 2, 1]


def added_identity(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """An Identity in front of a random node that reads another node."""
    from onnx import helper

    made = {name for node in model.graph.node for name in node.output}
    readers = [n for n in model.graph.node if n.input and n.input[0] in made]
    node = readers[rng.integers(len(readers))]
    _insert(model, node, helper.make_node("Identity", [node.input[0]], ["same"]))
    node.input[0] = "same"


def swapped_subtraction(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """The Sub the other way round."""
    node = _nodes(model, "Sub")[0]
    node.input[:] = [node.input[1], node.input[0]]


def other_slice(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A Slice that begins one pixel later; a last pixel may be one that no window reaches."""
    slices = _nodes(model, "Slice")
    node = slices[rng.integers(len(slices))]
    values = _constant(model, node.input[1])
    _replace_input(model, node, 1, values + 1)


def other_scale(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A Resize by a factor that is a little larger."""
    node = _nodes(model, "Resize")[0]
    scales = _constant(model, node.input[2]).astype(np.float32).copy()
    scales[-1] *= np.float32(1.1)
    _replace_input(model, node, 2, scales)


def half_initialiser(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """One weight kept in float16, with a Cast in front of its reader."""
    from onnx import TensorProto, helper, numpy_helper

    tensor = _weight(model, rng)
    node = next(node for node in model.graph.node if tensor.name in node.input)
    name, place = tensor.name, list(node.input).index(tensor.name)
    tensor.CopyFrom(numpy_helper.from_array(_values(tensor).astype(np.float16), name))
    _insert(model, node, helper.make_node("Cast", [name], ["wide"], to=TensorProto.FLOAT))
    node.input[place] = "wide"


def added_product(columns: int) -> Change:
    """A MatMul in front of the mean over pixels, whose result has the same mean.

    H has shape (batch, channels, h, w). With A of shape (w, columns) whose every row sums to
    columns / w, mean(H A) = mean(H). The cost grows with the columns; the verdict on numbers stays.
    """

    def change(model: onnx.ModelProto, rng: np.random.Generator) -> None:
        from onnx import helper, numpy_helper

        node = _nodes(model, "ReduceMean")[-1]
        width = _width_before_mean(model)
        matrix = 0.5 + rng.random((width, columns))
        matrix *= columns / width / matrix.sum(axis=1, keepdims=True)
        tensor = numpy_helper.from_array(matrix.astype(np.float32), "added")
        model.graph.initializer.append(tensor)
        _record(model, [*_recorded(model), "added"])
        _insert(model, node, helper.make_node("MatMul", [node.input[0], "added"], ["product"]))
        node.input[0] = "product"

    return change


def unfolded(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A linear layer's weight as the chain of its three cores, never multiplied out.

    W[(i0 i1 i2), (j0 j1 j2)] = T0 T1 T2, as products of reshaped cores and one transposition.
    """
    from onnx import helper

    from opdf_compile.tensor.chain import Chain
    from opdf_compile.tensor.decomposition import decompose
    from opdf_compile.tensor.modes import balanced_modes

    tensor = next(t for t in model.graph.initializer if t.name == "left.weight")
    weight = torch.from_numpy(_values(tensor).copy())
    rows, cols = weight.shape
    chain = Chain(*balanced_modes(rows, cols, 3))
    cores = decompose(weight, chain)
    bonds, products = chain.bonds, chain.products
    names = []
    for index, core in enumerate(cores):
        matrix = core.reshape(bonds[index], -1) if index else core.reshape(-1, bonds[1])
        names.append(_add(model, f"left.cores.{index}", matrix.numpy()))
    axes = [*range(0, 6, 2), *range(1, 6, 2)]
    modes = [m for pair in zip(chain.out_modes, chain.in_modes, strict=True) for m in pair]
    shapes = {
        "two": [math.prod(products[:2]), bonds[2]],
        "open": modes,
        "closed": list(weight.shape),
    }
    for name, shape in shapes.items():
        _add(model, f"left.{name}", np.array(shape, dtype=np.int64), parameter=False)
    node = next(node for node in model.graph.node if "left.weight" in node.input)
    for made in (
        helper.make_node("MatMul", [names[0], names[1]], ["left.a"]),
        helper.make_node("Reshape", ["left.a", "left.two"], ["left.b"]),
        helper.make_node("MatMul", ["left.b", names[2]], ["left.c"]),
        helper.make_node("Reshape", ["left.c", "left.open"], ["left.d"]),
        helper.make_node("Transpose", ["left.d"], ["left.e"], perm=axes),
        helper.make_node("Reshape", ["left.e", "left.closed"], ["left.composed"]),
    ):
        _insert(model, node, made)
    node.input[list(node.input).index("left.weight")] = "left.composed"
    model.graph.initializer.remove(tensor)
    _record(model, [name for name in _recorded(model) if name != "left.weight"])


def _nodes(model: onnx.ModelProto, kind: str) -> list[Any]:
    return [node for node in model.graph.node if node.op_type == kind]


def _insert(model: onnx.ModelProto, before: Any, node: Any) -> None:
    place = next(
        i for i, other in enumerate(model.graph.node) if other is before or other == before
    )
    model.graph.node.insert(place, node)


def _width_before_mean(model: onnx.ModelProto) -> int:
    """Columns of the last feature map, from the size of the image: the network's own arithmetic."""
    image: int = model.graph.input[0].type.tensor_type.shape.dim[3].dim_value
    return (2 * (image // 2) - 2 - 3) // 2 + 1


def _weight(model: onnx.ModelProto, rng: np.random.Generator) -> Any:
    """A random weight: a parameter of two axes or more."""
    recorded = set(_recorded(model))
    found = [t for t in model.graph.initializer if t.name in recorded and len(t.dims) >= 2]
    return found[rng.integers(len(found))]


def _values(tensor: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor)


def _put(tensor: Any, values: Any) -> None:
    from onnx import numpy_helper

    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values), tensor.name))


def _constant(model: onnx.ModelProto, name: str) -> Any:
    """The value of an initialiser or a Constant node."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return _values(tensor)
    node = next(node for node in model.graph.node if name in node.output)
    return _values(next(value.t for value in node.attribute if value.name == "value"))


def _replace_input(model: onnx.ModelProto, node: Any, place: int, values: Any) -> None:
    node.input[place] = _add(model, f"{node.input[place]}_changed", values, parameter=False)


def _add(model: onnx.ModelProto, name: str, values: Any, *, parameter: bool = True) -> str:
    from onnx import numpy_helper

    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    if parameter:
        _record(model, [*_recorded(model), name])
    return name


def _recorded(model: onnx.ModelProto) -> list[str]:
    """The exporter's record of parameters."""
    return sorted(recorded_parameters(model, "the file") or ())


def _record(model: onnx.ModelProto, names: Sequence[str]) -> None:
    replace_record(model, names)
