"""`.pt2` archives with one program per phase, readable by plain `torch.export.load`.

torch's archive can hold several programs. Ours holds `model` (the training graph, or the only one)
and, optionally, `eval`; `torch.export.load(path)` opens `model` in a process that knows nothing of
this package. torch writes the weights once per program; here `eval` refers to the payloads that
`model` already wrote, which halves the file (see `sharing_writer`).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from opdf_compile.errors import ArtefactError, InternalError, OpdfError, error_line
from opdf_compile.files import atomic_write, existing_file
from opdf_compile.graph import memory_key
from opdf_compile.io.models.older_archives import is_older, read_older
from opdf_compile.io.models.sharing_writer import write_archive
from opdf_compile.io.screening.archive import screen_archive, writable_guard, writable_sample_inputs

_LOG = logging.getLogger("opdf_compile")

MODEL = "model"
EVAL = "eval"
# The text beside the programs that says what they cannot: names of axes and of tied weights.
NOTES_FILE = "opdf.json"


@dataclass(frozen=True)
class Programs:
    """What a `.pt2` archive holds.

    Attributes:
        programs: "model" and optionally "eval" (other names are kept as they are). Tensors with one
            name are one object in all of them, and tied weights are one Parameter.
        extra: The texts that ride along, by name ("plan.json").
    """

    programs: dict[str, ExportedProgram]
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> ExportedProgram:
        """The training graph, or the only graph."""
        return self.programs[MODEL]


def write_programs(
    path: str | os.PathLike[str],
    programs: Mapping[str, ExportedProgram],
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write one archive with a program per phase.

    Sample inputs ride along only if they are plain tensors and numbers, and guard code only if it
    is plain comparisons of shapes, so that the file passes its own screening.

    Args:
        path: The `.pt2` file; written entirely or not at all.
        programs: By name; must contain "model".
        extra: Texts that ride along, by file name.

    Raises:
        ArtefactError: The path does not end in .pt2, or cannot be written.
    """
    target = Path(path)
    if MODEL not in programs:
        raise InternalError(f"an archive needs a program called 'model', not only {list(programs)}")
    if target.suffix != ".pt2":
        raise ArtefactError(
            f"cannot write {target}: torch.export.load opens names that end in .pt2 only; "
            "choose another -o"
        )
    ordered = {MODEL: programs[MODEL], **programs}
    with _presentable(ordered.values()), atomic_write(target) as temporary:
        write_archive(temporary, ordered, dict(extra or {}))


def read_programs(path: str | os.PathLike[str], *, trust_pickle: bool = False) -> Programs:
    """Read an archive after screening it; nothing in it runs.

    Guard code (Python source that torch would execute on `program.module()`) is dropped, equal
    names become one object across programs, and tied weights become one Parameter again.

    Args:
        path: The `.pt2` file.
        trust_pickle: Skip the screening of what could run code: the caller vouches for the file.

    Raises:
        ArtefactError: The file is missing, damaged, not an archive of torch.export, holds no
            program, or holds something that could run code.
    """
    file = existing_file(path, wanted="a .pt2 archive of torch.export")
    programs, extra = _open(file, trust_pickle)
    if MODEL not in programs:
        found = ", ".join(sorted(programs)) or "none"
        raise ArtefactError(
            f"{file} holds no program called 'model' (programs found: {found}); write it with "
            "torch.export.save or `opdf-compile expand`"
        )
    for program in programs.values():
        program._guards_code = []
    # Ties are found by memory, so all programs must hold the same tensors first.
    _share(file, programs)
    for program in programs.values():
        retie(program)
    return Programs(programs, extra)


def retie(program: ExportedProgram) -> tuple[tuple[str, ...], ...]:
    """Make Parameters that view one memory in one way one object again.

    A file keeps a tied weight as two Parameters on one storage. An optimizer would then step it
    twice, and a fold would return two weights. The first name wins.

    Args:
        program: Its state dict is changed in place.

    Returns:
        The groups of tied names, each in the order of the state dict.
    """
    first: dict[tuple[object, ...], str] = {}
    groups: dict[str, list[str]] = {}
    state = program.state_dict
    for name, tensor in state.items():
        key = memory_key(tensor)
        if key is None:
            continue
        owner = first.setdefault(key, name)
        if owner != name and isinstance(tensor, torch.nn.Parameter):
            groups.setdefault(owner, [owner]).append(name)
            state[name] = state[owner]
    return tuple(tuple(group) for group in groups.values())


def _share(file: Path, programs: Mapping[str, ExportedProgram]) -> None:
    """Give every program the tensors of `model` under equal names; `model` wins."""
    model = programs[MODEL]
    for program in programs.values():
        if program is model:
            continue
        for ours, theirs in (
            (model.state_dict, program.state_dict),
            (model.constants, program.constants),
        ):
            for name in theirs.keys() & ours.keys():
                if not _interchangeable(ours[name], theirs[name]):
                    raise ArtefactError(
                        f"{file} contradicts itself: {name} differs between its programs; write it "
                        "again with one model"
                    )
                theirs[name] = ours[name]


def _interchangeable(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return type(a) is type(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    # Bit by bit: a NaN equals itself, and every dtype can be compared.
    return torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _open(file: Path, trust_pickle: bool) -> tuple[dict[str, ExportedProgram], dict[str, str]]:
    """The programs and texts of an archive of this torch or an older one, screened first."""
    if is_older(file):
        with _sentences(file):
            program, extra = read_older(file, trust_pickle=trust_pickle)
        return {MODEL: program}, extra
    screen_archive(file, trust_pickle=trust_pickle)
    from torch.export.pt2_archive._package import load_pt2

    with _sentences(file):
        loaded = load_pt2(str(file))
        return dict(loaded.exported_programs), dict(loaded.extra_files)


@contextmanager
def _sentences(file: Path) -> Iterator[None]:
    """Turn what torch raises into one sentence, and keep its warnings to itself."""
    # torch 2.13 reports a trusted pickle with a malformed log call, which prints a traceback.
    chatter = logging.getLogger("torch._export.serde.serialize")
    silent = chatter.disabled
    chatter.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OpdfError:
        raise
    except Exception as error:  # torch raises every kind; the class does not matter to a user.
        raise ArtefactError(
            f"{file} cannot be opened by torch {torch.__version__} ({error_line(error)}); write "
            "it again, with this version of torch"
        ) from error
    finally:
        chatter.disabled = silent


@contextmanager
def _presentable(programs: Any) -> Iterator[None]:
    """While the block runs, the programs hold only what passes our own screening."""
    kept = [(p, p.example_inputs, p._guards_code) for p in programs]
    try:
        for program, inputs, guards in kept:
            if not writable_sample_inputs(inputs):
                _LOG.debug("sample inputs are not plain tensors: left out of the file")
                program.example_inputs = None
            program._guards_code = [code for code in guards if writable_guard(code)]
        yield
    finally:
        for program, inputs, guards in kept:
            program.example_inputs = inputs
            program._guards_code = guards
