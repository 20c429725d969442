"""Checkpoints of several ranks: shared out, sharded, replicated, loaded on other numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import checkpoint_runs as runs
import pytest
import torch

from opdf_compile.errors import InputError
from opdf_compile.io.checkpoints.checkpoint import load_checkpoint
from opdf_compile.io.models.safetensors_file import read_tensors


def on_ranks(server: Any, task: str, ranks: int, folder: Path, **job: Any) -> None:
    """Run a task to its end on so many processes."""
    rendezvous = folder.parent / f"{folder.name}.rendezvous"
    rendezvous.unlink(missing_ok=True)
    where = {"folder": str(folder), "rendezvous": str(rendezvous)}
    assert server.run(task=task, ranks=ranks, kill_after=None, **where, **job) == [0] * ranks


def advance(server: Any, folder: Path, ranks: int, *, shard: bool = False) -> None:
    """Two steps more."""
    share_out = ranks > 1 and not shard
    on_ranks(server, "steps", ranks, folder, steps=2, share_out=share_out, shard=shard)


def assert_as_one_process(folder: Path, step: int) -> None:
    """The newest checkpoint, loaded here, is what this many steps in one process make."""
    wanted = runs.build()
    for number in range(1, step + 1):
        torch.manual_seed(number)
        runs.one_step(*wanted)
    model, optimizer = runs.build()
    assert load_checkpoint(folder, optimizer).step == step
    assert runs.digest(model, optimizer) == runs.digest(*wanted)


@pytest.mark.parametrize("numbers", [(2, 1), pytest.param((1, 2, 4, 1), marks=pytest.mark.slow)])
def test_a_run_on_changing_numbers_of_ranks_is_one_run(
    numbers: tuple[int, ...], tmp_path: Path, server: Any
) -> None:
    folder = tmp_path / "run"
    for done, ranks in enumerate(numbers, start=1):
        advance(server, folder, ranks)
        assert_as_one_process(folder, 2 * done)
        path = folder / f"step-{2 * done:06d}"
        assert len(list(path.glob("shard-*.safetensors"))) == ranks
        # Cores and their state are written once, by the rank that holds them.
        names = [
            name
            for shard in path.glob("shard-*")
            for name in read_tensors(shard)[0]
            if name.startswith("state/")
        ]
        assert len(names) == len(set(names))
        holders = {
            stored["shard"]
            for name, stored in json.loads((path / "manifest.json").read_text())["tensors"].items()
            if "/cores." in name
        }
        assert len(holders) == ranks


def test_fsdp_and_one_process_load_each_other(tmp_path: Path, server: Any) -> None:
    folder = tmp_path / "run"
    advance(server, folder, 1)
    advance(server, folder, 2, shard=True)
    assert_as_one_process(folder, 4)
    advance(server, folder, 2, shard=True)
    advance(server, folder, 1)
    assert_as_one_process(folder, 8)


def test_a_sharded_weight_that_changed_is_told_after_loading(tmp_path: Path, server: Any) -> None:
    on_ranks(server, "changed", 2, tmp_path / "run")


def test_each_rank_gets_its_own_random_numbers_back(tmp_path: Path, server: Any) -> None:
    on_ranks(server, "draws", 2, tmp_path / "run")


def test_what_a_class_keeps_of_its_own_fits_the_ranks_that_had_it(
    tmp_path: Path, server: Any
) -> None:
    on_ranks(server, "of_the_class", 2, tmp_path / "run")
    # A count by name speaks of no parameter; where each rank's parameters started does.
    _, optimizer = runs.build(make=runs.Slowing)
    load_checkpoint(tmp_path / "run" / "counts", optimizer)
    assert int(optimizer.inner.state["count"]) == 1
    model, optimizer = runs.build(make=runs.Remembering)
    before = runs.digest(model, optimizer)
    with pytest.raises(InputError, match="what Remembering keeps in a form of its own.*same ranks"):
        load_checkpoint(tmp_path / "run" / "starts", optimizer)
    assert runs.digest(model, optimizer) == before


def test_a_mistake_of_one_rank_ends_all_of_them(tmp_path: Path, server: Any) -> None:
    on_ranks(server, "disagree", 2, tmp_path / "run")


def test_another_number_of_ranks_leaves_the_random_numbers_alone(
    tmp_path: Path, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    on_ranks(server, "draws", 2, tmp_path / "run")
    _, optimizer = runs.build()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_checkpoint(tmp_path / "run", optimizer)
    assert torch.equal(torch.get_rng_state(), before)
    assert "it holds those of 2 ranks and there are 1 ranks" in caplog.text
