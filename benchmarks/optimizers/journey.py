"""One class through all checks: a row of outcomes and the verdict that follows from them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from opdf_compile.errors import OpdfError
from optimizers.catalogue import Offer
from optimizers.forms import Checkpointed, Cores, Form, Over, Run
from optimizers.oracle import distance, equal, misfit

MORE = 4
# How much further than its own rounding takes it a trajectory may be from the reference, as in the
# zoo; below this share of the way nothing is told apart that three steps in float32 could show.
_FACTOR, _LEAST, _DRAWS = 10.0, 1e-3, 3
Kind = Literal["ok", "refused", "raw", "wrong", "none"]
Row = dict[str, Any]

VERDICTS = ("works", "refused", "raw error", "silently wrong", "plain fails")


@dataclass(frozen=True)
class Outcome:
    """What one check came to.

    Attributes:
        kind: "none": there was nothing to check.
        text: The error, or what is wrong.
    """

    kind: Kind
    text: str = ""

    @classmethod
    def of(cls, check: Callable[[], Outcome]) -> Outcome:
        """Run a check; an error that the product words itself is a refusal, any other is raw."""
        try:
            return check()
        except OpdfError as error:
            return cls("refused", str(error))
        except Exception as error:  # Whatever a class raises belongs into the table.
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f" ({place.filename.rpartition('/')[2]}:{place.lineno})"
            return cls(
                "raw", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"
            )


OK, NONE = Outcome("ok"), Outcome("none")


def travel(offer: Offer) -> Row:
    """All checks of one class.

    Returns:
        name, verdict, and for each check its kind and text.
    """
    found: dict[str, Outcome] = {}
    for name, check in _checks(offer):
        found[name] = Outcome.of(check)
        if name.startswith("plain") and found[name].kind != "ok":
            break
    return {
        "name": offer.name,
        "verdict": verdict(found),
        "stepped": stepped(found),
        "checks": {name: {"kind": o.kind, "text": o.text} for name, o in found.items()},
    }


def _checks(offer: Offer) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    for bias in (True, False):
        yield f"plain steps{_of(bias)}", partial(plain_steps, offer, bias)
    for bias in (True, False):
        yield f"steps{_of(bias)}", partial(over_steps, offer, bias)
    for bias in (True, False):
        yield f"trajectory{_of(bias)}", partial(trajectory, offer, bias)
    if offer.need.model != "instead":
        yield "state_dict", partial(round_trip, offer, Over)
        yield "save_checkpoint", partial(round_trip, offer, Checkpointed)
        yield "train and eval", partial(modes, offer)


def _of(bias: bool) -> str:
    return "" if bias else ", no bias"


def stepped(found: dict[str, Outcome]) -> bool:
    """Whether the over-parameterised student took its steps."""
    steps = [outcome for name, outcome in found.items() if name.startswith("steps")]
    return bool(steps) and all(outcome.kind == "ok" for outcome in steps)


def verdict(found: dict[str, Outcome]) -> str:
    """The worst of what was found; of a class that no plain student can be stepped with, that."""
    if any(o.kind != "ok" for name, o in found.items() if name.startswith("plain")):
        return "plain fails"
    kinds = {outcome.kind for outcome in found.values()}
    for kind, name in (("wrong", "silently wrong"), ("raw", "raw error"), ("refused", "refused")):
        if kind in kinds:
            return name
    return "works"


def plain_steps(offer: Offer, bias: bool) -> Outcome:
    """The class steps the plain student: finite, and every parameter it can move moves."""
    run = Run(offer, bias=bias)
    before = run.weights()
    run.steps(offer.need.steps)
    after = run.weights()
    if not all(bool(torch.isfinite(value).all()) for value in after.values()):
        return Outcome("raw", "a weight is not finite")
    return Outcome("raw", "no weight moved") if equal(before, after) else OK


def over_steps(offer: Offer, bias: bool) -> Outcome:
    """After each step W is what the cores make; what the plain steps move has moved in the end."""
    run, plain = Over(offer, bias=bias), Run(offer, bias=bias)
    before = run.weights()
    for step in range(offer.need.steps):
        run.steps(1)
        fault = off_cores(run)
        if fault:
            return Outcome("wrong", f"step {step + 1}: {fault}")
    plain.steps(offer.need.steps)
    still = _moved(before, plain.weights()) - _moved(before, run.weights())
    return Outcome("wrong", f"no {still.pop()} moved, of the plain student some") if still else OK


def _moved(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Which of weights and biases moved: of single ones some classes leave out at random."""
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    return {name.rpartition(".")[2] for name in changed}


