"""What the model computes when arithmetic is exact enough not to matter: float64 throughout.

``module.double()`` is no such truth: Llama, T5 and Gemma cast to float32 in their forward, which
leaves errors of 1e-7, a third of the noise that the check must resolve. The truth is therefore the
*graph* of the eval phase with every floating dtype in it promoted (see `retype`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from opdf_compile.io.evidence.retype import TO_FLOAT64, cast_leaf, default_dtype, retyped


class Truth:
    """The eval program in float64.

    Args:
        program: An eval program. Its parameters are copied, not changed.
        originals: By name, tensors to compute with in place of the program's, which are narrower.

    Raises:
        ExportError: The graph reads the bits of a float.

    Example:
        >>> outputs = Truth(program)((x,), {})
    """

    def __init__(
        self, program: ExportedProgram, originals: Mapping[str, Tensor] | None = None
    ) -> None:
        """Copy the program's graph and promote it."""
        self._graph = retyped(graph_of(program), TO_FLOAT64)
        for name, tensor in (originals or {}).items():
            owner, _, leaf = name.rpartition(".")
            held = getattr(self._graph.get_submodule(owner), leaf)
            held.data = tensor.detach().to(held.device, torch.float64)

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """Run on inputs of the model's own dtypes.

        Returns:
            The tensor outputs in order; floating ones in float64.
        """
        exact = pytree.tree_map(lambda leaf: cast_leaf(leaf, TO_FLOAT64), (args, dict(kwargs)))
        with default_dtype(torch.float64):
            return run_module(self._graph, *exact)


def graph_of(program: ExportedProgram) -> GraphModule:
    """The program as a module over its own parameters, without checks of input sizes."""
    return program.module(check_guards=False)


def run_module(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Tensor]:
    """Run a module without gradients, autocast or reduced precision; its tensors in order."""
    device_types = {leaf.device.type for leaf in pytree.tree_leaves((args, kwargs)) if _is(leaf)}
    with torch.no_grad(), torch.autocast(next(iter(device_types), "cpu"), enabled=False):
        output = module(*args, **kwargs)
    return [leaf for leaf in pytree.tree_leaves(output) if _is(leaf)]


def _is(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)
