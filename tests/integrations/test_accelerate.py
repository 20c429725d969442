"""Accelerate prepares, accumulates, clips, saves and resumes an Overparam."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import opdf_compile as opdf
from opdf_compile.errors import WeightsChanged

ROOT = Path(__file__).parents[2]
RATE, CLIP, EPOCHS, STEPS = 0.05, 0.05, 2, 4


def make_student(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(12, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 8)
    ).double()


def make_data() -> TensorDataset:
    made = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(32, 12, generator=made, dtype=torch.float64),
        torch.randn(32, 8, generator=made, dtype=torch.float64),
    )


class Run:
    """One prepared training; `epoch` trains, `opt` is the Overparam, `student` the plain module."""

    def __init__(
        self,
        kind: Callable[..., Any],
        dropout: float = 0.0,
        precision: str = "no",
        dtype: torch.dtype = torch.float64,
        **options: Any,
    ) -> None:
        """Prepare everything as any user would."""
        from accelerate import Accelerator

        self.accelerator = Accelerator(
            cpu=True, gradient_accumulation_steps=2, mixed_precision=precision
        )
        self.student = make_student(dropout).to(dtype)
        self.opt = opdf.Overparam(self.student, kind, lr=RATE, cores=3, **options)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.opt, EPOCHS * STEPS // 2)
        data = TensorDataset(*(tensor.to(dtype) for tensor in make_data().tensors))
        loader = DataLoader(data, batch_size=8, shuffle=dropout > 0)
        prepared = self.accelerator.prepare(self.student, self.opt, loader, schedule)
        self.model, self.optimizer, self.loader, self.schedule = prepared

    def epoch(self) -> None:
        """Train over the data once."""
        for x, y in self.loader:
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(F.mse_loss(self.model(x), y))
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), CLIP)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()


def by_hand(*, accumulation: int = 2, clip: float = CLIP, schedule: bool = True) -> nn.Module:
    """What Accelerate is asked to do, written out."""
    student = make_student()
    opt = opdf.Overparam(student, torch.optim.SGD, lr=RATE, cores=3, momentum=0.9)
    batches: list[list[Tensor]] = list(DataLoader(make_data(), batch_size=8)) * EPOCHS
    for step, start in enumerate(range(0, len(batches), accumulation)):
        share = 0.5 * (1 + math.cos(math.pi * step / (EPOCHS * STEPS // 2))) if schedule else 1.0
        opt.param_groups[0]["lr"] = RATE * share
        opt.zero_grad()
        for x, y in batches[start : start + accumulation]:
            (F.mse_loss(student(x), y) / accumulation).backward()
        nn.utils.clip_grad_norm_(student.parameters(), clip)
        opt.step()
    return student


def test_accumulation_clipping_and_schedule_are_those_of_a_loop_by_hand(spy: Any) -> None:
    run = Run(torch.optim.SGD, momentum=0.9)
    assert run.optimizer.optimizer is run.opt
    seen = spy(run.opt)
    for _ in range(EPOCHS):
        run.epoch()
    # Accumulate asks for a step after every micro-batch and lets every second one through.
    assert len(seen.rates) == EPOCHS * STEPS // 2
    found = compare.weights(run.student)

    def apart(**changes: Any) -> float:
        return float(compare.distance(compare.weights(by_hand(**changes)), found))

    assert apart() < 1e-12
    # Each of the three is seen: without it the weights are far away.
    assert apart(accumulation=1) > 1e-4
    assert apart(clip=1e9) > 1e-4
    assert apart(schedule=False) > 1e-4
    folded = compare.weights(opdf.fold(run.opt))
    assert compare.distance(folded, found) < 1e-15


def resumable() -> Run:
    from accelerate.utils import set_seed

    set_seed(11)
    return Run(torch.optim.AdamW, dropout=0.2, weight_decay=0.1)


@pytest.mark.parametrize("restored", ["all", "weights"])
def test_resume_is_bit_equal_to_the_uninterrupted_run(restored: str, tmp_path: Path) -> None:
    whole = resumable()
    whole.epoch()
    whole.accelerator.save_state(str(tmp_path / "state"))
    saved = compare.weights(whole.student)
    whole.epoch()

    again = resumable()
    nn.init.zeros_(again.student[0].weight)  # The start must come out of the checkpoint.
    if restored == "all":
        again.accelerator.load_state(str(tmp_path / "state"))
    else:
        again.student.load_state_dict(saved)
        again.opt.absorb()
    assert compare.equal(compare.weights(again.student), saved)
    again.epoch()
    same = compare.equal(compare.weights(again.student), compare.weights(whole.student))
    state = compare.equal(again.opt.state_dict()["state"], whole.opt.state_dict()["state"])
    # The weights alone do not make that run.
    assert (same, state) == ((True, True) if restored == "all" else (False, False))
    kept = whole.opt.state_by_name()["0.weight"]
    assert float(kept["cores.0.step"]) == STEPS and "cores.2.exp_avg_sq" in kept


def test_loading_the_weights_alone_stops_the_next_step() -> None:
    run = Run(torch.optim.SGD)
    run.epoch()
    other = {name: value + 0.01 for name, value in compare.weights(run.student).items()}
    run.student.load_state_dict(other)
    with pytest.raises(WeightsChanged, match="2 weights changed since the last refresh"):
        run.epoch()
    with pytest.raises(WeightsChanged, match="2 weights changed since the last refresh"):
        opdf.fold(run.opt)
    assert compare.equal(compare.weights(run.student), other)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_mixed_precision(precision: str) -> None:
    run = Run(torch.optim.SGD, precision=precision, dtype=torch.float32)
    before, found = compare.weights(run.student), set()
    run.student[0].register_forward_hook(lambda _m, _args, out: found.add(out.dtype))
    run.epoch()
    assert found == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert {core.dtype for unit in run.opt.program.units for core in unit.storage} == {
        torch.float32
    }
    assert compare.distance(compare.weights(run.student), before) > 1e-4
    run.opt.program.require_unchanged()


# accelerate's own command imports timm, and with it torchvision, whose wheel may not fit a CPU-only
# torch; this is `accelerate` with that mended first.
ACCELERATE = (
    "from opdf_compile.io.torchvision_shim import prepare_torchvision; prepare_torchvision(); "
    "from accelerate.commands.accelerate_cli import main; main()"
)
TWO = ["--num_processes", "2"]
LAUNCHERS = {
    # `--cpu` would start one process; without a GPU this starts two on the CPU.
    "accelerate": ["-c", ACCELERATE, "launch", "--multi_gpu", *TWO, "--main_process_port", "0"],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
}


def launch(name: str | None, script: Path, folder: Path) -> str:
    """Runs a script on two processes, or on one without a launcher."""
    options = LAUNCHERS[name] if name else []
    done = subprocess.run(
        [sys.executable, *options, str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_example_runs_on_two_processes(launcher: str, tmp_path: Path) -> None:
    printed = launch(launcher, ROOT / "examples" / "accelerate_loop.py", tmp_path)
    (line,) = [line for line in printed.splitlines() if line.startswith("2 processes")]
    first, last = (float(word) for word in re.findall(r"\d\.\d+", line))
    assert last < first
    student = make_student_of_example()
    student.load_state_dict(torch.load(tmp_path / "student.pt"))
    files = {path.name for path in (tmp_path / "state").iterdir()}
    assert {"model.safetensors", "optimizer.bin", "random_states_1.pkl"} <= files


def make_student_of_example() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))


@pytest.mark.slow
def test_two_processes_train_and_resume_as_one(tmp_path: Path) -> None:
    """Two processes with batches of 4 are one with batches of 8; both resume bit for bit."""
    worker = Path(__file__).parents[1] / "support" / "accelerate_worker.py"
    for name, folder in ((None, "one"), ("torchrun", "two")):
        (tmp_path / folder).mkdir()
        launch(name, worker, tmp_path / folder)
    one = torch.load(tmp_path / "one" / "rank0.pt")
    ranks = [torch.load(tmp_path / "two" / f"rank{rank}.pt") for rank in (0, 1)]
    assert [rank["batch"] for rank in ranks] == [4, 4] and one["batch"] == 8
    for run in (one, *ranks):
        assert compare.equal(run["resumed"], run["whole"])
        assert compare.equal(run["resumed state"], run["whole state"])
        assert not compare.equal(run["weights alone"], run["whole"])
    assert compare.equal(ranks[0]["whole"], ranks[1]["whole"])
    assert compare.equal(ranks[0]["whole state"], ranks[1]["whole state"])
    # The sums of a gradient run in another order; float64, six steps.
    assert compare.distance(ranks[0]["whole"], one["whole"]) < 1e-12
    assert compare.distance(one["start"], one["whole"]) > 1e-3
