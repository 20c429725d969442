"""Every guard refuses: each harmless input ends in its sentence, and each guard has an input.

The inputs are tables: refused_texts.py, refused_archives.py, refused_files.py. The guards are read
out of the source, so that one that is added without an input that meets it fails here.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from archives import good_members, write_members
from refused_archives import ARCHIVES, Archive
from refused_files import WRITTEN
from refused_forms import FORMS
from refused_texts import TEXTS, Refused

import opdf_compile.io
from opdf_compile.errors import ArtefactError
from opdf_compile.io.models.program_archive import read_programs
from opdf_compile.io.screening.syntax import NotPlain

PACKAGE = Path(opdf_compile.__file__).parent
SOURCES = (
    *sorted((PACKAGE / "io" / "screening").glob("*.py")),
    PACKAGE / "files" / "arrays.py",
    *(PACKAGE / "artefacts" / f"{name}.py" for name in ("onnx_calls", "onnx_file", "wholeness")),
)
Seen = set[tuple[str, int]]
FILES = {**WRITTEN, **FORMS}


def of_archive(folder: Path, row: Archive) -> Refused:
    members = good_members()
    row.craft(members)
    path = write_members(folder / "a.pt2", members)
    return Refused(lambda: read_programs(path), row.words, row.limits)


def every_input(folder: Path) -> Iterator[Refused]:
    yield from TEXTS.values()
    for name, made in FILES.items():
        yield made(new(folder, name))
    for name, row in ARCHIVES.items():
        yield of_archive(new(folder, name), row)


def new(folder: Path, name: str) -> Path:
    own = folder / name.replace(" ", "_")
    own.mkdir()
    return own


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_refused(name: str) -> None:
    sentence = TEXTS[name].sentence(NotPlain)
    assert re.search(TEXTS[name].words, sentence), sentence
    assert "\n" not in sentence and len(sentence) < 200


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_refused(name: str, tmp_path: Path) -> None:
    refused = FILES[name](tmp_path)
    before = sorted(tmp_path.rglob("*"))
    sentence = refused.sentence((ArtefactError, ValueError))
    assert re.search(refused.words, sentence), sentence
    assert "\n" not in sentence
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ARCHIVES)
def test_invariant_9_an_archive_is_refused(name: str, tmp_path: Path) -> None:
    sentence = of_archive(tmp_path, ARCHIVES[name]).sentence(ArtefactError)
    assert re.search(ARCHIVES[name].words, sentence), sentence
    assert str(tmp_path / "a.pt2") in sentence and "\n" not in sentence
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt2"]


def guards() -> dict[str, tuple[str, range]]:
    """Each refusal in the source by what it says: its file and its lines.

    A refusal raises an error that it makes there, or returns the text of a problem.
    """
    found = {}
    for file in SOURCES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            telling = function.returns and ast.unparse(function.returns) == "str | None"
            for node in ast.walk(function):
                if not isinstance(node, ast.stmt):
                    continue
                value = node.exc if isinstance(node, ast.Raise) else None
                if telling and isinstance(node, ast.Return):
                    value = node.value if _is_text(node.value) else None
                if value is not None:
                    name = f"{file.stem}, line {node.lineno}: {ast.unparse(value)[:70]}"
                    found[name] = str(file), range(node.lineno, (node.end_lineno or 0) + 1)
    return found


def _is_text(value: ast.expr | None) -> bool:
    return isinstance(value, ast.JoinedStr) or (
        isinstance(value, ast.Constant) and isinstance(value.value, str)
    )


def lines_of(run: Callable[[], object]) -> Seen:
    """The lines of the guards' files that a call runs."""
    seen: Seen = set()
    files = {str(file) for file in SOURCES}

    def line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            seen.add((frame.f_code.co_filename, frame.f_lineno))
        return line

    def enter(frame: FrameType, _: str, __: Any) -> Any:
        return line if frame.f_code.co_filename in files else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        run()
    finally:
        sys.settrace(before)
    return seen


def met(seen: Seen) -> set[str]:
    """The guards among these lines."""
    return {
        guard
        for guard, (file, lines) in GUARDS.items()
        if any((file, line) in seen for line in lines)
    }


GUARDS = guards()


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    inputs = list(every_input(tmp_path_factory.mktemp("every")))

    def run() -> None:
        for refused in inputs:
            refused.sentence(Exception)

    return met(lines_of(run))


@pytest.mark.parametrize("guard", GUARDS)
def test_every_guard_refuses_an_input(guard: str, refusing: set[str]) -> None:
    assert guard in refusing, "none of the tables has an input that this guard refuses"


def test_a_guard_without_an_input_is_found() -> None:
    """The test above can fail: one text of a size meets one guard of sizes, and no other."""
    (only,) = met(lines_of(TEXTS["size: an unknown function"].sentence))
    assert only.startswith("sizes") and len(GUARDS) > 100
