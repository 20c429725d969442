"""Semantic mutations as a table: each changes what the model is, so a checker must refute it."""

from __future__ import annotations

import numpy as np
from mutation_tools import (
    Change,
    array,
    attribute,
    bypass,
    changed,
    constant,
    find,
    insert,
    need,
    new,
    operator,
    parameters,
    put,
    record,
    scaled,
    subgraph,
    swap,
    tensors,
    weight,
)
from onnx import ModelProto, TensorProto, helper, numpy_helper


def rewired(model: ModelProto) -> None:
    """A residual sum reads one operand twice: an edge moves between values of equal shape."""
    known = tensors(model)
    node = find(model, "Add", lambda n: not (set(n.input) & known.keys()))
    node.input[1] = node.input[0]


def duplicated(model: ModelProto) -> None:
    """One of two readers of a value gets its own copy of the node that makes it."""
    reads = [(n, i, name) for n in model.graph.node for i, name in enumerate(n.input)]
    makers = {n.output[0]: n for n in model.graph.node if len(n.output) == 1}
    spots = [r for r in reads if r[2] in makers and sum(r[2] == q[2] for q in reads) > 1]
    need(spots)
    node, slot, name = spots[-1]
    copy = type(node)()
    copy.CopyFrom(makers[name])
    copy.name, copy.output[0] = "copy", "copied"
    node.input[slot] = "copied"
    model.graph.node.insert(list(model.graph.node).index(node), copy)


def dead_node(model: ModelProto) -> None:
    source = model.graph.node[0].output[0]
    model.graph.node.append(helper.make_node("Abs", [source], ["dead"], "dead"))


def outputs_swapped(model: ModelProto) -> None:
    need(len(model.graph.output) > 1)
    rows = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend([rows[1], rows[0], *rows[2:]])


def output_added(model: ModelProto) -> None:
    name = model.graph.node[0].output[0]
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def output_renamed(model: ModelProto) -> None:
    before = model.graph.output[0].name
    node = next(n for n in model.graph.node if before in n.output)
    need(all(before not in n.input for n in model.graph.node))
    node.output[list(node.output).index(before)] = "renamed"
    model.graph.output[0].name = "renamed"


def input_renamed(model: ModelProto) -> None:
    before = model.graph.input[0].name
    model.graph.input[0].name = "renamed"
    for node in model.graph.node:
        node.input[:] = ["renamed" if name == before else name for name in node.input]


def float16_weight(model: ModelProto) -> None:
    put(model, weight(model), array(model, weight(model)).astype(np.float16))


def quantised_weight(model: ModelProto) -> None:
    name = weight(model)
    values = array(model, name)
    scale = np.float32(np.abs(values).max() / 127)
    put(model, name, np.round(values / scale).astype(np.int8))
    node = next(n for n in model.graph.node if name in n.input)
    node.input[list(node.input).index(name)] = "dequantised"
    extra = helper.make_node(
        "DequantizeLinear", [name, new(model, np.array(scale))], ["dequantised"]
    )
    model.graph.node.insert(list(model.graph.node).index(node), extra)


def unfolded(model: ModelProto) -> None:
    """A weight as the product of two cores that nobody multiplied out."""
    name = weight(model)
    values = array(model, name)
    left, sizes, right = np.linalg.svd(values.astype(np.float64), full_matrices=False)
    cores = [new(model, m.astype(np.float32)) for m in (left * sizes, right)]
    node = next(n for n in model.graph.node if name in n.input)
    place = list(model.graph.node).index(node)
    for reader in model.graph.node:
        reader.input[:] = ["composed" if i == name else i for i in reader.input]
    model.graph.initializer.remove(tensors(model)[name])
    model.graph.node.insert(place, helper.make_node("MatMul", cores, ["composed"], "compose"))
    record(model, [*(p for p in parameters(model) if p != name), *cores])


def parameter_as_other_constant(model: ModelProto) -> None:
    """A Constant node with other numbers, which no record calls a parameter."""
    name = weight(model)
    value = numpy_helper.from_array(array(model, name) * np.float32(1.01), "")
    model.graph.initializer.remove(tensors(model)[name])
    model.graph.node.insert(0, helper.make_node("Constant", [], [name], "k", value=value))
    record(model, [p for p in parameters(model) if p != name])


