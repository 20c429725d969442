"""One step of an Overparam, from the gradients of W to its new values.

    pull dL/dW to the cores  ->  decay  ->  wrapped optimizer  ->  retract  ->  W <- compose(cores)

A weight whose method holds no cores is stepped itself, between `take` and `finish` of a DirectStep.
Under a closure the gradients come while the wrapped optimizer is at work, and it may ask for them
more than once, each time at other cores. If it fails, the step leaves what a plain optimizer would:
what had not moved yet is as before, decay included, and W is the weight of its cores. (Where cores
were moved through `.data`, which no count tells, W follows with the next step.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from opdf_compile.errors import InputError
from opdf_compile.training.hoisted.binding import reshard
from opdf_compile.training.hoisted.direct import DirectStep
from opdf_compile.training.optimizer.decay import decay, decay_direct
from opdf_compile.training.optimizer.followed import Followed
from opdf_compile.training.optimizer.fused import fused
from opdf_compile.training.optimizer.unbatching import uneven


class CoreStep:
    """One step under way.

    Args:
        optimizer: Whose step it is.
        decay_factor: What decay takes a weight times, by its name.
        early: Whether the wrapped optimizer uses the gradients that are there, or moves parameters,
            before it calls the closure.
    """

    def __init__(
        self, optimizer: Followed, decay_factor: Callable[[str], float], *, early: bool
    ) -> None:
        """Look at the weights; nothing moves."""
        self._optimizer = optimizer
        self._decay_factor = decay_factor
        self._program = optimizer.program
        self._early = early
        scaling = optimizer.facts.scaling
        self._direct = DirectStep(optimizer.program.direct, optimizer.inner, scaling)
        # Of a weight without a gradient the cores do not move, and it keeps its very bits.
        self._pulled: set[str] = set()
        self._kernels = contextlib.ExitStack()
        self._undo: list[Callable[[], object]] = []
        self._decayed = False
        self._evaluations = 0
        self._versions: dict[int, int] = {}
        self._with_graph = False
        # What something else has changed is no matter to a step without any gradient, such as those
        # that bring statistics up to date after weights were averaged. Under a closure gradients
        # that are there may be old ones, which it clears: it is called first.
        # Nor is it what no param group holds: somebody else may step that.
        self._held = frozenset(optimizer.held())
        self._changed = tuple(key for key in self._program.changed() if key in self._held)

    def run(self, closure: Callable[[], Any] | None) -> Any:
        """Take the step; returns the loss.

        Raises:
            WeightsChanged: Something else changed the weights, and there are gradients of some.
            InputError: The wrapped optimizer wants gradients that have a graph.
        """
        inner = self._optimizer.inner
        try:
            with self._kernels:
                if closure is None or self._early:
                    self._pull()
                loss = inner.step() if closure is None else inner.step(self._evaluation(closure))
        except _NothingToDo as nothing:
            return nothing.loss
        except BaseException as error:
            self._fail()
            if self._with_graph and isinstance(error, RuntimeError):
                raise InputError(_without_graph(type(inner).__name__, error)) from error
            raise
        self._direct.give_back()
        self._drop_gradients()
        self._retract()
        self._direct.finish()
        self._write()
        return loss

    def _require_unchanged(self) -> None:
        if not self._changed:
            return
        weights = zip(self._program.entries, self._optimizer.matched(), strict=True)
        pulls = any(w.grad is not None for entry, w in weights if entry.key in self._held)
        if pulls or self._program.cast(self._changed):
            self._program.refuse(self._changed)

    def _pull(self) -> None:
        """Gradients of the cores from those of the weights, which keep them until zero_grad.

        As under any optimizer: whoever reads gradients after the step finds them, and whoever
        clears them through the module (Trainer does) has cleared all there is.
        """
        optimizer, program = self._optimizer, self._program
        reshard(program.module)
        self._require_unchanged()
        if not self._decayed:
            self._direct.require_own()
        self._drop_gradients()
        for unit in [unit for unit in program.units if uneven(unit)]:
            optimizer.take_apart(unit)
        kept = [(weight, weight.grad) for weight in optimizer.matched()]
        for entry, (weight, grad) in zip(program.entries, kept, strict=True):
            if entry.key not in self._held:
                weight.grad = None
            elif grad is not None and grad.is_sparse:
                weight.grad = grad.to_dense()  # Of a tied embedding that alone was used.
            self._with_graph |= grad is not None and grad.requires_grad
        try:
            found = frozenset(program.backward())
        finally:
            for weight, grad in kept:
                weight.grad = grad
        if optimizer.alignment is not None:
            optimizer.alignment.add_gradients(program)
        cores = [core for unit in program.units for core in unit.storage if core.grad is not None]
        self._versions = {id(core): core.grad._version for core in cores}  # type: ignore[union-attr]
        self._decay(found)
        self._pulled.update(found)
        self._direct.take()
        planned = {id(core) for unit in program.units for core in unit.storage}
        planned |= {id(direct.parameter) for direct in program.direct}
        self._kernels.enter_context(fused(optimizer.inner, planned))

    def _decay(self, found: frozenset[str]) -> None:
        """Once in a step, however often it evaluates."""
        moving = self._direct.moving()
        if self._decayed or not (found or moving):
            return
        self._decayed = True
        undos = [
            *(decay(u, self._decay_factor(u.keys[0]), found) for u in self._program.units),
            *(decay_direct(direct, self._decay_factor(direct.key)) for direct in moving),
        ]
        self._undo.extend(undo for undo in undos if undo is not None)

    def _evaluation(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def evaluate() -> Any:
            self._kernels.close()
            if self._evaluations or self._early or self._moved():
                self._clear_as_inner()
                self._write()
            self._direct.give_back()
            before = self._gradients() if self._changed else []
            with torch.enable_grad():
                loss = closure()
            if before and not self._evaluations and _same(before, self._gradients()):
                raise _NothingToDo(loss)
            self._evaluations += 1
            self._pull()
            return loss

        return evaluate

    def _gradients(self) -> list[tuple[Tensor | None, int]]:
        """The gradients that are there; held, or a new one might get the place of a freed one."""
        grads = [weight.grad for weight in self._optimizer.matched()]
        return [(grad, 0 if grad is None else grad._version) for grad in grads]

    def _clear_as_inner(self) -> None:
        """Clear the gradients of weights where the wrapped optimizer has cleared those of cores.

        Some do between two evaluations, so that their users need not.
        """
        cleared = {
            key
            for unit in self._program.units
            if not self._pulled.isdisjoint(unit.keys) and all(map(self._is_cleared, unit.storage))
            for key in unit.keys
        }
        entries = self._program.entries
        for entry, weight in zip(entries, self._optimizer.matched(), strict=True):
            if entry.key in cleared:
                weight.grad = None

    def _is_cleared(self, core: Tensor) -> bool:
        if core.grad is None:
            return True
        return core.grad._version != self._versions.get(id(core)) and not core.grad.any()

    def _write(self) -> None:
        """Compose the weights whose cores have a gradient, and those whose cores moved without."""
        keys = self._pulled | self._moved()
        if self._changed and keys:
            self._program.refuse(self._changed)
        if not self._changed:
            self._program.write(keys)

    def _retract(self) -> None:
        """Once in a step: what it evaluates in between are points of the wrapped optimizer's own.

        Of a class that writes to cores by ways that do not count, those with a gradient moved.
        """
        if self._changed:
            return
        moved = self._pulled | self._moved()
        units = [unit for unit in self._program.units if not moved.isdisjoint(unit.keys)]
        self._program.retract(units)

    def _moved(self) -> set[str]:
        return {key for unit in self._program.units if unit.moved for key in unit.keys}

    def _drop_gradients(self) -> None:
        for unit in self._program.units:
            for core in unit.storage:
                core.grad = None

    def _fail(self) -> None:
        for undo in self._undo:
            undo()
        self._direct.give_back()
        self._drop_gradients()
        moved = self._moved()
        # Ranks that share the program send together, and the others know of no failure.
        if moved and not self._changed and self._program.process_group is None:
            self._program.write(moved)


def _same(before: list[tuple[Tensor | None, int]], after: list[tuple[Tensor | None, int]]) -> bool:
    """Whether nobody made a gradient in between, or wrote to one."""
    return all(
        old is new and writes == now
        for (old, writes), (new, now) in zip(before, after, strict=True)
    )


class _NothingToDo(Exception):
    """A closure made no gradient, and what is left of an earlier one is for other weights."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss


def _without_graph(name: str, error: RuntimeError) -> str:
    return (
        f"{name} stopped ({error}), and the gradients of the weights have a graph (create_graph): "
        "if it differentiates gradients once more, found cores, whose gradients have no graph; "
        "wanted an optimizer of first order, such as torch.optim.AdamW"
    )
