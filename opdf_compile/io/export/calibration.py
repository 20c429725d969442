"""The rows that an int8 export is calibrated with: read, checked, cut into batches."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.utils._pytree as pytree
from torch import Tensor

from opdf_compile.errors import InputError, first_line
from opdf_compile.files import DAMAGE, existing_file, read_npz
from opdf_compile.graph import AxisNames, Traced
from opdf_compile.io.evidence.evaluating import as_array

Feed = dict[str, Any]

_WRITE = "write it with numpy.savez(file, NAME=array, ...), one array per input, rows first"


@dataclass(frozen=True, eq=False)
class Calibration:
    """Inputs of the kind that the model will meet.

    Attributes:
        arrays: numpy arrays by input name, rows on the first axis; what is no input is ignored.
        source: Where they come from, for messages.
    """

    arrays: Mapping[str, Any]
    source: str

    def batches(self, example: Mapping[str, Any], axes: AxisNames) -> list[Feed]:
        """The rows in batches of the example's size.

        Args:
            example: The example inputs by name.
            axes: By input, the names of its free axes. Where the first is fixed, rows that do not
                fill a batch are left out.

        Raises:
            InputError: An input is missing, or has other shapes, dtypes or rows than it must.
        """
        if not example:
            raise InputError(
                f"the model has no input, so {self.source} cannot calibrate it; leave int8 out"
            )
        given = {name: self._array(name, like, axes) for name, like in example.items()}
        counts = {name: len(array) for name, array in given.items()}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise InputError(f"{self.source} has unequal rows ({told}), wanted as many of each")
        rows = next(iter(counts.values()))
        batch = max(len(like) for like in example.values())
        free = all(0 in axes.get(name, {}) for name in example)
        ends = range(batch, rows + 1, batch)
        starts = list(range(0, rows, batch)) if free else [end - batch for end in ends]
        if not starts:
            raise InputError(
                f"{self.source} has {rows} rows, wanted at least {1 if free else batch}; give "
                "some hundred rows of the data that the model will meet"
            )
        return [{n: a[start : start + batch] for n, a in given.items()} for start in starts]

    def _array(self, name: str, like: Any, axes: AxisNames) -> Any:
        if name not in self.arrays:
            raise InputError(
                f"{self.source} lacks the input {name!r} (it has "
                f"{', '.join(map(str, self.arrays)) or 'nothing'}); {_WRITE}"
            )
        array = np.asarray(self.arrays[name])
        if not np.ndim(like):
            raise InputError(
                f"the input {name!r} is one number without rows, so {self.source} cannot give it "
                "by rows; build it into the model, or leave int8 out"
            )
        if array.dtype != like.dtype:
            raise InputError(
                f"{name!r} of {self.source} has the dtype {array.dtype}, the model takes "
                f"{like.dtype}; convert it with .astype({str(like.dtype)!r})"
            )
        free = axes.get(name, {})
        wanted = [free.get(axis, size) for axis, size in enumerate(np.shape(like))]
        if array.ndim != len(wanted) or any(
            isinstance(size, int) and size != found
            for size, found in zip(wanted[1:], array.shape[1:], strict=True)
        ):
            words = ", ".join(map(str, ["rows", *wanted[1:]]))
            raise InputError(
                f"{name!r} of {self.source} has the shape {array.shape}, the model takes ({words})"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(
                f"{name!r} of {self.source} holds NaN or infinity, wanted finite numbers: their "
                "least and greatest are the range of int8"
            )
        return array


def batches_of(traced: Traced, calibration: Calibration | None, axes: AxisNames) -> list[Feed]:
    """The batches for a traced model; none without calibration rows.

    Args:
        traced: It has example inputs.
        calibration: The rows.
        axes: The names of the inputs in the file, in order, each with those of its free axes.

    Raises:
        InputError: The rows do not fit the model.
    """
    if calibration is None:
        return []
    leaves = pytree.tree_leaves((traced.args, traced.kwargs))
    tensors = (as_array(leaf) for leaf in leaves if isinstance(leaf, Tensor))
    return calibration.batches(dict(zip(axes, tensors, strict=True)), axes)


def read_calibration(given: Mapping[str, Any] | str | os.PathLike[str]) -> Calibration:
    """Read calibration rows; objects in a file, which would be pickles, are refused.

    Args:
        given: A ``.npz`` file, or arrays (or tensors) by input name.

    Raises:
        InputError: It is neither.
        ArtefactError: The file does not exist.
    """
    if isinstance(given, Mapping):
        arrays = {str(name): _plain(value) for name, value in given.items()}
        return Calibration(arrays, "the calibration data")
    if not isinstance(given, (str, os.PathLike)):
        raise InputError(
            f"the calibration data is a {type(given).__name__}, wanted a .npz file or arrays by "
            "input name"
        )
    file = existing_file(Path(given), wanted="calibration data as .npz")
    try:
        return Calibration(read_npz(file), str(file))
    except DAMAGE as error:
        raise InputError(
            f"{file} holds no calibration data ({first_line(error, 160)}); {_WRITE}"
        ) from error


def _plain(value: Any) -> Any:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
