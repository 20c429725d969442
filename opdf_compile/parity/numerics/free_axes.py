"""A file that declares a free axis and stops in the runtime at some size of it is refuted.

The inputs fit what the file declares and the torch model computed their truth, so the fault is the
file's. Which axis: the first that, changed alone on a sample that runs, stops the file as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from opdf_compile.artefacts import Port, Sample
from opdf_compile.parity.numerics.mismatch import Array
from opdf_compile.parity.runtime.protocol import LoadedModel, RunFailed

# (input, axis) of the axes that have one size in every sample, and move together.
_Group = tuple[tuple[str, int], ...]
_Inputs = Mapping[str, Array]


class StopsAtSize(Exception):
    """The file does not run at a size that it declares free; the message says where and why."""


def stop_of(
    runner: LoadedModel,
    ports: Sequence[Port],
    samples: Sequence[Sample],
    stopped: Mapping[int, RunFailed],
) -> StopsAtSize | None:
    """What the failures of some samples say about the file.

    Args:
        runner: The file on its device.
        ports: Its inputs; all samples fit them.
        samples: The check data.
        stopped: By number, the samples that did not run.

    Returns:
        None where the failures may be the device's: memory ran out, no size is free, or no sample
        runs on an accelerator.
    """
    if any(error.of_memory for error in stopped.values()):
        return None
    groups = list(_free_groups(ports, samples))
    ran = [index for index in range(len(samples)) if index not in stopped]
    if not groups or (not ran and not runner.on_cpu):
        return None
    index, error = next(iter(stopped.items()))
    if not ran:
        return _stop(groups, samples[index].inputs, ports, error)
    base, other = samples[ran[0]].inputs, samples[index].inputs
    # Only an axis whose size differs from that of a sample that runs can be to blame.
    moved = [group for group in groups if _size(base, group) != _size(other, group)]
    if not moved:
        return None
    # One at a time, so that an axis which is innocent is not named beside the guilty one.
    for group in moved:
        alone = _alone(runner, base, group, _size(other, group))
        if alone is not None:
            return _stop([group], other, ports, alone)
    return _stop(moved, other, ports, error)


def _free_groups(ports: Sequence[Port], samples: Sequence[Sample]) -> Iterator[_Group]:
    """Free axes, together where no sample tells them apart."""
    found: dict[tuple[int, ...], list[tuple[str, int]]] = {}
    for port in ports:
        shapes = [np.shape(sample.inputs[port.name]) for sample in samples]
        # A file that says nothing of a shape leaves every axis of it free.
        for axis, declared in enumerate(port.axes or ("",) * len(shapes[0])):
            if isinstance(declared, str):
                sizes = tuple(shape[axis] for shape in shapes)
                found.setdefault(sizes, []).append((port.name, axis))
    yield from map(tuple, found.values())


def _size(inputs: _Inputs, group: _Group) -> int:
    name, axis = group[0]
    return int(np.shape(inputs[name])[axis])


def _alone(runner: LoadedModel, base: _Inputs, group: _Group, size: int) -> RunFailed | None:
    """How the file stops where only these axes have another size; values repeat."""
    inputs = dict(base)
    for name, axis in group:
        array = np.asarray(inputs[name])
        if not array.shape[axis]:
            return None
        inputs[name] = np.take(array, np.arange(size) % array.shape[axis], axis=axis)
    try:
        runner(inputs)
    except RunFailed as error:
        return None if error.of_memory else error
    return None


def _stop(
    groups: Sequence[_Group], inputs: _Inputs, ports: Sequence[Port], error: RunFailed
) -> StopsAtSize:
    letters = {
        (p.name, axis): f" ({letter})" for p in ports for axis, letter in enumerate(p.axes or ())
    }
    where = " and ".join(
        f"axis {axis} of {name!r}{letters.get((name, axis), '')} is {_size(inputs, group)}"
        for group in groups
        for name, axis in group
    )
    return StopsAtSize(f"is not computed where {where}, which the file leaves free: {error.reason}")
