"""Compose without keeping its intermediate products: the backward makes them again, and only them.

    T_1, .., T_n  ->  products P_1, .., P_m, the last of which is the weight

The gradient of a product needs its factors and not its result. So of P_1, .., P_m the backward asks
for all but the last, which is the largest of a chain: with 2 cores nothing is made twice, with 3
only D^3 of the D^3 + D N multiply-adds (D the bond, N the weight's entries).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from opdf_compile.errors import InternalError

_Compose = Callable[..., Sequence[Tensor]]


def as_they_are(device: str) -> AbstractContextManager[object]:
    """Outside the caller's autocast and inference mode.

    In half precision the weight would lose 1e-3; inference mode would leave nothing to pull
    gradients through.
    """
    if not (torch.is_autocast_enabled(device) or torch.is_inference_mode_enabled()):
        return nullcontext()  # Entering either costs as much as a small product.
    outside = ExitStack()
    outside.enter_context(torch.autocast(device, enabled=False))
    outside.enter_context(torch.inference_mode(False))
    return outside


def keeping_nothing(compose: _Compose, cores: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], bool]:
    """What `compose` makes of the cores, for one backward, before which the cores must not change.

    torch.utils.checkpoint would do so, too. Here there is nothing to put back (random numbers, an
    autocast), and a compose that was compiled is run as compiled the second time, too.

    Returns:
        The results, and whether the backward will make anything again.
    """
    there = {_place(core) for core in cores}
    count = 0
    again: dict[int, Tensor] = {}

    def numbered(saved: Tensor) -> Tensor | int:
        nonlocal count
        if _place(saved) in there:
            return saved
        count += 1
        return count - 1

    def made_again(kept: Tensor | int) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if not again:
            again.update(enumerate(_first_saved(compose, cores, there, count)))
        return again.pop(kept)

    with saved_tensors_hooks(numbered, made_again):
        return tuple(compose(*cores)), count > 0


def _place(tensor: Tensor) -> int:
    """Where a tensor's memory is: views of one have it in common."""
    return tensor.untyped_storage().data_ptr()


class _EnoughError(Exception):
    """All tensors that are wanted were made."""


def _first_saved(
    compose: _Compose, cores: Sequence[Tensor], there: Container[int], count: int
) -> list[Tensor]:
    """The first so many tensors that autograd saves of a compose; what is left of it is not run."""
    saved: list[Tensor] = []

    def take(tensor: Tensor) -> Tensor:
        if _place(tensor) not in there:
            saved.append(tensor.detach())
        # An op's factors are saved before it runs.
        if len(saved) == count:
            raise _EnoughError
        return tensor

    hooks = saved_tensors_hooks(take, lambda tensor: tensor)
    try:
        with as_they_are(cores[0].device.type), torch.enable_grad(), hooks:
            compose(*cores)
    except _EnoughError:
        return saved
    raise InternalError(f"a compose saved {count} tensors, and {len(saved)} the second time")
