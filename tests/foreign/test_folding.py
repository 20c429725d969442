"""Branches of a student's own: folded by graph or by method, saved, and told from stubs."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from branched_models import case
from self_folding import Merging, network
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.artefacts.check_file import CheckData, check_path, read_check
from opdf_compile.errors import FoldError, InputError, TraceError
from opdf_compile.foreign.folding import FoldedModel
from opdf_compile.io.evidence.evaluating import gather_check_data
from opdf_compile.io.export import build, own_check
from opdf_compile.io.models.program_archive import read_programs
from opdf_compile.io.models.safetensors_file import read_tensors

SLOW = pytest.mark.slow
X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))


@functools.cache
def made(by: Literal["auto", "graph"]) -> tuple[nn.Module, dict[str, Tensor], FoldedModel]:
    """The network, its state from before, and what was made of it; nobody changes them."""
    model = network()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    return model, before, opdf.fold_model(model, (X,), by=by)


@pytest.mark.parametrize(("given", "by"), [("graph", "graph"), ("auto", "method")])
def test_both_ways_give_the_same_function(given: Literal["auto", "graph"], by: str) -> None:
    model, before, folded = made(given)
    assert folded.by == by
    assert folded.operations == (21, 9)
    program = folded.program.module(check_guards=False)
    # 4 units in the last place of float32 for each of two folded layers of 36 products.
    torch.testing.assert_close(program(X), model(X), rtol=0.0, atol=4 * 2 * 36 * 2.0**-24)
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before), "the model is left as it is"


def test_by_method_gives_the_class_its_own_keys() -> None:
    folded = made("auto")[2]
    assert folded.by == "method"
    assert [call.key for call in folded.calls] == ["0.2", "0.3"]
    assert "0.2.conv.weight" in folded.state
    assert isinstance(folded.module, nn.Sequential)


def test_by_graph_says_what_was_folded() -> None:
    folded = made("graph")[2]
    assert [fold.key for fold in folded.folds] == ["0.2.weight", "0.3.weight"]
    assert folded.module is None
    assert {"0.2.weight", "0.2.bias"} <= folded.state.keys()


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("narrows", "switch_to_deploy of Sequential left a model that does not run"),
        ("raises", "switch_to_deploy of '0.2' raised RuntimeError: no deploy for this form"),
        pytest.param("forgets", "switch_to_deploy of Sequential changed the function", marks=SLOW),
    ],
)
def test_a_method_that_is_wrong_is_refused(wrong: str, reason: str) -> None:
    model = network(wrong)
    with pytest.raises(FoldError, match=reason):
        opdf.fold_model(model, (X,), by="method")
    folded = opdf.fold_model(model, (X,))
    assert folded.by == "graph"
    assert len(folded.folds) == 2
    assert any(reason in note for note in folded.notes)


def test_a_method_that_does_nothing_is_refused() -> None:
    block = network("stub")[0][2]
    with pytest.raises(FoldError, match="of Deployable changed nothing: 1 calls left every"):
        opdf.fold_model(block, (torch.randn(2, 4, 6, 6),), by="method")


def test_adapters_are_merged_by_method_and_by_graph() -> None:
    torch.manual_seed(0)
    model = Merging()
    merged = opdf.fold_model(model, (ROWS,))
    assert (merged.by, sorted(merged.state)) == (
        "method",
        ["0.bias", "0.weight", "2.bias", "2.weight"],
    )
    by_graph = opdf.fold_model(model, (ROWS,), by="graph")
    assert [fold.branches for fold in by_graph.folds] == [2, 2]
    weights = [fold.key for fold in by_graph.folds]
    for ours, theirs in zip(weights, ("0.weight", "2.weight"), strict=True):
        # Merged in float32 there, in float64 and rounded here.
        torch.testing.assert_close(by_graph.state[ours], merged.state[theirs], rtol=0, atol=2e-7)


def test_a_merge_that_drops_the_adapters_is_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(FoldError, match="merge_and_unload of Merging changed the function"):
        opdf.fold_model(Merging(stub=True), (ROWS,), by="method")


def test_a_merge_that_is_wrong_is_told_where_no_branches_meet_either() -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(torch.relu(x))

        def merge_and_unload(self) -> nn.Module:
            return self.base

    with pytest.raises(
        FoldError,
        match="nothing to fold.*; not by method: merge_and_unload of Forgetful changed the",
    ):
        opdf.fold_model(Forgetful(), (ROWS,))


@pytest.mark.parametrize("by", ["auto", "graph", "method"])
def test_a_model_that_no_graph_can_hold_is_one_sentence(by: str) -> None:
    class Choosing(Merging):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.raises(TraceError, match="Choosing cannot be exported: no graph can hold its eval"):
        opdf.fold_model(Choosing(), (ROWS,), by=by)


def test_what_cannot_be_folded_is_one_sentence() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    with pytest.raises(
        FoldError, match="there is nothing to fold: the model holds no cores, and no branches"
    ):
        opdf.fold_model(plain, (X,))
    with pytest.raises(FoldError, match="Sequential has no method that folds it"):
        opdf.fold_model(plain, (X,), by="method")
    with pytest.raises(InputError, match="by is 'hand'; give auto, graph, method"):
        opdf.fold_model(plain, (X,), by="hand")  # type: ignore[arg-type]
    program = opdf.trace(network(), (X,)).programs["eval"]
    with pytest.raises(FoldError, match="by method was asked for and the model is a graph"):
        opdf.fold_model(program, by="method")


def test_a_program_is_folded_by_graph(tmp_path: Path) -> None:
    program = opdf.trace(network(), (X,)).programs["eval"]
    folded = opdf.fold_model(program)
    assert len(folded.folds) == 2
    folded.save(tmp_path / "student.pt2")
    again = read_programs(tmp_path / "student.pt2").model.module(check_guards=False)
    for batch in (1, 5):
        x = torch.randn(batch, 3, 6, 6)
        torch.testing.assert_close(again(x), network()(x), rtol=0.0, atol=1e-5)
    folded.save(tmp_path / "student.safetensors")
    assert read_tensors(tmp_path / "student.safetensors")[0].keys() == folded.state.keys()
    with pytest.raises(opdf.UserError, match=r"suffix '.pth', wanted .pt2, .safetensors or .onnx"):
        folded.save(tmp_path / "student.pth")


@SLOW
def test_a_bfloat16_model_is_judged_by_its_own_noise() -> None:
    model, x, _ = case("repvgg")
    folded = opdf.fold_model(model.bfloat16(), (x.bfloat16(),))
    assert {tensor.dtype for tensor in folded.state.values()} == {torch.bfloat16}


@pytest.mark.parametrize("by", ["graph", pytest.param("auto", marks=SLOW)])
def test_the_truth_of_the_unfolded_model_is_computed_once(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To prove the fold, after a method that did not hold too, and to export it."""
    gathered: list[object] = []

    def counted(program: object, *args: Any, **options: Any) -> CheckData:
        gathered.append(program)
        return gather_check_data(program, *args, **options)  # type: ignore[arg-type]

    for module in (build, own_check):
        monkeypatch.setattr(module, "gather_check_data", counted)
    folded = opdf.fold_model(network("forgets"), (X,), by=by)
    assert folded.by == "graph"
    # The network's own methods fold their blocks, which have truths of their own.
    assert gathered.count(folded.unfolded.programs["eval"]) == 1
    gathered.clear()
    folded.save(tmp_path / "student.onnx")
    assert not gathered
    plain = opdf.export_onnx(network("forgets"), (X,), tmp_path / "plain.onnx")
    found, wanted = (read_check(check_path(f)) for f in (tmp_path / "student.onnx", plain))
    assert found.output_names == wanted.output_names and found.dtype == wanted.dtype
    for one, other in zip(found.samples, wanted.samples, strict=True):
        assert all((one.inputs[name] == other.inputs[name]).all() for name in found.input_names)
        assert all((one.outputs[n] == other.outputs[n]).all() for n in found.output_names)
        assert one.error == other.error


def test_an_axis_that_the_file_does_not_bear_has_a_truth_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folded = made("graph")[2]
    broken = {("input", 0): "the batch is fixed"}
    trials = iter([SimpleNamespace(broken=broken), SimpleNamespace(broken={}, note="")])
    monkeypatch.setattr(build, "try_free_axes", lambda *_: next(trials))
    check = folded.export().check
    assert {sample.inputs["input"].shape[0] for sample in check.samples} == {len(X)}
    free = folded.original.check
    assert {sample.inputs["input"].shape[0] for sample in free.samples} != {len(X)}
