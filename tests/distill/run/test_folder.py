"""Run folders that are not this run's: each is told in one sentence, and nothing is overwritten."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opdf_compile.distill.run import accelerator
from opdf_compile.distill.run.accelerator import open_accelerator, require_trackers
from opdf_compile.distill.run.folder import Log, RunFolder, only_run, open_folder, read_log
from opdf_compile.distill.run.lock import lock_of
from opdf_compile.errors import ArtefactError, DeviceError, UserError

CHAINS = 'parametrization = "mpo"'


@pytest.fixture
def opened(make: Any, tmp_path: Path) -> Callable[..., RunFolder]:
    """Opens the folder of a run of the recipe with these values."""

    def found(resume: bool = True, **values: str) -> RunFolder:
        job = make(**values)
        lock = lock_of(job, job.make_student(job.recipe.training.seed))
        return open_folder(tmp_path / "run", lock, job.recipe.text, resume=resume)

    return found


def test_a_folder_holds_recipe_and_lock_from_the_start(opened: Any) -> None:
    folder = opened()
    assert folder.recipe.read_text(encoding="utf-8").lstrip().startswith("[student]")
    assert sorted(p.name for p in folder.path.iterdir()) == ["lock.json", "recipe.toml"]
    assert opened() == folder
    with pytest.raises(ArtefactError, match="holds a run already"):
        opened(resume=False)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batch": "4"}, r"\[data\] batch = 8, this one 4"),
        ({"options": "weight_decay = 0.2"}, r"\[optimizer\] weight_decay = 0.1, this one 0.2"),
        ({"student": "student"}, "the start weights of the student are others"),
    ],
)
def test_another_recipe_is_told(values: dict[str, str], words: str, opened: Any) -> None:
    opened()
    with pytest.raises(ArtefactError, match=f"{words}.*another folder with -o"):
        opened(**values)


@pytest.mark.parametrize("first", ["", CHAINS])
def test_the_default_plan_is_another_one_than_three_cores_everywhere(
    first: str, opened: Any
) -> None:
    second = "" if first else CHAINS
    opened(plan=first)
    with pytest.raises(ArtefactError, match=r"\[plan\] parametrization = .*another folder with -o"):
        opened(plan=second)
    opened(plan=first)


def test_what_changes_no_result_may_change(opened: Any) -> None:
    opened()
    opened(training="epochs = 3\\ncheckpoint_every = 5\\nkeep = 4\\nema = 0.9", export="true")


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("versions", "torch"), "1.0", r"torch 1.0, this is .*pip install torch==1.0"),
        (("data", "sha256"), "0" * 64, "the contents of the data are others"),
        (("teacher",), "0" * 64, "the teacher's weights are others"),
    ],
)
def test_other_versions_data_or_teacher_are_told(
    place: tuple[str, ...], value: str, words: str, opened: Any
) -> None:
    folder = opened()
    lock = json.loads(folder.lock.read_text(encoding="utf-8"))
    inner = lock
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    folder.lock.write_text(json.dumps(lock), encoding="utf-8")
    with pytest.raises(ArtefactError, match=words):
        opened()


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": "opdf-run/0"}'])
def test_a_damaged_lock_is_told_and_stays(text: str, opened: Any) -> None:
    folder = opened()
    folder.lock.write_text(text, encoding="utf-8")
    with pytest.raises(ArtefactError, match="another folder with -o"):
        opened()
    assert folder.lock.read_text(encoding="utf-8") == text


def test_other_files_are_not_overwritten(opened: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("dear", encoding="utf-8")
    with pytest.raises(ArtefactError, match="the folder holds other files"):
        opened()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_folder_has_one_run_at_a_time(opened: Any) -> None:
    folder = opened()
    with (
        only_run(folder),
        pytest.raises(ArtefactError, match="another process is running in"),
        only_run(folder),
    ):
        pass
    with only_run(folder):
        pass


def test_the_log_loses_what_will_be_done_again(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    log = Log(file, 0)
    for step in (1, 2, 3):
        log.write({"event": "step", "step": step})
    with file.open("a", encoding="utf-8") as stream:
        stream.write('{"event": "st')
    assert [entry["step"] for entry in read_log(file)] == [1, 2, 3]
    Log(file, 2).write({"event": "step", "step": 3})
    assert file.read_text(encoding="utf-8").count("\n") == 3


def test_trackers_and_devices_that_are_not_there(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerator.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        require_trackers(["wandb"])
    with pytest.raises(UserError, match="pip install 'accelerate>="):
        accelerator.require_accelerate()
    monkeypatch.undo()
    monkeypatch.setattr(accelerator.torch.cuda, "is_available", lambda: False)
    for line, words in (('device = "cuda"', "no CUDA device"), ('precision = "fp16"', "bf16")):
        section = make(training=f"steps = 2\\n{line}").recipe.training
        with pytest.raises(DeviceError, match=words):
            open_accelerator(section, tmp_path)
