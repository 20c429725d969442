"""The ruling in words: what to do, and why."""

from __future__ import annotations

from opdf_compile.distill.advise.advice import Side
from opdf_compile.distill.advise.contest.ruling import (
    Basis,
    Bout,
    Decision,
    Ruling,
    Standing,
)
from opdf_compile.distill.advise.sentences import (
    setting,
)


def ruling_words(ruling: Ruling) -> str:
    """What to do, and why, in a few sentences."""
    words = _VERDICTS[ruling.verdict](ruling, ruling.decision)
    return " ".join(part for part in (words, _regime(ruling), _int8(ruling)) if part)


def _use(ruling: Ruling, decision: Decision) -> str:
    of = decision.of
    longer = f" for {of.times:g} times the steps" if of.times != 1 else ""
    both = f"Use {setting(of.side)}{longer}: {_evidence(ruling, of, decision.by)}"
    other: Basis = "steps" if decision.by == "time" else "time"
    return f"{both}; {_short(ruling, of, other)}." if other in of.bouts else f"{both}."


def _more_steps(ruling: Ruling, decision: Decision) -> str:
    of, bout = decision.of, decision.of.bouts["steps"]
    ahead = ruling.ahead(ruling.bases[0])
    rest = " and ".join(_short(ruling, ahead, basis) for basis in ruling.bases)
    return (
        f"More steps first: with {of.times:g} times as many ({bout.steps} for {bout.plain_steps}) "
        f"the plain student is {_size(bout)} in {ruling.metric} ({_interval(bout)}), at "
        f"{setting(of.side, named=False)}. {ahead.name}{_best_of(ruling)} is {rest}."
    )


def _do_not_use(ruling: Ruling, decision: Decision) -> str:
    return (
        f"Stay with the plain student at {setting(ruling.plain, named=False)}: all that it was "
        f"raced against is worse; {_evidence(ruling, decision.of, decision.by)}."
    )


def _no_difference(ruling: Ruling, decision: Decision) -> str:
    return (
        f"Stay with the plain student at {setting(ruling.plain, named=False)}: nothing is shown to "
        f"be better. The best of them: {_evidence(ruling, decision.of, decision.by)}."
        f"{_needed(decision)}"
    )


def _undecided(ruling: Ruling, decision: Decision) -> str:
    if ruling.diverged:
        return (
            f"Undecided: every final run diverged, the plain student's at "
            f"{setting(ruling.plain, named=False)}, too; give the recipe a lower lr."
        )
    edge = [ruling.plain, *(s.side for s in ruling.contenders)]
    names = [_named(side) for side in edge if side.at_edge]
    return (
        f"Undecided: {_evidence(ruling, decision.of, decision.by)}, but the best setting found for "
        f"{' and '.join(names)} lies at the edge of what there was time to try. Give --budget "
        f"{2 * ruling.budget:.0f}."
    )


_VERDICTS = {
    "use": _use,
    "more-steps": _more_steps,
    "do-not-use": _do_not_use,
    "no-difference": _no_difference,
    "undecided": _undecided,
}


def _best_of(ruling: Ruling) -> str:
    return ", the best of the others," if len(ruling.contenders) > 1 else ""


def _named(side: Side) -> str:
    return "the plain student" if side.method == "plain" else side.method


def _regime(ruling: Ruling) -> str:
    """Whether the student still improves with steps, where the advice does not say it already."""
    if ruling.verdict == "more-steps":
        return ""
    of = ruling.improving or ruling.longer[0]
    bout = of.bouts["steps"]
    if ruling.improving is None:
        return (
            f"More steps are not shown to help: {of.times:g} times as many make the plain student "
            f"{_size(bout)} ({_interval(bout)})."
        )
    return (
        f"The student still improves with steps: {of.times:g} times as many make the plain one "
        f"{_size(bout)} ({_interval(bout)})."
    )


def _int8(ruling: Ruling) -> str:
    rounded, plain = ruling.decision.of.int8, ruling.plain_int8
    if rounded is None or plain is None:
        return ""
    up, of = ruling.higher_is_better, ruling.decision.of
    return (
        f"After int8 {of.name} loses {rounded.drop(up):.3g} and the plain student "
        f"{plain.drop(up):.3g}, over {len(plain.before)} seeds."
    )


def _evidence(ruling: Ruling, standing: Standing, basis: Basis) -> str:
    bout = standing.bouts[basis]
    duel, count = bout.duel, len(ruling.seeds)
    if standing.times != 1 and (standing.name, basis) not in ruling.corrected:
        return f"{standing.name} is {_size(bout)} in {ruling.metric} ({_interval(bout)})"
    p, many = ruling.corrected[standing.name, basis], len(ruling.corrected)
    after = f", corrected for {many} comparisons" if many > 1 else ""
    if duel.diverged or duel.comparison is None:
        wins, losses = duel.wins
        return (
            f"at equal {basis} {standing.name} wins {wins} and loses {losses} of {count} seeds in "
            f"{ruling.metric}, where runs that diverged have lost (sign test, p = {p:.2g}{after})"
        )
    return (
        f"at equal {basis} {standing.name} is {_size(bout)} than the plain student in "
        f"{ruling.metric} ({_interval(bout)}, {count} seeds, p = {p:.2g}{after})"
    )


def _short(ruling: Ruling, standing: Standing, basis: Basis) -> str:
    bout = standing.bouts[basis]
    shown = "" if ruling.shown(standing, basis) else ", not shown"
    return f"{_size(bout)} at equal {basis} ({_interval(bout)}{shown})"


def _size(bout: Bout) -> str:
    """As in "0.02 better" and "0.1 worse"."""
    found = bout.duel.comparison
    if found is None:
        return "without a seed on which neither diverged"
    if found.mean == 0:
        return "0 better"
    return f"{abs(found.mean):.3g} {'better' if found.mean > 0 else 'worse'}"


def _interval(bout: Bout) -> str:
    found = bout.duel.comparison
    if found is None or found.low == -float("inf"):
        return "no interval"
    return f"95 % interval {found.low:+.3g} to {found.high:+.3g}"


def _needed(decision: Decision) -> str:
    found = decision.of.bouts[decision.by].duel.comparison
    if found is None or found.seeds_needed is None or found.mean <= 0:
        return ""
    return (
        f" To see a gain of this size in 8 of 10 races takes {found.seeds_needed} seeds: "
        f"--pairs {found.seeds_needed} and a budget for them."
    )
