"""A free axis is free if the file runs there at other sizes, and says what torch says.

    the model at another size      raises: that size is none of the model's, and says nothing
                                   runs:   the file must run too, with outputs of the same shapes
                                           and, where they can be compared, the same numbers

torch.export keeps an axis free that ONNX cannot: an adaptive pooling is translated for the size of
the example, a constant is made of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from opdf_compile.errors import first_line
from opdf_compile.graph import AxisNames, CallArguments, evaluated, is_out_of_memory
from opdf_compile.io.evidence.evaluating import as_array
from opdf_compile.io.evidence.free_sizes import FreeSize, InputAxis, Resized
from opdf_compile.io.evidence.truth import graph_of, run_module
from opdf_compile.io.export.lowering import unoptimised
from opdf_compile.io.export.save import weight_bytes

if TYPE_CHECKING:
    import onnx_ir as ir

# A second copy of the weights goes into the runtime's session; above this it is not made.
LARGEST = 1 << 30
_LOG = logging.getLogger("opdf_compile")
_Call = Callable[[CallArguments], list[Tensor]]
_File = Callable[[CallArguments], list[Any]]


@dataclass(frozen=True)
class Trials:
    """What running the file at other sizes showed.

    Attributes:
        broken: Each axis that is not free, with a sentence on what was tried and seen.
        note: Why nothing could be run; empty where it was.
    """

    broken: Mapping[InputAxis, str] = field(default_factory=dict)
    note: str = ""


def try_free_axes(
    model: ir.Model,
    program: ExportedProgram,
    example: CallArguments,
    names: AxisNames,
    source: object,
) -> Trials:
    """Run every free axis of a translated program at two other sizes, in torch and in the file.

    Args:
        model: The ONNX model.
        program: What it was translated from.
        example: The user's inputs.
        names: The tensor inputs in order, each with the names of its dynamic axes.
        source: The user's own module, or anything else: then the program's graph is asked.
    """
    resized = Resized(program, example, names)
    if not resized.sizes:
        return Trials()
    if weight_bytes(model) > LARGEST:
        gib = weight_bytes(model) / 2**30
        return Trials(note=f"the free axes were not run at other sizes: {gib:.1f} GiB of weights")
    try:
        judge = _first_that_runs(model, program, resized, source)
    except Exception as error:  # The runtime may be missing, or lack a kernel of this dtype.
        if is_out_of_memory(error):
            raise
        reason = first_line(error)
        return Trials(note=f"the free axes were not run at other sizes: {reason}")
    broken: dict[InputAxis, str] = {}
    for free in resized.sizes:
        problem = _problem(free, judge, resized)
        if problem:
            sentence = f"{free} is fixed at {free.size}: {problem}"
            broken.update(dict.fromkeys(free.places, sentence))
    return Trials(broken)


def _problem(free: FreeSize, judge: _Judge, resized: Resized) -> str:
    """Why a size is not free, found at two other sizes; empty where the file bears them."""
    taken = []
    candidates = free.others(within=not judge.asks_module)
    for sizes in candidates:
        for size in sizes:
            inputs = resized({**judge.sizes, **dict.fromkeys(free.symbols, size)})
            wanted = _or_none(judge.torch, inputs)
            if wanted is None:
                continue
            taken.append(size)
            problem = judge(inputs, wanted)
            if problem:
                return f"at {size} the model runs and its ONNX file {problem}"
            break
    if taken:
        return ""
    tried = ", ".join(str(size) for sizes in candidates for size in sizes)
    return f"the model itself takes none of the sizes {tried}"


def _or_none(call: _Call, inputs: CallArguments) -> list[Tensor] | None:
    try:
        return call(inputs)
    except Exception as error:  # Whatever the user's forward raises at a size it does not take.
        if is_out_of_memory(error):
            raise
        _LOG.debug("export: the model does not take a size: %s", first_line(error))
        return None


class _Judge:
    """Compares the file with torch, as far as the two agree at the example's own sizes.

    Attributes:
        torch: The model.
        asks_module: Whether that is the user's module, in place of the graph.
        sizes: The example's sizes by symbol, with a small batch.
    """

    def __init__(
        self, file: _File, torch_call: _Call, asks_module: bool, sizes: Mapping[Any, int]
    ) -> None:
        self.torch, self.asks_module, self.sizes = torch_call, asks_module, sizes
        self._file = file
        self._gaps: list[float] = []

    def calibrate(self, inputs: CallArguments) -> None:
        """Note how well numbers agree at the example's sizes.

        Raises:
            ValueError: The outputs do not even have the same shapes.
        """
        pairs = self._pairs(inputs, self.torch(inputs))
        self._gaps = [_gap(found, wanted) for found, wanted in pairs]

    def __call__(self, inputs: CallArguments, wanted: list[Tensor]) -> str:
        """What the file does wrong, or nothing."""
        try:
            pairs = self._pairs(inputs, wanted)
        except ValueError as error:
            return str(error)
        except Exception as error:  # onnxruntime's own classes have no common base.
            return f"does not ({first_line(error)})"
        for (found, exact), usual in zip(pairs, self._gaps, strict=True):
            gap = _gap(found, exact)
            unit = float(np.finfo(exact.dtype).eps) if exact.dtype.kind == "f" else 0.0
            # Half of the digits: rounding is far below it, another size of anything far above.
            # Outputs that differ at the example's own sizes (drawn at random) say nothing.
            if usual <= unit**0.5 < gap and gap > 100 * usual:
                return f"differs by {gap:.0%} of its largest output"
        return ""

    def _pairs(self, inputs: CallArguments, wanted: list[Tensor]) -> list[tuple[Any, Any]]:
        pairs = list(zip(self._file(inputs), map(as_array, wanted), strict=True))
        for found, exact in pairs:
            if found.shape != exact.shape:
                raise ValueError(f"returns the shape {found.shape} in place of {exact.shape}")
        return pairs


def _first_that_runs(
    model: ir.Model, program: ExportedProgram, resized: Resized, source: object
) -> _Judge:
    """The file beside the user's module, or beside the graph where the two differ in kind.

    Raises:
        Exception: The file does not run on the example; the error of the last attempt.
    """
    file = _file(model)
    graph = graph_of(program)
    calls: list[tuple[_Call, bool]] = [(lambda inputs: run_module(graph, *inputs), False)]
    if isinstance(source, nn.Module):
        module = source
        calls.insert(0, (lambda inputs: evaluated(module, inputs), True))
    small = resized.small()
    own = {symbol: size for free in resized.sizes for symbol, size in free.symbols.items()}
    attempts = [(*call, sizes) for call in calls for sizes in (small, own)]
    for place, attempt in enumerate(attempts):
        judge = _Judge(file, *attempt)
        try:
            judge.calibrate(resized(judge.sizes))
        except Exception as error:  # A batch that the model does not take, outputs of its own kind.
            if is_out_of_memory(error) or place == len(attempts) - 1:
                raise
            continue
        return judge
    raise AssertionError("there is always an attempt")


def _file(model: ir.Model) -> _File:
    """A model in memory as a function of inputs, as it is written."""
    import onnx_ir

    run = unoptimised(onnx_ir.serde.serialize_model(model))
    names = [str(value.name) for value in model.graph.inputs]

    def call(inputs: CallArguments) -> list[Any]:
        tensors = (leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
        return run(dict(zip(names, map(as_array, tensors), strict=True)))

    return call


def _gap(found: Any, exact: Any) -> float:
    """The largest difference over the largest number; 0 for what is no floating output."""
    if exact.dtype.kind != "f" or exact.size == 0:
        return 0.0
    left, right = found.astype(np.float64), exact.astype(np.float64)
    finite = np.isfinite(left) & np.isfinite(right)
    if not finite.any():
        return 0.0
    largest = float(np.abs(right[finite]).max()) or 1.0
    return float(np.abs(left - right)[finite].max()) / largest