def bias_dropped(op: str) -> Change:
    def apply(model: ModelProto) -> None:
        del find(model, op, lambda n: len(n.input) == 3).input[2]

    return apply


def clip_moved(model: ModelProto) -> None:
    node = find(model, "Clip", lambda n: len(n.input) == 3)
    node.input[:] = [node.input[0], "", node.input[1]]


def branches_swapped(model: ModelProto) -> None:
    names = {"then_branch": "else_branch", "else_branch": "then_branch"}
    for item in find(model, "If").attribute:
        item.name = names[item.name]


def branch_constant(model: ModelProto) -> None:
    """The else branch subtracts 0.5: its constant becomes 0.75, wherever it is kept."""
    body = subgraph(model, "If", "else_branch")
    node = next(n for n in body.node if n.op_type == "Sub")
    node.input[1] = "three.quarters"
    value = numpy_helper.from_array(np.array(0.75, np.float32), "three.quarters")
    body.initializer.append(value)


def branch_reads(model: ModelProto) -> None:
    body = subgraph(model, "If", "else_branch")
    made = {o for n in body.node for o in n.output} | {t.name for t in body.initializer}
    node = next(n for n in body.node if n.op_type == "Sub")
    need(node.input[0] not in made)
    node.input[0] = find(model, "Concat").input[0]


def input_default(model: ModelProto) -> None:
    shape = [d.dim_value or 1 for d in model.graph.input[0].type.tensor_type.shape.dim]
    kind = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    value = numpy_helper.from_array(np.zeros(shape, kind), model.graph.input[0].name)
    model.graph.initializer.append(value)


def parameters_swapped(model: ModelProto) -> None:
    known = tensors(model)
    names = [n for n in parameters(model) if n in known and known[n].dims]
    last: dict[tuple[int, ...], str] = {}
    pairs = []
    for name in names:
        shape = tuple(known[name].dims)
        if shape in last:
            pairs.append((last[shape], name))
        last[shape] = name
    need(pairs)
    one, other = pairs[-1]
    values = array(model, one), array(model, other)
    put(model, one, values[1])
    put(model, other, values[0])


def parameters_tied(model: ModelProto) -> None:
    """One layer reads the other's weight of the same shape."""
    known = tensors(model)
    names = [n for n in parameters(model) if n in known and len(known[n].dims) >= 1]
    shapes = {n: tuple(known[n].dims) for n in names}
    pairs = [(a, b) for a in names for b in names if a < b and shapes[a] == shapes[b]]
    need(pairs)
    one, other = pairs[-1]
    for node in model.graph.node:
        node.input[:] = [one if name == other else name for name in node.input]
    model.graph.initializer.remove(known[other])
    record(model, [p for p in parameters(model) if p != other])


def _dim(model: ModelProto, value: int) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = value


def _opset(model: ModelProto) -> None:
    model.opset_import[0].version -= 1


def _function(model: ModelProto, op: str) -> int:
    need(model.functions)
    return [n.op_type for n in model.functions[0].node].index(op)


def function_operator(model: ModelProto) -> None:
    model.functions[0 if _function(model, "Exp") else 0].node[-1].op_type = "Abs"


def function_constant(model: ModelProto) -> None:
    node = model.functions[0].node[_function(model, "Constant")] if model.functions else None
    need(node)
    node.attribute[0].t.CopyFrom(helper.make_tensor("", TensorProto.FLOAT, [], [0.25]))


def function_edge(model: ModelProto) -> None:
    need(model.functions)
    model.functions[0].node[-2].input[1] = "v"


def function_opset(model: ModelProto) -> None:
    need(model.functions)
    model.functions[0].opset_import[0].version -= 1


def loop_operator(model: ModelProto) -> None:
    subgraph(model, "Loop", "body").node[1].op_type = "Mul"


def loop_constant(model: ModelProto) -> None:
    body = subgraph(model, "Loop", "body")
    body.initializer[0].CopyFrom(numpy_helper.from_array(np.array(0.2, np.float32), "quarter"))


def loop_condition(model: ModelProto) -> None:
    subgraph(model, "Loop", "body").node[0].op_type = "Not"


def loop_start(model: ModelProto) -> None:
    node = find(model, "Loop")
    node.input[1] = new(model, np.array(True))


