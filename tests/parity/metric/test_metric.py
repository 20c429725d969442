"""`verify --samples --metric`: whose rows, what is compared, and what is refused in a sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_rows
from real_rows import accuracy, share

from opdf_compile.artefacts import check_path
from opdf_compile.cli import main
from opdf_compile.errors import InputError
from opdf_compile.parity.many import report_rows, verify_many
from opdf_compile.parity.verdict import verify

ROWS = 40
CONTRACT = {
    *("verdict", "candidate", "reference", "difference", "ci_low", "ci_high"),
    *("margin", "samples"),
}
METRIC_FILE = """
def accuracy(outputs, samples, first=0):
    return (outputs["y"].argmax(1) == samples["labels"])[first:]

NUMBER = 3
"""


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A student and a reference of other weights; 40 rows in the check data of both."""
    return (
        real_rows.write(tmp_path / "student.onnx", 1, clips=False, rows=ROWS),
        real_rows.write(tmp_path / "reference.onnx", 2, clips=False, rows=ROWS),
    )


def ask(*files: Path, **options: Any) -> Any:
    return verify(*files, **{"only": "metric", "metric": accuracy, "device": "cpu"} | options)


def given(rows: int, seed: int = 7) -> dict[str, np.ndarray]:
    pictures = real_rows.photos(rows, seed)
    return {"x": pictures, "labels": real_rows.labels(pictures, 1)}


def test_the_report_has_the_keys_of_the_contract(pair: tuple[Path, Path]) -> None:
    report = ask(*pair)
    values = json.loads(json.dumps(report.to_json()))["metric"]
    assert set(values) >= CONTRACT
    assert values["verdict"] == "pass" and values["samples"] == ROWS
    assert values["candidate"] == pytest.approx(0.9) and values["margin"] == 0.005
    assert values["difference"] == pytest.approx(values["candidate"] - values["reference"])
    assert values["ci_low"] <= values["difference"] <= values["ci_high"]
    # The same numbers by hand, from the model in numpy.
    theirs = real_rows.model(real_rows.photos(ROWS), 2).argmax(1)
    right = theirs == real_rows.labels(real_rows.photos(ROWS), 1)
    # The reference's check data has labels of its own; those of the candidate are judged.
    assert values["reference"] == pytest.approx(right.mean())


def test_given_rows_are_found_in_the_check_data(pair: tuple[Path, Path]) -> None:
    """In another order and in batches that the check data does not have."""
    rows, order = given(ROWS), np.random.default_rng(0).permutation(ROWS)[:13]
    report = ask(*pair, samples={name: array[order] for name, array in rows.items()})
    assert report.metric.samples == 13
    assert report.metric.against["torch"].difference == 0
    assert report.metric.scores["torch"] == report.metric.scores["candidate"]


