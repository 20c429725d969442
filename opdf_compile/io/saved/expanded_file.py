"""What expand and fold write, and how a file is folded.

    expand  OUT.pt2          programs "model" (training) and "eval", with plan.json and opdf.json
            OUT.safetensors  cores and other weights, the plan in the header
    fold    OUT.pt2          the student's programs
            OUT.safetensors  tensors under the student's own keys

A `.pt2` is folded from its graphs alone: the plan that rode along is lost when a user saves a
trained program again, the cores' names and the compose subgraph are not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from opdf_compile.errors import ArtefactError, NoCores, OpdfError, error_line
from opdf_compile.graph import names_of_parameters
from opdf_compile.io.models.program_archive import (
    EVAL,
    MODEL,
    NOTES_FILE,
    read_programs,
    write_programs,
)
from opdf_compile.io.models.safetensors_file import (
    read_tensors,
    unshared,
    write_student,
    write_tensors,
)
from opdf_compile.io.saved.core_folding import fold_state
from opdf_compile.passes import Fold, FoldSites, Pipeline, branch_key, core_key
from opdf_compile.training import Expanded, fold_program, programs_of

_PLAN_FILE = "plan.json"


def save_expanded(expanded: Expanded, path: str | os.PathLike[str]) -> None:
    """Write an Expanded as `.pt2` (two programs) or `.safetensors` (tensors and plan).

    Raises:
        ArtefactError: The suffix is another one, or the file cannot be written.
    """
    target = Path(path)
    plan = json.dumps(expanded.plan.to_json())
    if target.suffix == ".pt2":
        extra = {_PLAN_FILE: plan, NOTES_FILE: json.dumps(_notes(expanded))}
        write_programs(target, programs_of(expanded), extra)
    elif target.suffix == ".safetensors":
        write_tensors(target, unshared(expanded.state_dict()), {"opdf.plan": plan})
    else:
        raise ArtefactError(_suffix(target))


def _notes(expanded: Expanded) -> dict[str, Any]:
    """What the programs cannot say themselves: axis names and tied names."""
    named = expanded.axis_names
    return {
        "schema": "opdf-program/1",
        "axes": {n: {str(a): letter for a, letter in axes.items()} for n, axes in named.items()},
        "aliases": {e.key: list(e.aliases) for e in expanded.plan.entries if e.aliases},
    }


@dataclass(frozen=True, eq=False)
class FoldedFile:
    """A folded student that is not on disk yet.

    Attributes:
        state: Tensors by the student's own keys.
        programs: The student's programs, where the expanded file held programs or a model was
            given; empty otherwise.
        extra: Texts that ride along in a `.pt2`.
        notes: What a user should know, in sentences.
    """

    state: dict[str, Tensor]
    programs: dict[str, ExportedProgram] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `.pt2` or `.safetensors`.

        Raises:
            ArtefactError: The suffix is another one, there is no program to write, or the file
                cannot be written.
        """
        target = Path(path)
        if target.suffix == ".safetensors":
            write_student(target, self.state)
        elif target.suffix != ".pt2":
            raise ArtefactError(_suffix(target))
        elif not self.programs:
            raise ArtefactError(
                f"{target} needs a graph, the expanded file holds tensors only; write "
                ".safetensors, or expand to .pt2"
            )
        else:
            write_programs(target, self.programs, self.extra)


def fold_file(
    expanded: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    model: nn.Module | None = None,
    trust_pickle: bool = False,
) -> FoldedFile:
    """Fold what `save_expanded` wrote, or what a user saved again after training.

    Args:
        expanded: `.pt2` or `.safetensors`.
        weights: The trained state: `.safetensors`, or a `.pt2` that holds it.
        model: The student, which tells shapes and tied names that tensors alone cannot.
        trust_pickle: Skip the screening of archives.

    Returns:
        The student's tensors, and its programs where there are any.

    Raises:
        ArtefactError: A file cannot be read, or is of another kind.
        NoCores: It holds no cores.
        FoldError: Cores are missing, or do not fit together.
    """
    source = Path(expanded)
    trained = _trained(weights, trust_pickle) if weights is not None else None
    if source.suffix == ".pt2":
        return _fold_programs(source, trained, model, trust_pickle)
    if source.suffix == ".safetensors":
        tensors, header = read_tensors(source)
        _require_cores(tensors, "opdf.plan" in header, source)
        merged = _merge(tensors, trained, source)
        plan = header.get("opdf.plan")
        notes = () if plan is not None or model is not None else (_guessed(source),)
        return FoldedFile(fold_state(merged, plan, model), notes=notes)
    raise ArtefactError(_suffix(source))


def _guessed(source: Path) -> str:
    return (
        f"{source} holds no plan: each weight is taken as a matrix (out, in) of its cores' dtype; "
        "a convolution, a weight stored (in, out), float16 and tied names need the student "
        "(--model)"
    )


