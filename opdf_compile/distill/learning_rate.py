"""`lr = "matched"`: the rate at which a step over-parameterised is as long as a plain one.

Let D(x) be the mean over a few steps of ||W_k - W_(k-1)||_F, over all planned weights together,
when the student is trained plainly at rate x, and D'(x) the same when the cores are stepped. Then

    factor = D'(lr) / D(lr)          matched:  D'(x) = D(lr)

For SGD and two balanced factors, A A^T = P and B^T B = Q, one step of gradient G = dL/dR(W) is

    dR(W) = -x (P G + G Q) + x^2 G R(W)^T G

so the factor depends on the spectrum of W, and D' is not linear in x: the rate is searched for, not
divided by the factor.

Why one batch, and a few steps. One step would do for plain SGD. With momentum a step grows over the
first few. Adam's first step is lr sign(gradient), whatever the gradients' sizes; from the second on
the moments see how the gradient changes where the weights went. What one batch cannot show is the
noise between batches; it shortens Adam's steps in both forms alike and about leaves their ratio.
Many steps on one batch would fit it, and measure nothing of the student's training.

Weight decay is left out: decay="weight" moves W in both forms alike, and would hide what the
gradients do. At the matched rate the same decay per step needs weight_decay * lr / matched.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from opdf_compile.distill.step_norm import Batch, BatchLoss, Trial, kept_randomness, plain_weights
from opdf_compile.errors import InputError
from opdf_compile.graph.sharing import deep_copy
from opdf_compile.plan.value import Plan
from opdf_compile.training.hoisted.binding import is_sharded, unwrap, validate
from opdf_compile.training.optimizer.arguments import name_of, needs_closure
from opdf_compile.training.optimizer.probing import defaults_of

logger = logging.getLogger("opdf_compile")

STEPS = 3
_MOST_TRIALS = 40
# The rate is looked for within this factor of the plain one, both ways.
_RANGE = 1e6


@dataclass(frozen=True)
class Matched:
    """What a calibration found.

    Attributes:
        lr: The rate for the over-parameterised student.
        factor: How much further its step moves the weights at the plain student's rate.
        plain_lr: The plain student's rate.
        plain_step: Mean Frobenius norm of the change of all planned weights in a plain step.
        step: The same over-parameterised, at `lr`.
        trials: How many rates were tried.
    """

    lr: float
    factor: float
    plain_lr: float
    plain_step: float
    step: float
    trials: int

    def __str__(self) -> str:
        return (
            f"lr {self.lr:.3g} in place of {self.plain_lr:.3g}: at the plain rate a step moves the "
            f"weights {self.factor:.3g} times as far (plain step {self.plain_step:.3g}, matched "
            f"{self.step:.3g}, {self.trials} trials)"
        )


def matched_rate(
    student: nn.Module,
    batch_loss: BatchLoss,
    plan: Plan,
    optimizer_class: Callable[..., Optimizer],
    lr: float,
    *,
    steps: int = STEPS,
    tolerance: float = 0.01,
    parameters: Callable[[nn.Module], Any] | None = None,
    **options: Any,
) -> Matched:
    """The rate at which a step over-parameterised moves the planned weights as far as a plain one.

    It trains a copy; the student, its gradients and the random number generators stay as they are.
    In several processes call it in one and send the result to the others.

    Args:
        student: What will be trained, in the mode in which it is.
        batch_loss: Of a module like the student the loss on one batch, the same batch each time. It
            must use the module that it is given.
        plan: What is over-parameterised.
        optimizer_class: What steps the weights, or the cores.
        lr: The rate of the plain student.
        steps: How many steps on the batch are averaged over.
        tolerance: Relative, of the matched step's norm.
        parameters: Of the copy its parameters or param groups; groups' own rates keep their ratios.
        **options: Of the optimizer. A weight decay is left out, see the top.

    Returns:
        The rate, and what was measured.

    Raises:
        InputError: An argument has the wrong form, the loss is not finite, no planned weight moves,
            or no rate has such a step.
        PlanError: The plan is for another module.

    Example:
        >>> import torch, opdf_compile as opdf
        >>> student, x = torch.nn.Linear(32, 32), torch.randn(8, 32)
        >>> plan = opdf.plan(student, cores=3)
        >>> def loss(module): return module(x).square().mean()
        >>> found = matched_rate(student, loss, plan, torch.optim.SGD, 0.1)
        >>> abs(found.step / found.plain_step - 1) <= 0.011
        True
    """
    module = _require(student, plan, lr, steps, tolerance)
    defaults = defaults_of(optimizer_class, {**options, "lr": lr})
    if "weight_decay" in defaults:
        options = {**options, "weight_decay": 0.0}
    model = deep_copy(module)
    given = parameters or (lambda m: list(m.parameters()))
    with kept_randomness() as rewind:
        batch = Batch(model, batch_loss, steps, rewind)
        plain = optimizer_class(_undecayed(given(model)), lr=lr, **options)
        if needs_closure(plain):
            raise InputError(
                f"{name_of(optimizer_class)} searches for its own step, wanted an optimizer that "
                "takes one step of rate lr; give it a rate of your own"
            )
        target = batch.step(plain, lambda: plain_weights(model, plan))
        _require_step(target, f"the plain student's step at lr {lr:g}")
        batch.rewind()
        trial = Trial(model, plan, optimizer_class, _undecayed(given(model)), lr, options)
        return _solved(lambda rate: trial(batch, rate), target, lr, tolerance)


def _require(student: nn.Module, plan: Plan, lr: float, steps: int, tolerance: float) -> nn.Module:
    module = unwrap(student)
    if not isinstance(plan, Plan) or not plan.entries:
        raise InputError("matched_rate needs a plan with weights; make one with opdf.plan(student)")
    validate(plan, module)
    if is_sharded(module.parameters()):
        raise InputError(
            "the student is sharded, and a copy of it would be sharded too; calibrate before "
            "fully_shard"
        )
    numbers = (("lr", lr), ("tolerance", tolerance))
    for name, value in numbers:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 < value < math.inf
        ):
            raise InputError(f"{name} is {value!r}, wanted a positive number")
    if type(steps) is not int or steps < 1:
        raise InputError(f"steps is {steps!r}, wanted a whole number from 1")
    return module


def _require_step(norm: float, what: str) -> None:
    if not math.isfinite(norm):
        raise InputError(f"{what} is not finite; lower lr, or look for NaN in the batch")
    if norm == 0:
        raise InputError(
            f"{what} moves no planned weight: batch_loss must use the module that it is given, and "
            "its loss must depend on a planned weight"
        )


def _undecayed(given: Any) -> Any:
    """Parameters or groups without weight decay."""
    decaying = "weight_decay"
    return [
        {**item, decaying: 0.0} if isinstance(item, dict) and decaying in item else item
        for item in given
    ]


def _solved(
    step_at: Callable[[float], float], target: float, lr: float, tolerance: float
) -> Matched:
    """Search in log rate and log norm, where a linear response is a straight line of slope one."""
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None
    place, factor = math.log(lr), math.nan
    for trial in range(1, _MOST_TRIALS + 1):
        step = step_at(math.exp(place))
        logger.info("lr %.4g: a step of %.4g, wanted %.4g", math.exp(place), step, target)
        if trial == 1:
            factor = step / target
            _require_moving(step)
        excess = (
            math.log(step / target) if 0 < step < math.inf else math.copysign(math.inf, step - 1)
        )
        if abs(excess) <= math.log1p(tolerance):
            return Matched(math.exp(place), factor, lr, target, step, trial)
        if excess < 0:
            low = (place, excess)
        else:
            high = (place, excess)
        place = _next(low, high)
        if abs(place - math.log(lr)) > math.log(_RANGE):
            break
    raise InputError(
        f"no rate within {_RANGE:g} times of lr {lr:g} moves the weights by {target:.3g} as a "
        "plain step does; choose the rate yourself"
    )


def _require_moving(step: float) -> None:
    if step == 0:
        raise InputError(
            "the over-parameterised student does not move: every core's gradient is zero; take "
            "another parametrization"
        )


def _next(low: tuple[float, float] | None, high: tuple[float, float] | None) -> float:
    """The log rate to try next."""
    if low is None or high is None:
        place, excess = low or high or (0.0, 0.0)
        # As if the response were linear, but no further than a hundredfold at once.
        return place - max(-math.log(100), min(math.log(100), excess))
    (left, below), (right, above) = low, high
    share = 0.5 if math.isinf(below) or math.isinf(above) else -below / (above - below)
    # Away from the ends, so that the bracket shrinks from both.
    return left + (right - left) * min(0.9, max(0.1, share))
