"""Cosmetic mutations as a table: each writes the same model down otherwise, so it must pass."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import onnx
from mutation_tools import (
    Change,
    find,
    graphs,
    need,
    parameters,
    record,
    set_attribute,
    subgraph,
    tensors,
)
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper


def _interface(model: ModelProto) -> set[str]:
    return {"", *(v.name for v in (*model.graph.input, *model.graph.output))}


def _rename(model: ModelProto, spell: Callable[[str], str], inner: bool = True) -> None:
    """Spell every name anew, but those that callers know."""
    kept = _interface(model)

    def word(name: str) -> str:
        return name if name in kept else spell(name)

    for graph in graphs(model):
        if graph is not model.graph and inner:
            for info in (*graph.input, *graph.output):
                info.name = word(info.name)
        for tensor in graph.initializer:
            tensor.name = word(tensor.name)
        for node in graph.node:
            node.input[:] = [word(name) for name in node.input]
            node.output[:] = [word(name) for name in node.output]
    del model.graph.value_info[:]
    record(model, [word(name) for name in parameters(model)])


def values_renamed(model: ModelProto) -> None:
    _rename(model, lambda name: f"q.{name}")


def nodes_renamed(model: ModelProto) -> None:
    for place, node in enumerate(n for g in graphs(model) for n in g.node):
        node.name = f"q{place}"


def nodes_nameless(model: ModelProto) -> None:
    for graph in graphs(model):
        for node in graph.node:
            node.ClearField("name")


def _reads(node: NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node if attribute.HasField("g") else ():
            yield from _reads(inner)
        yield from (o.name for o in attribute.g.output)


def other_order(seed: int) -> Change:
    """Another topological order, drawn by chance."""

    def apply(model: ModelProto) -> None:
        dice = random.Random(seed)
        waiting = list(model.graph.node)
        made = {o: n for n in waiting for o in n.output if o}
        done: set[str] = set()
        order: list[NodeProto] = []
        while waiting:
            ready = [n for n in waiting if all(r in done or r not in made for r in _reads(n))]
            pick = dice.choice(ready)
            waiting.remove(pick)
            order.append(pick)
            done.update(pick.output)
        copies = [NodeProto.FromString(n.SerializeToString()) for n in order]
        del model.graph.node[:]
        model.graph.node.extend(copies)

    return apply


def initialisers_reversed(model: ModelProto) -> None:
    copies = [TensorProto.FromString(t.SerializeToString()) for t in model.graph.initializer]
    del model.graph.initializer[:]
    model.graph.initializer.extend(reversed(copies))


def constants_split(model: ModelProto) -> None:
    """Every reader gets a copy of its own, parameters included."""
    known, names = tensors(model), parameters(model)
    fresh, used = list(names), set()
    for place, node in enumerate(model.graph.node):
        for slot, name in enumerate(node.input):
            if name not in known:
                continue
            copy = model.graph.initializer.add()
            copy.CopyFrom(known[name])
            copy.name = f"{name}.{place}.{slot}"
            node.input[slot] = copy.name
            used.add(name)
            if name in names:
                fresh.append(copy.name)
    inner = {
        r for n in model.graph.node if any(a.HasField("g") for a in n.attribute) for r in _reads(n)
    }
    outputs = {o.name for o in model.graph.output}
    kept = [t for t in model.graph.initializer if t.name not in used - inner - outputs]
    copies = [TensorProto.FromString(t.SerializeToString()) for t in kept]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copies)
    record(model, fresh)


def constants_merged(model: ModelProto) -> None:
    """Constants that are no parameters share one initialiser where they are equal."""
    names = set(parameters(model))
    first: dict[tuple[object, ...], str] = {}
    same: dict[str, str] = {}
    for tensor in list(model.graph.initializer):
        values = numpy_helper.to_array(tensor)
        key = (tensor.data_type, values.shape, values.tobytes())
        if tensor.name not in names:
            same[tensor.name] = first.setdefault(key, tensor.name)
            if same[tensor.name] != tensor.name:
                model.graph.initializer.remove(tensor)
    for graph in graphs(model):
        for node in graph.node:
            node.input[:] = [same.get(name, name) for name in node.input]


def as_constant_nodes(parameter: bool) -> Change:
    def apply(model: ModelProto) -> None:
        names = set(parameters(model))
        for tensor in list(model.graph.initializer):
            if (tensor.name in names) is parameter:
                value = TensorProto.FromString(tensor.SerializeToString())
                model.graph.initializer.remove(tensor)
                extra = helper.make_node("Constant", [], [tensor.name], value=value)
                model.graph.node.insert(0, extra)

    return apply


def short_constants(model: ModelProto) -> None:
    """Index constants as Constant nodes in their short form."""
    vectors = [t for t in model.graph.initializer if t.data_type == TensorProto.INT64]
    vectors = [t for t in vectors if len(t.dims) <= 1]
    need(vectors)
    for tensor in vectors:
        values = numpy_helper.to_array(tensor)
        form = {"value_ints": values.tolist()} if values.ndim else {"value_int": int(values)}
        model.graph.initializer.remove(tensor)
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], **form))


def typed_fields(model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.INT64):
            values = numpy_helper.to_array(tensor).ravel()
            tensor.ClearField("raw_data")
            field = (
                tensor.float_data if tensor.data_type == TensorProto.FLOAT else tensor.int64_data
            )
            del field[:]
            field.extend(values.tolist())


def _schema(model: ModelProto, node: NodeProto) -> onnx.defs.OpSchema | None:
    known = not node.domain and onnx.defs.has(node.op_type)
    version = model.opset_import[0].version
    return onnx.defs.get_schema(node.op_type, version, "") if known else None


def defaults_spelled_out(model: ModelProto) -> None:
    for node in (n for g in graphs(model) for n in g.node):
        schema = _schema(model, node)
        present = {a.name for a in node.attribute}
        for name, attribute in (schema.attributes if schema else {}).items():
            if attribute.default_value.name and name not in present:
                node.attribute.append(attribute.default_value)


def defaults_left_out(model: ModelProto) -> None:
    for node in (n for g in graphs(model) for n in g.node):
        schema = _schema(model, node)
        for item in list(node.attribute):
            default = schema.attributes[item.name].default_value if schema else item
            same = helper.get_attribute_value(default) if default.name == item.name else None
            if schema and same == helper.get_attribute_value(item):
                node.attribute.remove(item)


def kernel_spelled_out(model: ModelProto) -> None:
    node = find(model, "Conv")
    told = any(a.name == "kernel_shape" for a in node.attribute)
    shape = list(tensors(model)[node.input[1]].dims[2:])
    set_attribute(node, kernel_shape=None if told else shape)


def attributes_reversed(model: ModelProto) -> None:
    for node in (n for g in graphs(model) for n in g.node):
        copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in node.attribute]
        del node.attribute[:]
        node.attribute.extend(reversed(copies))


def doc_strings(model: ModelProto) -> None:
    model.doc_string = model.graph.doc_string = "somebody's words"
    for graph in graphs(model):
        for node in graph.node:
            node.doc_string = "words"
            for attribute in node.attribute:
                attribute.doc_string = "words"


def metadata(model: ModelProto) -> None:
    model.producer_name, model.producer_version, model.model_version = "somebody", "9", 7
    model.domain = "somewhere"
    helper.set_model_props(
        model, {**{p.key: p.value for p in model.metadata_props}, "author": "somebody"}
    )
    for node in model.graph.node:
        del node.metadata_props[:]


def annotations_removed(model: ModelProto) -> None:
    for graph in graphs(model):
        del graph.value_info[:]


def annotation_added(model: ModelProto) -> None:
    annotations_removed(model)
    inferred = onnx.shape_inference.infer_shapes(model)
    model.graph.value_info.extend(inferred.graph.value_info)


def axes_renamed(model: ModelProto) -> None:
    spelled = 0
    for info in (*model.graph.input, *model.graph.output):
        for axis in info.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = f"axis_{axis.dim_param}"
                spelled += 1
    need(spelled)


def trailing_absent_input(model: ModelProto) -> None:
    ops = ("Clip", "Resize", "Gemm", "Conv", "Slice", "ReduceMean")
    most = {"Clip": 3, "Resize": 4, "Gemm": 3, "Conv": 3, "Slice": 5, "ReduceMean": 2}
    nodes = [n for n in model.graph.node if n.op_type in ops and len(n.input) < most[n.op_type]]
    need(nodes)
    for node in nodes:
        node.input.append("")


def trailing_absent_output(model: ModelProto) -> None:
    node = find(model, "LayerNormalization")
    node.output.append("")


def function_renamed(model: ModelProto) -> None:
    need(model.functions)
    find(model, model.functions[0].name).op_type = "Other"
    model.functions[0].name = "Other"


def function_values_renamed(model: ModelProto) -> None:
    need(model.functions)
    function = model.functions[0]
    function.input[:] = [f"f.{n}" for n in function.input]
    function.output[:] = [f"f.{n}" for n in function.output]
    for node in function.node:
        node.input[:] = [f"f.{n}" for n in node.input]
        node.output[:] = [f"f.{n}" for n in node.output]


def function_domain(model: ModelProto) -> None:
    need(model.functions)
    find(model, model.functions[0].name).domain = model.functions[0].domain = "elsewhere"
    next(o for o in model.opset_import if o.domain == "local").domain = "elsewhere"


def subgraph_values_renamed(model: ModelProto) -> None:
    for body in (subgraph(model, "Loop", "body"), subgraph(model, "If", "else_branch")):
        own = {v.name for v in body.input} | {o for n in body.node for o in n.output}
        own |= {t.name for t in body.initializer}
        _rename_inside(body, own)


def _rename_inside(body: GraphProto, own: set[str]) -> None:
    def word(name: str) -> str:
        return f"inner.{name}" if name in own else name

    for item in (*body.input, *body.output, *body.initializer):
        item.name = word(item.name)
    for node in body.node:
        node.input[:] = [word(name) for name in node.input]
        node.output[:] = [word(name) for name in node.output]
    del body.value_info[:]


def loop_constant_moved_out(model: ModelProto) -> None:
    body = subgraph(model, "Loop", "body")
    need(body.initializer)
    model.graph.initializer.append(body.initializer[0])
    del body.initializer[:]


def attribute_order_of_branches(model: ModelProto) -> None:
    node = find(model, "If")
    copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in node.attribute]
    del node.attribute[:]
    node.attribute.extend(reversed(copies))


def default_domain(model: ModelProto) -> None:
    for node in model.graph.node:
        node.domain = node.domain or "ai.onnx"


COSMETIC: dict[str, Change] = {
    "nothing": lambda m: None,
    "values renamed": values_renamed,
    "values numbered": lambda m: _rename(m, _numbered()),
    "nodes renamed": nodes_renamed,
    "nodes without names": nodes_nameless,
    "graph renamed": lambda m: setattr(m.graph, "name", "other"),
    "another order of nodes": other_order(1),
    "a third order of nodes": other_order(2),
    "initialisers reversed": initialisers_reversed,
    "each reader with its own constants": constants_split,
    "equal constants merged": constants_merged,
    "constants as Constant nodes": as_constant_nodes(False),
    "parameters as Constant nodes": as_constant_nodes(True),
    "index constants in short form": short_constants,
    "numbers in typed fields": typed_fields,
    "defaults spelled out": defaults_spelled_out,
    "defaults left out": defaults_left_out,
    "kernel shape told or left out": kernel_spelled_out,
    "attributes reversed": attributes_reversed,
    "doc strings": doc_strings,
    "metadata": metadata,
    "annotations removed": annotations_removed,
    "annotations added": annotation_added,
    "IR version": lambda m: setattr(m, "ir_version", m.ir_version + 1),
    "unused operator set": lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3)),
    "default domain spelled ai.onnx": default_domain,
    "symbolic axes renamed": axes_renamed,
    "trailing absent inputs": trailing_absent_input,
    "trailing absent output": trailing_absent_output,
    "local function renamed": function_renamed,
    "values of a function renamed": function_values_renamed,
    "domain of a local function": function_domain,
    "values of a subgraph renamed": subgraph_values_renamed,
    "constant of a loop moved out": loop_constant_moved_out,
    "branches stored in the other order": attribute_order_of_branches,
}


def _numbered() -> Callable[[str], str]:
    numbers: dict[str, str] = {}
    return lambda name: numbers.setdefault(name, str(len(numbers)))
