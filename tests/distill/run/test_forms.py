"""The forms that a recipe can ask for, each from start to end and resumed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import quick
from safetensors.torch import load_file

from opdf_compile.distill.run import (
    Finished,
    Saved,
    Stage,
    Started,
    Stepped,
    Validated,
    run,
)
from opdf_compile.distill.run.folder import RunFolder
from opdf_compile.distill.run.run_report import read_result
from opdf_compile.errors import ArtefactError, UserError
from opdf_compile.io.models.weight_loading import load_weights

HIDDEN = """
[[loss]]
kind = "hidden"
projection = "learned"
"""
SLOW = pytest.mark.slow
FORMS = {
    "learned projection": {"training": "steps = 6\\ncheckpoint_every = 3" + HIDDEN},
    "bf16": {"training": 'steps = 4\\nprecision = "bf16"\\ncheckpoint_every = 2'},
    "aligned": {
        "plan": "cores = 2",
        "student": 'student"\\nlayer_map = "found',
        "training": "steps = 4\\n[alignment]\\nweight = 0.5",
    },
    "tensorboard": {"training": 'steps = 4\\nlog_with = ["tensorboard"]'},
}
# Scaled gradients, also those of projections; the scaler is a part of the checkpoints.
SCALED = {
    "plan": "cores = 2",
    "training": 'steps = 6\\nprecision = "fp16"\\nclip = 0.2\\ncheckpoint_every = 3' + HIDDEN,
}


class Killed(BaseException):
    """Ends a run."""


@pytest.mark.parametrize(
    "form",
    [
        "learned projection",
        *(pytest.param(f, marks=SLOW) for f in list(FORMS)[1:]),
        pytest.param("fp16", marks=pytest.mark.gpu),
    ],
)
def test_every_form_runs_and_resumes(form: str, make: Any, tmp_path: Path, outcome: Any) -> None:
    if form == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        with pytest.raises(UserError, match="pip install tensorboard"):
            run(make(**FORMS[form]), tmp_path / "whole")
        return

    def watch(event: Any) -> None:
        if isinstance(event, Stepped) and event.step == 4:
            raise Killed

    given = SCALED if form == "fp16" else FORMS[form]
    run(make(**given), tmp_path / "whole")
    with pytest.raises(Killed):
        run(make(**given), tmp_path / "parts", watch=watch)
    run(make(**given), tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_from_the_first_step_to_the_bundle(make: Any, tmp_path: Path) -> None:
    events: list[Any] = []
    found = run(make(export="true"), tmp_path / "run", watch=events.append)
    kinds = [type(event) for event in events]
    assert kinds[0] is Started and kinds[-1] is Finished
    assert {Stage, Stepped, Validated, Saved} <= set(kinds)
    assert all(kinds[place - 1] is Stepped for place, k in enumerate(kinds) if k is Validated)
    assert found.bundle == tmp_path / "run" / "bundle" and found.verdict == "not_verified"
    assert set(found.metrics) == {"untouched", "teacher", "student", "onnx"}
    assert found.metrics["onnx"] == found.metrics["student"]
    assert found.metrics["student"] > found.metrics["untouched"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page and "Parity was not verified." in page
    text = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "| student after training, folded |" in text
    value = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert value["kept_step"] == found.best_step and value["lock"]["versions"]["torch"]


def test_a_run_that_exported_nothing_has_no_verdict(make: Any, tmp_path: Path) -> None:
    events: list[Any] = []
    found = run(make(), tmp_path / "run", watch=events.append)
    assert found.bundle is None and found.verdict is None and found.exit_code == 0
    assert events[-1].verdict is None
    value = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert value["verdict"] is None and value["parity"] is None
    for name in ("report.html", "report.md"):
        text = (tmp_path / "run" / name).read_text(encoding="utf-8")
        assert "Nothing was exported" in text and "Parity was not verified" not in text
    assert "<title>Distillation run</title>" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    "training", quick(["epochs = 2", "epochs = 2\nema = 0.9"], {"epochs = 2\nema = 0.9"})
)
def test_the_students_weights_are_those_that_were_measured(
    training: str, make: Any, tmp_path: Path
) -> None:
    job = make(training=training, plan="cores = 2")
    found = run(job, tmp_path / "run")
    assert found.bundle is None and found.weights == tmp_path / "run" / "student.safetensors"
    student = job.make_student(job.recipe.training.seed).eval()
    student.load_state_dict(load_file(found.weights))  # Strict: all keys, and no others.
    test = job.data.collate([job.data.test[row] for row in range(len(job.data.test))])
    with torch.no_grad():
        right = (student(test["x"]).argmax(1) == test["labels"]).float().mean().item()
    assert right == pytest.approx(found.metrics["student"])
    again = job.make_student(job.recipe.training.seed).eval()
    load_weights(again, found.weights)
    assert all(torch.equal(a, again.state_dict()[k]) for k, a in student.state_dict().items())
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    saved = {k: v for f in newest.glob("*.safetensors") for k, v in load_file(f).items()}
    assert found.best_step == found.steps
    own = "kept/average/module." if "ema" in training else "module/"
    assert torch.equal(student.first.weight, saved["kept/kept/first.weight"])
    # Folding composes in float64, the last step in float32.
    torch.testing.assert_close(student.first.weight.data, saved[f"{own}first.weight"])
    if "ema" in training:
        assert not torch.allclose(student.first.weight, saved["module/first.weight"])


def test_a_loss_that_is_no_number_ends_the_run(make: Any, tmp_path: Path) -> None:
    job = make(optimizer="SGD", rate="3e38", options="")
    with pytest.raises(UserError, match=r"training has diverged; lower \[optimizer\] lr"):
        run(job, tmp_path / "run")


def test_a_damaged_report_is_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert read_result(folder) is None
    folder.result.write_text('{"schema": "other"}', encoding="utf-8")
    with pytest.raises(ArtefactError, match="the end of the run is done again"):
        read_result(folder)


def test_data_that_changes_is_not_cached(make: Any, tmp_path: Path) -> None:
    job = make(cache="true")
    job.data.train.__class__ = _changing(type(job.data.train))
    with pytest.raises(UserError, match=r"another each time it is read.*cache = false"):
        run(job, tmp_path / "run")


def _changing(kind: type) -> type:
    """A data set that augments."""

    class Changing(kind):  # type: ignore[misc]
        count = 0

        def __getitem__(self, index: int) -> Any:
            Changing.count += 1
            item = dict(super().__getitem__(index))
            return {**item, "x": item["x"] + Changing.count}

    return Changing
