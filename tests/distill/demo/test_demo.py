"""The demo from end to end with a tiny budget: the bundle, the report, and what it claims."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from opdf_compile.artefacts.bundle import changed_files, is_bundle
from opdf_compile.distill.demo import DemoResult, run_demo, whole_job
from opdf_compile.distill.demo.outcomes import Budget, MethodRuns, Outcomes
from opdf_compile.distill.demo.report import demo_json, finding
from opdf_compile.distill.demo.training_plots import plot_training
from opdf_compile.distill.recipe.digits import load_digits
from opdf_compile.distill.recipe.examples import Table
from opdf_compile.errors import ArtefactError, InputError, UserError

TINY = Budget(rates=(0.01, 0.03), seeds=(0, 1), epochs=2, teacher_epochs=2)
PLOTS = ("training_curves.png", "parameters.png", "latency.png")
FILES = {
    *PLOTS,
    "README.md",
    "student.onnx",
    "student.check.npz",
    "reference.onnx",
    "reference.check.npz",
    "plan.json",
    "manifest.json",
    "report.json",
    "report.md",
    "report.html",
}


@dataclasses.dataclass
class Done:
    out: Path
    result: DemoResult
    said: list[tuple[str, float]]
    undisturbed: bool

    def report(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "report.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    out, said = tmp_path_factory.mktemp("demo") / "out", []
    state = torch.random.get_rng_state()
    result = run_demo(
        out,
        budget=TINY,
        latency_budget=1.0,
        progress=lambda text, share: said.append((text, share)),
    )
    return Done(out, result, said, torch.equal(state, torch.random.get_rng_state()))


def test_the_folder_holds_the_whole_bundle_and_nothing_else(done: Done) -> None:
    assert {file.name for file in done.out.iterdir()} == FILES
    assert {file.name for file in done.result.files} == FILES
    assert all(file.is_file() for file in done.result.files)
    assert [p.name for p in done.out.parent.iterdir()] == ["out"]
    assert changed_files(done.out) == ()


def test_the_report_has_the_contracts_keys_and_names_no_temporary_folder(done: Done) -> None:
    report = done.report()
    parts = ("structure", "numerics", "latency", "metric")
    contract = ("schema", "verdict", *parts, "environment", "files")
    assert [*contract, "demo"] == list(report)
    assert report["structure"]["verdict"] == "pass"
    assert report["numerics"]["verdict"] == "pass"
    assert ".out." not in (done.out / "report.json").read_text(encoding="utf-8")
    assert report["demo"]["images"] == {"train": 898, "validation": 270, "test": 629}


def _accuracy(file: Path) -> float:
    import onnxruntime

    test = load_digits()["test"]
    assert isinstance(test, Table)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": test.columns["images"].numpy()})
    return float(np.mean(logits.argmax(1) == test.columns["labels"].numpy()))


@pytest.mark.parametrize(("file", "method"), [("student", "overparam"), ("reference", "plain")])
def test_stated_accuracies_are_those_of_the_exported_files(
    done: Done, file: str, method: str
) -> None:
    stated = done.report()["demo"][method]
    assert stated["exported_test_accuracy"] == pytest.approx(_accuracy(done.out / f"{file}.onnx"))
    assert stated["test_accuracies"][0] == stated["exported_test_accuracy"]
    assert stated["test_accuracy"] == pytest.approx(np.mean(stated["test_accuracies"]))


def test_a_file_with_other_weights_has_another_accuracy(done: Done, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(done.out / "student.onnx")
    head = next(i for i in model.graph.initializer if i.name == "fc2.weight")
    head.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(head), head.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    stated = done.report()["demo"]["overparam"]["exported_test_accuracy"]
    assert _accuracy(tmp_path / "wrong.onnx") != pytest.approx(stated)


def test_the_page_states_both_accuracies_and_shows_the_plots(done: Done) -> None:
    page, race = (done.out / "report.md").read_text(encoding="utf-8"), done.result.race
    for accuracy in (race.plain.accuracy, race.overparam.accuracy, race.teacher_accuracy):
        assert f"{accuracy:.2%}" in page
    assert finding(race) in page
    assert set(re.findall(r"\]\((\S+\.png)\)", page)) == set(PLOTS)
    assert race.plan.totals() in page


def test_the_html_report_is_the_verdicts_own(done: Done) -> None:
    page = (done.out / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    report = done.report()
    assert f"Parity: {report['verdict']}" in page
    assert report["files"]["student.onnx"]["sha256"] in page
    assert page.count("<svg") == len(report["latency"]["shapes"])
    assert ".out." not in page


def test_the_card_has_the_name_of_the_folder_and_the_verdict(done: Done) -> None:
    text = (done.out / "README.md").read_text(encoding="utf-8")
    assert f"\n# {done.out.name}\n" in text
    head = yaml.safe_load(text.split("---\n")[1])["opdf_compile"]
    assert head["verdict"] == done.report()["verdict"]
    assert head["student_sha256"] == done.report()["files"]["student.onnx"]["sha256"]


@pytest.mark.parametrize("name", PLOTS)
def test_plots_are_pictures_with_ink(done: Done, name: str) -> None:
    from matplotlib import image

    pixels = image.imread(done.out / name)[..., :3]
    assert min(pixels.shape[:2]) > 300
    assert float(pixels.std()) > 0.05


def test_progress_ends_where_the_work_does(done: Done) -> None:
    shares = [share for _text, share in done.said]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert 0.7 <= shares[-1] <= 1.0
    assert any("over-parameterised, seed 1" in text for text, _share in done.said)


def test_the_callers_random_state_is_left_alone(done: Done) -> None:
    assert done.undisturbed


def test_a_former_demo_may_be_replaced_and_other_folders_may_not(
    done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_bundle(done.out)
    monkeypatch.setattr(whole_job, "race", _no_training)
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ArtefactError, match="holds other files") as caught:
        run_demo(tmp_path, budget=TINY)
    assert caught.value.exit_code == 2
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def _no_training(*_arguments: Any) -> Outcomes:
    raise AssertionError("the refusal came after the training had started")


@pytest.mark.parametrize(
    ("place", "budget", "error", "words"),
    [
        ("file", 1.0, ArtefactError, "is a file and a folder was wanted"),
        ("missing/out", 1.0, ArtefactError, "does not exist"),
        ("out", 0.0, InputError, "give seconds above 0"),
    ],
)
def test_bad_arguments_are_refused_before_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    budget: float,
    error: type[UserError],
    words: str,
) -> None:
    monkeypatch.setattr(whole_job, "race", _no_training)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(error, match=words):
        run_demo(tmp_path / place, budget=TINY, latency_budget=budget)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_without_scikit_learn_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="pip install"):
        run_demo(tmp_path / "out", budget=TINY)
    assert list(tmp_path.iterdir()) == []


def _with(race: Outcomes, plain: tuple[float, ...], overparam: tuple[float, ...]) -> Outcomes:
    def other(outcome: MethodRuns, accuracies: tuple[float, ...]) -> MethodRuns:
        return dataclasses.replace(outcome, accuracies=accuracies)

    return dataclasses.replace(
        race, plain=other(race.plain, plain), overparam=other(race.overparam, overparam)
    )


@pytest.mark.parametrize(
    ("plain", "overparam", "words"),
    [
        ((0.9, 0.9), (0.95, 0.93), r"2 seeds .* 4\.00 points higher .*every seed agrees"),
        ((0.9, 0.9), (0.85, 0.89), r"3\.00 points lower .*every seed agrees"),
        ((0.9, 0.9), (0.95, 0.89), r"2\.00 points higher .*do not say which method is better"),
        ((0.9,), (0.95,), r"1 seed .*one seed decides nothing"),
        ((0.9, 0.8), (0.9, 0.8), "same test accuracy"),
    ],
)
def test_the_finding_says_what_the_seeds_allow(
    done: Done, plain: tuple[float, ...], overparam: tuple[float, ...], words: str
) -> None:
    assert re.search(words, finding(_with(done.result.race, plain, overparam)))


def test_a_choice_at_the_edge_of_the_grid_is_said(done: Done) -> None:
    outcome = done.result.race.plain
    inside = {0.001: (0.1, 0.1), outcome.rate: (0.5, 0.5), 9.0: (0.1, 0.1)}
    assert outcome.at_edge
    assert not dataclasses.replace(outcome, validation=inside).at_edge
    assert "lies at the edge of the grid" in (done.out / "report.md").read_text(encoding="utf-8")


def test_a_diverged_run_is_drawn_and_told_in_json(done: Done, tmp_path: Path) -> None:
    race = done.result.race
    curve = dataclasses.replace(race.overparam.curves[0], loss=(1.0, float("nan")))
    low = dict.fromkeys(race.overparam.validation, (0.1, 0.1))
    broken = dataclasses.replace(
        race, overparam=dataclasses.replace(race.overparam, curves=(curve,), validation=low)
    )
    plot_training(broken, tmp_path / "broken.png")
    assert (tmp_path / "broken.png").stat().st_size > 10_000
    json.dumps(demo_json(broken), allow_nan=False)