def _last_more(values: np.ndarray) -> np.ndarray:
    values.flat[-1] += 1
    return values


def _first_more(values: np.ndarray) -> np.ndarray:
    values.flat[0] += 1
    return values


def _one_element(values: np.ndarray) -> np.ndarray:
    values.flat[np.abs(values).argmax()] *= np.float32(1.01)
    return values


def _nan(values: np.ndarray) -> np.ndarray:
    values.flat[0] = np.nan
    return values


def _bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


# The raw graph differs: structure must refute it, whatever its numbers are.
BY_STRUCTURE: dict[str, Change] = {
    "Relu became LeakyRelu": operator("Relu", "LeakyRelu"),
    "Gelu became Relu": operator("Gelu", "Relu", approximate=None),
    "Softmax became LogSoftmax": operator("Softmax", "LogSoftmax"),
    "Add became Mul": operator("Add", "Mul"),
    "HardSwish became Relu": operator("HardSwish", "Relu"),
    "ReduceMean became ReduceSum": operator("ReduceMean", "ReduceSum"),
    "MaxPool became AveragePool": operator("MaxPool", "AveragePool"),
    "And became Or": operator("And", "Or"),
    "ArgMax became ArgMin": operator("ArgMax", "ArgMin"),
    "Max became Min": operator("Max", "Min"),
    "Greater became Less": operator("Greater", "Less"),
    "Sigmoid became HardSigmoid": operator("Sigmoid", "HardSigmoid"),
    "operator of another domain": lambda m: setattr(m.graph.node[-1], "domain", "com.acme"),
    "Conv strides": attribute("Conv", strides=[3, 3]),
    "Conv pads": attribute("Conv", pads=[1, 0, 0, 1]),
    "Conv dilations": attribute("Conv", dilations=[2, 2]),
    "Conv group": attribute("Conv", group=2),
    "Gemm alpha": attribute("Gemm", alpha=1.0 + 2**-20),
    "Gemm transB": attribute("Gemm", transB=0),
    "Softmax axis": attribute("Softmax", axis=0),
    "LayerNormalization epsilon": attribute("LayerNormalization", epsilon=3e-6),
    "BatchNormalization epsilon": attribute("BatchNormalization", epsilon=3e-5),
    "Transpose perm": attribute("Transpose", perm=[0, 1, 2]),
    "Concat axis": attribute("Concat", axis=3),
    "ReduceMean keepdims": attribute("ReduceMean", keepdims=2),
    "ArgMax select_last_index": attribute("ArgMax", select_last_index=1),
    "Resize mode": attribute("Resize", mode="nearest"),
    "Resize coordinates": attribute("Resize", coordinate_transformation_mode="asymmetric"),
    "Gelu approximate": attribute("Gelu", approximate="tanh"),
    "Cast to": attribute("Cast", to=TensorProto.DOUBLE),
    "HardSigmoid alpha": attribute("HardSigmoid", alpha=0.25),
    "MaxPool ceil_mode": attribute("MaxPool", ceil_mode=1),
    "Reshape allowzero": attribute("Reshape", allowzero=2),
    "Gather axis": attribute("Gather", axis=1),
    "CumSum reverse": attribute("CumSum", reverse=1),
    "inputs of Sub swapped": swap("Sub"),
    "inputs of MatMul swapped": swap("MatMul"),
    "inputs of Gemm swapped": swap("Gemm"),
    "inputs of Concat swapped": swap("Concat"),
    "inputs of Pow swapped": swap("Pow"),
    "branches of Where swapped": swap("Where", 1, 2),
    "inputs of Add swapped (edges are ordered)": swap("Add"),
    "Identity inserted": insert("Identity"),
    "Dropout inserted": insert("Dropout"),
    "Cast inserted": insert("Cast", to=TensorProto.FLOAT),
    "Relu removed": bypass("Relu"),
    "Gelu removed": bypass("Gelu"),
    "LayerNormalization removed": bypass("LayerNormalization"),
    "BatchNormalization removed": bypass("BatchNormalization"),
    "Mul removed": bypass("Mul"),
    "edge to another value of equal shape": rewired,
    "work done twice": duplicated,
    "dead node": dead_node,
    "unused initialiser": lambda m: new(m, np.zeros(3, np.float32)),
    "Slice end": constant("Slice", 2, lambda v: v - 1),
    "Slice start": constant("Slice", 1, lambda v: v + 1),
    "Slice axis": constant("Slice", 3, lambda v: v - 1),
    "Slice bound in int32": constant(
        "Slice", 2, lambda v: v.clip(-(2**31), 2**31 - 1).astype("i4")
    ),
    "Resize scale": constant("Resize", 2, _last_more),
    "Clip lower limit": constant("Clip", 1, lambda v: v - np.float32(0.1)),
    "Clip upper limit by 1e-3": constant("Clip", 2, lambda v: v * np.float32(1.001)),
    "Clip limit moved by one slot": clip_moved,
    "Reshape shape": constant("Reshape", 1, _last_more),
    "Gather index": constant("Gather", 1, lambda v: v + 1),
    "Unsqueeze axis": constant("Unsqueeze", 1, lambda v: v + 1),
    "ReduceMean axes": constant("ReduceMean", 1, lambda v: v - 1),
    "factor of a Mul": constant("Mul", 1, lambda v: v * v.dtype.type(1.001)),
    "exponent of a Pow": constant("Pow", 1, _first_more),
    "float16 weight": float16_weight,
    "int8 weight": quantised_weight,
    "weight of another shape": lambda m: put(m, weight(m), array(m, weight(m))[:-1]),
    "weight transposed": lambda m: put(m, weight(m), array(m, weight(m))[None]),
    "Conv bias dropped": bias_dropped("Conv"),
    "Gemm bias dropped": bias_dropped("Gemm"),
    "cores never folded": unfolded,
    "parameter became another constant": parameter_as_other_constant,
    "opset": _opset,
    "outputs in other order": outputs_swapped,
    "output renamed": output_renamed,
    "output added": output_added,
    "output dtype": lambda m: setattr(
        m.graph.output[0].type.tensor_type, "elem_type", TensorProto.DOUBLE
    ),
    "input renamed": input_renamed,
    "input added": lambda m: m.graph.input.append(
        helper.make_tensor_value_info("extra", TensorProto.FLOAT, [1])
    ),
    "input dtype": lambda m: setattr(
        m.graph.input[0].type.tensor_type, "elem_type", TensorProto.DOUBLE
    ),
    "input axis fixed": lambda m: _dim(m, 2),
    "input has a default": input_default,
    "operator in a function": function_operator,
    "constant in a function": function_constant,
    "edge in a function": function_edge,
    "opset of a function": function_opset,
    "branches of If swapped": branches_swapped,
    "operator in a branch": lambda m: setattr(
        subgraph(m, "If", "else_branch").node[-1], "op_type", "Add"
    ),
    "constant in a branch": branch_constant,
    "branch reads another outer value": branch_reads,
    "trip count of Loop": constant("Loop", 0, lambda v: v + 1),
    "operator in the body of Loop": loop_operator,
    "constant in the body of Loop": loop_constant,
    "condition of Loop": loop_condition,
    "condition given to Loop": loop_start,
}

# The graph is the same and a parameter is wrong: structure passes, numerics must refute.
BY_NUMERICS: dict[str, Change] = {
    "weight off by 1e-3": scaled(1 + 1e-3),
    "weight off by 1e-2": scaled(1 + 1e-2),
    "Conv weight off by 1e-3": scaled(1 + 1e-3, rank=4),
    "first Conv weight off by 1e-3": scaled(1 + 1e-3, rank=4, place=0),
    "largest element of a weight off by 1e-2": changed(_one_element),
    "weight zero": changed(np.zeros_like),
    "weight of the other sign": scaled(-1.0),
    "rows of a weight reversed": changed(lambda v: v[::-1]),
    "columns of a weight reversed": changed(lambda v: v[:, ::-1]),
    "bias or scale of the other sign": scaled(-1.0, rank=1),
    "first bias or scale off by 1e-2": scaled(1 + 1e-2, rank=1, place=0),
    "weight rounded to float16": changed(lambda v: v.astype(np.float16)),
    "weight rounded to bfloat16": changed(_bfloat16),
    "NaN in a weight": changed(_nan),
    "two parameters of equal shape swapped": parameters_swapped,
    "two parameters of equal shape tied": parameters_tied,
}
