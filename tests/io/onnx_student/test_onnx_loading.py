"""What an ONNX student cannot be is a sentence; nothing of a file is followed out of its folder."""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_students as models
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import opdf_compile as opdf
from opdf_compile.errors import ArtefactError, ExportError, FoldError, InputError
from opdf_compile.io.export.student_graph import write_back
from opdf_compile.io.models.example_inputs import InputOptions
from opdf_compile.io.models.spec import load_model
from opdf_compile.io.onnx_student.keys import identifier, keys_of

FLOAT = TensorProto.FLOAT


def save(path: Path, *nodes: onnx.NodeProto, opset: int = 17, **more: Any) -> Path:
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [weight],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("my.own", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8, **more)
    onnx.save_model(model, str(path))
    return path


def matmul() -> onnx.NodeProto:
    return helper.make_node("MatMul", ["x", "w"], ["y"])


def test_an_unknown_operator_is_named_with_domain_opset_and_node(tmp_path: Path) -> None:
    node = helper.make_node("Wobble", ["x"], ["y"], name="the_node", domain="my.own")
    words = r"'the_node' is a Wobble of the domain my.own, opset 1.*give the PyTorch model"
    with pytest.raises(InputError, match=words):
        opdf.load_onnx(save(tmp_path / "m.onnx", node))


@pytest.mark.parametrize("op", ["Loop", "Scan", "SequenceEmpty", "NonMaxSuppression"])
def test_an_operator_without_torch_form_is_refused(op: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"is a {op} of the domain ai.onnx, opset 17"):
        opdf.load_onnx(save(tmp_path / "m.onnx", helper.make_node(op, ["x"], ["y"])))


def test_an_old_operator_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="uses opset 6, wanted 7 or newer"):
        opdf.load_onnx(save(tmp_path / "m.onnx", matmul(), opset=6))


@pytest.mark.parametrize("place", ["../out.bin", "/elsewhere.bin", "link.bin"])
def test_data_outside_the_folder_is_refused(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "out.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to(tmp_path / "out.bin")
    path = save(folder / "m.onnx", matmul())
    model = onnx.load(str(path))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", place
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match="data must be a plain file in the model's folder"):
        opdf.load_onnx(path)


def test_external_data_is_read_and_written_into_one_file(tmp_path: Path) -> None:
    model = onnx.load(str(save(tmp_path / "m.onnx", matmul())))
    numbers = model.graph.initializer[0].raw_data
    place = {"location": "e.bin", "size_threshold": 0}
    onnx.save_model(model, str(tmp_path / "e.onnx"), save_as_external_data=True, **place)
    back = write_back(opdf.load_onnx(tmp_path / "e.onnx"))
    assert back.graph.initializer[0].raw_data == numbers
    assert not back.graph.initializer[0].external_data


def test_sizes_without_their_data_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", matmul())
    model = onnx.load(str(path))
    model.graph.initializer[0].dims[:] = [4, 5]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match="'w' has 64 bytes, its shape"):
        opdf.load_onnx(path)


def test_short_data_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", matmul())
    model = onnx.load(str(path))
    model.graph.initializer[0].raw_data = b"1234"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match="'w' has 4 bytes, its shape"):
        opdf.load_onnx(path)


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    body = helper.make_function(
        "my.own",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    nodes = (
        helper.make_node("Twice", ["x"], ["h"], domain="my.own"),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    )
    student = opdf.load_onnx(save(tmp_path / "m.onnx", *nodes, functions=[body]))
    x = torch.randn(2, 4)
    assert torch.equal(student(x), (x + x) @ torch.ones(4, 4))
    assert [name for name, _ in student.named_parameters()] == ["w"]


def test_quantised_weights_are_left_alone_with_a_note(tmp_path: Path) -> None:
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["w8"])
    product = helper.make_node("MatMul", ["x", "w8"], ["y"])
    path = save(tmp_path / "m.onnx", node, product)
    model = onnx.load(str(path))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 4), np.int8), "q"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "s"))
    onnx.save_model(model, str(path))
    student = opdf.load_onnx(path)
    assert "quantised integers ('q', ...)" in student.notes[0]
    assert not [p for p in student.parameters() if p.requires_grad]
    assert torch.equal(student(torch.ones(1, 4)), torch.full((1, 4), 2.0))


def test_only_weights_are_trainable_and_tables_are_frozen(tmp_path: Path) -> None:
    nodes = (
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gather", ["w", "i"], ["row"]),
        helper.make_node("Add", ["h", "row"], ["y"]),
    )
    path = save(tmp_path / "m.onnx", *nodes)
    model = onnx.load(str(path))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "i"))
    onnx.save_model(model, str(path))
    student = opdf.load_onnx(path)
    ((name, parameter),) = student.named_parameters()
    assert name == "w" and not parameter.requires_grad
    assert dict(opdf.load_onnx(path, train="all").named_parameters())["w"].requires_grad
    with pytest.raises(InputError, match="train is 'some', wanted 'weights' or 'all'"):
        opdf.load_onnx(path, train="some")


def test_a_copy_has_weights_of_its_own(tmp_path: Path) -> None:
    student = opdf.load_onnx(models.shared(tmp_path).path)
    copied = copy.deepcopy(student)
    with torch.no_grad():
        for tensor in (*copied.parameters(), *copied.buffers()):
            tensor.zero_()
    x = torch.randn(1, 2, 8)
    assert not copied(x).any() and student(x).any()
    assert copied.source is student.source


