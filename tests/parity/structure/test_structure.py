"""Structure: a table of cosmetic changes, which pass, and of semantic ones, which are refuted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from opdf_compile.errors import ArtefactError
from opdf_compile.parity.runtime.registry import resolve_device
from opdf_compile.parity.structure.compare import StructureResult, compare_structure
from opdf_compile.parity.structure.optimised import compare_optimised, without_weights

CPU = resolve_device("cpu")
PARAMETERS = ("conv.weight", "conv.bias", "norm.scale", "norm.bias", "fc.weight", "fc.bias")


def base_model(seed: int = 0) -> ModelProto:
    """Conv, Clip, Resize, Slice, Sub, a local function, If with two branches, Gemm, two outputs."""
    rng = np.random.default_rng(seed)
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], "conv", pads=[1, 1, 1, 1]),
        node("Clip", ["c", "low", "high"], ["k"], "clip"),
        node("Resize", ["k", "", "scales"], ["u"], "resize", mode="nearest"),
        node("Slice", ["u", "starts", "ends", "axes"], ["s"], "slice"),
        node("Relu", ["s"], ["a"], "relu"),
        node("Sigmoid", ["s"], ["b"], "sigmoid"),
        node("Sub", ["a", "b"], ["d"], "sub"),
        node("Halve", ["d"], ["h"], "halve", domain="local"),
        node("ReduceMean", ["h", "spatial"], ["p"], "pool", keepdims=0),
        node("LayerNormalization", ["p", "norm.scale", "norm.bias"], ["n"], "norm"),
        node("ReduceSum", ["n"], ["total"], "sum", keepdims=0),
        node("Greater", ["total", "low"], ["positive"], "greater"),
        _if_node(),
        node("Gemm", ["m", "fc.weight", "fc.bias"], ["logits"], "fc", transB=1),
        node("ArgMax", ["logits"], ["label"], "argmax", axis=1, keepdims=0),
    ]
    arrays = {
        "conv.weight": rng.normal(size=(4, 3, 3, 3)),
        "conv.bias": rng.normal(size=4),
        "low": np.array(0.0),
        "high": np.array(6.0),
        "scales": np.array([1, 1, 2, 2.0]),
        "norm.scale": rng.normal(size=4),
        "norm.bias": rng.normal(size=4),
        "fc.weight": rng.normal(size=(5, 4)),
        "fc.bias": rng.normal(size=5),
    }
    indices = {"starts": [0, 0], "ends": [6, 6], "axes": [2, 3], "spatial": [2, 3]}
    initialisers = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    initialisers += [numpy_helper.from_array(np.array(a), n) for n, a in indices.items()]
    graph = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
        ],
        initialisers,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[_halve()], ir_version=9)
    record(model, PARAMETERS)
    onnx.checker.check_model(model)
    return model


def _halve() -> onnx.FunctionProto:
    half = helper.make_node(
        "Constant", [], ["half"], value=helper.make_tensor("", TensorProto.FLOAT, [], [0.5])
    )
    return helper.make_function(
        "local",
        "Halve",
        ["v"],
        ["w"],
        [half, helper.make_node("Mul", ["v", "half"], ["w"])],
        [helper.make_opsetid("", 18)],
    )


def _if_node() -> NodeProto:
    info = helper.make_tensor_value_info("m", TensorProto.FLOAT, ["batch", 4])
    branches = {}
    for name, operator in (("then_branch", "Tanh"), ("else_branch", "Neg")):
        value = helper.make_tensor_value_info(f"{name}.m", TensorProto.FLOAT, None)
        value.type.CopyFrom(info.type)
        body = [
            helper.make_node(operator, ["n"], [f"{name}.t"], f"{name}.op"),
            helper.make_node("Add", [f"{name}.t", "n"], [f"{name}.m"], f"{name}.add"),
        ]
        branches[name] = helper.make_graph(body, name, [], [value])
    return helper.make_node("If", ["positive"], ["m"], "if", **branches)


def record(model: ModelProto, names: tuple[str, ...] | None) -> None:
    del model.metadata_props[:]
    if names is not None:
        entry = model.metadata_props.add()
        entry.key, entry.value = "opdf.parameters", json.dumps(list(names))


def get(model: ModelProto, name: str) -> NodeProto:
    return next(n for n in model.graph.node if n.name == name)


def tensor(model: ModelProto, name: str) -> TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def put(model: ModelProto, name: str, array: np.ndarray) -> None:
    tensor(model, name).CopyFrom(numpy_helper.from_array(array, name))


def attribute(model: ModelProto, node: str, **values: object) -> None:
    target = get(model, node)
    kept = [a for a in target.attribute if a.name not in values]
    del target.attribute[:]
    target.attribute.extend(kept)
    target.attribute.extend(helper.make_attribute(k, v) for k, v in values.items() if v is not None)


def insert(model: ModelProto, before: str, *nodes: NodeProto) -> None:
    names = [n.name for n in model.graph.node]
    everything = list(model.graph.node)
    everything[names.index(before) : names.index(before)] = nodes
    del model.graph.node[:]
    model.graph.node.extend(everything)


def rename_values(model: ModelProto) -> None:
    """Rename every node and inner value; interface names stay."""
    kept = {"x", "logits", "label", ""}

    def renamed(graph: onnx.GraphProto) -> None:
        for item in graph.initializer:
            item.name = "q." + item.name
        if graph is not model.graph:
            for info in graph.output:
                info.name = "q." + info.name
        for node in graph.node:
            node.name = f"q.{node.name}"
            node.input[:] = [n if n in kept else f"q.{n}" for n in node.input]
            node.output[:] = [n if n in kept else f"q.{n}" for n in node.output]
            for item in node.attribute:
                if item.HasField("g"):
                    renamed(item.g)

    renamed(model.graph)
    record(model, tuple(f"q.{n}" for n in PARAMETERS))


def reorder(model: ModelProto) -> None:
    nodes = {n.name: n for n in model.graph.node}
    order = [n for n in nodes if n not in ("sigmoid", "relu")]
    order[order.index("sub") : order.index("sub")] = ["sigmoid", "relu"]
    everything = [nodes[n] for n in order]
    del model.graph.node[:]
    model.graph.node.extend(everything)
    tensors = sorted(model.graph.initializer, key=lambda t: t.name, reverse=True)
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)


def split_shared(model: ModelProto) -> None:
    """Two nodes read equal constants: give the second its own copy."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.0, np.float32), "zero"))
    get(model, "greater").input[1] = "zero"


