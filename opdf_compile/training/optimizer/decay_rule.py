"""What weight decay an optimizer class makes, measured on throwaway instances.

With p the parameter, g its gradient, w the weight decay, the first step that moves p:

    (step(p, g, w) - step(p, g, 0)) / (w p) = -eta    for every entry and every g: decoupled

    RATE    eta = lr, or no such eta and steps as large as lr     W <- (1 - lr w) W, by Overparam
    OWN     another eta, or a copy of p among the state           each core by its share of w, by
                                                                  the class itself
    NONE    no such eta, and lr is no step size                   refused

Optimizers that find their step size run at lr = 1 and decay by d lr w with d from 1e-6: 1 - lr w
would make the weights vanish. Those that keep a copy of the parameters, and step between the two,
must decay the copy along. With w s_k on core k, sum s_k = 1, they take W to (1 - eta w) W up to
(eta w)^2.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from opdf_compile.errors import InputError
from opdf_compile.training.optimizer.arguments import ELEMENTWISE, Maker, class_of
from opdf_compile.training.optimizer.groups import Group
from opdf_compile.training.optimizer.probing import Probe
from opdf_compile.training.optimizer.trials import after_steps, kinds_of, trial_group

# Powers of two: what is measured is exact where the class computes in single precision.
_RATE, _DECAY = 2.0**-4, 2.0**-2
# Single precision leaves five digits of a difference of 2^-6; eta of another rule is far away.
_CLOSE = 1e-3
# First steps are about lr, or lr g, where lr is a step size (Adadelta's is 3e-3 of it), and 1e-6 lr
# where it is a factor of one that is still to be found.
_NO_STEP = 1e-4
# Where decay is a part of the gradient, what it does depends on the gradient's sign and size.
_SLOPES = (1.0, -4.0)
# Steps until the first that moves: warm-ups and classes that fill their state first take a few.
_PATIENCE = 8


class DecayRule(enum.Enum):
    """Who decays W, and by what."""

    RATE = "1 - lr w"
    OWN = "as the class does it"
    NONE = "refused"


def require_rule(rule: DecayRule, name: str) -> None:
    """Refuse decay of W where nothing says how strong it is.

    Raises:
        InputError: With the ways out.
    """
    if rule is DecayRule.NONE:
        raise InputError(
            f"weight_decay is not 0, and in {name} it is a part of the gradient while lr is no "
            "step size, so that 1 - lr weight_decay would make the weights vanish, wanted decay "
            "apart from the gradient; switch that on where it has the option (decouple), or give "
            "decay='cores', which leaves decay to it, or weight_decay=0"
        )


def decay_rule_of(
    make: Maker, options: Mapping[str, Any], groups: Sequence[Group], probed: Probe
) -> DecayRule:
    """The rule of a class; RATE where it cannot be tried out."""
    if class_of(make) in ELEMENTWISE:
        return DecayRule.RATE
    places = {k for k in kinds_of(probed.groups) if "weight_decay" in probed.groups[k]}
    rules = {_rule(_Trial(make, options, groups, probed, place)) for place in places}
    # A layout has one rule; the strictest that any group needs.
    return next((rule for rule in (DecayRule.NONE, DecayRule.OWN) if rule in rules), DecayRule.RATE)


@dataclass(frozen=True, eq=False)
class _Stepped:
    """A parameter after a step, and what is kept of it."""

    value: Tensor
    kept: dict[Any, Any]


@dataclass(frozen=True, eq=False)
class _Trial:
    """One group tried with weight decays and gradients of its own."""

    make: Maker
    options: Mapping[str, Any]
    groups: Sequence[Group]
    probed: Probe
    place: int
    start: Tensor = field(
        default_factory=lambda: torch.linspace(0.5, 2.0, 24, dtype=torch.float64).view(6, 4)
    )

    def steps(self, decay: float, slope: float, count: int = 1) -> _Stepped | None:
        """Some steps from `start`; None if the class fails."""
        groups = [self._group(place, decay) for place in range(len(self.groups))]
        slopes = slope * torch.linspace(1.0, 3.0, self.start.numel(), dtype=self.start.dtype)

        def gradient(_step: int, place: int, _p: Tensor) -> Tensor | None:
            return slopes.clone() if place == self.place else None

        made = after_steps(self.make, self.options, groups, gradient, count)
        if made is None:
            return None
        (tried,) = made.param_groups[self.place]["params"]
        return _Stepped(tried.detach(), dict(made.state.get(tried, {})))

    def _group(self, place: int, decay: float) -> Group:
        group = trial_group(self.groups[place], [nn.Parameter(self.start.clone())])
        if self.probed.groups[place].get("lr") is not None:
            group["lr"] = _RATE
        if place == self.place:
            group["weight_decay"] = decay
        return group


def _rule(trial: _Trial) -> DecayRule:
    # A copy of the parameter is told by its values, while neither moves: no decay, no gradient.
    still = trial.steps(0.0, 0.0)
    if still is not None and any(shadows(value, trial.start) for value in still.kept.values()):
        return DecayRule.OWN
    count = _first_that_moves(trial)
    decayed = [trial.steps(_DECAY, slope, count) for slope in _SLOPES]
    bare = [trial.steps(0.0, slope, count) for slope in _SLOPES]
    if not count or None in decayed or None in bare:
        return DecayRule.RATE
    without = torch.stack([found.value for found in bare if found is not None])
    within = torch.stack([found.value for found in decayed if found is not None])
    # The same gradients with and without decay: what is left of the difference is decay alone.
    etas = (without - within) / (_DECAY * trial.start)
    eta = float(etas.mean())
    if eta and float((etas - eta).abs().max()) <= _CLOSE * abs(eta):
        return DecayRule.RATE if abs(eta - _RATE) <= _CLOSE * _RATE else DecayRule.OWN
    moved = float((without - trial.start).abs().max())
    return DecayRule.NONE if moved < _NO_STEP * _RATE else DecayRule.RATE


def _first_that_moves(trial: _Trial) -> int:
    """How many steps it takes: in the first one some only fill their state. 0 if none does."""
    for count in range(1, _PATIENCE + 1):
        found = trial.steps(0.0, _SLOPES[0], count)
        if found is not None and not torch.equal(found.value, trial.start):
            return count
    return 0


def shadows(value: Any, start: Tensor) -> bool:
    """Whether a value that is kept is a copy of the parameter."""
    if type(value) is not Tensor or value.shape != start.shape:
        return False
    return torch.allclose(value.to(start), start)
