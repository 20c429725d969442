"""A model file is data: what must hold before torch opens a `.pt2`, or a pickle.

`torch.export.load` unpickles, evaluates and executes parts of an archive (screen_program.py lists
where). So the archive is read twice: here, member by member with the reader that torch uses and
nothing that runs; then by torch. What is checked:

- the archive: every member stored as it is (torch never compresses, so nothing can blow up), sizes
  that add up to no more than the file, one root folder, no duplicate, absolute or climbing names,
  no member that torch does not write, no compiled code;
- every pickle loads with `weights_only=True`, and sample inputs are plain;
- every text that becomes code matches a whitelist.

Not covered, and documented as such: faults inside torch's own kernels.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from opdf_compile.errors import ArtefactError
from opdf_compile.io.files import read_failure
from opdf_compile.io.screen_guards import check_guard
from opdf_compile.io.screen_program import check_payloads, check_program, parse_json
from opdf_compile.io.screen_syntax import NotPlain
from opdf_compile.io.screen_trees import check_sample

_MOST_MEMBERS = 200_000
_LARGEST_TEXT = 512 << 20
_LONGEST_NAME = 512
_BOOKKEEPING = frozenset(
    {
        "archive_format",
        "archive_version",
        "byteorder",
        "version",
        ".data/version",
        ".data/serialization_id",
        ".format_version",
        ".storage_alignment",
    }
)
_PAYLOAD = re.compile(r"data/(?:weights/weight_|constants/tensor_)[0-9]+")
_CONFIG = re.compile(r"data/(?:weights/[\w\-]+_weights|constants/[\w\-]+_constants)_config\.json")
_LEGACY = re.compile(r"data/(?:weights|constants)/[\w\-]+\.pt")
_SAMPLES = re.compile(r"data/sample_inputs/[\w\-]+\.pt")
_PROGRAM = re.compile(r"models/[\w\-]+\.json")
_EXTRA = re.compile(r"extra/[^\x00-\x1f\\]+")
_OBJECT = re.compile(r"data/constants/(?:custom_obj_|opaque_obj_).*")
_COMPILED = re.compile(r"data/aotinductor/.*|.*\.(?:so|dll|dylib|cubin|pyd)")
_TRUST = "if you trust its source completely, give --trust-pickle"


def screen_archive(path: str | os.PathLike[str], *, trust_pickle: bool = False) -> None:
    """Refuse a `.pt2` that could run code, or fill memory or disk, when torch opens it.

    Args:
        path: The archive.
        trust_pickle: Check the archive's form only; the caller vouches for its contents.

    Raises:
        ArtefactError: One sentence with what was found and where.
    """
    file = Path(path)
    _refuse_other_formats(file)
    members = _members(file)
    if trust_pickle:
        return
    try:
        reader = torch._C.PyTorchFileReader(str(file))
    except RuntimeError as error:
        raise ArtefactError(_damaged(file)) from error
    if {name.lower() for name in reader.get_all_records()} != {name.lower() for name in members}:
        raise ArtefactError(f"{file} is refused: its two lists of members differ; {_TRUST}")
    for name in members:
        try:
            _screen_member(reader, name, members)
        except NotPlain as problem:
            raise ArtefactError(f"{file} is refused: in {name}, {problem}; {_TRUST}") from problem
        except RuntimeError as error:
            raise ArtefactError(_damaged(file)) from error


def writable_guard(code: str) -> bool:
    """Whether a guard passes the screening, so that a file with it can be read back."""
    try:
        check_guard(code)
    except NotPlain:
        return False
    return True


def writable_sample_inputs(inputs: Any) -> bool:
    """Whether sample inputs pass the screening, so that a file with them can be read back."""
    if inputs is None:
        return True
    try:
        check_sample(inputs)
    except NotPlain:
        return False
    return True


def _refuse_other_formats(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            head = stream.read(4)
    except OSError as error:
        raise ArtefactError(read_failure(file, error)) from error
    if not head.startswith(b"PK"):
        raise ArtefactError(
            f"{file} is no .pt2 archive (it does not start like a zip file); write it with "
            "torch.export.save or `opdf-compile expand`"
        )


def _members(file: Path) -> dict[str, int]:
    """Sizes of the members, by name below the root folder, after checking the archive's form."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise ArtefactError(_damaged(file)) from error
    problem = _form_problem(entries, file.stat().st_size)
    if problem:
        raise ArtefactError(f"{file} is refused: {problem}; write it again with torch.export.save")
    members = {entry.filename.partition("/")[2]: entry.file_size for entry in entries}
    for name in members:
        problem = _name_problem(name)
        if problem:
            raise ArtefactError(f"{file} is refused: {problem}")
    if "archive_format" not in members:
        raise ArtefactError(
            f"{file} is a zip file but no .pt2 archive (a pickled model is opened as .pt with "
            "--trust-pickle); write it with torch.export.save"
        )
    return members


