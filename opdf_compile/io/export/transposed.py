"""Weights stored the way that the graph reads them.

    Transpose(fc.weight) -> MatMul(x, .)     becomes     MatMul(x, fc.weight.T)

torch keeps a Linear's weight as (out, in), and a product with it is written as a Transpose of the
weight. Quantisers take a MatMul only where the weight itself is stored, and leave the others in
float32 without a word. So a parameter that is read with its last two axes swapped, and in no other
way, is stored so, under its name with `.T`: the name never says less than what lies there. A weight
with another reader (a head that is tied to an embedding) stays as it is: the file would hold it
twice, and the next training would tear the two apart.

Only shapes and edges decide, never a value, so the untouched and the trained student agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

_SUFFIX = ".T"


def store_transposed(parameters: Sequence[ir.Value]) -> None:
    """Swap the last two axes of every parameter that is only read so.

    Args:
        parameters: Initialisers of a graph that training moves; the graph is changed in place.
    """
    for weight in parameters:
        readers = [use.node for use in weight.uses()]
        if not _only_swapped(weight, readers):
            continue
        _swap(weight)
        for node in readers:
            node.outputs[0].replace_all_uses_with(weight)
            if node.graph is not None:
                node.graph.remove(node, safe=True)
        # No module can own a parameter and, under its name, another one called "T".
        weight.name = f"{weight.name}{_SUFFIX}"


def _only_swapped(weight: ir.Value, readers: Sequence[Any]) -> bool:
    if not readers or weight.is_graph_output():
        return False
    return all(
        node.op_type == "Transpose"
        and node.domain == ""
        and not node.outputs[0].is_graph_output()
        and _swaps_the_last_two(node, len(weight.shape or ()))
        for node in readers
    )


def _swaps_the_last_two(node: Any, rank: int) -> bool:
    given = node.attributes.get("perm")
    reverse = list(reversed(range(rank)))
    order = reverse if given is None else list(given.as_ints())
    return rank > 1 and order == [*range(rank - 2), rank - 1, rank - 2]


def _swap(weight: ir.Value) -> None:
    import onnx_ir as ir
    from onnx_ir.tensor_adapters import TorchTensor

    # A view: the numbers are copied when the file is written.
    swapped = weight.const_value.raw.mT  # type: ignore[union-attr]
    weight.const_value = TorchTensor(swapped)
    weight.shape = ir.Shape(swapped.shape)
