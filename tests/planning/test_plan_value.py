"""The plan as a value: round trips, hand edits, other models, files."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from opdf_compile.errors import PlanError
from opdf_compile.graph.matching import match
from opdf_compile.planning import files
from opdf_compile.planning.choose import plan
from opdf_compile.planning.plans import Plan


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 24), nn.Conv2d(4, 8, 3), nn.Linear(6, 6))


@pytest.fixture
def made() -> Plan:
    return plan(model(), cores=3)


def test_json_round_trip(made: Plan) -> None:
    again = Plan.from_json(json.loads(made.dumps()))
    assert again.entries == made.entries
    assert again.to_json() == made.to_json()
    assert again.refusals[0].reason == "has 36 parameters, fewer than min_size=64"


def test_totals_and_costs_in_a_file_are_for_the_reader(made: Plan) -> None:
    value = made.to_json()
    value["totals"]["scale"] = 99.0
    value["entries"][0]["cost"]["parameters"] = 1
    assert Plan.from_json(value).scale == made.scale


def test_bonds_may_be_left_out(made: Plan) -> None:
    value = made.to_json()
    del value["entries"][0]["spec"]["bonds"]
    assert Plan.from_json(value).entries == made.entries


def test_text_and_html(made: Plan) -> None:
    lines = str(made).splitlines()
    assert lines[0].split() == [
        "weight",
        "by",
        "shape",
        "modes",
        "deployed",
        "trained",
        "FLOPs/step",
    ]
    assert lines[-2].startswith(f"2 weights: {made.deployed:,} parameters deployed")
    assert lines[-1] == "left alone (has 36 parameters, fewer than min_size=64): 2.weight"
    assert "<td>0.weight</td>" in made._repr_html_()


def test_peak_memory_counts_four_copies_of_the_cores(made: Plan) -> None:
    cores, weights = made.cost.parameters, made.deployed
    assert made.peak_bytes == 4 * (4 * cores + weights) + 4 * made.cost.largest_intermediate


def edit(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(plan_json: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place: Any = plan_json
        for part in parents:
            place = place[int(part) if part.isdigit() else part]
        if value is DELETE:
            del place[last]
        else:
            place[last] = value

    return change


DELETE = object()
EDITS = [
    ("schema", "opdf-plan/2", r"wrong at schema: .*'opdf-plan/1'.*correct it or write a new one"),
    ("schema", DELETE, "wrong at schema: Field required"),
    ("entries", DELETE, "wrong at entries: Field required"),
    ("surprise", 1, "wrong at surprise: Extra inputs are not permitted"),
    ("entries.0.key", "", "wrong at entries.0.key: String should have at least 1"),
    ("entries.0.key", 3, "wrong at entries.0.key: Input should be a valid string"),
    ("entries.0.spec", [], "wrong at entries.0.spec: Input should be a valid dict"),
    ("entries.0.parametrization", "fourier", r"wrong at entries.0 \(0.weight\): .*fourier"),
    (
        "entries.0.spec.out_modes",
        [5, 1, 5],
        r"wrong at entries.0 \(0.weight\): out_modes \[5, 1, 5\]",
    ),
    ("entries.0.spec.in_modes", [4, 4], r"wrong at entries.0 \(0.weight\): "),
    ("entries.0.spec.in_modes", [0, 1, 16], "must be a list of positive integers"),
    ("entries.0.spec.bonds", [1, 2, 2, 1], "bonds are .* and OPDF never truncates"),
    ("entries.0.spec.dtype", "int8", "dtype is 'int8'; an MPO weight has one of"),
    ("entries.0.spec.dtype", DELETE, "the MPO spec lacks dtype"),
    ("entries.0.spec.rank", 3, "the MPO spec has unknown keys: rank; remove them"),
    ("entries.1.key", "0.weight", "the plan names '0.weight' twice, wanted each weight once"),
]


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    EDITS,
    ids=[f"{r[0]}={'deleted' if r[1] is DELETE else r[1]}" for r in EDITS],
)
def test_hand_edits_that_are_wrong(made: Plan, path: str, value: Any, sentence: str) -> None:
    plan_json = copy.deepcopy(made.to_json())
    edit(path, value)(plan_json)
    with pytest.raises(PlanError, match=sentence):
        Plan.from_json(plan_json)


def test_a_hand_edit_that_is_right(made: Plan) -> None:
    plan_json = made.to_json()
    plan_json["entries"][0]["spec"].update(out_modes=[4, 6], in_modes=[2, 8])
    del plan_json["entries"][0]["spec"]["bonds"]
    edited = Plan.from_json(plan_json)
    spec: Any = edited.entries[0].spec
    assert spec.out_modes == (4, 6)
    edited.validate(match(model()))


@pytest.mark.parametrize("value", [None, [], "plan", 3, {}])
def test_values_that_are_no_plan(value: object) -> None:
    with pytest.raises(PlanError, match="the plan is wrong at"):
        Plan.from_json(value)


OTHERS = [
    (lambda: nn.Sequential(nn.Linear(16, 25), nn.Conv2d(4, 8, 3)), "'0.weight' shape"),
    (
        lambda: nn.Sequential(nn.Linear(16, 24).half(), nn.Conv2d(4, 8, 3)),
        "'0.weight' dtype float32",
    ),
    (
        lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(4, 8, 3)),
        "names '0.weight', the model has no such",
    ),
    (
        lambda: nn.Sequential(nn.Linear(16, 24).requires_grad_(False), nn.Conv2d(4, 8, 3)),
        r"names '0.weight', but it is frozen .*; remove the entry",
    ),
    (
        lambda: nn.ModuleDict({"00": nn.Linear(16, 24), "1": nn.Conv2d(4, 8, 3)}),
        r"names '0.weight', .* \(did you mean '00.weight'\?\); make a plan for this model",
    ),
]


@pytest.mark.parametrize(("other", "sentence"), OTHERS, ids=[row[1] for row in OTHERS])
def test_a_plan_for_another_model(
    made: Plan, other: Callable[[], nn.Module], sentence: str
) -> None:
    made.validate(match(model()))
    with pytest.raises(PlanError, match=sentence):
        made.validate(match(other()))


def test_a_plan_that_forgets_a_tied_name() -> None:
    tied = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    tied[1].weight = tied[0].weight
    value = plan(tied).to_json()
    value["entries"][0]["aliases"] = []
    with pytest.raises(
        PlanError, match=r"gives '0.weight' aliases \[\], the model has \['1.weight'\]"
    ):
        Plan.from_json(value).validate(match(tied))


def test_a_plan_for_the_other_orientation() -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nf = 16
            self.weight = nn.Parameter(torch.randn(16, 16))

    class Plain(nn.Linear):
        pass

    made = plan(Conv1D())
    assert made.entries[0].spec.transposed
    with pytest.raises(PlanError, match="'weight' transposed True, the model has False"):
        made.validate(match(Plain(16, 16)))


def test_save_and_load(made: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("former")
    made.save(path)
    assert Plan.load(str(path)).entries == made.entries
    assert os.listdir(tmp_path) == ["plan.json"]  # noqa: PTH208


def test_a_folder_that_is_not_there(made: Plan, tmp_path: Path) -> None:
    with pytest.raises(
        PlanError, match="cannot write the plan to .*No such file or directory; choo"
    ):
        made.save(tmp_path / "missing" / "plan.json")
    assert not (tmp_path / "missing").exists()


def test_a_failed_write_keeps_the_former_file(
    made: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    path.write_text("former")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(PlanError, match="cannot write the plan to .*No space left on device"):
        made.save(path)
    assert path.read_text() == "former"
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_over_a_folder(made: Plan, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot write the plan to"):
        made.save(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            None,
            "cannot read the plan .*No such file or directory; write one with opdf-compile plan",
        ),
        ("", "is not a plan: Expecting value"),
        ("{", "is not a plan: "),
        (b"\xff\xfe\x00", "is not a plan: "),
        ("{}", "the plan is wrong at"),
    ],
)
def test_files_that_are_no_plan(tmp_path: Path, text: str | bytes | None, sentence: str) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PlanError, match=sentence):
        Plan.load(path)


def test_a_file_too_large_to_be_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    (tmp_path / "plan.json").write_text(" " * 11)
    with pytest.raises(PlanError, match="has 11 bytes, a plan has at most 10"):
        Plan.load(tmp_path / "plan.json")


def test_a_folder_is_no_plan(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot read the plan"):
        Plan.load(tmp_path)


def test_a_plan_remembers_its_module_and_nothing_else_does() -> None:
    model = torch.nn.Linear(8, 8)
    made = plan(model)
    assert made.model is model
    assert Plan.from_json(made.to_json()).model is None
    assert Plan.from_json(made.to_json()) == made
    assert copy.deepcopy(made).model is None
    assert pickle.loads(pickle.dumps(made)) == made
    del model
    gc.collect()
    assert made.model is None, "a plan keeps no module alive"