def test_rows_that_the_check_data_lacks_are_judged_by_the_reference(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    np.savez(tmp_path / "others.npz", **given(400, seed=9))
    report = ask(*pair, samples=tmp_path / "others.npz", only="numerics,metric")
    assert set(report.metric.against) == {"reference"} and report
    notes = " ".join(report.environment["notes"])
    assert "export with --samples to judge the export too" in notes
    assert "400 of the 400 rows of the samples have no truth in the check data" in notes
    assert "the metric alone judges them" in notes


def test_rows_that_nothing_judges_are_not_checked(pair: tuple[Path, Path]) -> None:
    report = verify(*pair, only="numerics", samples=given(5, seed=9), device="cpu")
    assert report.numerics.verdict == "not_checked" and report.exit_code == 4
    assert "reference's outputs are none, since its weights differ" in report.numerics.reason
    known = verify(*pair, only="numerics", samples=given(5), device="cpu")
    assert known and any("all 5 rows" in note for note in known.environment["notes"])


def test_a_worse_candidate_is_refuted_by_the_reference(pair: tuple[Path, Path]) -> None:
    student, reference = pair
    report = ask(reference, student, samples=given(400, seed=9))
    assert report.metric.against["reference"].verdict == "fail" and report.exit_code == 1


def test_lower_is_better(pair: tuple[Path, Path]) -> None:
    def errors(outputs: Any, samples: Any) -> Any:
        return ~accuracy(outputs, samples)

    rows = given(400, seed=9)
    lower = {"metric": errors, "samples": rows, "higher_is_better": False}
    assert ask(*pair, **lower)
    assert ask(*pair[::-1], **lower).verdict == "fail"


@pytest.mark.parametrize(("strict", "code"), [("warn", 3), ("fail", 1)])
def test_too_few_rows_are_inconclusive(pair: tuple[Path, Path], strict: str, code: int) -> None:
    """The weights differ and no score does: few such rows prove nothing."""
    labels = np.full(20, -1)  # Nobody is right but for two rows.
    pictures = real_rows.photos(20, seed=9)
    both = real_rows.model(pictures, 1).argmax(1) == real_rows.model(pictures, 2).argmax(1)
    at = np.flatnonzero(both)[:2]
    labels[at] = real_rows.model(pictures, 1).argmax(1)[at]
    report = ask(*pair, samples={"x": pictures, "labels": labels}, on_inconclusive=strict)
    assert report.metric.verdict == "inconclusive" and report.exit_code == code
    assert report.metric.needed == report.metric.against["reference"].needed
    assert report.metric.needed is not None and report.metric.needed > 500
    assert f"about {report.metric.needed:,} rows like these would decide" in str(report)


def test_one_number_for_all_rows_is_resampled(pair: tuple[Path, Path]) -> None:
    rows = given(200, seed=9)
    by_row, by_draw = (
        ask(*pair, metric=m, samples=rows).to_json()["metric"] for m in (accuracy, share)
    )
    assert (by_row["method"], by_draw["method"]) == ("t", "bootstrap")
    assert by_draw["difference"] == pytest.approx(by_row["difference"])
    # Both estimate one interval; that of counts is a little wider.
    half = (by_row["ci_high"] - by_row["ci_low"]) / 2
    assert by_draw["ci_low"] == pytest.approx(by_row["ci_low"], abs=0.25 * half)
    again = ask(*pair, metric=share, samples=rows).to_json()["metric"]
    assert again == by_draw


def test_rows_of_several_shapes(tmp_path: Path) -> None:
    """NAME@k: the metric is called for each shape, and must give a score for each row."""
    file = tmp_path / "sums.onnx"
    from onnx import TensorProto, helper, save

    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length"]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length"]),
    ]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
    rows = {f"x@{n}": np.full((2, n + 1), n, np.float32) for n in range(3)} | {
        "bias": np.array(1.0)
    }
    seen = []

    def largest(outputs: Any, samples: Any) -> Any:
        seen.append((outputs["y"].shape, float(samples["bias"])))
        return outputs["y"].max(1)

    report = ask(file, file, metric=largest, samples=rows)
    assert report and report.metric.samples == 6
    assert report.metric.scores["candidate"] == 1.0
    assert seen[:3] == [((2, 1), 1.0), ((2, 2), 1.0), ((2, 3), 1.0)]
    with pytest.raises(InputError, match="3 different shapes or numbers"):
        ask(file, file, metric=lambda o, s: 1.0, samples=rows)


def test_a_metric_may_change_what_it_gets(pair: tuple[Path, Path]) -> None:
    def careless(outputs: Any, samples: Any) -> Any:
        scores = accuracy(outputs, samples)
        outputs["y"] *= 0
        samples["labels"] += 1
        return scores

    assert ask(*pair, metric=careless).to_json()["metric"]["torch"] == pytest.approx(0.9)