def merge_equal(model: ModelProto) -> None:
    get(model, "pool").input[1] = "axes"
    model.graph.initializer.remove(tensor(model, "spatial"))


def to_constant_node(model: ModelProto) -> None:
    value = tensor(model, "ends")
    copy = TensorProto()
    copy.CopyFrom(value)
    model.graph.initializer.remove(value)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["ends"], "k", value=copy))


def typed_fields(model: ModelProto) -> None:
    tensor(model, "high").CopyFrom(helper.make_tensor("high", TensorProto.FLOAT, [], [6.0]))


def equal_parameters_merged(model: ModelProto) -> None:
    """What the exporter does to an untouched student: all-zero biases become one initialiser."""
    put(model, "norm.bias", np.zeros(4, np.float32))
    get(model, "conv").input[2] = "norm.bias"
    model.graph.initializer.remove(tensor(model, "conv.bias"))


def rename_function(model: ModelProto) -> None:
    model.functions[0].name = "Half"
    model.functions[0].input[0] = "other"
    model.functions[0].node[1].input[0] = "other"
    get(model, "halve").op_type = "Half"


def metadata(model: ModelProto) -> None:
    model.producer_name, model.doc_string, model.graph.name = "somebody", "words", "g2"
    model.graph.node[0].doc_string = "here"
    model.opset_import.append(helper.make_opsetid("never.used", 3))
    model.graph.value_info.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, None))


def rename_axis(model: ModelProto) -> None:
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.shape.dim[0].dim_param = "N"


def axes_unlinked(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "other"


def identity(model: ModelProto) -> None:
    get(model, "sigmoid").input[0] = "s2"
    insert(model, "sigmoid", helper.make_node("Identity", ["s"], ["s2"], "id"))


def duplicated_work(model: ModelProto) -> None:
    """The same value computed twice instead of once and read twice."""
    get(model, "sigmoid").input[0] = "s2"
    copy = NodeProto()
    copy.CopyFrom(get(model, "slice"))
    copy.name, copy.output[0] = "slice2", "s2"
    insert(model, "sigmoid", copy)


def dead_node(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["n"], ["unread"], "dead"))


