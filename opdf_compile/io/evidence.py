"""Run the torch model and its float64 truth on sample inputs: the content of the check data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import ExportedProgram

from opdf_compile.errors import ExportError
from opdf_compile.graph.axes import AxisNames
from opdf_compile.graph.signature import Inputs
from opdf_compile.graph.trace import first_line
from opdf_compile.io.check_data import CheckData, Sample
from opdf_compile.io.samples import drawn_samples
from opdf_compile.io.truth import Truth, graph_of, run

SAMPLES = 4
logger = logging.getLogger("opdf_compile")


def gather(
    program: ExportedProgram,
    example: Inputs,
    *,
    axis_names: AxisNames,
    output_names: Sequence[str],
    dtype: str,
    samples: int = SAMPLES,
    seed: int = 0,
) -> CheckData:
    """Compute check data of an eval program.

    Args:
        program: The program that was exported, in the exported dtype.
        example: The user's inputs, the first sample.
        axis_names: Its tensor inputs in order, each with the names of its dynamic axes.
        output_names: Names of its tensor outputs, in order.
        dtype: The exported dtype, for the record.
        samples: How many samples in all.
        seed: Where the random numbers start.

    Raises:
        ExportError: The model does not run on the user's own example.
    """
    model, truth = graph_of(program), Truth(program)
    measure = _Measure(model, truth, tuple(axis_names), tuple(output_names))
    try:
        first = measure(example)
    except Exception as error:  # Whatever the user's own graph raises on the user's own example.
        raise ExportError(
            f"the traced model does not run on the example inputs ({type(error).__name__}: "
            f"{first_line(error)}), wanted inputs of the traced shapes; give another example"
        ) from error
    found = [first]
    bad = _not_finite(first)
    rest = drawn_samples(program, example, axis_names, count=samples - 1, seed=seed)
    found.extend(_first_that_runs(measure, candidates, bad) for candidates in rest)
    return CheckData(tuple(axis_names), tuple(output_names), dtype, tuple(found))


class _Measure:
    """Inputs -> Sample, for one model and its truth."""

    def __init__(
        self, model: torch.nn.Module, truth: Truth, inputs: Sequence[str], outputs: Sequence[str]
    ) -> None:
        self._model, self._truth = model, truth
        self._inputs, self._outputs = inputs, outputs

    def __call__(self, inputs: Inputs) -> Sample:
        tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
        computed = dict(zip(self._outputs, run(self._model, *inputs), strict=True))
        exact = dict(zip(self._outputs, self._truth(*inputs), strict=True))
        errors = {name: _errors(computed[name], exact[name]) for name in self._outputs}
        truths = {name: as_array(value) for name, value in exact.items()}
        return Sample(
            inputs=dict(zip(self._inputs, map(as_array, tensors), strict=True)),
            outputs=truths,
            error={name: pair[0] for name, pair in errors.items()},
            rms={name: pair[1] for name, pair in errors.items()},
            maxabs={name: _largest(value) for name, value in truths.items()},
        )


def _first_that_runs(
    measure: _Measure, candidates: Sequence[Inputs], bad: Mapping[str, bool]
) -> Sample:
    *bold, example = candidates
    for inputs in bold:
        try:
            sample = measure(inputs)
        except Exception as error:  # A size or value that this model does not take.
            logger.debug("a drawn sample does not run: %s", first_line(error))
            continue
        if all(bad[name] or not now for name, now in _not_finite(sample).items()):
            return sample
    return measure(example)


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
