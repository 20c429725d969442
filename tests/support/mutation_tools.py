"""What the mutations are made of: finding a node or a constant, and changing it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from opdf_compile.artefacts.record import recorded_parameters, replace_record

Change = Callable[[ModelProto], object]


class DoesNotApply(Exception):
    """The graph has nothing that a mutation could change."""


def need(condition: object) -> None:
    if not condition:
        raise DoesNotApply


def find(
    model: ModelProto, op: str, test: Callable[[NodeProto], object] = lambda node: True
) -> NodeProto:
    """The last node of an operator: near the outputs, where every error shows."""
    found = [n for n in model.graph.node if n.op_type == op and test(n)]
    need(found)
    return found[-1]


def tensors(model: ModelProto) -> dict[str, TensorProto]:
    return {t.name: t for t in model.graph.initializer}


def parameters(model: ModelProto) -> list[str]:
    return sorted(recorded_parameters(model, "a graph") or ())


def record(model: ModelProto, names: list[str]) -> None:
    replace_record(model, names)


def array(model: ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(tensors(model)[name]).copy()


def put(model: ModelProto, name: str, values: np.ndarray) -> None:
    tensors(model)[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))


def new(model: ModelProto, values: np.ndarray) -> str:
    name = f"new.{len(model.graph.initializer)}"
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return name


def weight(model: ModelProto, rank: int = 2, place: int = -1) -> str:
    """A floating-point parameter of so many axes, in the order in which nodes read them."""
    known, names = tensors(model), set(parameters(model))
    read = [i for n in model.graph.node for i in n.input if i in names and i in known]
    fit = [i for i in dict.fromkeys(read) if len(known[i].dims) == rank]
    need(fit)
    return fit[place]


def constant(op: str, slot: int, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    """Give a node another constant operand that is no parameter."""

    def apply(model: ModelProto) -> None:
        known = tensors(model).keys() - set(parameters(model))
        node = find(model, op, lambda n: len(n.input) > slot and n.input[slot] in known)
        node.input[slot] = new(model, change(array(model, node.input[slot])))

    return apply


def attribute(op: str, **values: object) -> Change:
    """Set attributes of a node; a value of None takes the attribute away."""

    def apply(model: ModelProto) -> None:
        set_attribute(find(model, op), **values)

    return apply


def set_attribute(node: NodeProto, **values: object) -> None:
    before = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    need(any(before.get(k) != v for k, v in values.items()))
    kept = [a for a in node.attribute if a.name not in values]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(helper.make_attribute(k, v) for k, v in values.items() if v is not None)


def operator(op: str, other: str, **attributes: object) -> Change:
    def apply(model: ModelProto) -> None:
        node = find(model, op)
        node.op_type = other
        for name, value in attributes.items():
            set_attribute(node, **{name: value})

    return apply


def swap(op: str, first: int = 0, second: int = 1) -> Change:
    def apply(model: ModelProto) -> None:
        node = find(
            model, op, lambda n: len(n.input) > second and n.input[first] != n.input[second]
        )
        node.input[first], node.input[second] = node.input[second], node.input[first]

    return apply


def insert(op: str, **attributes: object) -> Change:
    """Put a node that changes no number onto an edge in the middle of the graph."""

    def apply(model: ModelProto) -> None:
        produced = {o for n in model.graph.node for o in n.output}
        spots = [
            (i, n) for i, n in enumerate(model.graph.node) if n.input[:1] and n.input[0] in produced
        ]
        place, node = spots[len(spots) // 2]
        extra = helper.make_node(op, [node.input[0]], ["inserted"], "inserted", **attributes)
        node.input[0] = "inserted"
        model.graph.node.insert(place, extra)

    return apply


def bypass(op: str) -> Change:
    def apply(model: ModelProto) -> None:
        node = find(model, op, lambda n: n.output[0] not in {o.name for o in model.graph.output})
        source, gone = node.input[0], node.output[0]
        model.graph.node.remove(node)
        for graph in graphs(model):
            for reader in graph.node:
                reader.input[:] = [source if name == gone else name for name in reader.input]

    return apply


def graphs(model: ModelProto) -> Iterator[GraphProto]:
    work = [model.graph]
    while work:
        graph = work.pop()
        yield graph
        work.extend(a.g for n in graph.node for a in n.attribute if a.HasField("g"))


def subgraph(model: ModelProto, op: str, name: str) -> GraphProto:
    node = find(model, op)
    return next(a.g for a in node.attribute if a.name == name)


def scaled(factor: float, rank: int = 2, place: int = -1) -> Change:
    def apply(model: ModelProto) -> None:
        name = weight(model, rank, place)
        put(model, name, array(model, name) * np.float32(factor))

    return apply


def changed(change: Callable[[np.ndarray], np.ndarray], rank: int = 2, place: int = -1) -> Change:
    """Give a parameter other values of the same shape."""

    def apply(model: ModelProto) -> None:
        name = weight(model, rank, place)
        before = array(model, name)
        after = change(before.copy()).astype(before.dtype)
        assert not np.array_equal(before, after)
        put(model, name, after)

    return apply
