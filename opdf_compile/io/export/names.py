"""The names that users of the ONNX file see: inputs, outputs, axes.

The exporter calls an output ``linear_13`` and an axis ``s18``. Here inputs carry the names of the
forward's parameters, outputs the keys of the model's output, axes the caller's names; an axis that
follows from others keeps an expression in those names (``batch_size*sequence_length``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opdf_compile.errors import ExportError, InternalError

if TYPE_CHECKING:
    import onnx_ir as ir

_SYMBOL = re.compile(r"\bs\d+\b")


def name_graph(
    model: ir.Model,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
) -> tuple[str, ...]:
    """Give inputs, outputs and axes their public names.

    Args:
        model: Changed in place.
        inputs: Names of the graph's inputs, in order.
        outputs: Names of the graph's outputs, in order. One that is taken by an input gets the
            suffix ``_output``, because ONNX has a single name space.
        axes: For each input, the names of its dynamic axes by index.

    Returns:
        The names of the outputs as they are in the file.

    Raises:
        ExportError: Two axes that must be of one size have different names.
    """
    graph = model.graph
    _check_counts(graph, inputs, outputs)
    _rename_axes(model, _axes_mapping(graph, inputs, axes))
    _separate_outputs(graph)
    outputs = _free_of_clashes(inputs, outputs)
    taken = [*zip(graph.inputs, inputs, strict=True), *zip(graph.outputs, outputs, strict=True)]
    _clear_the_way(model, taken)
    for value, name in taken:
        value.name = name
    return tuple(outputs)


def _axes_mapping(
    graph: ir.Graph, inputs: Sequence[str], axes: Mapping[str, Mapping[int, str]]
) -> dict[str, str]:
    """The public name of every symbol that an input's shape holds.

    Raises:
        ExportError: One symbol has two names: the model only works when these sizes are equal.
    """
    mapping: dict[str, str] = {}
    for value, name in zip(graph.inputs, inputs, strict=True):
        for axis, size in enumerate(value.shape or ()):
            symbol = getattr(size, "value", None)
            if not isinstance(symbol, str) or not _SYMBOL.fullmatch(symbol):
                continue
            wanted = axes.get(name, {}).get(axis)
            if wanted is None:
                mapping.setdefault(symbol, f"{name}_axis_{axis}")
            elif mapping.setdefault(symbol, wanted) != wanted:
                raise ExportError(
                    f"axis {axis} of input {name} is called {wanted!r} and the model needs it to "
                    f"be of the same size as {mapping[symbol]!r}; give both the same letter"
                )
    return mapping


def _check_counts(graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    if len(graph.inputs) != len(inputs) or len(graph.outputs) != len(outputs):
        raise InternalError(
            f"the ONNX graph has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, "
            f"wanted {len(inputs)} ({', '.join(inputs)}) and {len(outputs)} "
            f"({', '.join(outputs)}); please report the model"
        )


def _free_of_clashes(inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    seen = set(inputs)
    names = []
    for name in outputs:
        while name in seen:
            name = f"{name}_output"
        seen.add(name)
        names.append(name)
    return names


def _separate_outputs(graph: ir.Graph) -> None:
    """Give every output a value of its own.

    An output may be an input, a parameter, or the same value as an earlier output; renaming it
    would rename that one too.
    """
    import onnx_ir as ir

    seen: set[int] = set()
    inputs = {id(value) for value in graph.inputs}
    initializers = {id(value) for value in graph.initializers.values()}
    for index, value in enumerate(graph.outputs):
        if id(value) not in seen | inputs | initializers:
            seen.add(id(value))
            continue
        node = ir.Node("", "Identity", [value], num_outputs=1)
        node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
        node.outputs[0].name = f"{value.name}_copy_{index}"
        graph.append(node)
        graph.outputs[index] = node.outputs[0]
        seen.add(id(node.outputs[0]))


def _clear_the_way(model: ir.Model, taken: Sequence[tuple[Any, str]]) -> None:
    """Rename inner values that hold a name which an input or output is about to get."""
    public = {id(value) for value, _ in taken}
    names = {name for _, name in taken}
    others = [value for value in _all_values(model) if id(value) not in public]
    used = names | {value.name for value in others}
    for value in others:
        if value.name not in names:
            continue
        count = 1
        while f"{value.name}_{count}" in used:
            count += 1
        value.name = f"{value.name}_{count}"
        used.add(value.name)
    # Two public values may swap names; a detour avoids a clash halfway.
    for position, (value, _) in enumerate(taken):
        value.name = f"opdf_public_{position}"


def _all_values(model: ir.Model) -> Iterator[Any]:
    import onnx_ir as ir

    yield from model.graph.inputs
    yield from list(model.graph.initializers.values())
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        yield from node.outputs


def _rename_axes(model: ir.Model, mapping: Mapping[str, str]) -> None:
    import onnx_ir as ir

    def public(size: Any) -> Any:
        symbol = getattr(size, "value", None)
        if not isinstance(symbol, str):
            return size
        if symbol.isdecimal():  # A symbol that torch.export fixed later on; a number is no name.
            return int(symbol)
        return _SYMBOL.sub(lambda found: mapping.get(found[0], found[0]), symbol)

    for value in _all_values(model):
        if value.shape is not None and any(not isinstance(size, int) for size in value.shape):
            value.shape = ir.Shape([public(size) for size in value.shape])
