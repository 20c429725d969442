"""`.pt2` files as torch 2.1 to 2.7 wrote them: a plain zip file with one program.

    version                            "8.3": the major version must be this torch's
    serialized_exported_program.json   the program, in the schema of screening/program_schema.py
    serialized_state_dict.pt           a pickled state dict, likewise serialized_constants.pt
    serialized_example_inputs.pt       pickled sample inputs; may be empty
    extra_files/NAME                   texts

The members are read once: what was screened is what torch gets.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from opdf_compile.errors import ArtefactError
from opdf_compile.io.screening.archive import LARGEST_TEXT, damaged, refusals_named
from opdf_compile.io.screening.container import form_problem
from opdf_compile.io.screening.pickles import check_state, load_plain
from opdf_compile.io.screening.program_schema import check_program, parse_json
from opdf_compile.io.screening.trees import check_sample

_PROGRAM = "serialized_exported_program.json"
_STATE, _CONSTANTS = "serialized_state_dict.pt", "serialized_constants.pt"
_INPUTS = "serialized_example_inputs.pt"
_EXTRA = "extra_files/"
_KNOWN = ("version", _PROGRAM, _STATE, _CONSTANTS, _INPUTS)


def is_older(file: Path) -> bool:
    """Whether a file is a zip archive with the program where torch 2.7 kept it."""
    try:
        with zipfile.ZipFile(file) as archive:
            return _PROGRAM in archive.NameToInfo
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return False


def read_older(file: Path, *, trust_pickle: bool = False) -> tuple[ExportedProgram, dict[str, str]]:
    """Read such a file after screening it; nothing in it runs.

    Returns:
        The program, and the texts that rode along.

    Raises:
        ArtefactError: It is damaged, too new or too old for this torch, or could run code.
    """
    members = _members(file)
    if not trust_pickle:
        for name, data in members.items():
            _screen(file, name, data)
    extra = {
        name.removeprefix(_EXTRA): data.decode("utf-8", "replace")
        for name, data in members.items()
        if name.startswith(_EXTRA)
    }
    return _deserialize(members), extra


def _members(file: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            problem = form_problem(entries, file.stat().st_size, one_folder=False)
            if problem is None:
                problem = next(filter(None, map(_name_problem, entries)), None)
            if problem:
                raise ArtefactError(
                    f"{file} is refused: {problem}; write it again with torch.export.save"
                )
            members = {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, RuntimeError) as error:
        raise ArtefactError(damaged(file)) from error
    missing = [name for name in _KNOWN if name not in members]
    if missing:
        raise ArtefactError(
            f"{file} lacks the member {missing[0]!r}, wanted a whole archive of torch.export; "
            "write it again"
        )
    return members


def _name_problem(entry: zipfile.ZipInfo) -> str | None:
    name = entry.filename
    if name in _KNOWN or (name.startswith(_EXTRA) and name.isprintable()):
        if name in (_STATE, _CONSTANTS) or entry.file_size <= LARGEST_TEXT:
            return None
        return (
            f"its member {name[:80]!r} has {entry.file_size} bytes, at most {LARGEST_TEXT} are read"
        )
    return f"it holds an unexpected member {name[:80]!r}"


def _screen(file: Path, name: str, data: bytes) -> None:
    checks: dict[str, Callable[[bytes], None]] = {
        _PROGRAM: lambda found: check_program(parse_json(found)),
        _STATE: lambda found: check_state(load_plain(found)),
        _CONSTANTS: lambda found: check_state(load_plain(found)),
        _INPUTS: lambda found: check_sample(load_plain(found)),
    }
    with refusals_named(file, name):
        # torch writes no bytes at all for constants and sample inputs that are not there.
        if data and name in checks:
            checks[name](data)


def _deserialize(members: dict[str, bytes]) -> ExportedProgram:
    from torch._export.serde.serialize import SerializedArtifact, deserialize

    artifact: Any = SerializedArtifact(
        members[_PROGRAM], members[_STATE], members[_CONSTANTS], members[_INPUTS]
    )
    program: ExportedProgram = deserialize(artifact)
    if not program.example_inputs:
        program.example_inputs = None
    return program