def swap_inputs(model: ModelProto) -> None:
    get(model, "sub").input[:] = ["b", "a"]


def swap_outputs(model: ModelProto) -> None:
    first = model.graph.output.pop(0)
    model.graph.output.append(first)


def float16_initialiser(model: ModelProto) -> None:
    put(model, "fc.weight", numpy_helper.to_array(tensor(model, "fc.weight")).astype(np.float16))


def function_body(model: ModelProto) -> None:
    model.functions[0].node[0].attribute[0].t.CopyFrom(
        helper.make_tensor("", TensorProto.FLOAT, [], [0.25])
    )


def branch(model: ModelProto, name: str) -> onnx.GraphProto:
    return next(a.g for a in get(model, "if").attribute if a.name == name)


def swap_branches(model: ModelProto) -> None:
    first, second = get(model, "if").attribute
    first.name, second.name = second.name, first.name


def rewire(model: ModelProto, node: str, place: int, value: str) -> None:
    get(model, node).input[place] = value


def optional_input(model: ModelProto) -> None:
    get(model, "conv").input.pop()
    model.graph.initializer.remove(tensor(model, "conv.bias"))


def extra_output(model: ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("n", TensorProto.FLOAT, ["batch", 4]))


def unused_initialiser(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((7, 7), np.float32), "spare"))


def uncalled_function(model: ModelProto) -> None:
    extra = onnx.FunctionProto()
    extra.CopyFrom(model.functions[0])
    extra.name = "Never"
    model.functions.append(extra)


def call_inlined(model: ModelProto) -> None:
    call = get(model, "halve")
    call.op_type, call.domain = "Identity", ""


def other_values(model: ModelProto) -> None:
    for name in PARAMETERS:
        put(model, name, numpy_helper.to_array(tensor(base_model(seed=9), name)))


Change = Callable[[ModelProto], object]

COSMETIC: dict[str, Change] = {
    "nothing": lambda m: None,
    "other parameter values": other_values,
    "nodes and values renamed": rename_values,
    "nodes and initialisers reordered": reorder,
    "equal constants split": split_shared,
    "equal constants merged": merge_equal,
    "equal parameters merged": equal_parameters_merged,
    "initialiser became a Constant node": to_constant_node,
    "tensor stored in typed fields": typed_fields,
    "default strides spelled out": lambda m: attribute(m, "conv", strides=[1, 1]),
    "default kernel_shape spelled out": lambda m: attribute(m, "conv", kernel_shape=[3, 3]),
    "default group spelled out": lambda m: attribute(m, "conv", group=1),
    "default alpha spelled out": lambda m: attribute(m, "fc", alpha=1.0),
    "default axis spelled out": lambda m: attribute(m, "norm", axis=-1),
    "default mode left out": lambda m: attribute(m, "resize", mode=None),
    "attributes in other order": lambda m: get(m, "argmax").attribute.reverse(),
    "default domain spelled ai.onnx": lambda m: setattr(get(m, "relu"), "domain", "ai.onnx"),
    "trailing absent input": lambda m: get(m, "resize").input.append(""),
    "local function renamed": rename_function,
    "metadata, doc strings, unused opset": metadata,
    "symbolic axis renamed": rename_axis,
    "IR version": lambda m: setattr(m, "ir_version", 10),
}

