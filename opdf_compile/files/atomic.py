"""Writes that happen entirely or not at all, and the fingerprint of a file.

A failed command must leave no half-written file: everything is written to a temporary neighbour,
flushed to the disk and only then renamed over the target, which is one atomic step within a folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from opdf_compile.errors import ArtefactError

_CHUNK = 1 << 20
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the target's folder; rename it over `path` when the block succeeds.

    The temporary name ends in the target's suffix, because some writers look at it. Whatever ends
    the block early (also an interrupt) removes the temporary file and leaves an older `path` alone.

    Args:
        path: The file to write. Its folder must exist.

    Yields:
        The path to write to; it does not exist yet as far as the writer is concerned (0 bytes).

    Raises:
        ArtefactError: The path cannot be written, with the system's own reason.

    Example:
        >>> with atomic_write("student.onnx") as temporary:
        ...     temporary.write_bytes(model)
    """
    target = _writable_target(path)
    with _sentences(target):
        if target.is_dir():
            raise ArtefactError(
                f"cannot write {target}: it is a folder and a file was wanted; choose another -o"
            )
        handle, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix
        )
        os.close(handle)
    temporary = Path(name)
    try:
        with _sentences(target):
            yield temporary
            _flush(temporary)
            temporary.chmod(_default_mode())
            temporary.replace(target)
            _flush_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(
    path: str | os.PathLike[str], *, replaceable: Callable[[Path], bool] | None = None
) -> Iterator[Path]:
    """Give a temporary folder beside `path`; rename it to `path` when the block succeeds.

    A folder cannot be renamed over a full one, so an older folder is moved aside first and put back
    if the last step fails.

    Args:
        path: The folder to write. Its parent must exist.
        replaceable: Says whether an existing, non-empty folder may be replaced; None means never,
            because a mistyped `-o` must not delete somebody's files.

    Yields:
        The empty folder to write into.

    Raises:
        ArtefactError: The path is a file, is a full folder that must stay, or cannot be written.
    """
    target = _writable_target(path)
    with _sentences(target):
        _check_replaceable(target, replaceable)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        with _sentences(target):
            yield temporary
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    _flush(file)
            temporary.chmod(0o777 & ~_umask())
            _swap_folder(temporary, target)
            _flush_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256_of_part(path: str | os.PathLike[str], offset: int, length: int) -> bytes:
    """Digest of `length` bytes from `offset` on, read in pieces.

    Raises:
        OSError: The file cannot be read, or ends before the part does.
    """
    digest, left = hashlib.sha256(), length
    with Path(path).open("rb") as stream:
        stream.seek(offset)
        while left:
            piece = stream.read(min(left, _CHUNK))
            if not piece:
                raise OSError(f"{left} bytes are missing at its end")
            digest.update(piece)
            left -= len(piece)
    return digest.digest()


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits.

    Raises:
        ArtefactError: The file cannot be read.
    """
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ArtefactError(read_failure(path, error)) from error


def existing_file(path: str | os.PathLike[str], *, wanted: str = "a file") -> Path:
    """Return `path` as a Path to a file that exists and is not empty.

    Args:
        path: The file.
        wanted: What the caller expects, for the sentence ("a .pt2 archive").

    Raises:
        ArtefactError: Missing, a folder, no ordinary file, or empty.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise ArtefactError(f"{file} is a folder; {wanted} was wanted, so give a file in it")
        if not file.exists():
            raise ArtefactError(f"{file} does not exist; {wanted} was wanted, so check the path")
        if not file.is_file():
            raise ArtefactError(f"{file} is no ordinary file; {wanted} was wanted")
        if file.stat().st_size == 0:
            raise ArtefactError(f"{file} is empty; {wanted} was wanted, so write it again")
    except (OSError, ValueError) as error:
        raise ArtefactError(read_failure(path, error)) from error
    return file


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder; what no file can be called is none."""
    # `Path.is_dir` raises on a name that is too long.
    return os.path.isdir(path)  # noqa: PTH112


def read_failure(path: str | os.PathLike[str], error: Exception) -> str:
    """Word a failed read as one sentence with the system's reason."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot read {os.fspath(path)}: {reason}; check the path and its permissions"


@contextlib.contextmanager
def _sentences(target: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one sentence about the target."""
    try:
        yield
    except OSError as error:
        raise ArtefactError(write_failure(target, error)) from error


def write_failure(target: str | os.PathLike[str], error: OSError) -> str:
    """Word a failed write as one sentence with the system's reason and a remedy."""
    reason = error.strerror or str(error)
    remedy = "free space or choose another -o" if error.errno in _FULL else "choose another -o"
    return f"cannot write {os.fspath(target)}: {reason}; {remedy}"


def _writable_target(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if "\0" in str(target):
        raise ArtefactError(f"cannot write {str(target)!r}: a path cannot contain a null character")
    if not target.parent.is_dir():
        raise ArtefactError(
            f"cannot write {target}: the folder {target.parent} does not exist; create it or "
            "choose another -o"
        )
    return target


def _check_replaceable(target: Path, replaceable: Callable[[Path], bool] | None) -> None:
    if not (target.exists() or target.is_symlink()):
        return
    if not target.is_dir() or target.is_symlink():
        raise ArtefactError(
            f"cannot write {target}: it is a file and a folder was wanted; choose another -o"
        )
    if any(target.iterdir()) and not (replaceable and replaceable(target)):
        raise ArtefactError(
            f"cannot write {target}: the folder holds other files; empty it or choose another -o"
        )


def _swap_folder(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.rename(target)
        return
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
    old = target.rename(aside / "old")
    try:
        temporary.rename(target)
    except OSError:
        old.rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _flush(file: Path) -> None:
    # A rename may reach the disk before the data does; without this, a power cut leaves an empty
    # file under the final name.
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    # Not every system can open a folder; the rename is atomic there all the same.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _default_mode() -> int:
    """The mode an ordinary open() would have given; mkstemp makes files private."""
    return 0o666 & ~_umask()
