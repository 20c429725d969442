"""Rules: which weights are asked to become what.

    rules  =  glob -> request, glob -> request, ..      the first glob that names a weight counts
    "*"    ->  what `parametrization=` says             the last of them, unless it is given

The number of cores that is asked for beside them speaks to those that take one and do not say their
own. `none` leaves weights alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from opdf_compile.errors import PlanError
from opdf_compile.graph import Match
from opdf_compile.parametrizations import (
    Parametrization,
    Request,
    Spec,
    WeightForm,
    branch_forms,
    registered,
    requested,
)
from opdf_compile.planning.globs import Globs

LEFT_ALONE = "none"
USUAL = "mpo"
_ALL = "*"


@dataclass(frozen=True)
class Rule:
    """A glob over weight names, and what is asked for the weights that it names.

    Attributes:
        glob: Over the names.
        request: A parametrization with its options, or `none`.
        asked: The cores that the plan asks this rule for; its own count before them.
    """

    glob: str
    request: Request
    asked: int | None = None

    @property
    def plain(self) -> bool:
        """Whether it leaves weights alone."""
        return self.request.name == LEFT_ALONE

    @property
    def of_weights(self) -> bool:
        """Whether cores of weights are asked for."""
        return not self.plain and not self.of_sites

    @property
    def of_sites(self) -> bool:
        """Whether branches beside convolutions are asked for, not cores of weights."""
        return self.request.name in branch_forms()

    @cached_property
    def by(self) -> Parametrization[Any]:
        """The parametrization."""
        return registered(self.request.name)

    @property
    def own_cores(self) -> int | None:
        """The cores per weight that the rule itself says."""
        given = self.request.options.get("cores")
        return given if isinstance(given, int) else None

    @property
    def takes_cores(self) -> bool:
        """Whether a number of cores may be asked for, and the rule does not say it itself."""
        return self.of_weights and self.own_cores is None and "cores" in self.by.options

    @property
    def cores(self) -> int:
        """The cores per weight: its own, those of the plan, or the usual number."""
        said = self.asked if self.own_cores is None else self.own_cores
        return self.by.usual_cores if said is None else said

    def why_not(self, found: Match) -> str | None:
        """Why a weight stays as it is."""
        if self.plain:
            return f"is left alone by the rule {self.glob!r}"
        return self.by.why_not(WeightForm.matched(found))

    def proposed(self, found: Match) -> Spec:
        """The usual spec of a weight."""
        form = WeightForm.matched(found)
        spec: Spec = self.by.propose(form, cores=self.cores, **self._options())
        return spec

    def candidates(self, found: Match) -> tuple[Spec, ...]:
        """The specs of a weight to choose from; one where the rule says the cores."""
        if self.own_cores is not None:
            return (self.proposed(found),)
        return tuple(self.by.candidates(WeightForm.matched(found), **self._options()))

    def lighter(self, found: Match) -> tuple[Spec, ...]:
        """The specs of a weight that are smaller than the usual one, to choose from."""
        return tuple(self.by.lighter(WeightForm.matched(found), cores=self.cores))

    def _options(self) -> dict[str, Any]:
        return {key: value for key, value in self.request.options.items() if key != "cores"}


@dataclass(frozen=True)
class Rules:
    """Rules in order; the last names every weight."""

    given: tuple[Rule, ...]

    @classmethod
    def of(cls, rules: Mapping[str, str] | None, parametrization: str | None = None) -> Rules:
        """The rules of a plan, before a model is looked at.

        Args:
            rules: Globs and what is asked for, in order.
            parametrization: What is asked for all other weights; the usual one if None.

        Raises:
            PlanError: They cannot be read, or contradict each other.
        """
        if not isinstance(rules or {}, Mapping):
            raise PlanError(
                f"rules is a {type(rules).__name__}, wanted a mapping of globs to "
                'parametrizations, such as {"features.*": "gains", "head.*": "none"}'
            )
        made = [_followed(glob, text) for glob, text in (rules or {}).items()]
        if any(rule.glob == _ALL for rule in made):
            if parametrization not in (None, USUAL):
                raise PlanError(
                    f"parametrization={parametrization!r} is given beside a rule for '*', which "
                    "says what all other weights get; remove one of them"
                )
        else:
            made.append(Rule(_ALL, _known(parametrization or USUAL)))
        return cls(tuple(made))

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.given)

    @property
    def mixed(self) -> bool:
        """Whether weights are asked to become different things."""
        return len(self.given) > 1

    def rule(self, found: Match) -> Rule:
        """The rule of a weight: the first that names it."""
        return next(rule for rule, globs in self._globs if globs.name(found))

    def require_used(self, weights: Iterable[Match]) -> None:
        """Refuse a rule that is for no weight.

        Raises:
            PlanError: Its glob names none, or only such as rules before it are for.
        """
        every = list(weights)
        for rule, globs in self._globs:
            if rule.glob != _ALL:
                globs.require_used(every)
        used = {self.rule(found).glob for found in every}
        for rule in self.given:
            if rule.glob not in {_ALL, *used}:
                raise PlanError(
                    f"the rule {rule.glob!r} is never reached: rules before it name all of its "
                    "weights, and the first one counts; put it before them, or remove it"
                )

    def hearing(self, cores: int) -> Rules:
        """The rules, those that take a number of cores asked for this one.

        Alone, a rule is always asked, and says itself what it makes of the number.

        Raises:
            PlanError: There is no such number, or no rule takes one.
        """
        listening = [rule for rule in self if rule.takes_cores]
        last = self.given[-1]
        if not listening and last.of_weights and last.own_cores is None:
            listening = [last]
        if not listening:
            raise PlanError(
                f"cores={cores!r} speaks to no rule: each says its own or takes none "
                f"({', '.join(map(repr, self.words().values()))}); remove one or the other"
            )
        least = min(min(2, rule.by.usual_cores) for rule in listening)
        if type(cores) is not int or not least <= cores <= 64:
            raise PlanError(
                f"cores is {cores!r}, wanted a whole number from {least} to 64; the default is "
                f"cores={listening[-1].by.usual_cores}"
            )
        asked = tuple(
            Rule(rule.glob, rule.request, cores) if rule in listening else rule for rule in self
        )
        return Rules(asked)

    def words(self) -> dict[str, str]:
        """Globs and requests as texts."""
        return {rule.glob: str(rule.request) for rule in self}

    @cached_property
    def _globs(self) -> list[tuple[Rule, Globs]]:
        return [(rule, Globs((rule.glob,))) for rule in self.given]


def _followed(glob: object, text: object) -> Rule:
    if not isinstance(glob, str) or not isinstance(text, str):
        raise PlanError(
            f"a rule gives {glob!r} the value {text!r}, wanted a glob and a parametrization, such "
            "as 'head.*' and 'gains'"
        )
    try:
        return Rule(glob, _known(text))
    except PlanError as error:
        raise PlanError(f"the rule {glob!r} cannot be followed: {error}") from error


def _known(text: str) -> Request:
    """What a text asks for; all that a rule can name is looked up here."""
    return Request(LEFT_ALONE) if text == LEFT_ALONE else requested(text)
