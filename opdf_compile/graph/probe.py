"""Run the model itself on the example: a limit of torch.export, or an example that does not fit?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from opdf_compile.errors import TraceError, error_line
from opdf_compile.graph.as_before import as_before
from opdf_compile.graph.caches import without_cache
from opdf_compile.graph.failures import failing_line, is_out_of_memory
from opdf_compile.graph.phases import phase_flags, quiet
from opdf_compile.graph.sharing import deep_copy
from opdf_compile.graph.signature import CallArguments, tensors_in
from opdf_compile.graph.traced import Phase


@dataclass(frozen=True, eq=False)
class ForwardRun:
    """What the model's own forward did.

    Attributes:
        output: What it returned.
        error: What it raised.
    """

    output: Any = None
    error: Exception | None = None


def run_model(model: nn.Module, phase: Phase, inputs: CallArguments) -> ForwardRun:
    """Run a copy of the model once, in one phase; the caller's random numbers come back."""
    devices = {tensor.get_device() for tensor in tensors_in(inputs) if tensor.is_cuda}
    random = torch.random.fork_rng(devices=sorted(devices))
    # The copy's hooks are the caller's own functions.
    with as_before(model), random, torch.no_grad(), quiet(), phase_flags(model, phase):
        call = _on_copies(model)
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), inputs)
        try:
            return ForwardRun(output=call(args, kwargs))
        except Exception as error:  # Whatever the user's forward raises on these inputs.
            if is_out_of_memory(error):
                raise
            return ForwardRun(error=error)


def evaluated(model: nn.Module, inputs: CallArguments) -> list[Tensor]:
    """The tensors that the model itself returns in eval; raises whatever its forward raises.

    The model is as before afterwards.
    """
    flags = phase_flags(model, "eval")
    with as_before(model), without_cache(model), flags, quiet(), torch.no_grad():
        return tensors_in(model(*inputs[0], **inputs[1]))


def _on_copies(model: nn.Module) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
    """The model as a function that changes none of its tensors."""
    try:
        copied = deep_copy(model)
    except Exception as error:  # A module may hold what cannot be copied: a file, a lock.
        if is_out_of_memory(error):
            raise
        tensors = (*model.named_parameters(), *model.named_buffers())
        state = {name: tensor.detach().clone() for name, tensor in tensors}
        return lambda args, kwargs: torch.func.functional_call(model, state, args, kwargs)
    return lambda args, kwargs: copied(*args, **kwargs)


def rejected(
    model: nn.Module, inputs: CallArguments, names: Sequence[str], error: Exception
) -> TraceError:
    """The error for example inputs that the model itself does not accept."""
    shapes = ", ".join(
        f"{name}={'x'.join(map(str, tensor.shape))}:{str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in zip(names, tensors_in(inputs), strict=True)
    )
    where = failing_line(error)
    return TraceError(
        f"{type(model).__name__} rejects the example inputs {shapes or 'given'} "
        f"({error_line(error)}{f', at {where}' if where else ''}), wanted "
        "inputs that its forward accepts; correct their shapes and dtypes"
    )
