"""The structure judge alone: what differs, what only looks so, and what holds other numbers."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from mutation_graphs import Exports
from mutation_tools import Change, DoesNotApply
from mutations_cosmetic import COSMETIC
from mutations_semantic import BY_STRUCTURE
from onnx import ModelProto, numpy_helper

from opdf_compile.artefacts import recorded_parameters
from opdf_compile.errors import ArtefactError, InputError
from opdf_compile.parity import Comparison, compare

# What each change of writing is told as; of those not named here, as something.
TOLD = {
    "values renamed": "names of values",
    "values numbered": "names of values",
    "nodes renamed": "names of nodes",
    "nodes without names": "names of nodes",
    "graph renamed": "name of the graph",
    "another order of nodes": "order of nodes",
    "equal constants merged": "initialisers",
    "constants as Constant nodes": "Constant nodes",
    "defaults spelled out": "attributes as written",
    "attributes reversed": "attributes as written",
    "trailing absent inputs": "attributes as written",
    "doc strings": "doc strings",
    "metadata": "producer",
    "annotations added": "annotated values",
    "IR version": "IR version",
    "unused operator set": "operator sets",
    "symbolic axes renamed": "names of axes",
    "local function renamed": "attributes as written",
    "initialisers reversed": "other ways of writing",
}


@pytest.fixture(scope="module")
def reference(exports: Exports) -> Path:
    """A branch, a loop, a local function, a resize: the graph that most changes apply to."""
    return exports("detector")


def changed(reference: Path, change: Change, path: Path) -> Path:
    model = onnx.load(reference)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def applied(reference: Path, table: dict[str, Change], path: Path) -> Iterator[tuple[str, Path]]:
    """Each change of a table that finds something to change in the graph, and what it makes."""
    for name, change in table.items():
        with contextlib.suppress(DoesNotApply):
            yield name, changed(reference, change, path)


def test_what_only_looks_different_is_told_and_makes_no_difference(
    reference: Path, tmp_path: Path
) -> None:
    seen = set()
    for name, other in applied(reference, COSMETIC, tmp_path / "other.onnx"):
        seen.add(name)
        for pair in ((other, reference), (reference, other)):
            found = compare(*pair)
            assert found and found.equal and found.differences == (), name
            assert found.values.parameters > 5 and found.values.other == (), name
            told = [row.what.split(" (")[0] for row in found.cosmetic]
            same = other.read_bytes() == reference.read_bytes()
            assert bool(told) is not same, f"{name}: {found.cosmetic}"
            assert name not in TOLD or TOLD[name] in told, f"{name}: {told}"
            assert all(row.candidate != row.reference for row in found.cosmetic), name
    assert seen >= set(TOLD) and len(seen) > 30


def test_what_changes_the_function_is_a_difference(reference: Path, tmp_path: Path) -> None:
    seen = 0
    for name, other in applied(reference, BY_STRUCTURE, tmp_path / "other.onnx"):
        seen += 1
        found = compare(other, reference)
        assert not found and not found.equal, name
        first = found.to_json()["differences"][0]
        assert first["sentence"] == found.differences[0].sentence
    assert seen > 20


def other_numbers(*names: str) -> Change:
    def apply(model: ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name in names:
                values = numpy_helper.to_array(tensor).copy()
                values.reshape(-1)[0] = np.nextafter(values.reshape(-1)[0], np.float32(9))
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return apply


def test_other_numbers_in_parameters_are_counted_by_name(reference: Path, tmp_path: Path) -> None:
    parameters = recorded_parameters(onnx.load(reference), "m")
    assert parameters is not None
    some = sorted(name for name in parameters if name.endswith("weight"))[:2]
    other = changed(reference, other_numbers(*some), tmp_path / "other.onnx")
    found = compare(other, reference)
    assert found.equal and found.cosmetic == ()
    assert sorted(found.values.other) == some and found.values.parameters == len(parameters)


def test_the_nodes_of_a_difference_are_not_called_renamed(reference: Path, tmp_path: Path) -> None:
    def other_operator(model: ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Softmax")
        node.op_type, node.name = "LogSoftmax", "another"

    found = compare(changed(reference, other_operator, tmp_path / "other.onnx"), reference)
    assert not found.equal and "LogSoftmax" in str(found.differences[0])
    assert found.cosmetic == ()


def test_json_says_all_of_it(reference: Path, tmp_path: Path) -> None:
    def both(model: ModelProto) -> None:
        COSMETIC["IR version"](model)
        model.graph.node[0].op_type = "Relu"

    other = changed(reference, both, tmp_path / "other.onnx")
    said = json.loads(json.dumps(compare(other, reference).to_json()))
    assert said["schema"] == "opdf-diff/1" and said["equal"] is False
    assert set(said["differences"][0]) == {"kind", "where", "sentence", "candidate", "reference"}
    versions = [row for row in said["cosmetic"] if row["what"] == "IR version"]
    ours, theirs = (onnx.load(path).ir_version for path in (other, reference))
    assert versions == [{"what": "IR version", "candidate": str(ours), "reference": str(theirs)}]


def test_the_first_difference_is_drawn_and_equal_graphs_are_not(
    reference: Path, tmp_path: Path
) -> None:
    def relu(model: ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == "Softmax").op_type = "LogSoftmax"

    other = changed(reference, relu, tmp_path / "other.onnx")
    picture = tmp_path / "difference.svg"
    compare(other, reference).plot(picture)
    assert "<svg" in picture.read_text()
    with pytest.raises(InputError, match=r"is no \.png"):
        compare(other, reference).plot(tmp_path / "difference.txt")
    with pytest.raises(InputError, match="the graphs are equal"):
        compare(reference, reference).plot(tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()


def test_what_is_no_model_is_refused(reference: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes(b"no model")
    with pytest.raises(ArtefactError, match=r"wrong\.onnx is not"):
        compare(reference, wrong)


def test_neither_torch_nor_a_runtime_is_imported(reference: Path) -> None:
    code = (
        "import sys; from opdf_compile.parity import compare; "
        f"assert compare({str(reference)!r}, {str(reference)!r}); "
        "print([m for m in ('torch', 'onnxruntime', 'onnx_ir') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_comparison_is_true_where_graphs_are_equal(reference: Path) -> None:
    found = compare(reference, reference)
    assert isinstance(found, Comparison) and bool(found) and found.nodes > 10
    assert found.cosmetic == () and found.notes == ()
