"""Tensors by name in safetensors files, and weights into a model.

A safetensors file is a length, a JSON header and raw bytes; reading one runs nothing. The format
knows no shared memory, so tied weights are stored under one of their names, or under each.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from opdf_compile.errors import ArtefactError
from opdf_compile.graph.sharing import memory_key
from opdf_compile.io.files import atomic_write, existing_file, read_failure

# What safetensors itself allows; checked before its reader allocates.
LARGEST_HEADER = 100_000_000
# Wrappers (DataParallel, Lightning, transformers' base models) put these before every name.
_PREFIXES = ("module.", "model.", "_orig_mod.", "student.")


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        The tensors by name, on the CPU, and the texts of the header.

    Raises:
        ArtefactError: The file is missing, cut short, or its header is damaged, absurdly long or
            contradicts itself (overlapping tensors, sizes that do not add up).
    """
    from safetensors import SafetensorError, safe_open

    file = existing_file(path, wanted="a .safetensors file")
    _check_header_length(file)
    try:
        with safe_open(str(file), framework="pt", device="cpu") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            return tensors, dict(stream.metadata() or {})
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ArtefactError(
            f"{file} is no readable safetensors file ({reason}); write it again with "
            "safetensors.torch.save_file"
        ) from error


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, entirely or not at all.

    Args:
        path: The file.
        tensors: By name; none may share memory with another.
        metadata: Texts for the header.

    Raises:
        ArtefactError: Two tensors share memory, or the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = Path(path)
    _refuse_shared(target, tensors)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(target) as temporary:
        try:
            save_file(plain, str(temporary), metadata=dict(metadata or {}) or None)
        except SafetensorError as error:
            raise ArtefactError(
                f"cannot write {target}: {str(error)[:200]}; free space or choose another -o"
            ) from error


def load_weights(
    model: nn.Module | ExportedProgram,
    path: str | os.PathLike[str],
    *,
    trust_pickle: bool = False,
) -> tuple[str, ...]:
    """Copy the weights of a file into a model that is there already.

    Every tensor of the model's state must come from the file, except further names of a tied
    weight; every tensor of the file must be used. One prefix that a wrapper put before all names
    is taken off.

    Args:
        model: Changed in place; values are converted to its dtypes and devices.
        path: A `.safetensors` file, or a pickled state dict if `trust_pickle`.
        trust_pickle: Unpickle `.pt`, `.pth` and `.bin` files, which can run code.

    Returns:
        What a user should know, in sentences (a prefix that was taken off, dtypes converted).

    Raises:
        ArtefactError: The file cannot be read, or its names or shapes are not the model's.
    """
    tensors = _read_weights(Path(path), trust_pickle)
    state: Mapping[str, Tensor] = (
        model.state_dict if isinstance(model, ExportedProgram) else model.state_dict(keep_vars=True)
    )
    prefix = _common_prefix(tensors, state)
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    tied = _tied_names(state)
    _check_names(Path(path), tensors, state, tied)
    _check_shapes(Path(path), tensors, state, tied)
    converted = 0
    with torch.no_grad():
        for name, tensor in tensors.items():
            converted += state[name].dtype != tensor.dtype
            state[name].copy_(tensor)
    notes = [f"took the prefix {prefix!r} off every name in {path}"] if prefix else []
    if converted:
        notes.append(f"converted {converted} tensors of {path} to the model's dtypes")
    return tuple(notes)


def _read_weights(path: Path, trust_pickle: bool) -> dict[str, Tensor]:
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        from opdf_compile.io.pickles import load_pickle, state_dict_in

        found = load_pickle(path, trust_pickle=trust_pickle)
        return state_dict_in(path, found)
    if path.suffix == ".pt2":
        from opdf_compile.io.programs import read_programs

        return dict(read_programs(path, trust_pickle=trust_pickle).model.state_dict)
    return read_tensors(path)[0]


def _common_prefix(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The prefix that all names share and whose removal makes them the model's."""
    if not tensors or any(name in state for name in tensors):
        return ""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            short = {name.removeprefix(prefix) for name in tensors}
            if short & state.keys():
                return prefix
    return ""


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
        found.append(f"{len(missing)} missing ({_first(missing)})")
    if unexpected:
        found.append(f"{len(unexpected)} unexpected ({_first(unexpected)})")
    raise ArtefactError(
        f"{path} does not belong to this model: of its {len(state)} tensors, "
        f"{' and '.join(found)}; give the weights that were saved from this model"
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


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _check_header_length(file: Path) -> None:
    try:
        with file.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise ArtefactError(read_failure(file, error)) from error
    length, size = int.from_bytes(head, "little"), file.stat().st_size
    if len(head) < 8 or length > size - 8:
        raise ArtefactError(
            f"{file} is cut short or no safetensors file (its header claims {length} bytes, the "
            f"file has {size}); write it again"
        )
    if length > LARGEST_HEADER:
        raise ArtefactError(
            f"{file} is refused: its header claims {length} bytes, at most {LARGEST_HEADER} are "
            "read; write it again"
        )


def _refuse_shared(target: Path, tensors: Mapping[str, Tensor]) -> None:
    owner: dict[int, str] = {}
    for name, tensor in tensors.items():
        if tensor.numel() == 0 or tensor.is_meta:
            continue
        first = owner.setdefault(tensor.untyped_storage().data_ptr(), name)
        if first != name:
            raise ArtefactError(
                f"cannot write {target}: {first} and {name} share memory, which safetensors cannot "
                "express; give each tied weight once"
            )
