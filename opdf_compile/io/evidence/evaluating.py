"""Run the torch model and its float64 truth on sample inputs: the content of the check data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import ExportedProgram

from opdf_compile.artefacts import CheckData, Sample
from opdf_compile.errors import ExportError, first_line
from opdf_compile.graph import AxisNames, CallArguments
from opdf_compile.io.dtypes import dtype_name
from opdf_compile.io.evidence.function_noise import Moved, Watched, has_limited_functions
from opdf_compile.io.evidence.given_rows import GivenRows, require_room
from opdf_compile.io.evidence.half_range import NumberChange, changes_of, fit_numbers
from opdf_compile.io.evidence.randomness import UNKNOWN, Generators, find_draws, has_moved
from opdf_compile.io.evidence.samples import ENOUGH_ROWS, MOST_SAMPLES, ORDINARY, drawn_samples
from opdf_compile.io.evidence.truth import Truth, graph_of, run_module

# More rows than the ordinary samples have are worth this much of a file.
_MOST_BYTES = 64 << 20
# A model that takes none of so many drawn samples in a row takes none.
_MOST_FAILURES = 3
_LOG = logging.getLogger("opdf_compile")


def gather_check_data(
    program: ExportedProgram,
    example: CallArguments,
    *,
    axis_names: AxisNames,
    output_names: Sequence[str],
    dtype: str,
    further: Sequence[CallArguments] = (),
    rows: Sequence[GivenRows] = (),
    originals: Mapping[str, Tensor] | None = None,
    foreign: bool = False,
    seed: int = 0,
) -> CheckData:
    """Compute check data of an eval program.

    Args:
        program: The program that was exported, in the exported dtype.
        example: The user's inputs, the first sample.
        axis_names: Its tensor inputs in order, each with the names of its dynamic axes.
        output_names: Names of its tensor outputs, in order.
        dtype: The exported dtype, for the record.
        further: More inputs of the user's own, each a sample.
        rows: Rows of the user's own with their labels, each a sample that also keeps what the model
            computes. They come beside the drawn samples, which show other sizes.
        originals: Tensors of the model with numbers that its dtype cannot hold, as they were.
        foreign: Whether another exporter wrote the file, which may compute other values where a
            boolean mask leaves an attention query no key; such samples are left out.
        seed: Where the random numbers start.

    Raises:
        ExportError: The model does not run on the user's own inputs, or computes something else
            with numbers that fit its dtype.
        InputError: The user's rows would make the check data too large.
    """
    measure = _Measure(
        program, tuple(axis_names), tuple(output_names), dtype, originals or {}, foreign
    )
    own = [_of_user(measure, inputs) for inputs in (example, *further)]
    samples = [sample for sample, blind in own if not blind]
    row_bytes = _bytes(own[0][0]) // max(1, _fewest_rows(own[0][0]))
    rest = drawn_samples(
        program, example, axis_names, seed=seed, largest_batch=_MOST_BYTES // max(1, row_bytes)
    )
    # Where the user's own sample is all finite, drawn values that give NaN are no fair question.
    usual, failures = _not_finite(own[0][0]), 0
    while _wants_more(samples) and failures < _MOST_FAILURES:
        drawn = _first_that_runs(measure, next(rest), usual)
        failures = failures + 1 if drawn is None else 0
        samples.extend([] if drawn is None else [drawn])
    own_rows = _rows_of_user(measure, rows)
    _warn_of_blind([blind for _, blind in (*own, *own_rows)], kept=not samples)
    _warn_of_random(measure.random)
    for change in measure.changes:
        _LOG.warning("%s", change)
    return CheckData(
        tuple(axis_names),
        tuple(output_names),
        dtype,
        (
            *(samples or (own[0][0],)),
            *(sample for sample, blind in own_rows if not blind),
        ),
        output_dtypes=measure.output_dtypes,
        random=measure.random,
        notes=tuple(map(str, measure.changes)),
    )


class _NumbersDoNotFitError(ExportError):
    """A number of the model is outside the exported dtype, and the nearest inside is no match."""


class _Measure:
    """Inputs -> Sample, and how many attention queries of it a foreign file answers otherwise."""

    def __init__(
        self,
        program: ExportedProgram,
        inputs: Sequence[str],
        outputs: Sequence[str],
        dtype: str,
        originals: Mapping[str, Tensor],
        foreign: bool,
    ) -> None:
        fitted, changes = fit_numbers(program)
        kind = getattr(torch, dtype, torch.float32)
        read = program.state_dict.keys() | program.constants.keys()
        originals = {name: tensor for name, tensor in originals.items() if name in read}
        self.changes: tuple[NumberChange, ...] = (*changes_of(originals, kind), *changes)
        # What is right is what the model computes with its own numbers.
        self._model, self._truth = graph_of(fitted), Truth(program, originals)
        self._fitted_truth = Truth(fitted) if self.changes else None
        self._inputs, self._outputs, self._foreign = inputs, outputs, foreign
        # One unit in the last place of 1 in the exported dtype.
        self._unit = torch.finfo(kind if kind.is_floating_point else torch.float32).eps
        self._has_limited = has_limited_functions(self._model)
        self._draws = find_draws(self._model, self._outputs)
        self.random = dict(self._draws.outputs)
        self.output_dtypes: dict[str, str] = {}

    def __call__(self, inputs: CallArguments, *, keep: bool = False) -> tuple[Sample, int]:
        tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
        # A model may draw; the caller's generators stay as they were.
        with Generators([*tensors, *self._model.parameters()]).kept():
            return self._sample(inputs, tensors, keep)

    def _computed(
        self, inputs: CallArguments, tensors: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], int]:
        """The outputs in the exported dtype, and the queries that a foreign file may spoil."""
        generators = Generators([*tensors, *self._model.parameters()])
        before = generators.state()
        with Watched() as watched:
            computed = dict(zip(self._outputs, run_module(self._model, *inputs), strict=True))
        if not self._draws.known and has_moved(before, generators.state()):
            self.random = dict.fromkeys(self._outputs, UNKNOWN)
        return computed, watched.blind if self._foreign else 0

    def _sample(
        self, inputs: CallArguments, tensors: Sequence[Tensor], keep: bool
    ) -> tuple[Sample, int]:
        computed, blind = self._computed(inputs, tensors)
        exact = dict(zip(self._outputs, self._truth(*inputs), strict=True))
        if self._fitted_truth is not None:
            self._require_same(exact, self._fitted_truth(*inputs))
        # One draw measures no error, so none is claimed.
        errors = {
            name: (inf, inf) if name in self.random else _errors(computed[name], exact[name])
            for name in self._outputs
        }
        truths = {name: as_array(value) for name, value in exact.items()}
        self.output_dtypes = {name: dtype_name(value.dtype) for name, value in computed.items()}
        sample = Sample(
            inputs=dict(zip(self._inputs, map(as_array, tensors), strict=True)),
            outputs=truths,
            error={name: pair[0] for name, pair in errors.items()},
            rms={name: pair[1] for name, pair in errors.items()},
            maxabs={name: _largest(value) for name, value in truths.items()},
            function=self._function_errors(inputs, exact),
            computed={name: as_array(value) for name, value in computed.items()} if keep else {},
        )
        return sample, blind

    def _require_same(self, exact: Mapping[str, Tensor], fitted: Sequence[Tensor]) -> None:
        """Numbers that fit the dtype may change no output by more than its own rounding."""
        for (name, right), found in zip(exact.items(), fitted, strict=True):
            if name in self.random:
                continue
            finite = right[right.isfinite()].abs().to(torch.float64)
            scale = float(finite.max()) if finite.numel() else 0.0
            off, _ = _errors(found, right)
            allowed = self._unit / 2 * scale if right.is_floating_point() else 0.0
            if off > allowed:
                raise _NumbersDoNotFitError(
                    f"{'; '.join(map(str, self.changes[:3]))}, which changes the output {name!r} "
                    f"by {off:.2g} (its largest number is {scale:.2g}), wanted numbers that the "
                    "dtype holds: torch.finfo(x.dtype).min or -inf for a mask, a larger epsilon, "
                    "or float32 around that operator"
                )

    def _function_errors(
        self, inputs: CallArguments, exact: Mapping[str, Tensor]
    ) -> dict[str, tuple[float, float]]:
        if not self._has_limited:
            return {}
        with Moved(self._unit):
            moved = dict(zip(self._outputs, self._truth(*inputs), strict=True))
        real = [name for name, value in exact.items() if value.is_floating_point()]
        found = {name: _errors(moved[name], exact[name]) for name in real}
        return {name: pair for name, pair in found.items() if np.isfinite(pair).all()}


def _rows_of_user(measure: _Measure, rows: Sequence[GivenRows]) -> list[tuple[Sample, int]]:
    found: list[tuple[Sample, int]] = []
    for inputs, labels in rows:
        sample, blind = _of_user(measure, inputs, keep=True)
        found.append((replace(sample, labels=labels), blind))
        if len(found) == 1:
            # The others are about as large, so the first tells before the work is done.
            held = max((len(v) for v in sample.inputs.values() if np.ndim(v)), default=1)
            require_room(_bytes(found[0][0]), len(rows), held)
    return found


def _of_user(measure: _Measure, inputs: CallArguments, *, keep: bool = False) -> tuple[Sample, int]:
    try:
        return measure(inputs, keep=keep)
    except _NumbersDoNotFitError:
        raise
    except Exception as error:  # Whatever the user's own graph raises on the user's own example.
        raise ExportError(
            f"the traced model does not run on the {'samples' if keep else 'example inputs'} "
            f"({type(error).__name__}: {first_line(error)}), wanted inputs of the traced shapes; "
            f"give {'other ones' if keep else 'another example'}"
        ) from error


def _first_that_runs(
    measure: _Measure, candidates: Sequence[CallArguments], usual: Mapping[str, bool]
) -> Sample | None:
    """The boldest candidate that the model takes; None if it takes none."""
    for inputs in candidates:
        try:
            sample, blind = measure(inputs)
        except _NumbersDoNotFitError:  # The example alone may hide it: of zeros, all is 0.
            raise
        except Exception as error:  # A size or value that this model does not take.
            _LOG.debug("a drawn sample does not run: %s", first_line(error))
            continue
        if blind:
            continue
        if all(usual[name] or not now for name, now in _not_finite(sample).items()):
            return sample
    return None


def _wants_more(samples: Sequence[Sample]) -> bool:
    """Whether there are too few samples, or rows that a small file could still hold."""
    if len(samples) < ORDINARY:
        return True
    rows = sum(_fewest_rows(sample) for sample in samples)
    small = sum(map(_bytes, samples)) < _MOST_BYTES
    return rows < ENOUGH_ROWS and small and len(samples) < MOST_SAMPLES


def _fewest_rows(sample: Sample) -> int:
    return min((sample.rows(name) for name in sample.outputs), default=ENOUGH_ROWS)


def _bytes(sample: Sample) -> int:
    held = (sample.inputs, sample.outputs, sample.computed)
    return sum(array.nbytes for arrays in held for array in arrays.values())


def _warn_of_blind(counts: Sequence[int], *, kept: bool) -> None:
    if not any(counts):
        return
    _LOG.warning(
        "the example inputs hold %d attention queries that their mask allows no key: there torch "
        "gives zeros, a file of another exporter may give the mean of all values; such inputs are "
        "%s the check data, give an example with less padding",
        sum(counts),
        "all there is for" if kept else "left out of",
    )


def _warn_of_random(random: Mapping[str, str]) -> None:
    for name, words in random.items():
        _LOG.warning(
            "output %r depends on random numbers (%s), so verify cannot judge it; switch them off "
            "in evaluation: F.dropout(x, p, training=self.training)",
            name,
            words,
        )


def _not_finite(sample: Sample) -> dict[str, bool]:
    return {name: not np.isfinite(value).all() for name, value in sample.outputs.items()}


def _errors(computed: Tensor, exact: Tensor) -> tuple[float, float]:
    """Largest and root-mean-square error; infinities and NaNs that agree count as no error."""
    wide = torch.complex128 if exact.dtype.is_complex else torch.float64
    left, right = computed.to(wide), exact.to(wide)
    if left.shape != right.shape:
        raise ExportError(
            f"an output has the shape {tuple(left.shape)} in its own dtype and "
            f"{tuple(right.shape)} in float64, wanted one shape; export without a dtype change"
        )
    same = (left == right) | (left.isnan() & right.isnan())
    gaps = (left - right).abs().masked_fill(same, 0.0)
    if gaps.numel() == 0:
        return 0.0, 0.0
    gaps = torch.nan_to_num(gaps, nan=float("inf"), posinf=float("inf"))
    return float(gaps.max()), float(gaps.square().mean().sqrt())


def _largest(value: Any) -> float:
    if value.size == 0:
        return 0.0
    magnitude = np.abs(value.astype(np.complex128 if value.dtype.kind == "c" else np.float64))
    finite = magnitude[np.isfinite(magnitude)]
    return float(finite.max()) if finite.size else 0.0


def as_array(tensor: Tensor) -> Any:
    """A tensor as a numpy array of the same dtype; bfloat16 as ml_dtypes' type."""
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype is not torch.bfloat16:
        return plain.numpy()
    import ml_dtypes

    return plain.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
