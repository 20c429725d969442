"""A model file is data: what must hold before torch opens a `.pt2`, or a pickle.

`torch.export.load` unpickles, evaluates and executes parts of an archive (rules.py lists
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

import contextlib
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from opdf_compile.errors import ArtefactError
from opdf_compile.files import read_failure
from opdf_compile.io.screening.container import form_problem, record_size
from opdf_compile.io.screening.extents import Extents
from opdf_compile.io.screening.guards import check_guard
from opdf_compile.io.screening.pickles import check_state, load_plain
from opdf_compile.io.screening.program_schema import (
    OtherSchema,
    check_payloads,
    check_program,
    itemsize_of,
    parse_json,
)
from opdf_compile.io.screening.syntax import NotPlain
from opdf_compile.io.screening.trees import check_sample

# A program of 100,000 nodes is about 100 MB of JSON, and Python needs 20 times that to hold it.
LARGEST_TEXT = 128 << 20
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
        raise ArtefactError(damaged(file)) from error
    if not _agree(reader, members):
        raise ArtefactError(f"{file} is refused: its two lists of members differ; {_TRUST}")
    for name in members:
        with refusals_named(file, name):
            _screen_member(reader, name, members)


@contextlib.contextmanager
def refusals_named(file: Path, member: str) -> Iterator[None]:
    """Make what is found in a member one sentence that names it.

    Raises:
        ArtefactError: The member is refused, of another schema, or damaged.
    """
    try:
        yield
    except NotPlain as problem:
        raise ArtefactError(f"{file} is refused: in {member}, {problem}; {_TRUST}") from problem
    except OtherSchema as problem:
        raise ArtefactError(f"{file} {problem}") from problem
    except RuntimeError as error:
        raise ArtefactError(damaged(file)) from error


def _agree(reader: Any, members: dict[str, int]) -> bool:
    """Whether torch's reader finds what Python's finds: one archive can hold two directories."""
    listed = {name.lower(): size for name, size in members.items()}
    found = {name.lower(): record_size(reader, name) for name in reader.get_all_records()}
    return listed == found


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
        raise ArtefactError(damaged(file)) from error
    problem = form_problem(entries, file.stat().st_size)
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
        check_state(load_plain(reader.get_record(name)))
    elif _SAMPLES.fullmatch(name) and members[name]:
        check_sample(load_plain(reader.get_record(name)))
    elif _EXTRA.fullmatch(name):
        _screen_text(reader, name, members)


def _screen_config(reader: Any, name: str, members: dict[str, int]) -> None:
    """Check a list of payloads; each must exist, be plain bytes or load without running code."""
    folder = name.rpartition("/")[0]
    extents = Extents()
    for key, entry in check_payloads(_json(reader, name, members)).items():
        payload = f"{folder}/{entry.get('path_name')}"
        if not _PAYLOAD.fullmatch(payload) or payload not in members:
            raise NotPlain(f"{str(entry.get('path_name'))[:60]!r} is no payload of this archive")
        if entry.get("use_pickle"):
            check_state({key: load_plain(reader.get_record(payload))})
        else:
            _screen_extent(key, entry.get("tensor_meta") or {}, members[payload], extents)


def _screen_extent(key: str, meta: dict[str, Any], size: int, extents: Extents) -> None:
    """A tensor must lie inside its bytes; torch would fill one without bytes with zeros."""
    if meta.get("device", {}).get("type") == "meta":
        raise NotPlain(f"the tensor {key!r} has no values (it is on the device meta)")
    itemsize = itemsize_of(meta.get("dtype"))
    if itemsize is None:
        raise NotPlain(f"the tensor {key!r} has an unknown dtype")
    sizes, strides, (offset,) = (
        [number.get("as_int") for number in numbers]
        for numbers in (
            meta.get("sizes", ()),
            meta.get("strides", ()),
            [meta.get("storage_offset", {"as_int": 0})],
        )
    )
    if size == 0 and 0 not in sizes:
        raise NotPlain(f"the tensor {key!r} is empty although a size is declared")
    extents.check(
        f"the tensor {key!r}", sizes, strides, offset, elements=size // itemsize, itemsize=itemsize
    )


def _screen_text(reader: Any, name: str, members: dict[str, int]) -> None:
    if members[name] > LARGEST_TEXT:
        raise NotPlain(f"{members[name]} bytes of text were found; at most {LARGEST_TEXT} are read")
    try:
        reader.get_record(name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotPlain("something other than UTF-8 text was found") from error


def _json(reader: Any, name: str, members: dict[str, int]) -> object:
    if members[name] > LARGEST_TEXT:
        raise NotPlain(f"{members[name]} bytes of JSON were found; at most {LARGEST_TEXT} are read")
    return parse_json(reader.get_record(name))


def damaged(file: Path) -> str:
    """The sentence about an archive that no reader takes."""
    return f"{file} is damaged or cut short (its parts do not fit together); write it again"
