"""Check data: what is drawn, what is stored, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from opdf_compile.artefacts.check_file import SCHEMA, CheckData, Sample, read_check, write_check
from opdf_compile.artefacts.export_facts import ExportFacts, read_claims
from opdf_compile.errors import ArtefactError, ExportError
from opdf_compile.graph.tracing import Traced, trace
from opdf_compile.io.evidence.evaluating import gather_check_data
from opdf_compile.io.evidence.truth import graph_of, run_module


class Tagger(nn.Module):
    """Ids and mask in, scores and a class out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor, weight: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.embed(ids) * mask[..., None]) * weight[:, None, None]
        return {"logits": logits, "label": logits.argmax(-1)}


def traced_tagger(model: nn.Module | None = None, batch: int = 2) -> Traced:
    ids = torch.tensor([[3, 5, 7, 11, 13, 17]]).repeat(batch, 1)
    example = {"ids": ids, "mask": torch.ones_like(ids), "weight": torch.rand(batch) * 2 + 4}
    axes = {"ids": ("B", "S"), "mask": ("B", "S"), "weight": ("B",)}
    return trace(Tagger() if model is None else model, example, dynamic=axes)


def collect(traced: Traced, **options: Any) -> CheckData:
    return gather_check_data(
        traced.programs["eval"],
        (traced.args, traced.kwargs),
        axis_names=traced.axis_names,
        output_names=traced.output_names,
        dtype="float32",
        **options,
    )


@pytest.fixture(scope="module")
def data() -> CheckData:
    torch.manual_seed(0)
    return collect(traced_tagger())


def test_first_sample_is_the_users_own(data: CheckData) -> None:
    np.testing.assert_array_equal(data.samples[0].inputs["ids"][0], [3, 5, 7, 11, 13, 17])
    assert len(data.samples) == 4


def test_sizes_vary_and_stay_consistent(data: CheckData) -> None:
    shapes = [sample.inputs["ids"].shape for sample in data.samples]
    assert shapes == [(2, 6), (2, 6), (1, 6), (11, 3)]
    for sample in data.samples:
        assert sample.inputs["mask"].shape == sample.inputs["ids"].shape
        assert sample.inputs["weight"].shape == sample.inputs["ids"].shape[:1]


def test_drawn_values_stay_in_the_table_and_in_the_examples_range(data: CheckData) -> None:
    ids = np.concatenate([sample.inputs["ids"].reshape(-1) for sample in data.samples[1:]])
    assert ids.min() >= 0 and ids.max() < 20
    assert not set(ids) <= {3, 5, 7, 11, 13, 17}
    for sample in data.samples:
        assert sample.inputs["weight"].min() >= 4 and sample.inputs["weight"].max() <= 6
        assert sample.inputs["weight"].dtype == np.float32


def test_a_mask_of_ones_stays_in_some_samples_and_is_padded_in_others(data: CheckData) -> None:
    whole = [bool(sample.inputs["mask"].all()) for sample in data.samples]
    assert whole[0] and whole[2] and not all(whole)
    for sample in data.samples:
        mask = sample.inputs["mask"]
        assert (np.diff(mask, axis=1) <= 0).all() and mask[:, 0].all()


def test_error_and_size_are_those_of_the_stored_truth(data: CheckData) -> None:
    for sample in data.samples:
        truth = sample.outputs["logits"]
        assert truth.dtype == np.float64
        assert sample.maxabs["logits"] == np.abs(truth).max()
        assert 0 < sample.rms["logits"] <= sample.error["logits"] < 1e-5
        assert sample.error["label"] == 0.0


def test_a_constant_float_example_is_still_varied() -> None:
    traced = trace(nn.Linear(4, 2), (torch.zeros(2, 4),))
    samples = collect(traced).samples
    assert not samples[0].inputs["input"].any()
    assert samples[1].inputs["input"].std() > 0.1


def test_values_that_break_the_model_are_given_up() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(x)

    samples = collect(trace(Root(), (torch.zeros(2, 3),))).samples
    assert all(np.isfinite(sample.outputs["output"]).all() for sample in samples)


def test_an_example_that_does_not_run_is_an_error() -> None:
    traced = trace(nn.Linear(4, 2), (torch.zeros(2, 4),))
    with pytest.raises(ExportError, match="does not run on the example inputs"):
        collect(dataclasses.replace(traced, args=(torch.zeros(2, 5),)))


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    model = Tagger()
    traced = traced_tagger(model)
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        write_check(tmp_path / name, collect(traced, seed=seed))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_round_trip(data: CheckData, tmp_path: Path) -> None:
    path = tmp_path / "x.check.npz"
    write_check(path, dataclasses.replace(data, onnx_sha256="ab"))
    again = read_check(path)
    assert (again.input_names, again.output_names) == (data.input_names, data.output_names)
    assert (again.dtype, again.onnx_sha256) == ("float32", "ab")
    for left, right in zip(data.samples, again.samples, strict=True):
        assert (left.error, left.rms, left.maxabs) == (right.error, right.rms, right.maxabs)
        for name, value in (*left.inputs.items(), *left.outputs.items()):
            found = (right.inputs | right.outputs)[name]  # type: ignore[operator]
            assert found.dtype == value.dtype
            np.testing.assert_array_equal(found, value)
    with np.load(path, allow_pickle=False) as plain:
        assert str(plain["schema"]) == SCHEMA


