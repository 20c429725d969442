"""Whether an ONNX file holds what it claims: bytes for every initialiser, and no cycle.

The runtime would notice, but not every check opens a session: comparing two structures, a file
whose weights are missing equals another one whose weights are missing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from opdf_compile.artefacts.onnx_nodes import graphs_in
from opdf_compile.errors import ArtefactError

if TYPE_CHECKING:
    import onnx

# Operator sets are numbered one by one; onnx keeps them in 32 bits.
_LARGEST_OPSET = (1 << 31) - 1


def check_whole(model: onnx.ModelProto, tensors: Iterable[onnx.TensorProto], file: Path) -> None:
    """Refuse absurd operator sets, tensors whose bytes are not there, and graphs with a cycle.

    Args:
        model: The parsed model.
        tensors: Its tensors that are not in other files.
        file: For the sentences.

    Raises:
        ArtefactError: With the name of what is wrong.
    """
    for entry in model.opset_import:
        if not 0 < entry.version <= _LARGEST_OPSET:
            raise ArtefactError(
                f"{file} asks for version {entry.version} of the operators {entry.domain!r}, "
                f"wanted 1 to {_LARGEST_OPSET}; export it again"
            )
    for tensor in tensors:
        problem = _tensor_problem(tensor)
        if problem:
            raise ArtefactError(f"{file}: the tensor {tensor.name!r} {problem}; export it again")
    for graph in _graphs(model):
        if _cyclic(graph.node):
            raise ArtefactError(
                f"{file}: the graph {graph.name!r} has a cycle, so nothing can be computed first; "
                "export it again"
            )


def _tensor_problem(tensor: onnx.TensorProto) -> str | None:
    import onnx

    if any(size < 0 for size in tensor.dims):
        return f"has the shape {list(tensor.dims)}"
    count = prod(tensor.dims)
    if tensor.HasField("raw_data"):
        try:
            bits = _bits(tensor.data_type)
        except KeyError:
            return f"has the unknown element type {tensor.data_type}"
        wanted, found, what = (count * bits + 7) // 8, len(tensor.raw_data), "bytes"
    else:
        try:
            field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        except KeyError:
            return f"has the unknown element type {tensor.data_type}"
        wanted, found, what = count, len(getattr(tensor, field)), "values"
        # Complex numbers take two places; numbers of four bits share one.
        if tensor.data_type in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128):
            wanted = 2 * count
        elif _bits(tensor.data_type) < 8:
            per_place = 8 // _bits(tensor.data_type)
            wanted = (count + per_place - 1) // per_place
    if wanted == found:
        return None
    return f"has {found} {what}, its shape {list(tensor.dims)} wants {wanted}"


# A graph has thousands of tensors, of a handful of types.
@functools.cache
def _bits(element: int) -> int:
    import onnx

    names = onnx.TensorProto.DataType
    narrow = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
    name = names.Name(element) if element in names.values() else ""
    if name in narrow:
        return narrow[name]
    return 8 * int(onnx.helper.tensor_dtype_to_np_dtype(element).itemsize)


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    waiting: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        waiting.extend(inner for node in graph.node for inner in graphs_in(*node.attribute))


def _reads(node: onnx.NodeProto) -> set[str]:
    """All names that a node reads, also from within its nested graphs."""
    names = set(node.input)
    if not node.attribute:
        return names
    # The recursion is bounded: protobuf parses no more than 100 levels.
    for graph in graphs_in(*node.attribute):
        inner = {value.name for value in graph.output}
        inner.update(name for part in graph.node for name in _reads(part))
        own = {value.name for value in (*graph.input, *graph.initializer)}
        own.update(name for part in graph.node for name in part.output)
        names |= inner - own
    return names


def _cyclic(nodes: Iterable[onnx.NodeProto]) -> bool:
    """Whether some node waits for itself."""
    nodes = list(nodes)
    makers = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    if len(makers) < sum(1 for node in nodes for name in node.output if name):
        return False  # A value that is defined twice has its own sentence.
    waits = [{makers[n] for n in _reads(node) if n in makers} for node in nodes]
    # ONNX wants the nodes in this order, so that hardly a file needs the sorting.
    if all(max(before, default=-1) < place for place, before in enumerate(waits)):
        return False
    try:
        TopologicalSorter(dict(enumerate(waits))).prepare()
    except CycleError:
        return True
    return False
