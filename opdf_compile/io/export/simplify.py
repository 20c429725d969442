"""Clean-up of a freshly translated ONNX graph that never looks at a parameter's value.

The exporter's own optimiser folds by value: a scalar parameter that happens to be 1.0 disappears
from a Mul, an all-zero bias from a Conv, and equal-valued parameters become one initialiser. The
untouched and the trained student would then have different graphs. Here the parameters are turned
into graph inputs while the very same passes run, so that the passes see their type and shape and
nothing else, and are put back afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir


def optimise(model: ir.Model, parameters: Collection[str]) -> None:
    """Fold constants, share equal subexpressions and drop dead nodes, blind to parameters.

    Args:
        model: Changed in place.
        parameters: Names of the initialisers whose values training moves.
    """
    import onnx_ir.passes.common as common
    from onnxscript.optimizer import optimize_ir

    with hidden(model, parameters):
        optimize_ir(model)
        common.IdentityEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
    drop_unused(model)


@contextlib.contextmanager
def hidden(model: ir.Model, names: Collection[str]) -> Iterator[None]:
    """Turn the named initialisers into graph inputs without a value for the length of a block."""
    graph = model.graph
    held: list[tuple[Any, Any]] = []
    for name in [name for name in graph.initializers if name in names]:
        value = graph.initializers.pop(name)
        held.append((value, value.const_value))
        value.const_value = None
        graph.inputs.append(value)
    try:
        yield
    finally:
        for value, tensor in held:
            graph.inputs.remove(value)
            value.const_value = tensor
            graph.register_initializer(value)


def merge_tied(model: ir.Model, groups: Collection[tuple[str, ...]]) -> None:
    """Let the names of one tied weight share one initialiser, the first that the graph holds.

    Tied means one memory, never equal values: two weights that are equal today may differ after
    the next training step.

    Args:
        model: Changed in place.
        groups: For every tied weight, the names it goes by.
    """
    initializers = model.graph.initializers
    for group in groups:
        present = [name for name in group if name in initializers]
        for name in present[1:]:
            initializers[name].replace_all_uses_with(initializers[present[0]])
            initializers.pop(name)


def drop_unused(model: ir.Model) -> None:
    """Remove initialisers that nothing reads, such as BatchNorm's batch counter."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(name)
