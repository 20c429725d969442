"""What a release relies on: one version, no promise of a package on an index, GitHub's files."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import yaml

from opdf_compile import __version__
from opdf_compile.artefacts.record import record_of, version_of
from opdf_compile.cli.environment import examine
from opdf_compile.distill.run import lock
from opdf_compile.io.checkpoints import write
from opdf_compile.io.export import bundling
from opdf_compile.parity.report.conditions import describe_environment
from opdf_compile.parity.runtime.registry import resolve_device

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
RELEASE = re.compile(r"^## \[(\d\S*)\] - (\d{4}-\d\d-\d\d)$", re.MULTILINE)
FROM_AN_INDEX = re.compile(r"pip3? install[^\n]*?[ '\"]opdf[-_]compile(?![-\w.]*\.whl)")
SHOWN = [
    *ROOT.glob("*.md"),
    ROOT / "action.yml",
    *(path for folder in ("docs", "examples") for path in (ROOT / folder).glob("**/*.*")),
]


def newest(changelog: str) -> str:
    """The version of the first release of a changelog."""
    return RELEASE.findall(changelog)[0][0]


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text("utf-8"))


def test_the_changelog_ends_in_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert newest(changelog) == __version__
    assert changelog.index("## [Unreleased]") < changelog.index(f"## [{__version__}]")
    assert newest(changelog.replace(f"[{__version__}]", "[0.0.1]", 1)) != __version__


def test_the_version_stands_in_the_package_only() -> None:
    assert "version" not in PYPROJECT["project"]
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    path = ROOT / PYPROJECT["tool"]["hatch"]["version"]["path"]
    assert re.findall(r'^__version__ = "(.*)"$', path.read_text("utf-8"), re.M) == [__version__]


def test_what_is_written_names_the_code_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what pip noted when it was installed: an editable checkout moves on."""
    noted = SimpleNamespace(version="0.0.0", requires=[])
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: noted)
    device = resolve_device("cpu")
    versions = (
        describe_environment(device, {}, ())["versions"],
        bundling.versions(bundling._facts(onnx.ModelProto())[2]),
        write._versions(),
        lock._versions(),
        {finding.name: finding.found for finding in examine()},
        {"opdf-compile": version_of(record_of(["weight"]))},
    )
    assert [found["opdf-compile"] for found in versions] == [__version__] * len(versions)


@pytest.mark.parametrize(
    ("package", "back"),
    [("opdf-compile", "(install its wheel)"), ("torch", "(pip install torch==1.0)")],
)
def test_a_run_of_another_version_says_how_to_go_on(package: str, back: str) -> None:
    (said,) = lock._differences({"versions": {package: "1.0"}}, {"versions": {package: "2.0"}})
    assert said == f"it was started with {package} 1.0, this is 2.0 {back}"


def test_nobody_is_told_to_install_from_an_index() -> None:
    texts = {path: path.read_text("utf-8", errors="ignore") for path in SHOWN}
    assert [path for path, text in texts.items() if FROM_AN_INDEX.search(text)] == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("pip install opdf-compile", True),
        ("python -m pip install -q 'opdf-compile[gpu]'", True),
        ("pip install numpy opdf_compile", True),
        ("pip install '.[gpu]'", False),
        ("pip install opdf_compile-0.2.0-py3-none-any.whl", False),
        ('pip install "$(ls dist/*.whl)[gpu]"', False),
    ],
)
def test_that_check_can_fail(line: str, told: bool) -> None:
    assert bool(FROM_AN_INDEX.search(line)) is told


def test_the_workflow_runs_what_ci_runs() -> None:
    jobs = read(GITHUB / "workflows" / "ci.yml")["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands == [".ci/run", "make site", "make wheel-check"]
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for command in commands:
        program, *targets = command.split()
        assert program == "make" or (ROOT / program).stat().st_mode & 0o100
        assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_the_workflow_tries_the_versions_that_are_promised() -> None:
    tried = read(GITHUB / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    promised = PYPROJECT["project"]["classifiers"]
    assert PYPROJECT["project"]["requires-python"] == f">={tried[0]}"
    assert {f"Programming Language :: Python :: {version}" for version in tried} <= set(promised)


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms_are_whole(name: str) -> None:
    form = read(GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml")
    assert form["name"] and form["description"]
    identifiers = [field["id"] for field in form["body"]]
    assert len(set(identifiers)) == len(identifiers) > 2
    assert all(field["attributes"]["label"] for field in form["body"])


def test_a_bug_report_asks_for_version_and_environment() -> None:
    body = read(GITHUB / "ISSUE_TEMPLATE" / "bug.yml")["body"]
    asked = {f["attributes"]["label"] for f in body if f.get("validations", {}).get("required")}
    assert {"opdf-compile --version", "opdf-compile doctor"} <= asked
