"""A unit whose weights and gradients come by formulas: nothing is recorded for autograd.

It keeps the values that it made until the next refresh, where autograd keeps a product of the same
size until the pull: whoever asks whether the weights still hold them compares, which takes a
fraction of what a checksum takes. So a step's peak is higher by the weights' own size; it is not
where nothing is to be kept (recompute).
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph

from opdf_compile.parametrizations import Scaled
from opdf_compile.training.hoisted.binding import Bound
from opdf_compile.training.hoisted.recomputing import as_they_are
from opdf_compile.training.hoisted.unit import Unit, Way


class FormulaUnit(Unit):
    """Gains around a matrix, or a batch of such; see Unit for the arguments."""

    _room: Tensor | None = None
    _gains: tuple[Tensor, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without what is made again or looked up again."""
        own = ("_room", "_gains", "_by", "_tensors")
        return {key: value for key, value in super().__getstate__().items() if key not in own}

    def forget(self) -> None:
        """Let go of what is kept."""
        super().forget()
        self._room = self._gains = None

    def kept(self) -> dict[str, Tensor]:
        """The values that the last refresh gave."""
        if self._room is None:
            return {}
        return dict(zip(self.keys, self._room.unbind(0), strict=True))

    def refresh(self, *, keep: bool) -> dict[str, Tensor]:
        """Make the weights, by name; `keep` keeps their values."""
        if self.compiled_with is not None:
            return super().refresh(keep=keep)
        self._require_devices()
        first = self.storage[0]
        room, shape = self._room, (len(self.keys), *self.weights[0].entry.spec.shape)
        with as_they_are(first.device.type), torch.no_grad():
            if room is None or room.device != first.device:
                room = torch.empty(shape, dtype=first.dtype, device=first.device)
            gains = self._by.gains(self._tensors)
            self._by.make(gains, self._tensors[2], room if self.batched else room[0])
        self.settle()
        self._gains = gains if keep else None
        # A checksum is cheap elsewhere, and memory is not.
        self._room = room if keep and first.device.type == "cpu" else None
        return dict(zip(self.keys, room.unbind(0), strict=True))

    def pull(self, taken: MutableMapping[str, Tensor | None], way: Way) -> tuple[str, ...]:
        """Add the weights' gradients, sent back, to those of the cores; see `Unit.pull`."""
        if self.compiled_with is not None or self._hooked():
            return super().pull(taken, way)
        self._require_devices()
        grads = [taken.pop(key) for key in self.keys]
        pulled = tuple(k for k, grad in zip(self.keys, grads, strict=True) if grad is not None)
        if pulled:
            with as_they_are(self.storage[0].device.type), torch.no_grad():
                self._add(grads)
        return pulled

    def _add(self, grads: list[Tensor | None]) -> None:
        self._dtypes = (self.storage[0].dtype,)
        (gradient,) = self._sent(grads)
        assert gradient is not None
        gains = None if self.moved else self._gains
        gains = gains or self._by.gains(self._tensors)
        made = self._by.pull(gains, self._tensors[2], gradient.to(self.storage[0].dtype))
        for core, grad in zip(self._tensors, made, strict=False):
            if not core.requires_grad:
                continue
            if core.grad is None:
                core.grad = grad
            else:
                core.grad.add_(grad)

    @cached_property
    def _by(self) -> Scaled[Any]:
        by = self.weights[0].entry.by
        assert isinstance(by, Scaled)
        return by

    @cached_property
    def _tensors(self) -> list[nn.Parameter]:
        """The cores in the order of the parametrization; they lie as it takes them."""
        names = self.members[0]
        return [self.storage[names.index(name)] for name in self.weights[0].entry.core_names]

    def _hooked(self) -> bool:
        """Whether somebody waits for autograd to come to a core."""
        return any(c._backward_hooks or c._post_accumulate_grad_hooks for c in self.storage)


def unit_of(
    graph: Graph,
    members: tuple[tuple[str, ...], ...],
    storage: Sequence[nn.Parameter],
    weights: tuple[Bound, ...],
    *,
    batched: bool,
    shapes: Sequence[torch.Size] | None = None,
) -> Unit:
    """A unit of these parts, by formulas where its parametrization has some; see Unit."""
    entry = weights[0].entry
    alone = batched or len(weights) == 1
    formulas = alone and isinstance(entry.by, Scaled) and len(storage) == len(entry.core_names)
    made: type[Unit] = FormulaUnit if formulas else Unit
    return made(graph, members, storage, weights, batched=batched, shapes=shapes)
