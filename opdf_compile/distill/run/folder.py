"""The folder of a run.

    recipe.toml      a copy of the recipe
    lock.json        what the run was started with; a folder without one is not ours
    log.jsonl        a line for each logged step and each validation
    checkpoints/     where the run was
    cache/           the teacher's outputs
    trackers/        files of the trackers
    student.safetensors  the trained student's weights, under its own keys
    bundle/          what ships, with the verdict
    report.html, report.md, report.json, *.png

The folder comes into being whole, with recipe and lock, so a killed start leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opdf_compile.distill.run.lock import require_same
from opdf_compile.errors import ArtefactError
from opdf_compile.files import atomic_folder, atomic_write, read_failure, write_failure


@dataclass
class RunFolder:
    """Where everything of a run lies, as the list above says.

    Attributes:
        result: Written last: a run that has it is finished.
    """

    path: Path

    def __post_init__(self) -> None:
        """Name its files and folders."""
        path = self.path
        self.recipe, self.lock = path / "recipe.toml", path / "lock.json"
        self.log = path / "log.jsonl"
        self.checkpoints, self.cache = path / "checkpoints", path / "cache"
        self.weights, self.bundle = path / "student.safetensors", path / "bundle"
        self.page, self.result = path / "report.html", path / "report.json"


def open_folder(path: Path, lock: Mapping[str, Any], recipe: str, *, resume: bool) -> RunFolder:
    """Make a run's folder, or take up the run that it holds.

    Raises:
        ArtefactError: It holds other files, a damaged run, or the run of something else.
    """
    folder = RunFolder(path)
    if os.path.lexists(folder.lock):
        if not resume:
            raise ArtefactError(
                f"{path} holds a run already, wanted a folder without one; go on with it, or give "
                "another folder with -o"
            )
        require_same(folder.lock, lock)
        return folder
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtefactError(write_failure(path, error)) from error
    with atomic_folder(path) as temporary:
        inside = RunFolder(temporary)
        text = json.dumps(lock, indent=1, ensure_ascii=False)
        inside.lock.write_text(text + "\n", encoding="utf-8")
        inside.recipe.write_text(recipe, encoding="utf-8")
    return folder


@contextlib.contextmanager
def only_run(folder: RunFolder) -> Iterator[None]:
    """Hold the folder while the run runs; the system lets go of it when the process dies.

    Raises:
        ArtefactError: Another process runs in it.
    """
    try:
        import fcntl
    except ImportError:  # Not on Windows; there two runs in one folder are not told apart.
        yield
        return
    try:
        handle = os.open(folder.path / ".running", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ArtefactError(write_failure(folder.path, error)) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ArtefactError(
            f"another process is running in {folder.path}, wanted a folder of its own for each "
            "run; wait for it, or give another folder with -o"
        ) from error
    finally:
        os.close(handle)


class Log:
    """The log of a run: JSON, one object a line.

    Args:
        file: Appended to; what a resumed run will do again is taken out first.
        step: The step at which the run goes on.
    """

    def __init__(self, file: Path, step: int) -> None:
        self._file = file
        kept = [line for line in read_log(file) if line["step"] <= step]
        with atomic_write(file) as temporary:
            temporary.write_text("".join(_line(entry) for entry in kept), encoding="utf-8")

    def write(self, entry: Mapping[str, Any]) -> None:
        """Add a line; it has the keys "event" and "step"."""
        try:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(_line(entry))
        except OSError as error:
            raise ArtefactError(write_failure(self._file, error)) from error


def read_log(file: Path) -> list[dict[str, Any]]:
    """The entries of a log; a last line that a killed process left half written is dropped.

    Raises:
        ArtefactError: It cannot be read.
    """
    if not file.exists():
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ArtefactError(read_failure(file, error)) from error
    entries = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                entries.append(entry)
    return entries


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry) + "\n"
