"""Tensors by name in safetensors files.

A safetensors file is a length, a JSON header and raw bytes; reading one runs nothing. The format
knows no shared memory, so tied weights are stored under one of their names, or under each.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from opdf_compile.errors import ArtefactError, first_line
from opdf_compile.files import atomic_write, existing_file
from opdf_compile.io.screening.header import check_header


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
    check_header(file)
    try:
        with safe_open(str(file), framework="pt", device="cpu") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            return tensors, dict(stream.metadata() or {})
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = first_line(error)
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


def write_student(path: str | os.PathLike[str], state: Mapping[str, Tensor]) -> None:
    """Write a student's weights under all of its own keys, entirely or not at all.

    A tied weight stands under each of its names, so that `load_state_dict` finds every key; a model
    that ties its weights has them tied after loading, too.

    Args:
        path: A `.safetensors` file.
        state: The student's state dict; what is no tensor is left out.

    Raises:
        ArtefactError: The file cannot be written.
    """
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    # transformers loads only what says that it is PyTorch's. No other text stands beside it: the
    # order of two is drawn anew in each process, and equal weights would make unequal files.
    write_tensors(path, unshared(tensors), {"format": "pt"})


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each in memory of its own: the format cannot express shared memory.

    Of a tied weight's names, and of the rows of one stack of cores, all but the first are copied.
    """
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.detach().to("cpu", copy=place in seen)
        seen.add(place)
    return apart


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
