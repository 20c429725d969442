"""Checkpoints: what comes back, resumed runs bit for bit, and arguments that are refused."""

from __future__ import annotations

import fcntl
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import ArtefactError, InputError
from opdf_compile.io.checkpoints.capture import RankShare
from opdf_compile.io.checkpoints.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from opdf_compile.io.checkpoints.json_values import pack
from opdf_compile.io.checkpoints.random_states import random_states, restorer
from opdf_compile.io.checkpoints.rank_group import RankGroup
from opdf_compile.io.checkpoints.write import write_share
from opdf_compile.io.models.safetensors_file import read_tensors

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "AdamW": (torch.optim.AdamW, {"lr": 1e-2, "betas": (0.8, 0.99), "weight_decay": 0.1}),
    "SGD": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}),
    "AdamW with a tensor as rate": (torch.optim.AdamW, {"lr": torch.tensor(1e-2)}),
}


class Student(nn.Module):
    """Two weights of one form (which are batched), dropout, running statistics, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 8)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.relu(self.first(self.table(ids)))
        out: Tensor = self.head(self.drop(self.norm(self.second(hidden))))
        return out


def build(kind: str = "AdamW", **more: Any) -> tuple[Student, opdf.Overparam]:
    optimizer_class, options = OPTIMIZERS[kind]
    student = Student().train()
    options = {"cores": 2, "batched": True, **options, **more}
    return student, opdf.Overparam(student, optimizer_class, **options)


def train(student: nn.Module, optimizer: Any, steps: int, scheduler: Any = None) -> None:
    """Batches from torch's, python's and numpy's generators: all three matter."""
    for _ in range(steps):
        ids = torch.randint(0, 12, (6,))
        ids[random.randrange(6)] = int(np.random.randint(12))
        optimizer.zero_grad()
        nn.functional.cross_entropy(student(ids), ids).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def everything(student: nn.Module, optimizer: Any) -> dict[str, Any]:
    """All that a checkpoint has to bring back, by name."""
    found: dict[str, Any] = {f"module {k}": v.clone() for k, v in student.state_dict().items()}
    for name, state in optimizer.state_by_name().items():
        for key, value in state.items():
            found[f"{name} {key}"] = value.clone() if isinstance(value, Tensor) else value
    found["groups"] = optimizer.group_options()
    found["fingerprints"] = optimizer.fingerprints()
    return found


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if isinstance(value, Tensor):
            assert found[key].dtype == value.dtype and torch.equal(found[key], value), key
        else:
            assert found[key] == value, key


