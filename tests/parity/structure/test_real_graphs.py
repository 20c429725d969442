"""Real exports after the runtime's optimisation, and constants beyond the limit of protobuf."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mutation_graphs import GRAPHS, Exports
from mutation_tools import Change, array, parameters, put, record, tensors
from mutations_cosmetic import COSMETIC
from onnx import ModelProto, TensorProto, helper

from opdf_compile.errors import ArtefactError
from opdf_compile.parity.runtime.registry import resolve_device
from opdf_compile.parity.structure.compare import compare_structure
from opdf_compile.parity.structure.optimised import compare_optimised


def filled(value: float) -> Change:
    """Every parameter constant: what the runtime folds by value is then there to be folded."""

    def apply(model: ModelProto) -> None:
        for name in parameters(model):
            if name in tensors(model):
                put(model, name, np.full_like(array(model, name), value))

    return apply


HONEST: dict[str, Change] = {
    "parameters zero": filled(0.0),
    "parameters one": filled(1.0),
    **{
        name: COSMETIC[name]
        for name in (
            "nothing",
            "another order of nodes",
            "a third order of nodes",
            "initialisers reversed",
            "each reader with its own constants",
            "equal constants merged",
            "constants as Constant nodes",
            "parameters as Constant nodes",
        )
    },
}


@pytest.mark.parametrize(
    "graph",
    [name if name == "detector" else pytest.param(name, marks=pytest.mark.slow) for name in GRAPHS],
)
def test_an_honest_pair_is_the_same_after_optimisation(
    graph: str, exports: Exports, tmp_path: Path
) -> None:
    reference, device = exports(graph), resolve_device("cpu")
    for name, change in HONEST.items():
        model = ModelProto.FromString(reference.read_bytes())
        change(model)
        path = tmp_path / "candidate.onnx"
        path.write_bytes(model.SerializeToString())
        for pair in ((path, reference), (reference, path)):
            raw = compare_structure(*pair)
            assert compare_optimised(raw, pair[0], device).differences == (), name


def huge(folder: Path, last: bytes, location: str = "huge.data") -> Path:
    """A MatMul with a constant of over 2 GB in a file of its own, which is one hole."""
    folder.mkdir(exist_ok=True)
    shape = (1 << 14, (1 << 15) + 256)
    size = 4 * shape[0] * shape[1]
    assert size > 2**31
    with (folder / "huge.data").open("wb") as file:
        file.truncate(size)
        file.seek(size - len(last))
        file.write(last)
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=shape)
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        weight.external_data.add(key=key, value=value)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [info("x", TensorProto.FLOAT, ["n", shape[0]])],
        [info("y", TensorProto.FLOAT, ["n", shape[1]])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model.metadata_props.add(key="opdf.parameters", value="[]")
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.slow
def test_constants_of_over_two_gigabytes_compare_by_value(tmp_path: Path) -> None:
    reference = huge(tmp_path / "r", b"\1\0\0\0")
    assert compare_structure(huge(tmp_path / "c", b"\1\0\0\0"), reference).verdict == "pass"
    result = compare_structure(huge(tmp_path / "c", b"\2\0\0\0"), reference)
    assert "constant with other values" in result.differences[0].sentence


def test_parameters_of_over_two_gigabytes_are_not_read(tmp_path: Path) -> None:
    """Files with holes: reading them would take seconds and 2 GB."""
    paths = [huge(tmp_path / "r", b"\1\0\0\0"), huge(tmp_path / "c", b"\2\0\0\0")]
    for path in paths:
        model = ModelProto.FromString(path.read_bytes())
        record(model, ["w"])
        path.write_bytes(model.SerializeToString())
    assert compare_structure(*paths).verdict == "pass"


@pytest.mark.parametrize("location", ["../r/huge.data", "/elsewhere.data"])
def test_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    reference = huge(tmp_path / "r", b"")
    with pytest.raises(ArtefactError, match="keeps the data of 'w' in"):
        compare_structure(huge(tmp_path / "c", b"", location), reference)
