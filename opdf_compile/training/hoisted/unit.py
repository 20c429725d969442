"""A unit: one part of a weight program at work, or several of one form as a batch.

    refresh   W <- compose(T_1..T_n)         the graph that autograd needs is kept, the values go
    pull      dL/dT_k += (dW/dT_k)^T dL/dW   through that graph, once; dL/dW is consumed

Between the two lives what autograd saved: the intermediate products. With `recompute` they are
made again in the pull, see `recomputing`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.fx import Graph, GraphModule

from opdf_compile.errors import DeviceError
from opdf_compile.parametrizations import ScalingTerm
from opdf_compile.planning import PlanEntry
from opdf_compile.training.hoisted.binding import Bound
from opdf_compile.training.hoisted.recomputing import as_they_are, keeping_nothing

# Names of the cores of one member, in the order of the graph's placeholders.
_CoreNames = tuple[str, ...]

# Entries of gradients that one call of autograd takes back: a call costs what a small product does.
_AT_ONCE = 2**20


class Way:
    """Gradients on their way back from weights to cores, some at a time."""

    def __init__(self) -> None:
        """Nothing is under way."""
        self._pairs: list[tuple[GradientEdge, Tensor]] = []
        self._entries = 0

    def add(self, edge: GradientEdge, grad: Tensor) -> None:
        """Take a weight's gradient along."""
        self._pairs.append((edge, grad))
        self._entries += grad.numel()

    def go(self, *, full: bool = False) -> None:
        """Bring those under way to their cores; where `full`, only if they are many by now."""
        if self._pairs and not (full and self._entries < _AT_ONCE):
            edges, grads = zip(*self._pairs, strict=True)
            self._pairs, self._entries = [], 0
            torch.autograd.backward(edges, grads)


