"""What `doctor` says about good and bad environments, and that its JSON stands alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opdf_compile.cli import environment, main
from opdf_compile.cli.environment import Finding, examine
from opdf_compile.version import installed_version

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Pretended versions; None is not installed, other packages are as they are."""
    pretended: dict[str, str | None] = {}

    def version(name: str) -> str | None:
        return pretended[name] if name in pretended else installed_version(name)

    monkeypatch.setattr(environment, "installed_version", version)
    return pretended


def finding(name: str) -> Finding:
    return next(found for found in examine() if found.name == name)


def test_this_environment_is_usable(capsys: Capture) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "CPUExecutionProvider" in out
    assert out.rstrip().endswith("ready")


def test_both_runtimes_are_a_conflict(installed: dict[str, str | None], capsys: Capture) -> None:
    installed |= {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "they overwrite each other" in out
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && " in out
    assert "pip install onnxruntime-gpu" in out
    assert "not ready" in out


def test_no_runtime_names_the_extra(installed: dict[str, str | None], capsys: Capture) -> None:
    installed |= {"onnxruntime": None, "onnxruntime-gpu": None}
    assert main(["doctor"]) == 1
    assert "pip install 'onnxruntime-gpu>=" in capsys.readouterr().out


def test_a_missing_extra_is_a_note(installed: dict[str, str | None], capsys: Capture) -> None:
    installed |= {"scikit-learn": None}
    assert main(["doctor"]) == 0
    assert "pip install 'scikit-learn>=" in capsys.readouterr().out


def test_a_missing_base_package_is_a_problem(installed: dict[str, str | None]) -> None:
    installed |= {"networkx": None}
    assert finding("networkx").level == "problem"
    assert "pip install networkx" in finding("networkx").remedy


def test_json_on_stdout_stands_alone(capsys: Capture) -> None:
    assert main(["doctor", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["schema"] == "opdf-doctor/1"
    assert data["usable"] is True
    assert {"name", "found", "level", "remedy"} == set(data["findings"][0])
    assert err == ""


def test_json_in_a_file_leaves_the_table(tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / "doctor.json"
    assert main(["doctor", "--json", str(target)]) == 0
    assert json.loads(target.read_text())["schema"] == "opdf-doctor/1"
    assert "Environment" in capsys.readouterr().out


def test_json_that_cannot_be_written_is_bad_input(tmp_path: Path, capsys: Capture) -> None:
    assert main(["doctor", "-q", "--json", str(tmp_path / "no" / "doctor.json")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_quiet_prints_nothing(capsys: Capture) -> None:
    assert main(["doctor", "-q"]) == 0
    assert capsys.readouterr() == ("", "")
