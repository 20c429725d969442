"""The whole of study 2 in seconds: prepare, develop, a stop, go on, the page."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from quality import command
from quality.second import plan, study, tasks
from quality.second.page import write
from quality.second.plan import CONFIRMATION, DEVELOPMENT, Size, Stage
from quality.second.store import Store, spelled

from opdf_compile.errors import InputError

TASK = "digits-30"
TINY = Size(3, 4, 1, 2, (2, 3), 2, 1, steps=3)
STAGES = (
    Stage("shallow", "distil", "fixed", ("plain", "repvgg", "gains"), TINY, (TASK,)),
    Stage("shallow", "distil", "time", ("plain", "repvgg"), TINY, (TASK,)),
    Stage("shallow", "labels", "saturated", ("plain", "repvgg"), TINY, (TASK,)),
)


@pytest.fixture(scope="module", name="data")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("second") / "second.npz"
    tasks.prepare([TASK], None, path, teacher_steps=3)
    return path


def go(
    data: Path,
    store: Path,
    seconds: float = 100.0,
    jobs: int = 1,
    stages: tuple[Stage, ...] = STAGES[:1],
) -> tuple[bool, list[str]]:
    said: list[str] = []
    whole = study.study(data, Store(store), stages, jobs=jobs, seconds=seconds, say=said.append)
    return whole, said


def test_a_study_that_is_stopped_goes_on_and_does_no_run_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, done = tmp_path / "s.jsonl", Counter[str]()
    work = study.work

    def stopping(data: Path, job: Any) -> dict[str, Any]:
        if done.total() == 7:
            raise KeyboardInterrupt
        done[spelled(job.key())] += 1
        return work(data, job)

    monkeypatch.setattr(study, "work", stopping)
    with pytest.raises(KeyboardInterrupt):
        go(data, path)
    assert len(Store(path)) == 7
    path.write_bytes(path.read_bytes()[:-9])  # Killed while it wrote its last line.
    assert len(Store(path)) == 6
    monkeypatch.setattr(study, "work", work)
    before = path.read_bytes()
    whole, said = go(data, path)
    assert whole and said[-1] == "stage 1 of 1, shallow distil fixed: whole"
    assert path.read_bytes().startswith(before)
    keys = Counter(json.dumps(json.loads(line)["key"]) for line in path.open())
    assert set(keys.values()) == {1}
    assert go(data, path)[0] and len(Store(path)) == len(keys)


def test_time_that_is_over_is_told_and_nothing_is_begun(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    whole, said = go(data, path, seconds=-1.0)
    assert not whole and not path.exists()
    assert said == [
        "stage 1 of 1, shallow distil fixed: time is over; the same command goes on from here"
    ]


@pytest.mark.slow
def test_processes_find_what_one_finds(data: Path, tmp_path: Path) -> None:
    found = []
    for jobs in (1, 2):
        whole, said = go(data, tmp_path / f"{jobs}.jsonl", jobs=jobs, stages=STAGES)
        assert whole and said[-1] == "stage 3 of 3, shallow labels saturated: whole"
        read = Store(tmp_path / f"{jobs}.jsonl").items()
        runs = {spelled(k): f["validation"] for k, f in read if "cost" not in k}
        found.append(runs)
    # The costs differ, and with them the steps of equal time; all else is the same run.
    both = found[0].keys() & found[1].keys()
    assert len(both) > 30
    assert all(found[0][key] == found[1][key] for key in both)


def test_the_commands_run_and_the_page_gets_its_tables(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "DEVELOPMENT", STAGES[:1])
    store, page = tmp_path / "d.jsonl", tmp_path / "page.md"
    page.write_text("a\n<!-- table: second-development -->\nold\n<!-- end -->\nb\n")

    def call(*words: str) -> None:
        monkeypatch.setattr("sys.argv", ["quality", "second", *words])
        command.main()

    call("develop", "--data", str(data), "--store", str(store), "--tasks", TASK)
    assert "shallow distil fixed: whole" in capsys.readouterr().out
    none = str(tmp_path / "none.jsonl")
    call("page", "--development", str(store), "--confirmation", none, "--page", str(page))
    text = page.read_text()
    assert "old" not in text and text.startswith("a\n") and text.endswith("b\n")
    assert "| digits-30 | shallow, distil | fixed | repvgg " in text
    with pytest.raises(SystemExit, match="no task OSULeaf here, wanted some of glyphs-upper"):
        call("develop", "--data", str(data), "--store", str(store), "--tasks", "OSULeaf")


def test_the_text_task_without_its_file_is_told_with_the_remedy(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["quality", "second", "run", "--data", str(data), "--store", str(tmp_path / "s")]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match=r"lee-minilm reads .*text prepare"):
        command.main()


def test_a_task_without_its_wheel_is_told_with_the_remedy(tmp_path: Path) -> None:
    for name in ("OSULeaf", "mnist1d-harder"):
        with pytest.raises(InputError, match=r"no wheel of .*--tasks"):
            tasks.prepare([name], tmp_path, tmp_path / "x.npz")


def test_development_and_confirmation_share_no_task_and_every_stage_has_its_rival() -> None:
    assert not set(tasks.DEVELOPMENT) & set(tasks.CONFIRMATION)
    assert len(tasks.CONFIRMATION) == 6
    assert all("plain" in stage.methods for stage in (*DEVELOPMENT, *CONFIRMATION))
    first = CONFIRMATION[0]
    assert (first.regime, first.methods) == ("fixed", ("plain", plan.PRIMARY))
    assert first.tasks == tasks.CONFIRMATION
    assert first.size.seeds >= 2 * max(stage.size.seeds for stage in CONFIRMATION[1:])
    for stage in (*DEVELOPMENT, *CONFIRMATION):
        assert all(stage.student in tasks.SOURCES[task].students for task in stage.tasks)


def test_thirty_labels_a_class_and_no_image_twice() -> None:
    make = tasks.SOURCES[TASK].parts
    assert make is not None
    parts = make(None)
    labels = parts["train"].labels
    assert [int((labels == c).sum()) for c in range(10)] == [30] * 10
    sizes = [len(part.labels) for part in parts.values()]
    assert sizes == [300, 497, 1000]
    rows = [row.tobytes() for part in parts.values() for row in part.inputs]
    assert len(set(rows)) == sum(sizes)
    assert parts["train"].inputs.mean() == pytest.approx(0.0, abs=1e-5)
    assert write(Path("none"), Path("none")) == {}