def _form_problem(entries: list[zipfile.ZipInfo], size: int) -> str | None:
    """What is wrong with the archive as a container, or None."""
    if not 0 < len(entries) <= _MOST_MEMBERS:
        return f"it has {len(entries)} members; between 1 and {_MOST_MEMBERS} are read"
    for entry in entries:
        name = entry.filename
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            return f"the member {name[:80]!r} is compressed, which torch never does (a zip bomb is)"
        if entry.flag_bits & 0x1:
            return f"the member {name[:80]!r} is encrypted"
        parts = name.split("/")
        climbing = ".." in parts or name.startswith("/") or "\\" in name or ":" in parts[0]
        if climbing or len(name) > _LONGEST_NAME or "" in parts or "\0" in entry.orig_filename:
            return f"the member {name[:80]!r} points outside the archive or has no proper name"
    if sum(entry.file_size for entry in entries) > size:
        return "its members add up to more than the file, so some overlap (a zip bomb)"
    if len({entry.filename.partition("/")[0] for entry in entries}) != 1:
        return "its members lie in several root folders"
    # torch looks names up without regard to case, zip readers with.
    if len({entry.filename.lower() for entry in entries}) != len(entries):
        return "two members have the same name"
    return None


def _name_problem(name: str) -> str | None:
    """Why a member has no place in an archive of torch.export, or None."""
    if _COMPILED.fullmatch(name):
        return (
            f"it holds compiled code ({name[:80]!r}), which runs when loaded; export the program "
            "without compiling it"
        )
    patterns = (_PAYLOAD, _CONFIG, _LEGACY, _SAMPLES, _PROGRAM, _EXTRA, _OBJECT)
    if name in _BOOKKEEPING or any(pattern.fullmatch(name) for pattern in patterns):
        return None
    return f"it holds an unexpected member {name[:80]!r}; write it again with torch.export.save"


def _screen_member(reader: Any, name: str, members: dict[str, int]) -> None:
    if _OBJECT.fullmatch(name):
        raise NotPlain("a custom object was found, which only code can rebuild")
    if _PROGRAM.fullmatch(name):
        check_program(_json(reader, name, members))
    elif _CONFIG.fullmatch(name):
        _screen_config(reader, name, members)
    elif _LEGACY.fullmatch(name):
        _weights_only(reader.get_record(name))
    elif _SAMPLES.fullmatch(name) and members[name]:
        check_sample(_weights_only(reader.get_record(name)))
    elif _EXTRA.fullmatch(name):
        _screen_text(reader, name, members)


def _screen_config(reader: Any, name: str, members: dict[str, int]) -> None:
    """Check a list of payloads; each must exist, be plain bytes or load without running code."""
    folder = name.rpartition("/")[0]
    for entry in check_payloads(_json(reader, name, members)).values():
        payload = f"{folder}/{entry.get('path_name')}"
        if not _PAYLOAD.fullmatch(payload) or payload not in members:
            raise NotPlain(f"{str(entry.get('path_name'))[:60]!r} is no payload of this archive")
        if entry.get("use_pickle"):
            _weights_only(reader.get_record(payload))
        elif members[payload] == 0 and not _is_empty(entry.get("tensor_meta")):
            # torch would allocate the declared size, however large, and fill it with zeros.
            raise NotPlain(f"{entry['path_name']!r} is empty although a size is declared")


def _is_empty(meta: Any) -> bool:
    sizes = (meta or {}).get("sizes", [])
    return any(size.get("as_int") == 0 for size in sizes)


def _screen_text(reader: Any, name: str, members: dict[str, int]) -> None:
    if members[name] > _LARGEST_TEXT:
        raise NotPlain(
            f"{members[name]} bytes of text were found; at most {_LARGEST_TEXT} are read"
        )
    try:
        reader.get_record(name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotPlain("something other than UTF-8 text was found") from error


def _json(reader: Any, name: str, members: dict[str, int]) -> object:
    if members[name] > _LARGEST_TEXT:
        raise NotPlain(
            f"{members[name]} bytes of JSON were found; at most {_LARGEST_TEXT} are read"
        )
    return parse_json(reader.get_record(name))


def _weights_only(data: bytes) -> Any:
    """Load a pickle without running anything in it, or refuse it."""
    _refuse_compressed(data)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # Whatever the pickle provokes, the answer is the same.
        raise NotPlain("a pickle was found that is more than tensors, so it could run code") from (
            error
        )


def _refuse_compressed(data: bytes) -> None:
    """A pickle of torch is a zip file in the zip file: no bomb in there either."""
    if not data.startswith(b"PK"):
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            problem = _form_problem(archive.infolist(), len(data))
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise NotPlain("a damaged pickle was found") from error
    if problem:
        raise NotPlain(f"a pickle was found that is refused: {problem}")


def _damaged(file: Path) -> str:
    return f"{file} is damaged or cut short (its parts do not fit together); write it again"