SEMANTIC: dict[str, tuple[Change, str]] = {
    "strides": (lambda m: attribute(m, "conv", strides=[2, 2]), "'strides'"),
    "pads removed": (lambda m: attribute(m, "conv", pads=None), "'pads'"),
    "float attribute by one bit": (
        lambda m: attribute(m, "fc", alpha=float(np.nextafter(np.float32(1), np.float32(2)))),
        "'alpha'",
    ),
    "epsilon": (lambda m: attribute(m, "norm", epsilon=1e-6), "'epsilon'"),
    "string attribute": (lambda m: attribute(m, "resize", mode="linear"), "linear"),
    "transB": (lambda m: attribute(m, "fc", transB=0), "'transB'"),
    "keepdims": (lambda m: attribute(m, "sum", keepdims=1), "'keepdims'"),
    "operator": (lambda m: setattr(get(m, "relu"), "op_type", "Abs"), "Abs 'relu'"),
    "domain": (lambda m: setattr(get(m, "relu"), "domain", "com.acme"), "Relu 'relu'"),
    "identity added": (identity, "Identity 'id'"),
    "work duplicated": (duplicated_work, "elsewhere"),
    "inputs of Sub swapped": (swap_inputs, "input 0 of Sub 'sub'"),
    "edge moved": (lambda m: rewire(m, "sigmoid", 0, "a"), "input 0 of Sigmoid"),
    "both operands the same": (lambda m: rewire(m, "sub", 1, "a"), "input 1 of Sub"),
    "reads the input instead": (lambda m: rewire(m, "slice", 0, "x"), "input 'x'"),
    "Slice bound": (lambda m: put(m, "ends", np.array([6, 5])), "constant 'ends'"),
    "Slice bound dtype": (lambda m: put(m, "ends", np.array([6, 6], np.int32)), "int32"),
    "Resize scale": (
        lambda m: put(m, "scales", np.array([1, 1, 2, 3], np.float32)),
        "constant 'scales'",
    ),
    "Clip limit": (lambda m: put(m, "high", np.array(6.5, np.float32)), "constant 'high'"),
    "Clip limit became -0": (lambda m: put(m, "low", np.array(-0.0, np.float32)), "'low'"),
    "scales given as sizes": (
        lambda m: get(m, "resize").input.__setitem__(slice(None), ["k", "", "", "scales"]),
        "Resize 'resize'",
    ),
    "float16 initialiser": (float16_initialiser, "float16"),
    "parameter shape": (lambda m: put(m, "fc.bias", np.zeros((1, 5), np.float32)), r"\[1, 5\]"),
    "optional input dropped": (optional_input, "inputs 2"),
    "another opset": (lambda m: setattr(m.opset_import[0], "version", 17), "operator set 17"),
    "another opset in a function": (
        lambda m: setattr(m.functions[0].opset_import[0], "version", 17),
        "operator sets",
    ),
    "function body": (function_body, "constant with other values"),
    "function call replaced": (call_inlined, "Identity 'halve'"),
    "uncalled function": (uncalled_function, "called by nobody"),
    "branch operator": (
        lambda m: setattr(branch(m, "then_branch").node[0], "op_type", "Sinh"),
        "Sinh",
    ),
    "branch reads another outer value": (
        lambda m: branch(m, "else_branch").node[0].input.__setitem__(0, "p"),
        "else_branch.op",
    ),
    "branches swapped": (swap_branches, "then_branch"),
    "node added in a branch": (
        lambda m: branch(m, "then_branch").node.append(helper.make_node("Abs", ["n"], ["z"], "z")),
        "no output depends",
    ),
    "dead node": (dead_node, "no output depends"),
    "unused initialiser": (unused_initialiser, "read by nobody"),
    "outputs swapped": (swap_outputs, "'label' of the candidate is 'logits'"),
    "output added": (extra_output, "3 outputs"),
    "input renamed": (
        lambda m: (setattr(m.graph.input[0], "name", "y"), rewire(m, "conv", 0, "y")),
        "'y' of the candidate",
    ),
    "input dtype": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.FLOAT16),
        "float16",
    ),
    "input axis fixed": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 2),
        r"float32\[2, 3, 8, 8\]",
    ),
    "input size": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 9),
        r"\[batch, 3, 9, 8\]",
    ),
    "axes no longer equal": (axes_unlinked, r"\[other, 5\]"),
}