def test_bfloat16_survives(tmp_path: Path) -> None:
    value = np.array([1.0, 2.5, -3.0], dtype=ml_dtypes.bfloat16)
    one = {"y": 0.0}
    sample = Sample({"x": value}, {"y": np.zeros(1)}, one, one, one)
    write_check(tmp_path / "c.npz", CheckData(("x",), ("y",), "bfloat16", (sample,)))
    found = read_check(tmp_path / "c.npz").samples[0].inputs["x"]
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found, value)
    with np.load(tmp_path / "c.npz", allow_pickle=False) as plain:
        assert plain["s0.in.x"].dtype == np.uint16
        assert str(plain["s0.in.x.dtype"]) == "bfloat16"


@pytest.mark.parametrize("place", ["s0.in.weight", "s1.in.ids", "s0.out.logits", "s0.torch.logits"])
@pytest.mark.parametrize("array", [np.array(["a"]), np.array([b"a"]), np.zeros(1, "datetime64[s]")])
def test_what_is_no_number_is_no_input_and_no_truth(
    place: str, array: Any, data: CheckData, tmp_path: Path
) -> None:
    """A runtime would say so in words of its own, and late."""
    write_check(tmp_path / "c.npz", data)
    with np.load(tmp_path / "c.npz") as whole:
        arrays = dict(whole)
    read_check(tmp_path / "c.npz")
    np.savez(tmp_path / "c.npz", **arrays | {place: array})
    with pytest.raises(ArtefactError, match="is no check data .*no(t all)? numbers"):
        read_check(tmp_path / "c.npz")


def _write(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def _pickled(path: Path) -> None:
    np.savez(path, schema=np.array([{"a": 1}], dtype=object))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"random bytes"), "is no check data"),
        (_pickled, "is no check data"),
        (lambda path: _write(path, a=np.zeros(1)), "has the schema 'none', wanted 'opdf-check/1'"),
        (lambda path: _write(path, schema=np.array("opdf-check/9")), "schema 'opdf-check/9'"),
        (lambda path: _write(path, schema=np.array(SCHEMA)), "lacks the entry 'input_names'"),
    ],
    ids=["missing", "empty", "random", "pickle", "no schema", "newer schema", "incomplete"],
)
def test_other_files_are_refused(make: Any, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "x.check.npz"
    make(path)
    with pytest.raises(ArtefactError, match=sentence):
        read_check(path)


def test_truncated_file_is_refused(data: CheckData, tmp_path: Path) -> None:
    path = tmp_path / "x.check.npz"
    write_check(path, data)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ArtefactError, match="is no check data"):
        read_check(path)


def test_evidence_rejects_another_model(data: CheckData) -> None:
    """One weight off by 1 % leaves the noise that the evidence records by orders of magnitude."""
    torch.manual_seed(0)
    right = Tagger()
    wrong = Tagger()
    wrong.load_state_dict(right.state_dict())
    with torch.no_grad():
        wrong.head.weight[0].mul_(1.01)
    recorded = collect(traced_tagger(right))

    def distance(model: nn.Module) -> float:
        graph = graph_of(traced_tagger(model).programs["eval"])
        sample = recorded.samples[0]
        inputs = {name: torch.from_numpy(value) for name, value in sample.inputs.items()}
        logits = run_module(graph, (), inputs)[0].double().numpy()
        return float(np.abs(logits - sample.outputs["logits"]).max() / sample.error["logits"])

    assert distance(right) <= 1.0
    assert distance(wrong) > 1000.0


def test_facts_of_the_export_come_back(data: CheckData, tmp_path: Path) -> None:
    facts = ExportFacts(("head.weight", "embed.weight"), ("head.weight",))
    write_check(tmp_path / "a.npz", dataclasses.replace(data, facts=facts))
    assert read_check(tmp_path / "a.npz").facts == facts
    assert read_claims(tmp_path / "a.npz") == (None, facts)
    write_check(tmp_path / "b.npz", data)
    assert read_check(tmp_path / "b.npz").facts == ExportFacts()


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"[]",
        b'{"schema": "opdf-export-facts/1", "parameters": "a", "planned": []}',
        b'{"schema": "opdf-export-facts/1", "parameters": [1], "planned": []}',
        b'{"schema": "other", "parameters": [], "planned": []}',
    ],
)
def test_damaged_facts_are_refused(text: bytes, data: CheckData, tmp_path: Path) -> None:
    write_check(tmp_path / "a.npz", data)
    arrays = dict(np.load(tmp_path / "a.npz"))
    np.savez(tmp_path / "a.npz", **arrays, export=np.frombuffer(text, np.uint8))
    with pytest.raises(ArtefactError, match="damaged record of its export"):
        read_claims(tmp_path / "a.npz")
