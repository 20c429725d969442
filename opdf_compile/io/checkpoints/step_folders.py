"""The folder that holds a run's checkpoints: one subfolder per step, complete or not there.

    DIR/step-000100/             complete: it got this name in one rename, after the disk had it
    DIR/.step-000200.x3k2/       being written, or left behind by a process that was killed
    DIR/.step-000050.pruned/     being deleted
    DIR/.lock                    held while a process saves, so that none deletes another's files

Whatever has a visible name is complete. Hidden leftovers are deleted by the next save.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from opdf_compile.errors import ArtefactError
from opdf_compile.files import read_failure, write_failure

_LOG = logging.getLogger("opdf_compile")

MANIFEST = "manifest.json"
_STEP = re.compile(r"step-([0-9]{6,})")
_LEFTOVER = re.compile(r"\.step-[0-9]{6,}\..+")


def step_folder(directory: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return directory / f"step-{step:06d}"


def is_step_folder(path: Path) -> bool:
    """Whether a path is named like a checkpoint's own folder, complete or not."""
    return _STEP.fullmatch(path.name) is not None and path.is_dir()


def make_folder(directory: Path) -> None:
    """Make the folder of a run's checkpoints, where it is missing.

    Raises:
        ArtefactError: It cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtefactError(write_failure(directory, error)) from error


def _complete_steps(directory: Path) -> dict[int, Path]:
    """The checkpoints in a folder by step, oldest first.

    Raises:
        ArtefactError: The folder cannot be read.
    """
    found: dict[int, Path] = {}
    for path in _entries(directory):
        match = _STEP.fullmatch(path.name)
        if not match or step_folder(directory, int(match[1])) != path or not path.is_dir():
            continue
        if (path / MANIFEST).is_file():
            found[int(match[1])] = path
        else:
            _LOG.warning("%s has no %s and is no checkpoint: left alone", path, MANIFEST)
    return dict(sorted(found.items()))


def latest_checkpoint(directory: str | os.PathLike[str]) -> Path | None:
    """The newest complete checkpoint in a folder.

    Args:
        directory: The folder that was given to `save_checkpoint`; it need not exist yet.

    Returns:
        The checkpoint's own folder, or None where there is none yet.

    Raises:
        ArtefactError: The folder cannot be read.

    Example:
        >>> if opdf.latest_checkpoint("run/"):
        ...     step = opdf.load_checkpoint("run/", optimizer).step
    """
    steps = _complete_steps(Path(directory))
    return steps[max(steps)] if steps else None


def delete_leftovers(directory: Path) -> int:
    """Delete what killed processes left behind, and say how much it was.

    The caller must hold the lock: a leftover without it may be another process's work.
    """
    leftovers = [path for path in _entries(directory) if _LEFTOVER.fullmatch(path.name)]
    for path in leftovers:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
    return len(leftovers)


def prune(directory: Path, step: int, keep: int) -> None:
    """Delete checkpoints older than `step` beyond the `keep` newest, `step` included.

    Later steps (of a run that was since taken up again at an earlier one) are nobody's to delete.

    Raises:
        ArtefactError: A checkpoint cannot be moved.
    """
    older = [path for number, path in _complete_steps(directory).items() if number < step]
    for path in older[: max(0, len(older) - (keep - 1))]:
        hidden = path.with_name(f".{path.name}.pruned")
        # Hidden in one step first: a deletion that is interrupted must not leave half a checkpoint.
        try:
            path.rename(hidden)
        except OSError as error:
            raise ArtefactError(write_failure(path, error)) from error
        shutil.rmtree(hidden, ignore_errors=True)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the folder's lock; the system releases it when the process dies.

    Raises:
        ArtefactError: Another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Not on Windows; there two runs in one folder are not told apart.
        yield
        return
    try:
        handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ArtefactError(write_failure(directory, error)) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtefactError(
                f"another process is saving a checkpoint into {directory}; give each run a folder "
                "of its own, and initialise torch.distributed before the ranks of one run save"
            ) from error
        except OSError as error:  # Some network file systems know no locks.
            _LOG.debug("%s cannot be locked: %s", directory, error)
        yield
    finally:
        # Closing alone would leave the lock with a child that was forked in the meantime.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ArtefactError(read_failure(directory, error)) from error