def saved(model: ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(base_model(), tmp_path_factory.mktemp("base") / "reference.onnx")


@pytest.mark.parametrize("name", COSMETIC)
def test_a_cosmetic_change_passes_in_both_directions(
    name: str, reference: Path, tmp_path: Path
) -> None:
    model = base_model()
    COSMETIC[name](model)
    candidate = saved(model, tmp_path / "c.onnx")
    for result in (
        compare_structure(candidate, reference),
        compare_structure(reference, candidate),
    ):
        assert result.differences == ()
        assert result.verdict == "pass"
        assert result.nodes == 20


@pytest.mark.parametrize("name", SEMANTIC)
def test_a_semantic_change_is_refuted_in_both_directions(
    name: str, reference: Path, tmp_path: Path
) -> None:
    change, words = SEMANTIC[name]
    model = base_model()
    change(model)
    candidate = saved(model, tmp_path / "c.onnx")
    result = compare_structure(candidate, reference)
    assert result.verdict == "fail"
    import re

    assert re.search(words, "\n".join(d.sentence for d in result.differences))
    assert compare_structure(reference, candidate).verdict == "fail"


def test_a_semantic_change_is_the_only_difference_told(reference: Path, tmp_path: Path) -> None:
    model = base_model()
    attribute(model, "conv", strides=[2, 2])
    (difference,) = compare_structure(saved(model, tmp_path / "c.onnx"), reference).differences
    assert difference.kind == "attribute"
    assert difference.where == ("conv", "conv")
    assert difference.sentence == (
        "attribute 'strides' of Conv 'conv' is [2, 2] in the candidate and [1, 1] in the reference"
    )
    assert difference.candidate == (
        "Conv 'conv'(input 'x', parameter 'conv.weight' float32[4, 3, 3, 3], "
        "parameter 'conv.bias' float32[4]) -> Clip 'clip'"
    )


@pytest.mark.parametrize("change", [dead_node, unused_initialiser, uncalled_function])
def test_what_both_sides_carry_in_vain_is_no_difference(change: Change, tmp_path: Path) -> None:
    paths = []
    for name in ("a", "b"):
        model = base_model()
        change(model)
        paths.append(saved(model, tmp_path / f"{name}.onnx"))
    assert compare_structure(*paths).differences == ()


@pytest.mark.parametrize("operator", ["Abs", "Relu"])
def test_dead_nodes_are_paired_by_what_they_compute(operator: str, tmp_path: Path) -> None:
    paths = []
    for name, last in (("a", "Relu"), ("b", operator)):
        model = base_model()
        chain = [("n", "e1", "Exp"), ("p", "e2", "Exp"), ("e1", "e3", last), ("e2", "e4", "Abs")]
        if name == "b":
            chain = [chain[1], chain[0], chain[3], chain[2]]
        model.graph.node.extend(helper.make_node(op, [i], [o]) for i, o, op in chain)
        paths.append(saved(model, tmp_path / f"{name}.onnx"))
    assert compare_structure(*paths).verdict == ("pass" if operator == "Relu" else "fail")


def test_parameters_on_one_side_only_must_agree_by_value(reference: Path, tmp_path: Path) -> None:
    model = base_model()
    record(model, PARAMETERS[:-1])
    assert compare_structure(saved(model, tmp_path / "c.onnx"), reference).verdict == "pass"
    put(model, "fc.bias", np.zeros(5, np.float32))
    result = compare_structure(saved(model, tmp_path / "c.onnx"), reference)
    assert "only the reference calls it a parameter" in result.differences[0].sentence


def test_a_candidate_cannot_declare_its_constants_away(reference: Path, tmp_path: Path) -> None:
    model = base_model()
    put(model, "ends", np.array([6, 5]))
    record(model, (*PARAMETERS, "ends"))
    assert compare_structure(saved(model, tmp_path / "c.onnx"), reference).verdict == "fail"


def test_without_the_record_large_floats_are_parameters_and_a_note_says_so(
    reference: Path, tmp_path: Path
) -> None:
    for change, verdict in (
        (other_values, "pass"),
        (SEMANTIC["Slice bound"][0], "fail"),
        (SEMANTIC["Resize scale"][0], "fail"),
        (SEMANTIC["Clip limit"][0], "fail"),
    ):
        model = base_model()
        change(model)
        record(model, None)
        result = compare_structure(saved(model, tmp_path / "c.onnx"), reference)
        assert result.verdict == verdict
        assert "lacks the exporter's record" in result.notes[0]


@pytest.mark.parametrize("entry", ["", "{}", "[1]", "[["])
def test_a_damaged_record_is_an_artefact_error(entry: str, reference: Path, tmp_path: Path) -> None:
    model = base_model()
    model.metadata_props[0].value = entry
    with pytest.raises(ArtefactError, match="damaged record"):
        compare_structure(saved(model, tmp_path / "c.onnx"), reference)


def test_a_value_from_nowhere_is_an_artefact_error(reference: Path, tmp_path: Path) -> None:
    model = base_model()
    rewire(model, "relu", 0, "nowhere")
    with pytest.raises(ArtefactError, match="'nowhere', which nothing produces"):
        compare_structure(saved(model, tmp_path / "c.onnx"), reference)
    model = base_model()
    get(model, "relu").output[0] = "c"
    with pytest.raises(ArtefactError, match="'c' twice"):
        compare_structure(saved(model, tmp_path / "c.onnx"), reference)


def test_external_data_is_read_where_values_count(reference: Path, tmp_path: Path) -> None:
    for ends, verdict in (([6, 6], "pass"), ([6, 5], "fail")):
        # The runtime's shape inference wants small operands inside the file.
        for threshold, compare in ((0, compare_structure), (100, optimised_on_cpu)):
            model = base_model()
            put(model, "ends", np.array(ends))
            folder = tmp_path / f"{verdict}{threshold}"
            folder.mkdir()
            onnx.save_model(
                model,
                folder / "c.onnx",
                save_as_external_data=True,
                location="c.data",
                size_threshold=threshold,
            )
            assert (folder / "c.data").is_file()
            assert compare(folder / "c.onnx", reference).verdict == verdict


def optimised_on_cpu(candidate: Path, other: Path) -> StructureResult:
    raw = compare_structure(candidate, other)
    return raw if raw.differences else compare_optimised(raw, candidate, CPU)


def unfolded(model: ModelProto) -> None:
    """The weight of the last layer as a product of two cores, never multiplied out."""
    product = [helper.make_node("MatMul", ["core.0", "core.1"], ["fc.composed"], "compose")]
    model.graph.initializer.remove(tensor(model, "fc.weight"))
    for name, shape in (("core.0", (5, 4)), ("core.1", (4, 4))):
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    rewire(model, "fc", 1, "fc.composed")
    insert(model, "fc", *product)
    record(model, (*PARAMETERS, "core.0", "core.1"))


def test_a_graph_that_was_never_folded_is_refuted(reference: Path, tmp_path: Path) -> None:
    model = base_model()
    unfolded(model)
    result = compare_structure(saved(model, tmp_path / "c.onnx"), reference)
    assert result.verdict == "fail"
    assert "MatMul 'compose'" in result.differences[0].sentence


@pytest.mark.parametrize("name", [n for n in COSMETIC if "axis renamed" not in n])
def test_a_cosmetic_change_passes_after_optimisation(
    name: str, reference: Path, tmp_path: Path
) -> None:
    model = base_model()
    COSMETIC[name](model)
    result = optimised_on_cpu(saved(model, tmp_path / "c.onnx"), reference)
    assert result.differences == ()
    assert 0 < result.nodes <= 20


def test_values_that_the_runtime_folds_by_do_not_refute_a_graph(tmp_path: Path) -> None:
    """Mul by a parameter that is 1.0 disappears in one file and stays in the other."""
    paths = []
    for name, value in (("c", 0.3), ("r", 1.0)):
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in ("x", "y"))
        graph = helper.make_graph(
            [helper.make_node("Mul", ["x", "scale"], ["m"]), helper.make_node("Exp", ["m"], ["y"])],
            "g",
            [x],
            [y],
            [numpy_helper.from_array(np.full(1, value, np.float32), "scale")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        record(model, ("scale",))
        paths.append(saved(model, tmp_path / f"{name}.onnx"))
    raw = compare_structure(*paths)
    before = raw.reference.proto.SerializeToString()
    result = compare_optimised(raw, paths[0], CPU)
    assert result.differences == ()
    assert raw.reference.proto.SerializeToString() == before
    assert result.nodes == 2


def test_weights_that_an_old_file_lists_as_inputs_are_none_after_optimisation(
    tmp_path: Path,
) -> None:
    paths = []
    for value in (0.3, 0.7):
        x, w, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xwy")
        weight = numpy_helper.from_array(np.full(4, value, np.float32), "w")
        graph = helper.make_graph([helper.make_node("Mul", "xw", "y")], "g", [x, w], [y], [weight])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=3)
        paths.append(saved(model, tmp_path / f"{value}.onnx"))
    assert optimised_on_cpu(*paths).differences == ()


def test_the_copy_of_a_graph_has_no_weights_before_it_is_given_some(reference: Path) -> None:
    """A large model has room for few copies."""
    model = onnx.load(reference)
    hollow = without_weights(model)
    names = [tensor.name for tensor in model.graph.initializer]
    assert [tensor.name for tensor in hollow.graph.initializer] == names
    assert not any(tensor.raw_data for tensor in hollow.graph.initializer)
    for graph in (hollow.graph, model.graph):
        del graph.initializer[:]
    assert hollow == model