def _fold_programs(
    source: Path, trained: dict[str, Tensor] | None, model: nn.Module | None, trust_pickle: bool
) -> FoldedFile:
    archive = read_programs(source, trust_pickle=trust_pickle)
    programs = {n: p for n, p in archive.programs.items() if n in (MODEL, EVAL)}
    _require_cores(archive.model.state_dict, _PLAN_FILE in archive.extra, source)
    if trained is not None:
        for program in programs.values():
            _load(program, trained, source)
    folded = {name: _folded(program, source) for name, program in programs.items()}
    state = {k: t.detach() for k, t in folded[MODEL].state_dict.items()}
    for key, names in _aliases(archive.extra, model, source).items():
        _name_also(state, key, names, source)
    if model is not None:
        state = _as_model(state, model, source)
    notes = (
        ()
        if EVAL in programs
        else (
            f"{source} holds the training graph only: its dropout and batch norm are in training "
            "mode; fold the file that expand wrote and give the trained state with --weights",
        )
    )
    extra = {k: v for k, v in archive.extra.items() if k == NOTES_FILE}
    return FoldedFile(state, folded, extra, notes)


def _folded(program: ExportedProgram, source: Path) -> ExportedProgram:
    try:
        return fold_program(program, Pipeline((Fold(), FoldSites())))[0]
    except OpdfError:
        raise
    except Exception as error:  # The product of the cores is computed as the file says.
        raise ArtefactError(
            f"{source} cannot be folded ({error_line(error)}), wanted cores whose product is the "
            "weight; expand the model again"
        ) from error


def _require_cores(names: Iterable[str], planned: bool, source: Path) -> None:
    """A file without cores is not an expanded one; to pass it through would hide a wrong path."""
    known = set(names)
    if not planned and not any(core_key(name) or branch_key(name, known) for name in known):
        raise NoCores(
            f"{source} holds no cores, wanted a file that expand wrote; give that file, or use "
            "this one as it is"
        )


def _aliases(
    extra: Mapping[str, str], model: nn.Module | None, source: Path
) -> dict[str, list[str]]:
    if model is not None:
        groups = names_of_parameters(model).values()
        return {first: list(others) for first, *others in groups if others}
    try:
        aliases = json.loads(extra.get(NOTES_FILE, "{}")).get("aliases", {})
        texts = [text for key, names in aliases.items() for text in (key, *names)]
        whole = all(isinstance(names, list) for names in aliases.values())
    except (ValueError, AttributeError, TypeError, RecursionError):
        whole, texts = False, []
    if not whole or not all(isinstance(text, str) for text in texts):
        raise ArtefactError(
            f"{source} holds damaged notes about tied weights ({NOTES_FILE}), wanted lists of "
            "names; expand the model again, or give the student with --model"
        )
    return aliases  # type: ignore[no-any-return]


def _name_also(state: dict[str, Tensor], key: str, names: Iterable[str], source: Path) -> None:
    """Put a folded weight under its further names, none of which may be another weight's."""
    for name in names if key in state else ():
        if name in state and not torch.equal(state[name], state[key]):
            raise ArtefactError(
                f"{source} contradicts itself: its notes about tied weights call {key!r} also "
                f"{name!r}, which is another weight; expand the model again, or give the student "
                "with --model"
            )
        state[name] = state[key]


def _as_model(state: dict[str, Tensor], model: nn.Module, source: Path) -> dict[str, Tensor]:
    """The state in the student's own order; every key must be there with its shape."""
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    wrong = [k for k, t in wanted.items() if k in state and state[k].shape != t.shape]
    if missing or wrong:
        first = (missing or wrong)[0]
        raise ArtefactError(
            f"{source} does not belong to the model: {first!r} is missing or has another shape "
            f"({len(missing)} missing, {len(wrong)} of other shape); give the student it was "
            "expanded from"
        )
    return {key: state[key].to(tensor.dtype) for key, tensor in wanted.items()}


def _trained(weights: str | os.PathLike[str], trust_pickle: bool) -> dict[str, Tensor]:
    path = Path(weights)
    if path.suffix == ".pt2":
        program = read_programs(path, trust_pickle=trust_pickle).model
        return {name: tensor.detach() for name, tensor in program.state_dict.items()}
    return read_tensors(path)[0]


def _load(program: ExportedProgram, trained: dict[str, Tensor], source: Path) -> None:
    merged = _merge(dict(program.state_dict), trained, source)
    with torch.no_grad():
        for name, tensor in program.state_dict.items():
            if tensor is not merged[name]:
                tensor.copy_(merged[name])


def _merge(
    own: dict[str, Tensor], trained: dict[str, Tensor] | None, source: Path
) -> dict[str, Tensor]:
    """The trained tensors in place of the file's own.

    Raises:
        ArtefactError: A trained tensor is unknown or has another shape, or cores are missing.
    """
    if trained is None:
        return own
    unknown = [name for name in trained if name not in own]
    # What else a trainer left out (a counter, a frozen bias) is the file's; a weight without one of
    # its cores would be folded from trained and untrained ones.
    apart = [n for n in own if "_cores." in n or branch_key(n, own)]
    missing = [name for name in apart if name not in trained]
    shapes = [n for n, t in trained.items() if n in own and t.shape != own[n].shape]
    if unknown or missing or shapes:
        first = (unknown or missing or shapes)[0]
        parts = "cores" if all(map(core_key, missing)) else "cores or branches"
        raise ArtefactError(
            f"the trained weights do not belong to {source}: {first!r} ({len(unknown)} unknown, "
            f"{len(missing)} {parts} missing, {len(shapes)} of other shape); give the state dict "
            "of the program that was trained from this file"
        )
    return {name: trained.get(name, tensor) for name, tensor in own.items()}


def _suffix(path: Path) -> str:
    return (
        f"{path} has the suffix {path.suffix or 'none'!r}, wanted .pt2 (programs) or .safetensors "
        "(tensors); choose one of them"
    )
