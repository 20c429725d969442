"""An eval program lowered to ExecuTorch, for its XNNPACK backend.

    the program's graph   ->   tensors in, tensors out, as the ONNX file has them
                          ->   torch.export, with at least 16 rows and an end to every free size
                          ->   what XNNPACK takes is left to it, the rest is ExecuTorch's own
                          ->   bytes, with the hash of the ONNX file in them

Source: https://pytorch.org/executorch/stable/native-delegates-executorch-xnnpack-delegate.html
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from opdf_compile.artefacts import ONNX_HASH, CheckData
from opdf_compile.errors import ExportError, InputError, error_line
from opdf_compile.extras import requirements_of
from opdf_compile.graph import CallArguments, Traced, is_out_of_memory, quiet_libraries
from opdf_compile.io.evidence.free_sizes import InputAxis, Resized
from opdf_compile.io.evidence.half_range import fit_numbers
from opdf_compile.io.evidence.truth import graph_of
from opdf_compile.io.export.save import SINGLE_FILE_BYTES

# Of an example of fewer rows a convolution makes a program of at most 15, whatever was asked for:
# findings/executorch-convolutions-stop-at-fifteen-rows.sh.
_FEWEST_ROWS = 16
# Its tensors have room for so many rows, unless the check data has more.
_MOST_ROWS = 64


def require_lowering() -> None:
    """Refuse to lower where ExecuTorch is not installed.

    Raises:
        InputError: With the command that installs it.
    """
    if importlib.util.find_spec("executorch") is None:
        raise InputError(
            "an ExecuTorch program was asked for and executorch is not installed; pip install "
            f"{requirements_of('executorch')}"
        )


def require_one_file(weights: int) -> None:
    """Refuse a model whose weights lie beside its ONNX file, whose hash then says nothing of them.

    Args:
        weights: Their bytes.

    Raises:
        ExportError: They are too many.
    """
    if weights > SINGLE_FILE_BYTES:
        raise ExportError(
            f"the model has {weights:,} bytes of weights, and an ExecuTorch program is bound to "
            f"one file, wanted at most {SINGLE_FILE_BYTES:,}; leave executorch out"
        )


def lowered(traced: Traced, check: CheckData, onnx_sha256: str) -> bytes:
    """The program as a `.pte` file.

    Args:
        traced: What was exported to the ONNX file, in the file's dtype.
        check: Its check data, whose sizes the program takes.
        onnx_sha256: The hash of the ONNX file.

    Raises:
        ExportError: ExecuTorch cannot lower it.
        InputError: ExecuTorch cannot be loaded.
    """
    program = _bounded(traced, check)
    try:
        with quiet_libraries():
            return _written(program, onnx_sha256)
    except ImportError as error:
        raise InputError(
            f"an ExecuTorch program was asked for and executorch cannot be loaded "
            f"({error_line(error)}); pip install {requirements_of('executorch')}"
        ) from error
    except Exception as error:  # Its passes raise whatever they like.
        if is_out_of_memory(error):
            raise
        raise ExportError(
            f"ExecuTorch cannot lower the model ({error_line(error)}), wanted operators that it "
            "knows; leave executorch out"
        ) from error


def _written(program: ExportedProgram, onnx_sha256: str) -> bytes:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods={ONNX_HASH: onnx_sha256}
    )
    return bytes(lowered.to_executorch().buffer)


class _TensorsAlone(nn.Module):
    """A graph between tensors: other inputs are those of the example, other outputs are left out.

    So inputs and outputs stand where those of the ONNX file do.
    """

    def __init__(self, graph: GraphModule, example: CallArguments) -> None:
        super().__init__()
        self.model, self._example = graph, example

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        args, kwargs = pytree.tree_map_only(Tensor, lambda _: next(given), self._example)
        found = pytree.tree_leaves(self.model(*args, **kwargs))
        return tuple(leaf for leaf in found if isinstance(leaf, Tensor))


def _bounded(traced: Traced, check: CheckData) -> ExportedProgram:
    """The eval program between tensors, exported again with an end to every free size."""
    program = fit_numbers(traced.programs["eval"])[0]
    names = {name: traced.axis_names.get(name, {}) for name in traced.input_names}
    resized = Resized(program, (traced.args, traced.kwargs), names)
    batches = [free for free in resized.sizes if free.is_batch]
    example = resized(
        {
            symbol: min(free.high, max(size, _FEWEST_ROWS))
            for free in batches
            for symbol, size in free.symbols.items()
        }
    )
    tensors = [leaf.detach() for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor)]
    rows = {place for free in batches for place in free.places}
    ends = _ends(dict(zip(names, tensors, strict=True)), check, rows)
    asked = tuple(
        {axis: Dim.AUTO(max=ends[name, axis]) for axis in axes} for name, axes in names.items()
    )
    module = _TensorsAlone(graph_of(program), example)
    with quiet_libraries(), torch.no_grad():
        return torch.export.export(module, tuple(tensors), dynamic_shapes=(asked,), strict=False)


def _ends(
    example: Mapping[str, Tensor], check: CheckData, rows: set[InputAxis]
) -> dict[InputAxis, int]:
    """The largest size of each axis that the program is to take."""
    ends = {}
    for name, tensor in example.items():
        shapes: Sequence[Any] = [tensor.shape, *(s.inputs[name].shape for s in check.samples)]
        for axis in range(tensor.ndim):
            least = _MOST_ROWS if (name, axis) in rows else 1
            ends[name, axis] = max(least, *(int(shape[axis]) for shape in shapes))
    return ends