def off_cores(run: Over) -> str:
    """Where the student holds something else than what the cores make; nothing if nowhere."""
    optimizer, now = run.optimizer, run.weights()
    for entry in optimizer.plan.entries:
        cores = optimizer.program.cores(entry.key)
        if not all(bool(torch.isfinite(core).all()) for core in cores):
            return f"a core of {entry.key} is not finite"
        times = misfit(now[entry.key], cores, entry)
        if times > 1:
            return f"{entry.key} is {times:.3g} roundings from what its cores make"
    return ""


def trajectory(offer: Offer, bias: bool) -> Outcome:
    """The weights after some steps, against the class over the cores themselves.

    Decay is left out: Overparam's own acts on W.
    """
    options = {"weight_decay": 0.0} if _takes_decay(offer) else {}
    start = Over(offer, bias=bias, **options)
    try:
        wanted, *moved = (Cores(offer, start, bias=bias, **options) for _ in range(1 + _DRAWS))
        first = wanted.weights()
        wanted.steps(offer.need.steps)
    except Exception as error:  # The class takes no cores as they are: nothing to compare with.
        return Outcome("none", f"{type(error).__name__}: {error}")
    if _shapes(start.optimizer.inner) != _shapes(wanted.optimizer):
        return Outcome("none", "it is given the cores in another form")
    for draw, other in enumerate(moved):
        other.nudge(draw)
        other.steps(offer.need.steps)
    start.steps(offer.need.steps)
    apart, way = distance(start.weights(), wanted.weights()), distance(wanted.weights(), first)
    drift = max(distance(other.weights(), wanted.weights()) for other in moved)
    allowed = max(_FACTOR * drift, _LEAST * way)
    if apart <= allowed:  # A NaN is no way to pass.
        return OK
    return Outcome(
        "wrong", f"the weights are {apart:.1e} apart, {allowed:.1e} allowed, way {way:.1e}"
    )


def _shapes(optimizer: Any) -> list[tuple[int, ...]]:
    return sorted(tuple(p.shape) for group in optimizer.param_groups for p in group["params"])


def _takes_decay(offer: Offer) -> bool:
    optimizer = Run(offer, bias=True).optimizer
    return offer.need.around is None and "weight_decay" in getattr(optimizer, "defaults", {})


def round_trip(offer: Offer, form: Form) -> Outcome:
    """A resumed training goes on as the one that was not stopped, bit for bit."""
    try:
        plainly = resumed_apart(offer, Run)
    except Exception as error:
        return Outcome("none", f"the plain one cannot be resumed: {type(error).__name__}: {error}")
    if plainly:
        return Outcome("none", f"the plain one resumes {plainly:.1e} apart")
    apart = resumed_apart(offer, form)
    return Outcome("wrong", f"resumed {apart:.1e} apart, the plain one bit-equal") if apart else OK


def resumed_apart(offer: Offer, form: Form) -> float:
    """How far a resumed training ends from the one that went on; 0 if all bits are the same."""
    whole, again = form(offer, bias=True), form(offer, bias=True)
    whole.steps(offer.need.steps)
    whole.switch("eval")
    saved = whole.save()
    again.load(saved)
    for run in (whole, again):
        run.switch("train")
        run.steps(MORE)
    if equal(whole.weights(), again.weights()):
        return 0.0
    return distance(whole.weights(), again.weights())


def modes(offer: Offer) -> Outcome:
    """eval() and train() switch the whole student, and what is folded is what evaluation saw."""
    plain = Run(offer, bias=True)
    if not plain.has_modes:
        return NONE
    run = Over(offer, bias=True)
    if not run.has_modes:
        return Outcome("wrong", "Overparam has no train() and eval()")
    seen = []
    for one in (plain, run):
        one.steps(offer.need.steps)
        before = one.weights()
        one.switch("eval")
        seen.append({n for n, value in one.weights().items() if not torch.equal(value, before[n])})
    if seen[0] - seen[1]:
        return Outcome("wrong", f"eval() left {sorted(seen[0] - seen[1])[0]} as it was")
    fault = off_cores(run)
    folded = {name: p.detach() for name, p in run.optimizer.fold().named_parameters()}
    now = run.weights()
    run.switch("train")
    run.steps(1)
    fault = fault or off_cores(run)
    if fault:
        return Outcome("wrong", fault)
    shift = max(float((folded[n] - now[n]).norm() / now[n].norm().clamp_min(1e-30)) for n in now)
    return OK if shift < 1e-5 else Outcome("wrong", f"fold is {shift:.1e} from what eval() showed")