def raising(outputs: Any, samples: Any) -> Any:
    return outputs["probabilities"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "it raises": (
        {"metric": raising},
        r"raised KeyError: 'probabilities'; it got the outputs y \[40, 3\]",
    ),
    "a shape": (
        {"metric": lambda o, s: o["y"]},
        r"numbers of the shape \(40, 3\), wanted one number",
    ),
    "words": ({"metric": lambda o, s: "good"}, "gave a str, wanted one number for each of the 40"),
    "nan": ({"metric": lambda o, s: np.full(40, np.nan)}, "gave nan for row 0, wanted finite"),
    "no function": ({"metric": 3}, "the metric is a int, wanted a function of"),
    "no margin": ({"metric_margin": 0}, "the metric's margin is 0; give what"),
    "no metric": ({"metric": None}, r"only= asks for the metric; give metric="),
    "left out": ({"only": "numerics"}, "only= leaves out the metric that was given"),
    "samples for nothing": (
        {"metric": None, "only": "structure", "samples": {"x": real_rows.photos(1)}},
        "samples are for numerics and the metric, which only= leaves out",
    ),
    "no input": ({"samples": {"labels": np.zeros(3)}}, "lack the input 'x' .they hold labels"),
    "an odd row": (
        {"samples": {"x": real_rows.photos(3), "labels": np.zeros(2)}},
        "hold 3 rows of 'x' and 2 of 'labels', wanted one number of rows",
    ),
    "no row": ({"samples": {"x": real_rows.photos(0)}}, "hold no row, wanted at least one"),
    "another shape": (
        {"samples": {"x": np.zeros((3, 5), np.float32)}},
        r"'x' of the samples has the shape \(3, 5\), the model takes",
    ),
    "another dtype": (
        {"samples": {"x": np.zeros((3, real_rows.PIXELS), np.int64)}},
        "has the dtype int64, the model takes",
    ),
    "objects": (
        {"samples": {"x": real_rows.photos(1), "labels": np.array([None])}},
        "'labels' of the samples holds objects",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(pair: tuple[Path, Path], case: str) -> None:
    options, sentence = REFUSED[case]
    with pytest.raises(InputError, match=sentence):
        ask(*pair, **options)


def test_a_pickle_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", x=real_rows.photos(1), labels=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="holds objects, that is a pickle"):
        ask(*pair, samples=tmp_path / "odd.npz")


def test_no_rows_and_nothing_to_compare_with(tmp_path: Path) -> None:
    bare = real_rows.write(tmp_path / "bare.onnx", 1, clips=False)
    with pytest.raises(InputError, match="the metric has no rows: .* was exported without samples"):
        ask(bare, bare)
    with pytest.raises(InputError, match="the metric has nothing to compare"):
        ask(bare, samples=given(3))
    check_path(bare).unlink()
    assert ask(bare, bare, samples=given(3)).metric.samples == 3


def test_the_torch_model_alone_is_enough(pair: tuple[Path, Path]) -> None:
    report = ask(pair[0])
    assert report and set(report.metric.against) == {"torch"}
    assert report.to_json()["metric"]["difference"] is None
    assert "compares with the torch model alone" in str(report)


def test_a_fixed_batch_takes_whole_batches(tmp_path: Path) -> None:
    file = real_rows.write(tmp_path / "fixed.onnx", 1, clips=False, rows=8, batch=4)
    assert ask(file, samples=given(8)).metric.samples == 8
    with pytest.raises(InputError, match="hold 7 rows and the model takes 4 at once, .* last 3"):
        ask(file, samples=given(7))


def test_command_line(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.py").write_text(METRIC_FILE)
    np.savez(tmp_path / "photos.npz", **given(ROWS))
    files = ("verify", str(pair[0]), "--reference", str(pair[1]), "--device", "cpu")
    ours = f"{tmp_path}/metrics.py:"
    asked = (*files, "--samples", f"{tmp_path}/photos.npz", "--metric", f"{ours}accuracy")
    target, page = tmp_path / "report.json", tmp_path / "report.html"
    more = ("--only", "metric", "--metric-margin", "0.01", "--json", str(target))
    code = main([*asked, *more, "--html", str(page), "--summary", str(tmp_path / "s.md")])
    printed = capsys.readouterr().out
    report = json.loads(target.read_text())
    assert code == 0 and report["metric"]["margin"] == 0.01
    assert re.search(r"metric +│? *pass", printed) or "metric" in printed
    assert report["environment"]["options"]["metric"].endswith("metrics.py:accuracy")
    assert "the torch model" in page.read_text() and "--metric-margin 0.01" in page.read_text()
    assert "| the torch model | pass |" in (tmp_path / "s.md").read_text()
    # What the metric's own arguments, another direction and mistakes in words do.
    assert main([*asked, *more[:2], "--lower-is-better"]) == 1
    assert main([*files, "--metric", f"{ours}accuracy?first=1", "--only", "metric"]) == 2
    assert "numbers of the shape (39,)" in capsys.readouterr().err
    assert main([*files, "--metric", f"{ours}NUMBER"]) == 2
    assert "names a int, wanted a function of (outputs, samples)" in capsys.readouterr().err


def test_a_list_has_a_column_for_it(pair: tuple[Path, Path]) -> None:
    options: dict[str, Any] = {"only": "metric", "device": "cpu"}
    found = verify_many({"one": pair[0]}, metric=accuracy, **options)
    assert list(report_rows(found))[0][-1] == "metric"
    assert list(report_rows(found))[1] == ("one", "pass", "-", "-", "-", "pass")
    plain = verify_many({"one": pair[0]}, **options | {"only": "numerics"})
    assert "metric" not in next(iter(report_rows(plain)))