def schedule(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_resumed_run_is_the_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    student, optimizer = build(kind)
    scheduler = schedule(optimizer)
    train(student, optimizer, 5, scheduler)
    extra = None if "tensor" in kind else {"scheduler": scheduler.state_dict()}
    path = save_checkpoint(tmp_path, optimizer, step=5, extra=extra)
    at_five = everything(student, optimizer)
    train(student, optimizer, 5, None if extra is None else scheduler)

    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    again, resumed = build(kind)
    continued = schedule(resumed)
    loaded = load_checkpoint(tmp_path, resumed)
    assert (loaded.step, loaded.path) == (5, path)
    assert_same(everything(again, resumed), at_five)
    if extra is not None:
        continued.load_state_dict(loaded.extra["scheduler"])
    train(again, resumed, 5, None if extra is None else continued)
    assert_same(everything(again, resumed), everything(student, optimizer))


def test_without_random_states_the_run_goes_on_otherwise(tmp_path: Path) -> None:
    """The comparison above can fail."""
    student, optimizer = build()
    save_checkpoint(tmp_path, optimizer, step=0)
    train(student, optimizer, 2)
    again, resumed = build()
    load_checkpoint(tmp_path, resumed, rng=False)
    train(again, resumed, 2)
    assert not torch.equal(again.first.weight, student.first.weight)


def test_a_checkpoint_without_random_states_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, optimizer = build()
    save_checkpoint(tmp_path, optimizer, step=0, rng=False)
    load_checkpoint(tmp_path, optimizer)
    assert "random number generators go on as they are" in caplog.text


def test_the_next_step_of_a_loaded_run_needs_no_absorb(tmp_path: Path) -> None:
    student, optimizer = build()
    train(student, optimizer, 2)
    save_checkpoint(tmp_path, optimizer, step=2)
    train(student, optimizer, 2)
    load_checkpoint(tmp_path, optimizer)
    train(student, optimizer, 1)
    with torch.no_grad():
        student.first.weight.add_(1.0)
    save_checkpoint(tmp_path, optimizer, step=3)
    load_checkpoint(tmp_path, optimizer)
    with pytest.raises(opdf.UserError, match="changed since the last refresh"):
        train(student, optimizer, 1)


def test_no_pickle_and_no_weight_twice(tmp_path: Path) -> None:
    student, optimizer = build()
    train(student, optimizer, 1)
    path = save_checkpoint(tmp_path, optimizer, step=1)
    shard = "shard-00000-of-00001.safetensors"
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", shard]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["module"]["head.weight"] == manifest["module"]["table.weight"]
    tensors, _ = read_tensors(path / shard)
    assert tensors.keys() == manifest["tensors"].keys()
    assert torch.equal(tensors["module/table.weight"], student.head.weight.detach())


def test_a_module_keeps_values_that_are_no_tensors(tmp_path: Path) -> None:
    class Counting(nn.Linear):
        seen = 0

        def get_extra_state(self) -> dict[str, Any]:
            return {"seen": self.seen, "scale": torch.tensor(2.0)}

        def set_extra_state(self, state: dict[str, Any]) -> None:
            self.seen, self.scale = state["seen"], state["scale"]

    student = Counting(8, 8)
    student.seen = 3
    optimizer = opdf.Overparam(student, lr=1e-2, cores=2)
    save_checkpoint(tmp_path, optimizer, step=1)
    student.seen = 9
    load_checkpoint(tmp_path, optimizer)
    assert student.seen == 3 and student.scale == 2.0


def test_keep_deletes_older_ones_only(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "missing") is None
    _, optimizer = build()
    for step in (10, 20, 30, 1_000_000):
        save_checkpoint(tmp_path, optimizer, step=step)
    (tmp_path / "step-000005").write_text("a file of somebody")
    save_checkpoint(tmp_path, optimizer, step=40, keep=2)
    kept = sorted(path.name for path in tmp_path.glob("step-*"))
    assert kept == ["step-000005", "step-000030", "step-000040", "step-1000000"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-1000000"
    assert load_checkpoint(tmp_path / "step-000030", optimizer).step == 30


def test_leftovers_go_and_other_files_stay(tmp_path: Path) -> None:
    _, optimizer = build()
    for name in (".step-000007.x1y2z3", ".step-000003.pruned", "step-000009", ".other"):
        (tmp_path / name).mkdir()
    save_checkpoint(tmp_path, optimizer, step=8)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"step-000008", "step-000009", ".other", ".lock"}
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000008"


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    student, optimizer = build()
    save_checkpoint(tmp_path, optimizer, step=3)
    train(student, optimizer, 1)
    with pytest.raises(ArtefactError, match="step-000003 exists already, and .* never overwritten"):
        save_checkpoint(tmp_path, optimizer, step=3)
    assert [path.name for path in tmp_path.glob("*step*")] == ["step-000003"]


def test_two_processes_do_not_save_into_one_folder(tmp_path: Path) -> None:
    _, optimizer = build()
    handle = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(ArtefactError, match="another process is saving a checkpoint into"):
        save_checkpoint(tmp_path, optimizer, step=1)
    os.close(handle)
    save_checkpoint(tmp_path, optimizer, step=1)


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise ArtefactError("no space left")

    _, optimizer = build()
    monkeypatch.setattr("opdf_compile.io.checkpoints.checkpoint.write_manifest", full)
    with pytest.raises(ArtefactError, match="no space left"):
        save_checkpoint(tmp_path, optimizer, step=1)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def nested() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


ARGUMENTS = {
    "step below zero": ({"step": -1}, "step is -1, wanted a whole number"),
    "step of another kind": ({"step": 1.5}, "step is 1.5, wanted a whole number"),
    "keep nothing": ({"keep": 0}, "keep is 0, wanted a number of checkpoints"),
    "tensor": ({"extra": {"a": [torch.ones(1)]}}, r"extra\['a'\]\[0\] is a Tensor, wanted a JSON"),
    "set": ({"extra": {1}}, "extra is a set, wanted a JSON value"),
    "number as key": ({"extra": {"m": {3: 1}}}, r"extra\['m'\] has the key 3, a int"),
    "contains itself": ({"extra": nested()}, "extra is nested too deeply, or contains itself"),
    "too many digits": ({"extra": 10**5000}, "extra cannot be written as JSON"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_that_cannot_be_used(case: str, tmp_path: Path) -> None:
    options, words = ARGUMENTS[case]
    _, optimizer = build()
    with pytest.raises(InputError, match=words) as caught:
        save_checkpoint(tmp_path / "run", optimizer, **{"step": 1, **options})
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_infinities_and_tuples_in_extra(tmp_path: Path) -> None:
    _, optimizer = build()
    extra = {"best": float("inf"), "pair": (1, 2), "text": "\u00e9", "none": None, "yes": True}
    save_checkpoint(tmp_path, optimizer, step=1, extra=extra)
    assert load_checkpoint(tmp_path, optimizer).extra == {**extra, "pair": [1, 2]}


def test_other_optimizers_and_folders_are_sentences(tmp_path: Path) -> None:
    plain = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=1.0)
    with pytest.raises(InputError, match="the optimizer is a SGD, wanted an opdf.Overparam"):
        save_checkpoint(tmp_path, plain, step=1)  # type: ignore[arg-type]
    _, optimizer = build()
    with pytest.raises(ArtefactError, match="holds no complete checkpoint"):
        load_checkpoint(tmp_path, optimizer)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtefactError, match="cannot write .*file"):
        save_checkpoint(tmp_path / "file", optimizer, step=1)
    with pytest.raises(ArtefactError, match="cannot read .*file"):
        latest_checkpoint(tmp_path / "file")


def test_a_folder_that_only_rank_0_sees(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="wanted one that all ranks share"):
        write_share(tmp_path / "elsewhere", RankShare(), None, RankGroup())


def test_values_that_no_checkpoint_holds(tmp_path: Path) -> None:
    _, optimizer = build()
    optimizer.param_groups[0]["schedule"] = object()
    with pytest.raises(ArtefactError, match="groups/0/schedule is a object, wanted tensors"):
        save_checkpoint(tmp_path, optimizer, step=1)
    with pytest.raises(ArtefactError, match="two tensors would be called 'a/0'"):
        pack([torch.ones(1)], "a", {"a/0": torch.ones(1)})


def test_another_generator_of_numpy_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np.random, "get_state", lambda legacy: {"bit_generator": "PCG64"})
    _, optimizer = build()
    save_checkpoint(tmp_path, optimizer, step=1)
    assert load_checkpoint(tmp_path, optimizer).step == 1


def test_random_states_of_devices_that_are_not_here(caplog: pytest.LogCaptureFixture) -> None:
    states = random_states()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    states["cuda"] = [*states["cuda"], *[torch.zeros(16, dtype=torch.uint8)] * (count + 1)]
    restorer(states, "run/step-000001")
    assert f"this machine has {count}: those of the others are not restored" in caplog.text


@pytest.mark.gpu
def test_a_run_on_a_gpu_gets_its_random_numbers_back(tmp_path: Path) -> None:
    student = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5)).cuda()
    optimizer = opdf.Overparam(student, lr=1e-2, cores=2)
    save_checkpoint(tmp_path, optimizer, step=1)
    wanted = torch.rand(8, device="cuda")
    student[0].weight.data.zero_()
    load_checkpoint(tmp_path, optimizer)
    assert torch.equal(torch.rand(8, device="cuda"), wanted)
    assert student[0].weight.is_cuda and bool(student[0].weight.any())
    optimizer.step()