class Unit:
    """Cores, and the weights that they make.

    Args:
        graph: (core, ..) -> (weight, ..); a batch takes stacked cores and returns one stack.
        members: For each member of a batch the names of its cores; one entry where `graph` is none.
        storage: The cores in the order of the placeholders, stacked along axis 0 in a batch.
        weights: What the graph's outputs, or the rows of its one output, are written to.
        batched: Whether the graph is a batch.
        shapes: What the graph takes, where the storage lies otherwise (as matrices).

    Attributes:
        keys: Names of the weights.
        settled: What the cores' counts of writes were when the weights were made of them.
    """

    def __init__(
        self,
        graph: Graph,
        members: tuple[_CoreNames, ...],
        storage: Sequence[nn.Parameter],
        weights: tuple[Bound, ...],
        *,
        batched: bool,
        shapes: Sequence[torch.Size] | None = None,
    ) -> None:
        """Keep the parts; nothing runs."""
        self.members = members
        self.storage = tuple(storage)
        self.shapes = tuple(shapes or (core.shape for core in storage))
        self.weights = weights
        self.keys = tuple(bound.key for bound in weights)
        self.batched = batched
        self.compiled_with: dict[str, Any] | None = None
        self._call: nn.Module = GraphModule(nn.Module(), graph)
        self._edges: tuple[GradientEdge | None, ...] | None = None
        self._kept = True
        self._dtypes: tuple[torch.dtype, ...] = ()
        self._versions: tuple[int, ...] = ()
        self.settled = self._now()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the graph of the last refresh, which cannot be copied.

        The copy's next pull makes it again.
        """
        return {**self.__dict__, "_edges": None}

    def named_cores(self) -> dict[str, Tensor]:
        """Every core under its own name; the rows of a batch are views of its stack."""
        if not self.batched:
            return dict(zip(self.members[0], self._shaped(), strict=True))
        return {
            name: stack[row]
            for row, names in enumerate(self.members)
            for name, stack in zip(names, self.storage, strict=True)
        }

    def _shaped(self) -> list[Tensor]:
        """The cores as the graph takes them: themselves, or views of the matrices they lie in."""
        pairs = zip(self.storage, self.shapes, strict=True)
        return [core if core.shape == shape else core.view(shape) for core, shape in pairs]

    @property
    def trained(self) -> tuple[nn.Parameter, ...]:
        """The cores that an optimizer steps."""
        return tuple(core for core in self.storage if core.requires_grad)

    @cached_property
    def terms(self) -> tuple[ScalingTerm, ...]:
        """What scales its weights, see `Parametrization.terms`, by place in the storage."""
        entry, count = self.weights[0].entry, len(self.storage)
        if len(entry.core_names) != count:  # Several weights of shared cores.
            return (dict.fromkeys(range(count), 1 / count),)
        place = [self.members[0].index(name) for name in entry.core_names]
        return tuple({place[k]: share for k, share in term.items()} for term in entry.terms or ())

    def hold_still(self, names: Collection[str]) -> None:
        """Take these cores for untrained; names of other units are passed over."""
        for name, core in zip(self.members[0], self.storage, strict=True):
            if name in names:
                core.requires_grad_(False)

    @cached_property
    def retracts(self) -> bool:
        """Whether a step leaves cores where they must be brought back from."""
        return any(bound.entry.by.retracts for bound in self.weights)

    def by_weight(self) -> Iterator[tuple[PlanEntry, list[Tensor]]]:
        """Every weight's entry and its cores; those of a batch are views of its stack."""
        named = self.named_cores()
        for entry in (bound.entry for bound in self.weights):
            yield entry, [named[name] for name in entry.core_names]

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite cores by name; names of other units are passed over."""
        with torch.no_grad():
            for name, core in self.named_cores().items():
                if name in values:
                    core.copy_(values[name])
        self.settle()
        self.forget()

    def drop_grad(self, keys: Collection[str]) -> None:
        """Clear what the cores of these weights hold as gradients."""
        rows = [row for row, key in enumerate(self.keys) if key in keys]
        for core in self.storage:
            if core.grad is not None and rows:
                if len(rows) == len(self.keys):
                    core.grad = None
                else:
                    core.grad[rows] = 0.0

    @property
    def moved(self) -> bool:
        """Whether something wrote to the cores since the weights were made of them."""
        return self.settled != self._now()

    def settle(self) -> None:
        """Take the weights to be those of the cores as they are now."""
        self.settled = self._now()

    def forget(self) -> None:
        """Drop the graph of the last refresh, and with it the intermediate products."""
        self._edges = None

    def kept(self) -> dict[str, Tensor]:
        """Values that the last refresh gave and that are kept anyhow, by name of the weight."""
        return {}

    def compile(self, **options: Any) -> None:
        """Run compose through torch.compile from now on."""
        self._call = torch.compile(self._call, **options)  # type: ignore[assignment]
        self.compiled_with = options
        self.forget()

    def follow(self) -> None:
        """Bring the cores to the device of their weights, as `module.to(device)` brings these."""
        device = self.weights[0].device
        if self.storage[0].device == device:
            return
        for core in self.storage:
            core.data = core.data.to(device)
            core.grad = None
        self.forget()

    def refresh(self, *, keep: bool) -> dict[str, Tensor]:
        """Compose the weights, by name.

        `keep` keeps the intermediate products for the next pull, which else makes them again.
        """
        self.forget()
        self._require_devices()
        values = self._compose(keep=keep)
        self.settle()
        return {key: value.detach() for key, value in zip(self.keys, values, strict=True)}

    def pull(self, taken: MutableMapping[str, Tensor | None], way: Way) -> tuple[str, ...]:
        """Send the weights' gradients back, to be added to those of the cores.

        A weight of a batch that got no gradient counts as one with a zero gradient, unless none
        of the batch got any.

        Args:
            taken: Whole gradients by weight; those of this unit leave it, so that their memory
                is free soon after the unit's turn.
            way: Takes them along; some may be under way afterwards.

        Returns:
            Names of the weights that had a gradient.
        """
        self._require_devices()
        grads = [taken.pop(key) for key in self.keys]
        pulled = tuple(k for k, grad in zip(self.keys, grads, strict=True) if grad is not None)
        if not pulled:
            return ()
        anew = self._edges is None or self._versions != self._now()
        if anew:
            self._compose(keep=True)
        edges, self._edges = self._edges, None
        assert edges is not None
        for edge, dtype, grad in zip(edges, self._dtypes, self._sent(grads), strict=True):
            # A weight without an edge has frozen cores only.
            if edge is not None and grad is not None:
                way.add(edge, grad.to(dtype))
        # What is made again is let go before others are.
        way.go(full=self._kept and not anew)
        return pulled

    def _sent(self, grads: list[Tensor | None]) -> list[Tensor | None]:
        """Gradients of what the graph returns; of a batch that is one stack.

        Its rows cannot be sent one by one: each edge of an unbind lists all of them, which takes
        squares of their number.
        """
        if not self.batched:
            return grads
        (dtype,) = self._dtypes
        empty = next(grad for grad in grads if grad is not None)
        rows = [torch.zeros_like(empty) if grad is None else grad for grad in grads]
        return [torch.stack([row.to(dtype) for row in rows])]

    def _compose(self, *, keep: bool) -> tuple[Tensor, ...]:
        # Not by `__call__`: nobody can have hooks there.
        call = self._call.forward
        with as_they_are(self.storage[0].device.type), torch.enable_grad():
            cores = self._shaped()
            results, again = (tuple(call(*cores)), False) if keep else keeping_nothing(call, cores)
            edges = (get_gradient_edge(made) if made.requires_grad else None for made in results)
            self._edges = tuple(edges)
        self._kept = not again
        self._dtypes = tuple(made.dtype for made in results)
        self._versions = self._now()
        return tuple(results[0].detach().unbind(0)) if self.batched else results

    def _now(self) -> tuple[int, ...]:
        """Counts that move when an optimizer or a user writes to a core."""
        return tuple(core._version for core in self.storage)

    def _require_devices(self) -> None:
        wanted = self.storage[0].device
        for bound in self.weights:
            if bound.device != wanted:
                raise DeviceError(
                    f"the weight {bound.key!r} is on {bound.device}, its cores are on {wanted}; "
                    "move the student first and build the optimizer (or hoist) afterwards"
                )
