"""The record of parameters: written once, found again after a merge, never in the way of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from opdf_compile.artefacts.record import (
    claim_of,
    claimed_weights,
    exporter_of,
    listed_parameters,
    record_of,
    recorded_parameters,
    replace_record,
    version_of,
)
from opdf_compile.errors import ArtefactError
from opdf_compile.io.export.exporting import export_onnx
from opdf_compile.parity.structure.compare import compare_structure


def model_of(names: list[str], metadata: dict[str, str], computed: str = "y") -> ModelProto:
    """A sum of constants, so that each is read."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    constants = [numpy_helper.from_array(torch.ones(2).numpy(), name) for name in names]
    nodes = [
        helper.make_node("Sum", ["x", *names], [computed]),
        helper.make_node("Identity", [computed], ["y"]),
    ]
    graph = helper.make_graph(nodes if computed != "y" else nodes[:1], "g", *_ports(value))
    graph.initializer.extend(constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    helper.set_model_props(model, metadata)
    return model


def _ports(value: list[Any]) -> tuple[list[Any], list[Any]]:
    return value[:1], value[1:]


def exported(net: nn.Module, width: int, path: Path) -> ModelProto:
    return onnx.load(export_onnx(net, (torch.rand(2, width),), path))


def test_two_files_merge_and_keep_both_records(tmp_path: Path) -> None:
    body = exported(nn.Linear(6, 4), 6, tmp_path / "body.onnx")
    head = exported(nn.Sequential(nn.Linear(4, 3)), 4, tmp_path / "head.onnx")
    joined = onnx.compose.add_prefix(head, "head/")
    merged = onnx.compose.merge_models(body, joined, [("output", "head/input")])
    onnx.checker.check_model(merged, full_check=True)
    wanted = {"weight", "bias", "head/0.weight", "head/0.bias"}
    assert recorded_parameters(merged, "merged") == wanted
    said = {entry.key: entry.value for entry in merged.metadata_props}
    assert exporter_of(said) == f"torch.onnx {torch.__version__}"


def test_merged_students_are_judged_like_their_parts(tmp_path: Path) -> None:
    """Other weights are the same structure, another constant is not."""

    def merged(seed: int, slope: float) -> Path:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(slope))
        part = exported(net, 4, tmp_path / "part.onnx")
        other = onnx.compose.add_prefix(part, "b/")
        whole = onnx.compose.merge_models(part, other, [("output", "b/input")])
        path = tmp_path / f"{seed}{slope}.onnx"
        onnx.save(whole, path)
        return path

    untouched = merged(1, 0.1)
    found = compare_structure(merged(2, 0.1), untouched)
    assert found and not found.notes
    assert not compare_structure(merged(2, 0.2), untouched)


def test_files_of_two_versions_merge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = exported(nn.Linear(4, 4), 4, tmp_path / "a.onnx")
    monkeypatch.setattr("opdf_compile.artefacts.record.__version__", "9.9")
    second = exported(nn.Linear(4, 4), 4, tmp_path / "b.onnx")
    joined = onnx.compose.add_prefix(second, "b/")
    merged = onnx.compose.merge_models(first, joined, [("output", "b/input")])
    said = {entry.key: entry.value for entry in merged.metadata_props}
    assert "9.9" in str(version_of(said)) and ", " in str(version_of(said))
    assert recorded_parameters(merged, "m") == {"weight", "bias", "b/weight", "b/bias"}


def test_a_file_of_the_first_version_is_read() -> None:
    old = {
        "opdf.parameters": '["w"]',
        "opdf.exporter": "torch.onnx 2.12",
        "opdf.version": "0.1.0",
    }
    assert recorded_parameters(model_of(["w", "c"], old), "old") == {"w"}
    assert exporter_of(old) == "torch.onnx 2.12" and version_of(old) == "0.1.0"
    assert recorded_parameters(model_of(["w"], {"opdf.parameters": "[]"}), "old") == frozenset()


def test_without_a_record_there_is_none() -> None:
    assert recorded_parameters(model_of(["w"], {}), "m") is None
    pointer = {"opdf.parameters": record_of([])["opdf.parameters"]}
    assert recorded_parameters(model_of(["w"], pointer), "m") is None


def test_a_name_that_ends_like_a_parameters_is_none_of_its_own() -> None:
    """Only what a merge renamed, computed values too, has a prefix."""
    assert recorded_parameters(model_of(["w", "a/w"], record_of(["w"])), "m") == {"w"}
    merged = model_of(["a/w", "b/w"], record_of(["w"]), computed="a/sum")
    assert recorded_parameters(merged, "m") == {"a/w"}


def test_names_that_the_file_lacks_stay_named() -> None:
    """A tool that fused a weight kept the metadata; whoever judges must see that it is gone."""
    assert recorded_parameters(model_of(["w"], record_of(["w", "gone"])), "m") == {"w", "gone"}


@pytest.mark.parametrize("text", ["[[[", "[]", '{"parameters": [1]}', "{}", "[" * 50_000])
def test_a_damaged_record_is_refused(text: str) -> None:
    entry = {"opdf.export.000000000000": text}
    with pytest.raises(ArtefactError, match="m has a damaged record of parameters.*JSON list"):
        recorded_parameters(model_of(["w"], entry), "m")


def test_another_record_takes_the_place_of_the_first() -> None:
    foreign = {"author": "somebody"}
    model = model_of(["v", "w"], foreign | record_of(["v", "w"], "torch.onnx 2.12"))
    replace_record(model, ["w"])
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert recorded_parameters(model, "m") == {"w"}
    assert said["author"] == "somebody" and exporter_of(said) == "torch.onnx 2.12"
    assert len(said) == 3 and json.loads(said["opdf.parameters"]) == ["opdf.export.*"]


def test_a_claim_stands_beside_the_record_and_goes_with_the_weights() -> None:
    record = record_of(["a", "b"])
    model = model_of(["a", "b"], record | claim_of(["b"]))
    assert claimed_weights(model) == {"b"} and recorded_parameters(model, "f") == {"a", "b"}
    replace_record(model, ["a"])
    assert not claimed_weights(model), "other weights were not planned"
    assert claim_of([]) == {} and listed_parameters(record) == ("a", "b")


@pytest.mark.parametrize("text", ["{", "3", '{"b": 1}', "[1]"])
def test_a_damaged_claim_claims_nothing(text: str) -> None:
    assert not claimed_weights(model_of(["a"], {"opdf.plan.0": text}))
