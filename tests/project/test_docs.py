"""Every code block of README.md and docs/ runs; CONTRIBUTING.md states the rules.

The blocks of one file run in order, in one namespace and one empty folder. The checker below is
itself tested against pages that it must reject.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from opdf_compile.cli import main

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("**/*.md"))]
# Pages whose blocks take minutes; `make test` leaves them to `make test-all`.
LONG = {README, *(ROOT / "docs" / name for name in ("ci.md", "distributed.md", "onnx.md"))}
SHELL = {"console", "bash", "sh", "shell"}
# What a command line may hold that needs a shell.
SPECIAL = frozenset("|&;<>$`*?(){}\n~#")


class BlockFailed(AssertionError):
    """A block of a page does not do what the page says."""


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, text: str) -> Iterator[Block]:
    """The fenced code blocks of a page, with the line on which each one's code begins."""
    lines = text.splitlines()
    start, before = 0, ""
    while start < len(lines):
        fence = re.fullmatch(r"\s*(`{3,})\s*(\w*).*", lines[start])
        if not fence:
            before = lines[start].strip() or before
            start += 1
            continue
        end = start + 1
        while end < len(lines) and lines[end].strip() != fence[1]:
            end += 1
        if end == len(lines):
            raise BlockFailed(f"{page}:{start + 1}: the code block never ends")
        mark = re.fullmatch(r"<!--\s*not run:(.*)-->", before)
        if mark and not mark[1].strip():
            raise BlockFailed(f"{page}:{start + 1}: `not run:` gives no reason")
        body = "\n".join(lines[start + 1 : end]) + "\n"
        yield Block(page, start + 2, fence[2], body, mark[1].strip() if mark else None)
        start, before = end + 1, ""


def loose(line: str) -> str:
    """A line of output without what differs from run to run: numbers, widths, box drawing."""
    line = re.sub(r"[─-╿▀-▟+|-]+", " ", line)
    return " ".join(re.sub(r"\d[\d.,]*(e\d+)?", "#", line).split())


def check_output(where: str, command: str, shown: list[str], printed: str) -> None:
    """Every shown line must be printed, in this order; `...` stands for anything."""
    real = iter([loose(line) for line in printed.splitlines()])
    for line in shown:
        if loose(line) in {"", "...", "…"}:
            continue
        pattern = ".*".join(
            re.escape(part) for part in re.split(r"\s*(?:\.\.\.|…)\s*", loose(line))
        )
        if not any(re.fullmatch(pattern, candidate) for candidate in real):
            raise BlockFailed(
                f"{where}: `{command}` does not print the shown line\n  {line}\nbut:\n{printed}"
            )


Shell = Callable[[str, str, Path], str]
TERMINAL = {"COLUMNS": "100", "NO_COLOR": "1"}


def shell(where: str, command: str, folder: Path) -> str:
    """Runs a command with the interpreter of the tests first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path} | TERMINAL
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise BlockFailed(f"{where}: `{command}` exits {done.returncode}:\n{done.stdout}")
    return done.stdout


def in_process(where: str, command: str, folder: Path) -> str:
    """Runs the program without a new process, which would import torch; the rest in a shell."""
    words = shlex.split(command.replace("\\\n", " "))
    if words[0] != "opdf-compile" or SPECIAL & set("".join(words)):
        return shell(where, command, folder)
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        for name, value in TERMINAL.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        code = main(words[1:])
    if code:
        raise BlockFailed(f"{where}: `{command}` exits {code}:\n{printed.getvalue()}")
    return printed.getvalue()


def run_console(block: Block, folder: Path, run: Shell) -> None:
    """Runs each `$ ` line, which goes on while it ends with a backslash."""
    lines = block.text.splitlines()
    while lines:
        line = lines.pop(0)
        if not line.startswith("$ "):
            raise BlockFailed(f"{block.where}: output without a `$ ` command above it: {line}")
        command = line.removeprefix("$ ")
        while command.endswith("\\") and lines:
            command += "\n" + lines.pop(0).removeprefix("> ")
        shown: list[str] = []
        while lines and not lines[0].startswith("$ "):
            shown.append(lines.pop(0))
        check_output(block.where, command, shown, run(block.where, command, folder))


def run_python(block: Block, namespace: dict[str, object]) -> str:
    """Runs a block, and returns what it printed."""
    # Blank lines put the code on its own line of the page, so that a traceback points there.
    code = "\n" * (block.line - 1) + block.text
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(code, block.page, "exec"), namespace)
    except Exception as error:
        raise BlockFailed(f"{block.where}: {type(error).__name__}: {error}") from error
    return printed.getvalue()


def run_page(page: str, text: str, folder: Path, run: Shell = shell) -> int:
    """Runs a page in a folder, which must be the current one, and counts the blocks that ran."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    ran, printed = 0, ""
    for block in blocks(page, text):
        if block.not_run is not None:
            continue
        if block.language == "python":
            printed = run_python(block, namespace)
        elif block.language == "output":
            check_output(block.where, "the code above", block.text.splitlines(), printed)
        elif block.language == "console":
            run_console(block, folder, run)
        elif block.language in SHELL:
            shell(block.where, block.text, folder)
        else:
            continue
        ran += 1
    return ran


