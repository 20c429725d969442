"""`file.pt2`: programs of torch.export, with the names that rode along."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from opdf_compile.io.models.loaded import LoadedModel
from opdf_compile.io.models.program_archive import EVAL, MODEL, NOTES_FILE, read_programs


def load_archive(path: Path, *, trust_pickle: bool = False) -> LoadedModel:
    """Open an archive after screening it; both phases are kept where it holds both.

    Raises:
        ArtefactError: It cannot be read, or is refused.
    """
    loaded = read_programs(path, trust_pickle=trust_pickle)
    programs = {n: p for n, p in loaded.programs.items() if n in (MODEL, EVAL)}
    model: Any = programs if EVAL in programs else programs[MODEL]
    inputs = programs[MODEL].example_inputs
    args, kwargs = inputs if inputs is not None else ((), {})
    return LoadedModel(
        model,
        tuple(args),
        dict(kwargs),
        axis_letters(loaded.extra.get(NOTES_FILE), _ranks(programs[MODEL])),
        name=path.stem,
        kind="pt2",
        extra=loaded.extra,
    )


def axis_letters(
    notes: str | None, ranks: Mapping[str, int]
) -> dict[str, tuple[str | int | None, ...]] | None:
    """The axis names that expand wrote beside the programs; None where there are none.

    A note that somebody damaged costs the names only, so it is not an error.

    Args:
        notes: JSON `{"axes": {input: {"0": "batch_size"}}}`.
        ranks: How many axes each input of the program has; other inputs are passed over.
    """
    try:
        axes = json.loads(notes or "null")["axes"]
        return {
            name: tuple(_letter(axes[name].get(str(axis))) for axis in range(rank))
            for name, rank in ranks.items()
            if name in axes
        } or None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _letter(name: object) -> str | None:
    return name if isinstance(name, str) and name.isidentifier() else None


def _ranks(program: ExportedProgram) -> dict[str, int]:
    wanted = set(program.graph_signature.user_inputs)
    placeholders = (n for n in program.graph.nodes if n.op == "placeholder" and n.name in wanted)
    values = {node.name: node.meta.get("val") for node in placeholders}
    return {name: value.ndim for name, value in values.items() if isinstance(value, Tensor)}


def program_input_names(program: ExportedProgram) -> tuple[list[str], int]:
    """The names of a program's inputs, and how many of them are positional."""
    spec = program.call_spec.in_spec
    positional = spec.child(0).num_children
    signature = program.module_call_graph[0].signature
    names = list((signature.forward_arg_names if signature else None) or ())
    if len(names) < positional:
        keywords = [str(key) for key in spec.child(1).context or ()]
        names = [*(f"arg_{index}" for index in range(positional)), *keywords]
    return names, positional


def model_input_names(model: Any) -> tuple[list[str], int | None, bool]:
    """The inputs in order, for a program how many are positional, and whether others are taken."""
    if isinstance(model, Mapping):
        model = model[MODEL]
    if isinstance(model, ExportedProgram):
        return *program_input_names(model), False
    kind = inspect.Parameter
    parameters = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in parameters if p.kind not in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD)]
    return names, None, any(p.kind is kind.VAR_KEYWORD for p in parameters)