def test_a_long_chain_of_nodes_can_be_pickled(tmp_path: Path) -> None:
    names = ["h", *(f"h{number}" for number in range(2 * sys.getrecursionlimit())), "y"]
    chain = [helper.make_node("Neg", [a], [b]) for a, b in itertools.pairwise(names)]
    path = save(tmp_path / "m.onnx", helper.make_node("MatMul", ["x", "w"], ["h"]), *chain)
    student = opdf.load_onnx(path)
    again = pickle.loads(pickle.dumps(student))
    x = torch.randn(3, 4)
    assert torch.equal(again(x), student(x))


def test_a_sparse_weight_is_read_and_never_trained(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", matmul())
    model = onnx.load(str(path))
    values = numpy_helper.from_array(np.array([2, 3], np.float32), "w")
    places = numpy_helper.from_array(np.array([[0, 1], [1, 0]]), "places")
    dense = model.graph.initializer.pop()
    sparse = helper.make_sparse_tensor(values, places, dense.dims)
    model.graph.sparse_initializer.append(sparse)
    path.write_bytes(model.SerializeToString())
    for train in ("weights", "all"):
        student = opdf.load_onnx(path, train=train)
        assert not list(student.parameters()) and [n for n, _ in student.named_buffers()] == ["w"]
        given = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
        assert torch.equal(student(given), torch.tensor([[30.0, 2.0, 0.0, 0.0]]))
        assert write_back(student).graph == model.graph


def test_an_input_can_be_built_in(tmp_path: Path) -> None:
    model = models.branches(tmp_path)
    x = model.inputs["x"]
    both = opdf.load_onnx(model.path)
    one = opdf.load_onnx(model.path, fixed={"mode": 0})
    assert torch.equal(one(x), both(x, torch.tensor(0)))
    assert list(one.dynamic) == ["x"]
    with pytest.raises(InputError, match="has no input 'z' to fix, its inputs are x, mode"):
        opdf.load_onnx(model.path, fixed={"z": 1})
    with pytest.raises(InputError, match="is fixed to 'high', wanted one number"):
        opdf.load_onnx(model.path, fixed={"mode": "high"})


def test_the_model_argument_takes_a_file_with_options(tmp_path: Path) -> None:
    path = models.branches(tmp_path).path
    loaded = load_model(f"{path}?mode=1&train=all")
    assert loaded.kind == "onnx" and loaded.name == "branches"
    assert [tuple(t.shape) for t in loaded.args] == [(2, 8)]
    assert loaded.dynamic == {"x": ("N", 8)}
    given = load_model(str(path), inputs=InputOptions(("x=3x8", "mode=scalar:int64")))
    assert given.kwargs["x"].shape == (3, 8) and given.dynamic == {"x": ("N", 8), "mode": ()}
    with pytest.raises(InputError, match="asks for train=yes, wanted train=weights"):
        load_model(f"{path}?train=yes")


def test_an_example_that_does_not_run_is_asked_for(tmp_path: Path) -> None:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    path = save(tmp_path / "m.onnx", node)
    model = onnx.load(str(path))
    model.graph.initializer.append(numpy_helper.from_array(np.array([5, 7]), "shape"))
    onnx.save_model(model, str(path))
    with pytest.raises(InputError, match=r"x=Nx4; .*give one with --input, for example --input x="):
        load_model(str(path))


def test_an_export_keeps_opset_and_dtype(tmp_path: Path) -> None:
    model = models.shared(tmp_path)
    student = opdf.load_onnx(model.path)
    for options in ({"opset": 18}, {"dtype": "fp16"}):
        with pytest.raises(ExportError, match="keeps the graph of its file"):
            opdf.export_onnx(student, (), tmp_path / "o.onnx", model.inputs, **options)
    with pytest.raises(ExportError, match="keeps the shapes and dtypes of its file"):
        opdf.export_onnx(student.double(), (), tmp_path / "o.onnx", model.inputs)
    assert not (tmp_path / "o.onnx").exists()


def test_a_fold_into_onnx_wants_the_file(tmp_path: Path) -> None:
    from opdf_compile.io.export.student_fold import save_onnx
    from opdf_compile.io.saved.expanded_file import FoldedFile

    with pytest.raises(FoldError, match="found no --model; give --model STUDENT.onnx"):
        save_onnx(FoldedFile({}), None, tmp_path / "o.onnx")


def test_keys_are_names_one_to_one() -> None:
    names = ["a", "a.b", "a.c.d", "w/x:0", "w_x_0", "", "..", "k_cores.0", "a"]
    places = [((), name) for name in names]
    keys = keys_of([*places, (("If.then",), "a")])
    assert len(set(keys.values())) == len(keys) == len(set(names)) + 1
    assert keys[(), "a"] == "a" and keys[(), "a.b"] == "a_b" and keys[(), "w/x:0"] == "w_x_0"
    module = torch.nn.Module()
    for key in keys.values():
        assert key and all(part for part in key.split("."))
        if "." not in key:
            module.register_buffer(key, torch.zeros(1))
    assert identifier("0:x") == "_0_x"
