"""Make every view of a program hold whatever the strides, for the exporter's sake.

torch's exporter runs the decomposed graph once more on fake tensors. Its parts can lay memory out
differently from the operation that was traced (scaled dot product attention does, in T5), and a
view that was legal then raises "Cannot view a tensor". ONNX has no strides: a contiguous copy in
front of each view satisfies the exporter, becomes an Identity, and the clean-up removes it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from opdf_compile.graph import all_graphs

_ATEN = torch.ops.aten
_VIEWS = frozenset({_ATEN.view.default, _ATEN._unsafe_view.default})


def with_free_views(program: ExportedProgram) -> ExportedProgram:
    """A copy of the graph, over the same weights, in which every view reads contiguous memory.

    Args:
        program: It is not changed.
    """
    copied: ExportedProgram = program.run_decompositions({})
    for part in list(all_graphs(copied.graph_module)):
        for node in [node for node in part.graph.nodes if node.target in _VIEWS]:
            _copy_before(node)
        part.recompile()
    return copied


def _copy_before(view: Node) -> None:
    source = view.args[0]
    value = source.meta.get("val") if isinstance(source, Node) else None
    if not isinstance(source, Node) or not isinstance(value, Tensor):
        return
    options: dict[str, Any] = {"memory_format": torch.contiguous_format}
    with view.graph.inserting_before(view):
        clone = view.graph.call_function(_ATEN.clone.default, (source,), options)
    # `value` is a fake tensor, so this computes a shape and copies nothing.
    clone.meta["val"] = value.clone(memory_format=torch.contiguous_format)
    view.replace_input_with(source, clone)