def named(found: list[Path], **options: Any) -> list[Any]:
    return [pytest.param(page, id=str(page.relative_to(ROOT)), **options) for page in found]


def check_page(page: Path, folder: Path, patch: pytest.MonkeyPatch, run: Shell) -> None:
    patch.chdir(folder)
    # A file imported by one page must not be found by the next.
    patch.setattr(sys, "path", [str(folder), *sys.path])
    run_page(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8"), folder, run)


QUICK = [page for page in PAGES if page not in LONG]
TYPED = [page for page in PAGES if "```console" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", named(QUICK))
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_page(page, tmp_path, monkeypatch, in_process)


@pytest.mark.slow
@pytest.mark.parametrize("page", named(sorted({*LONG, *TYPED})))
def test_every_block_runs_as_typed(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_page(page, tmp_path, monkeypatch, shell)


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    namespace: dict[str, object] = {"__name__": "__main__"}
    found = [b for b in blocks("README.md", README.read_text("utf-8")) if b.language == "python"]
    assert found
    for block in found:
        run_python(block, namespace)


def fenced(language: str, body: str, before: str = "") -> str:
    return f"# Title\n\n{before}\n```{language}\n{body}\n```\n"


GOOD = {
    "python": fenced("python", "x = 1") + fenced("python", "assert x == 1"),
    "console": fenced("console", "$ echo one \\\n>   two\none   two\n$ echo 0.5 s\n0.7 s"),
    "ellipsis": fenced("console", "$ printf 'a\\nb cd\\nz\\n'\na\n...\nb ... d\nz"),
    "subset": fenced("console", "$ printf 'a\\nb\\nc\\n'\na\nc"),
    "bash": fenced("bash", "echo hi > f\ntest -s f"),
    "printed": fenced("python", "print('a   1')\nprint('b')") + fenced("output", "a 2\n..."),
    "shared folder": fenced("bash", "echo 3 > n") + fenced("python", "assert open('n').read()"),
}
BAD = {
    "raises": (fenced("python", "x = 1\nx.nope"), r"page.md:5: AttributeError"),
    "names of another page": (fenced("python", "assert x == 1"), "NameError"),
    "exit code": (fenced("console", "$ false"), "exits 1"),
    "exit code in a pipe": (fenced("bash", "false | cat"), "exits 1"),
    "other output": (fenced("console", "$ echo verdict fail\nverdict pass"), "does not print"),
    "other order": (fenced("console", "$ printf 'a\\nb\\n'\nb\na"), "does not print"),
    "output of nothing": (fenced("console", "hello"), "without a `\\$ ` command"),
    "not printed": (fenced("python", "print('a')") + fenced("output", "b"), "does not print"),
    "no reason": (fenced("python", "1", "<!-- not run: -->"), "gives no reason"),
    "no end": ("```python\nx = 1\n", "never ends"),
    "a second block": (fenced("python", "x = 1") + fenced("python", "1 / 0"), "ZeroDivision"),
}


@pytest.mark.parametrize("run", [shell, in_process])
@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_checker_accepts(
    text: str, run: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_page("page.md", text, tmp_path, run) >= 1


@pytest.mark.parametrize("run", [shell, in_process])
@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_checker_rejects(
    text: str, message: str, run: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BlockFailed, match=message):
        run_page("page.md", text, tmp_path, run)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("opdf-compile inspect gone.pt2", r"exits 2:\n.*gone.pt2 does not exist"),
        ("opdf-compile doctor \\\n>   --help\nno such option", "does not print the shown line"),
    ],
)
def test_checker_rejects_what_the_program_says(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", None)  # A shell would fail in another way.
    with pytest.raises(BlockFailed, match=message):
        run_page("page.md", fenced("console", f"$ {command}"), tmp_path, in_process)


def test_marked_block_is_left_out(tmp_path: Path) -> None:
    page = fenced("python", "1 / 0", "<!-- not run: needs a CUDA device -->")
    assert run_page("page.md", page, tmp_path) == 0


def test_mark_covers_one_block_only(tmp_path: Path) -> None:
    page = (
        fenced("python", "1", "<!-- not run: needs a CUDA device -->") + "```python\n1 / 0\n```\n"
    )
    with pytest.raises(BlockFailed, match="ZeroDivision"):
        run_page("page.md", page, tmp_path)


def test_a_command_finds_the_installed_program() -> None:
    program = Path(sys.executable).with_name("opdf-compile")
    if not program.exists():
        pytest.skip("opdf-compile is not installed beside this interpreter")
    assert "Usage" in shell("page.md:1", f"{shlex.quote(program.name)} --help", ROOT)
