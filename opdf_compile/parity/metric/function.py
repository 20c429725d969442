"""The user's metric: outputs and rows in, one number for each row or one for all of them out.

It is a program of the user's own, which `verify` imports and calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from opdf_compile.artefacts import plain_array
from opdf_compile.errors import InputError, error_line, first_line
from opdf_compile.files import imported_callable, parse_callable, parse_query

Arrays = Mapping[str, Any]
Function = Callable[[dict[str, Any], dict[str, Any]], Any]
Numbers = npt.NDArray[np.float64]

_WANTED = "a function of (outputs, samples), such as metric.py:accuracy"


@dataclass(frozen=True)
class Metric:
    """A metric by the name that reports give it.

    Attributes:
        name: As it was given, or the function's own name.
        function: Called with outputs and samples, two dictionaries of arrays by name.
    """

    name: str
    function: Function = field(repr=False)

    def __call__(self, outputs: Arrays, samples: Arrays, rows: int) -> Numbers:
        """The scores.

        Args:
            outputs: By output, an array with the rows on its first axis.
            samples: Likewise the inputs and the labels.
            rows: How many rows there are.

        Returns:
            Float64 of shape (rows,), or of shape () where the metric gives one number; that of a
            single row is its score.

        Raises:
            InputError: The metric fails, or gives something else.
        """
        try:
            given = self.function(dict(outputs), dict(samples))
        except (Exception, SystemExit) as error:  # The metric is the user's code.
            raise InputError(
                f"the metric {self.name} raised {error_line(error)}; it got the outputs "
                f"{_listed(outputs)} and the samples {_listed(samples)}"
            ) from error
        scores = self._as_numbers(given, rows)
        if rows == 1 and scores.shape == ():
            scores = scores.reshape(1)
        if scores.shape not in ((), (rows,)):
            raise self._odd(f"numbers of the shape {scores.shape}", rows)
        wrong = np.flatnonzero(~np.isfinite(scores))
        if wrong.size:
            where = f" for row {wrong[0]}" if scores.ndim else ""
            raise InputError(
                f"the metric {self.name} gave {scores.flat[wrong[0]]}{where}, wanted finite "
                "numbers; leave such rows out, or say what they score"
            )
        return scores

    def _as_numbers(self, given: Any, rows: int) -> Numbers:
        try:
            # Made without a dtype: with one, texts become numbers and complex ones lose a part.
            found = plain_array(given)
            if found.dtype.kind in "biufO" or found.dtype.name == "bfloat16":
                return np.asarray(found.astype(np.float64))
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise self._odd(f"a {type(given).__name__}", rows, f" ({first_line(error)})") from error
        odd = "texts" if found.dtype.kind in "US" else f"values of the dtype {found.dtype.name}"
        raise self._odd(odd if found.ndim else f"a {type(given).__name__}", rows)

    def _odd(self, found: str, rows: int, reason: str = "") -> InputError:
        return InputError(
            f"the metric {self.name} gave {found}{reason}, wanted one number for each of the "
            f"{rows} rows, or one for all"
        )


def as_metric(given: str | Function) -> Metric:
    """A metric from a function, or from `file.py:callable` or `package.module:callable`.

    Raises:
        ArtefactError: The file is missing.
        InputError: It names no code, or code that cannot be called.
    """
    if not isinstance(given, str):
        if not callable(given):
            raise InputError(f"the metric is a {type(given).__name__}, wanted {_WANTED}")
        return Metric(getattr(given, "__qualname__", type(given).__name__), given)
    match = parse_callable(given)
    with imported_callable(match, given, _WANTED) as function:
        arguments = parse_query(match["query"], given)
        return Metric(given, functools.partial(function, **arguments) if arguments else function)


def _listed(arrays: Arrays) -> str:
    return ", ".join(f"{name} {list(np.shape(array))}" for name, array in arrays.items()) or "none"
