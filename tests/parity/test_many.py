"""A list of candidates: each has its report, the worst decides, one that is broken stops nobody."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import opdf_compile as opdf
from opdf_compile.cli import main
from opdf_compile.errors import ArtefactError, InputError
from opdf_compile.parity import as_junit, is_manifest, read_manifest, report_rows, verify_many

QUICK = {"only": "structure,numerics", "device": "cpu"}
Capture = pytest.CaptureFixture[str]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, one whose student lost a number, a file without check data, and none."""
    folder = tmp_path_factory.mktemp("many")
    torch.manual_seed(0)
    opdf.export_onnx(net(), (torch.randn(2, 6),), folder / "good", reference=net())
    shutil.copytree(folder / "good", folder / "damaged")
    student = folder / "damaged/student.onnx"
    model = onnx.load(student)
    weight = model.graph.initializer[0]
    weight.CopyFrom(
        numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(weight)), weight.name)
    )
    student.write_bytes(model.SerializeToString())
    (folder / "list.txt").write_text("# what we ship\n\ngood\ndamaged\n  gone \n")
    return folder


@pytest.fixture
def listed(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy, since a bundle gets its report."""
    yield Path(shutil.copytree(made, tmp_path / "many"))


def test_a_manifest_is_a_text_file_with_a_path_in_each_line(made: Path) -> None:
    assert is_manifest(Path("a.TXT")) and not is_manifest(Path("a.onnx"))
    folder = made / "bundle.txt"
    folder.mkdir()
    assert not is_manifest(folder)
    folder.rmdir()
    found = read_manifest(made / "list.txt")
    assert found == {name: made / name for name in ("good", "damaged", "gone")}


@pytest.mark.parametrize("name", ["a\u2028b", "a\x85b", "a\x0bb", "a b"])
def test_a_line_of_a_manifest_ends_at_a_newline_alone(name: str, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(f"first\r\n{name}\n".encode())
    assert list(read_manifest(file)) == ["first", name]


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        ("# nothing\n\n", InputError, "names nothing, wanted a bundle"),
        ("a\nb\na\n", InputError, "names a twice"),
        ("a\n./a\n", InputError, "names a twice"),
        (None, ArtefactError, "cannot read"),
    ],
)
def test_a_manifest_that_names_nothing_is_refused(
    text: str | None, kind: type[Exception], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "list.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(kind, match=sentence):
        read_manifest(path)


def test_one_that_cannot_be_used_does_not_keep_the_others_from_it(made: Path) -> None:
    told: list[tuple[str, float]] = []
    reported: list[Path] = []
    found = verify_many(
        read_manifest(made / "list.txt"),
        done=lambda path, report: reported.append(path),
        progress=lambda text, share: told.append((text, share)),
        **QUICK,
    )
    assert [entry.verdict for entry in found.entries] == ["pass", "fail", "unusable"]
    assert [entry.exit_code for entry in found.entries] == [0, 1, 2]
    assert found.exit_code == 1 and not found
    assert reported == [made / "good", made / "damaged"]
    assert told[0][0].startswith("good (1 of 3): ") and told[-1][0].startswith("damaged (2 of 3)")
    assert sorted(share for _text, share in told) == [share for _text, share in told]
    assert list(report_rows(found))[1:] == [
        ("good", "pass", "pass", "pass", "-"),
        ("damaged", "fail", "fail", "fail", "-"),
        ("gone", "unusable", "-", "-", "-"),
    ]
    said = json.loads(json.dumps(found.to_json()))
    assert said["schema"] == "opdf-reports/1" and said["exit_code"] == 1
    assert said["candidates"][0]["report"]["schema"] == "opdf-report/1"
    assert "gone" in said["candidates"][2]["error"]


def test_a_name_that_no_file_can_have_is_one_that_cannot_be_used(
    made: Path, capsys: Capture
) -> None:
    listed = made / "long.txt"
    listed.write_text(f"{'a' * 300}\ngood\n", encoding="utf-8")
    found = verify_many(read_manifest(listed), **QUICK)
    assert [entry.verdict for entry in found.entries] == ["unusable", "pass"]
    assert found.exit_code == 2
    listed.write_text("a" * 300, encoding="utf-8")
    for candidate in (listed, Path("a" * 300)):
        assert main(["verify", str(candidate), "--budget", "0.5", "--device", "cpu"]) == 2
        assert "File name too long" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("names", "code"), [(("good",), 0), (("good", "gone"), 2), (("gone", "damaged"), 1)]
)
def test_the_worst_decides(names: tuple[str, ...], code: int, made: Path) -> None:
    found = verify_many({name: made / name for name in names}, **QUICK)
    assert found.exit_code == code and bool(found) is (code == 0)


def test_an_option_without_meaning_is_refused_before_the_first(made: Path) -> None:
    with pytest.raises(InputError, match="only is 'speed'"):
        verify_many({"gone": made / "gone"}, only="speed")
    with pytest.raises(InputError, match="plot is for one candidate"):
        verify_many({"gone": made / "gone"}, plot="a.png")
    with pytest.raises(InputError, match="nothing to verify"):
        verify_many({})


def test_a_report_that_cannot_be_saved_keeps_its_verdict_and_stops_nobody(made: Path) -> None:
    def done(path: Path, report: opdf.ParityReport) -> None:
        raise ArtefactError(f"cannot write {path.name}/report.json")

    candidates = {name: made / name for name in ("good", "damaged")}
    found = verify_many(candidates, done=done, **QUICK)
    assert [(e.verdict, e.exit_code) for e in found.entries] == [("pass", 2), ("fail", 1)]
    assert "cannot write good" in found.entries[0].error and found.exit_code == 1
    text = as_junit((e.name, e.report, e.error, e.seconds) for e in found.entries)
    first = ElementTree.fromstring(text)[0]
    assert (first.get("tests"), first.get("errors")) == ("3", "1")


def test_junit_has_a_suite_for_each_and_a_test_for_each_part(made: Path) -> None:
    found = verify_many(read_manifest(made / "list.txt"), **QUICK)
    # What XML cannot hold: a control character, and half of a surrogate pair.
    errors = (f"{e.error}\x00\ud800" if e.error else "" for e in found.entries)
    rows = zip(found.entries, errors, strict=True)
    text = as_junit((e.name, e.report, error, e.seconds) for e, error in rows)
    text.encode()
    suites = ElementTree.fromstring(text).findall("testsuite")
    counts = [
        tuple(int(suite.get(kind, "-1")) for kind in ("tests", "failures", "errors", "skipped"))
        for suite in suites
    ]
    assert counts == [(2, 0, 0, 0), (2, 2, 0, 0), (1, 0, 1, 0)]
    assert [suite.get("name") for suite in suites] == ["good", "damaged", "gone"]
    seconds = [float(suite.get("time", "-1")) for suite in suites]
    assert min(seconds[:2]) > 0 and seconds[2] >= 0
    failure = suites[1].find("testcase[@name='structure']/failure")
    assert failure is not None and "sha" in f"{failure.text}".lower()
    error = suites[2].find("testcase/error")
    assert error is not None and "gone" in error.get("message", "")


def test_the_command_prints_a_table_and_writes_json_and_xml(
    listed: Path, capsys: Capture, tmp_path: Path
) -> None:
    xml = tmp_path / "parity.xml"
    words = ["verify", str(listed / "list.txt"), "--only", QUICK["only"], "--junit", str(xml)]
    assert main(words) == 1
    out = capsys.readouterr().out
    assert "1 of 3 pass" in out and "gone: " in out and "damaged: difference: " in out
    assert len(ElementTree.parse(xml).getroot()) == 3
    # A partial verdict writes no report into a bundle.
    assert not (listed / "good/report.json").exists()
    assert main([*words[:4], "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out)["exit_code"] == 1


@pytest.mark.slow
def test_a_whole_verdict_leaves_the_report_in_the_bundle(listed: Path, capsys: Capture) -> None:
    (listed / "list.txt").write_text("good\n")
    assert main(["verify", str(listed / "list.txt"), "--budget", "5"]) in (0, 3)
    capsys.readouterr()
    assert json.loads((listed / "good/report.json").read_text())["latency"]["ratio"] > 0
    assert (listed / "good/report.html").exists()


@pytest.mark.parametrize("option", ["--reference", "--check", "--plot", "--html", "--summary"])
def test_what_one_candidate_alone_can_have_is_refused(
    option: str, made: Path, capsys: Capture, tmp_path: Path
) -> None:
    assert main(["verify", str(made / "list.txt"), option, str(tmp_path / "x.png")]) == 2
    err = capsys.readouterr().err
    assert f"{option} is for one candidate" in err and err.count("\n") == 1


def test_one_candidate_can_be_written_as_junit_too(
    made: Path, capsys: Capture, tmp_path: Path
) -> None:
    xml = tmp_path / "one.xml"
    student = made / "good/student.onnx"
    assert main(["verify", str(student), "--only", "numerics", "--junit", str(xml)]) == 0
    capsys.readouterr()
    (suite,) = ElementTree.parse(xml).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("1", "0")
    assert main(["verify", str(made / "gone"), "--junit", str(xml)]) == 2
    assert "gone" in capsys.readouterr().err
    (suite,) = ElementTree.parse(xml).getroot()
    assert (suite.get("tests"), suite.get("errors")) == ("1", "1")
