"""Example inputs for an ONNX student, from the types that the file declares."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import InputError, first_line
from opdf_compile.graph import MODULE_RUNG, PHASES, Dynamic, Phase, Traced, trace
from opdf_compile.io.dtypes import dtype_name
from opdf_compile.io.onnx_student.student import OnnxStudent

# Sizes to try for an axis that the file leaves open: many networks take only some of them, such as
# multiples of 32 or the window of a filter bank. The first axis is the batch.
_SIZES = (8, 64, 48, 224, 576)
_BATCH = 2
# A model that no graph holds at any size is traced so often in vain.
_MOST_TRACED = 3


def example_inputs(student: OnnxStudent) -> dict[str, Tensor]:
    """Inputs that the student runs on; the same on every call.

    Raises:
        InputError: No size that was tried runs.
    """
    return next(_running(student))


def trace_drawn(
    student: OnnxStudent, *, dynamic: Dynamic = None, phases: Sequence[Phase] = PHASES
) -> Traced:
    """Trace on example inputs that are made from the file's input types.

    A file runs on sizes that it is not made for, and then no graph may hold it: the first of a few
    examples that a graph holds is taken.

    Args:
        student: The student.
        dynamic: Which axes keep a free size; None for those of the file.
        phases: The phases to trace.

    Returns:
        The first graphs, or where there are none what the first example gave, with a note that
        says which it was.

    Raises:
        InputError: No size that was tried runs.
    """
    axes = student.dynamic if dynamic is None else dynamic
    first: tuple[Traced, Mapping[str, Tensor]] | None = None
    for inputs in itertools.islice(_running(student), _MOST_TRACED):
        traced = trace(student, tuple(inputs.values()), dynamic=axes, phases=phases)
        if MODULE_RUNG not in traced.rungs.values():
            return traced
        first = first or (traced, inputs)
    assert first is not None  # Without one that runs there was an InputError.
    traced, tried = first
    note = (
        f"the example was drawn from the input types of {student.source.name}: "
        f"{_options(tried)}; give the sizes that it is made for in this form"
    )
    return replace(traced, notes=(*traced.notes, note))


def _running(student: OnnxStudent) -> Iterator[dict[str, Tensor]]:
    """The candidates on which the student runs, at least one."""
    reason, ran = "", False
    for inputs in _candidates(student):
        try:
            with torch.no_grad():
                student(**inputs)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            reason = reason or first_line(error, 160)
            continue
        ran = True
        yield inputs
    if not ran:
        raise InputError(
            f"{student.source.name} ran on no example that was made from its input types "
            f"({_types(student)}; {reason}); give one with --input, for example "
            f"--input {_hint(student)}"
        )


def _candidates(student: OnnxStudent) -> Iterator[dict[str, Tensor]]:
    axes = student.source.axes.values()
    letters = dict.fromkeys(a for entry in axes for a in entry if isinstance(a, str))
    first = {entry[0] for entry in axes if entry and isinstance(entry[0], str)}
    # A state (layers, batch, width) beside inputs of a batch has its batch where it is open.
    states = {letter for entry in axes for letter in _state_batch(entry)} if first else set()
    for batch in (first | states, first) if states - first else (first,):
        for size in _SIZES if letters.keys() - batch else _SIZES[:1]:
            yield _drawn(student, {a: _BATCH if a in batch else size for a in letters})


def _state_batch(axes: Sequence[str | int]) -> list[str]:
    """The only open axis of a tensor whose first axis is fixed."""
    free = [axis for axis in axes if isinstance(axis, str)]
    return free if len(free) == 1 and free[0] != axes[0] else []


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


def _options(inputs: Mapping[str, Tensor]) -> str:
    """Inputs as the command line takes them."""
    return " ".join(f"--input {n}={_option(t.shape, t.dtype)}" for n, t in inputs.items())


def _hint(student: OnnxStudent) -> str:
    name, axes = next(iter(student.source.axes.items()))
    sizes = [axis if isinstance(axis, int) else 2 for axis in axes]
    return f"{name}={_option(sizes, student.source.dtypes[name])}"


def _option(sizes: Iterable[int], dtype: torch.dtype) -> str:
    return f"{'x'.join(map(str, sizes)) or 'scalar'}:{dtype_name(dtype)}"
