"""Trials of an optimizer class: throwaway instances that leave no trace.

What a class says to options, to shapes, to groups or to gradients that are there is found out by
trying, in `probing`, `decay_rule`, `by_group` and `early`.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from opdf_compile.graph import class_as_before
from opdf_compile.training.optimizer.arguments import Maker, class_of, needs_closure
from opdf_compile.training.optimizer.groups import Group, options_of
from opdf_compile.training.optimizer.switching import switch
from opdf_compile.training.optimizer.weight_state import equal, own

# Of a trial at a rate of 0.
_RATE = 2.0**-4
# What trainers give to each group of its own; no class goes another way for it.
_NO_KIND = ("lr", "initial_lr", "lr_scale", "weight_decay", "name")


@contextlib.contextmanager
def trying(make: Maker, devices: Collection[torch.device] = ()) -> Iterator[None]:
    """Around a trial: no random number is used up, nothing is compiled and nothing is printed.

    What the class counts or caches in itself, and not in its instances, is put back: the real
    optimizer must find it as the plain one would.
    """
    kind = class_of(make)
    # Eager, because a class may compile its step: for one trial that takes longer than all of them.
    with (
        class_as_before(kind) if isinstance(kind, type) else contextlib.nullcontext(),
        torch.random.fork_rng(devices=[d for d in devices if d.type == "cuda"]),
        torch.compiler.set_stance("force_eager"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


def after_steps(
    make: Maker,
    options: Mapping[str, Any],
    groups: list[Group],
    slope: Callable[[int, int, Tensor], Tensor | None],
    count: int,
) -> Optimizer | None:
    """A throwaway instance after some steps in its training mode; None if the class fails.

    `slope` gives the gradient's entries by step, place of the parameter, and parameter.
    """

    # Both before a step and inside it: some classes call the closure, others take what is there.
    def evaluate(parameters: list[Tensor], step: int) -> Tensor:
        for place, p in enumerate(parameters):
            gradient = slope(step, place, p)
            p.grad = None if gradient is None else gradient.to(p.dtype).view_as(p)
        return torch.tensor(1.0)

    with trying(make):
        try:
            made = make(groups, **owned_options(options))
            parameters = [p for group in made.param_groups for p in group["params"]]
            switch(made, "train")
            for step in range(count):
                closure = functools.partial(evaluate, parameters, step)
                closure()
                made.step(*((closure,) if needs_closure(made) else ()))
        except Exception:
            return None
    return made


def moving(group: Group, known: Group) -> Group:
    """A group to try steps with: at a rate of 0, as in a warm-up, none would show a thing."""
    return {**group, "lr": _RATE} if known.get("lr") == 0 else group


def kinds_of(groups: Sequence[Group]) -> list[int]:
    """For each group the place of the first of its kind.

    A hundred that differ in their rates only need one trial.
    """
    kinds = [{k: v for k, v in options_of(g).items() if k not in _NO_KIND} for g in groups]
    firsts: list[int] = []
    found: list[int] = []
    for place, kind in enumerate(kinds):
        first = next((k for k in firsts if equal(kinds[k], kind)), place)
        if first == place:
            firsts.append(place)
        found.append(first)
    return found


def trial_group(group: Group, params: list[nn.Parameter]) -> Group:
    """The options of a group over parameters that are there for one trial."""
    return {**owned_options(options_of(group)), "params": params}


def entries_after(
    make: Maker,
    options: Mapping[str, Any],
    groups: list[Group],
    slope: Callable[[int, int, Tensor], Tensor | None],
    count: int,
) -> Tensor | None:
    """All entries of the parameters after some steps; None if the class fails."""
    made = after_steps(make, options, groups, slope, count)
    if made is None:
        return None
    return torch.cat([p.detach().flatten() for group in made.param_groups for p in group["params"]])


def owned_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in memory of their own: a class may write into a rate that is a tensor."""
    return {
        key: own(value) if isinstance(value, Tensor) else value for key, value in options.items()
    }
