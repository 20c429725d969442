"""Weights from a file into a model that is there already."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from opdf_compile.errors import ArtefactError
from opdf_compile.graph import memory_key
from opdf_compile.io.models.safetensors_file import read_tensors
from opdf_compile.io.models.shards import WEIGHTS, weight_files
from opdf_compile.io.models.weight_names import first_names, hint, renamed

_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_PICKLES_IN_FOLDER = ("pytorch_model.bin", "model.pth", "pytorch_model.pth")


def load_weights(
    model: nn.Module | ExportedProgram,
    path: str | os.PathLike[str],
    *,
    trust_pickle: bool = False,
) -> tuple[str, ...]:
    """Copy the weights of a file into a model that is there already.

    Every tensor of the model's state must come from the file, except further names of a tied
    weight; every tensor of the file must be used. Prefixes that wrappers put before all names are
    taken off, and the name that transformers gives a bare model is added or taken off.

    Args:
        model: Changed in place; values are converted to its dtypes and devices.
        path: A `.safetensors` file, a folder with one (or with shards and their index), a `.pt2`,
            or a pickled state dict if `trust_pickle`.
        trust_pickle: Unpickle `.pt`, `.pth` and `.bin` files, which can run code.

    Returns:
        What a user should know, in sentences (a prefix that was taken off, dtypes converted).

    Raises:
        ArtefactError: The file cannot be read, or its names or shapes are not the model's.
    """
    tensors = _read(Path(path), trust_pickle)
    found = (
        model.state_dict if isinstance(model, ExportedProgram) else model.state_dict(keep_vars=True)
    )
    # What get_extra_state gives is no tensor, and in no file of tensors.
    state = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    base = getattr(model, "base_model_prefix", "")
    tensors, notes = renamed(tensors, state, base if isinstance(base, str) else "", str(path))
    tied = _tied_names(state)
    _check_names(Path(path), tensors, state, tied)
    _check_shapes(Path(path), tensors, state, tied)
    converted = 0
    with torch.no_grad():
        for name, tensor in tensors.items():
            converted += state[name].dtype != tensor.dtype
            state[name].copy_(tensor)
    if converted:
        notes = (*notes, f"converted {converted} tensors of {path} to the model's dtypes")
    return notes


def _read(path: Path, trust_pickle: bool) -> dict[str, Tensor]:
    if path.is_dir():
        return _read_folder(path, trust_pickle)
    if path.suffix in _PICKLED:
        from opdf_compile.io.models.from_pickle import load_pickle, state_dict_in

        found = load_pickle(path, trust_pickle=trust_pickle)
        return state_dict_in(path, found)
    if path.suffix == ".pt2":
        from opdf_compile.io.models.program_archive import read_programs

        return dict(read_programs(path, trust_pickle=trust_pickle).model.state_dict)
    return read_tensors(path)[0]


def _read_folder(folder: Path, trust_pickle: bool) -> dict[str, Tensor]:
    files = weight_files(folder)
    if not files:
        pickled = [name for name in _PICKLES_IN_FOLDER if (folder / name).is_file()]
        if pickled:
            return _read(folder / pickled[0], trust_pickle)
        raise ArtefactError(
            f"{folder} holds no weights, wanted {WEIGHTS} or shards with their index; give the "
            "file itself"
        )
    tensors: dict[str, Tensor] = {}
    for file, expected in files.items():
        found = read_tensors(file)[0]
        missing = (expected or frozenset()) - found.keys()
        again = found.keys() & tensors.keys()
        if missing or again:
            what = f"lacks {min(missing)!r}" if missing else f"holds {min(again)!r} again"
            raise ArtefactError(
                f"the shard {file} {what}, so it does not belong to its index; fetch or write all "
                "shards again"
            )
        tensors.update(found)
    return tensors


def _tied_names(state: Mapping[str, Tensor]) -> dict[str, frozenset[str]]:
    """For each name, all names of the same tensor."""
    groups: dict[Any, list[str]] = {}
    for name, tensor in state.items():
        groups.setdefault(memory_key(tensor) or id(tensor), []).append(name)
    return {name: frozenset(group) for group in groups.values() for name in group}


def _check_names(
    path: Path,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    tied: Mapping[str, frozenset[str]],
) -> None:
    missing = [name for name in state if not tied[name] & tensors.keys()]
    unexpected = [name for name in tensors if name not in state]
    if not (missing or unexpected):
        return
    found = []
    if missing:
        found.append(f"{len(missing)} missing ({first_names(missing)})")
    if unexpected:
        found.append(f"{len(unexpected)} unexpected ({first_names(unexpected)})")
    raise ArtefactError(
        f"{path} does not belong to this model: of its {len(state)} tensors, "
        f"{' and '.join(found)}; {hint(tensors, state)}"
    )


def _check_shapes(
    path: Path,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    tied: Mapping[str, frozenset[str]],
) -> None:
    for name, tensor in tensors.items():
        if tensor.shape != state[name].shape:
            raise ArtefactError(
                f"{path} does not belong to this model: {name} has shape {tuple(tensor.shape)}, "
                f"wanted {tuple(state[name].shape)}; give the weights that were saved from this "
                "model"
            )
        for other in tied[name] & tensors.keys():
            if not torch.equal(tensor, tensors[other]):
                raise ArtefactError(
                    f"{path} contradicts this model: {name} and {other} are one tied weight and "
                    "differ in the file; keep one of them"
                )
