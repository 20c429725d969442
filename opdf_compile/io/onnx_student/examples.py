"""Example inputs for an ONNX student, from the types that the file declares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import InputError
from opdf_compile.io.onnx_student.student import OnnxStudent

# Sizes to try for an axis that the file leaves open: many networks take only some of them, such as
# multiples of 32 or the window of a filter bank. The first axis is the batch.
_SIZES = (8, 64, 48, 224, 576)
_BATCH = 2


def example_inputs(student: OnnxStudent) -> dict[str, Tensor]:
    """Inputs that the student runs on; the same on every call.

    Args:
        student: The student.

    Raises:
        InputError: No size that was tried runs.
    """
    reason = ""
    for inputs in _candidates(student):
        try:
            with torch.no_grad():
                student(**inputs)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            reason = reason or (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            continue
        return inputs
    raise InputError(
        f"{student.source.name} ran on no example that was made from its input types "
        f"({_types(student)}; {reason.rstrip('.')}); give one with --input, for example --input "
        f"{_hint(student)}"
    )


def _candidates(student: OnnxStudent) -> Iterator[dict[str, Tensor]]:
    axes = student.source.axes.values()
    letters = dict.fromkeys(a for entry in axes for a in entry if isinstance(a, str))
    first = {entry[0] for entry in axes if entry}
    for size in _SIZES if letters.keys() - first else _SIZES[:1]:
        sizes = {letter: _BATCH if letter in first else size for letter in letters}
        yield _drawn(student, sizes)


def _drawn(student: OnnxStudent, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    made: dict[str, Tensor] = {}
    for name, axes in student.source.axes.items():
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in axes]
        made[name] = _tensor(name, shape, student.source.dtypes[name], draw)
    return made


def _tensor(name: str, shape: list[int], dtype: torch.dtype, draw: Any) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=draw).to(dtype)
    if "mask" in name.lower():
        return torch.ones(shape, dtype=dtype)
    # 0 and 1 index any table of two rows or more.
    return torch.randint(0, 2, shape, generator=draw).to(dtype)


def _types(student: OnnxStudent) -> str:
    return ", ".join(
        f"{name}={'x'.join(map(str, axes)) or 'scalar'}"
        for name, axes in student.source.axes.items()
    )


def _hint(student: OnnxStudent) -> str:
    name, axes = next(iter(student.source.axes.items()))
    sizes = "x".join(str(axis if isinstance(axis, int) else 2) for axis in axes) or "scalar"
    return f"{name}={sizes}:{str(student.source.dtypes[name]).removeprefix('torch.')}"
