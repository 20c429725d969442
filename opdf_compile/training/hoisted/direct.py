"""Planned weights that hold no cores, and what their methods do around a step of an optimizer.

    take       before the step, gradients at hand    W.grad <- multiplied(W.grad),  snapshots
    give back  after it                              W.grad is again what it was
    finish     then                                  W <- after(W)        several W of one kind

The optimizer holds the weights themselves. A step that has several evaluations takes once for each
gradient, and snapshots once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from opdf_compile.errors import InputError, WeightsChanged
from opdf_compile.parametrizations import MetricParametrization, MetricStep, Scaling
from opdf_compile.planning import PlanEntry
from opdf_compile.training.hoisted.binding import Bound

# Entries of the weights that a method moves together: with their copies they fit a cache.
_TOGETHER = 2**18


class Direct:
    """One weight that the optimizer steps itself.

    Attributes:
        bound: Where it is.
        kept: What its method keeps, by name.
    """

    def __init__(self, bound: Bound, kept: Sequence[Tensor]) -> None:
        """Keep the parts."""
        self.bound = bound
        self.kept = dict(zip(bound.entry.core_names, kept, strict=True))

    @property
    def key(self) -> str:
        """Name of the weight."""
        return self.bound.key

    @property
    def entry(self) -> PlanEntry:
        """The decision for it."""
        return self.bound.entry

    @property
    def by(self) -> MetricParametrization[Any]:
        """Its method."""
        method = self.entry.by
        assert isinstance(method, MetricParametrization)
        return method

    @property
    def parameter(self) -> nn.Parameter:
        """The weight as the student holds it now."""
        return self.bound.parameter

    def tensors(self) -> tuple[Tensor, ...]:
        """What is kept, in order, where the weight is."""
        device = self.bound.device
        for name, tensor in self.kept.items():
            if tensor.device != device:
                self.kept[name] = tensor.to(device)
        return tuple(self.kept.values())


def strays(directs: Iterable[Direct]) -> tuple[str, ...]:
    """Names of the weights that something else has changed beyond what their methods bear."""
    kinds = defaultdict(list)
    for direct in directs:
        kinds[direct.by, direct.parameter.dtype, direct.bound.device].append(direct)
    keys: list[str] = []
    found: list[Tensor] = []
    for (by, _dtype, _device), alike in kinds.items():
        weights = [direct.parameter.detach() for direct in alike]
        answers = by.strayed(weights, [direct.tensors() for direct in alike])
        if answers is not None:
            keys.extend(direct.key for direct in alike)
            found.append(answers)
    if not found:
        return ()
    # One synchronisation for all.
    first = found[0].device
    return tuple(compress(keys, torch.cat([answers.to(first) for answers in found]).tolist()))


class DirectStep:
    """One step of an optimizer over weights that hold no cores."""

    def __init__(self, directs: Iterable[Direct], optimizer: Optimizer, scaling: Scaling) -> None:
        """Find the weights that the optimizer holds; nothing moves."""
        mine = tuple(directs)
        holding = optimizer.param_groups if mine else ()
        groups = {id(p): group for group in holding for p in group["params"]}
        self._held = [(d, groups[id(d.parameter)]) for d in mine if id(d.parameter) in groups]
        self._name = type(optimizer).__name__
        self._scaling = scaling
        self._steps: dict[str, MetricStep[Any]] = {}
        # By weight: its gradient, what the optimizer has in its place, and that one's count.
        self._lent: dict[str, tuple[nn.Parameter, Tensor, Tensor, int]] = {}

    def moving(self) -> list[Direct]:
        """The weights that have a gradient."""
        return [direct for direct, _group in self._held if direct.parameter.grad is not None]

    def require_own(self) -> None:
        """Refuse to step weights that something else has changed.

        Raises:
            WeightsChanged: A norm that is held is another one.
        """
        odd = strays(self.moving())
        if odd:
            raise WeightsChanged(
                f"{len(odd)} weights have another norm than the one that is held (a checkpoint was "
                "loaded, or another optimizer stepped them). Keep them: absorb(). "
                f"Changed: {', '.join(odd[:3])}{', ..' if len(odd) > 3 else ''}."
            )

    def take(self) -> None:
        """Look at the gradients, and lend the optimizer others where a method multiplies them."""
        for direct, group in self._held:
            weight = direct.parameter
            if weight.grad is None:
                continue
            gradient = weight.grad.to_dense() if weight.grad.is_sparse else weight.grad
            step = self._steps.get(direct.key)
            if step is None:
                step = self._steps[direct.key] = self._first(direct, group, gradient)
            step.gradient = gradient.detach()
            given = direct.by.multiplied(gradient, direct.entry.spec, self._scaling)
            given = gradient if given is None else given
            if given is not weight.grad:
                self._lent[direct.key] = (weight, weight.grad, given, given._version)
                weight.grad = given

    def _first(self, direct: Direct, group: dict[str, Any], gradient: Tensor) -> MetricStep[Any]:
        weight, spec, rate = direct.parameter.detach(), direct.entry.spec, group.get("lr")
        if rate is None and direct.by.reads_rate:
            raise InputError(
                f"{direct.by.name} takes its step from the group's learning rate, and that of "
                f"{direct.key!r} is None in {self._name}, wanted a number; give lr"
            )
        return MetricStep(
            weight=weight,
            gradient=gradient.detach(),
            spec=spec,
            kept=direct.tensors(),
            rate=None if rate is None else float(rate),
            ascends=bool(group.get("maximize", False)),
            scaling=self._scaling,
            before=direct.by.snapshot(weight, spec, self._scaling),
        )

    def give_back(self) -> None:
        """Put the gradients back, but where the optimizer has cleared what it was lent."""
        for weight, own, lent, count in self._lent.values():
            if weight.grad is lent and (lent._version == count or bool(lent.any())):
                weight.grad = own
        self._lent.clear()

    def finish(self) -> None:
        """Move the weights as their methods do."""
        kinds = defaultdict(list)
        for direct, _group in self._held:
            step = self._steps.pop(direct.key, None)
            if step is not None:
                where = step.weight.dtype, step.weight.device
                kinds[direct.by, where, step.rate, step.ascends].append(step)
        for (by, *_kind), steps in kinds.items():
            for some in _together(steps):
                by.after(some)


def _together(steps: Iterable[MetricStep[Any]]) -> Iterator[list[MetricStep[Any]]]:
    """Steps in their order, in lists that are short where weights are large."""
    some: list[MetricStep[Any]] = []
    entries = 0
    for step in steps:
        entries += step.weight.numel()
        if some and entries > _TOGETHER:
            yield some
            some, entries = [], step.weight.numel()
        some.append(step)
    if some:
        yield some
