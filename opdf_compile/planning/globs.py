"""Globs over weight names, made for plans that name thousands of weights one by one.

fnmatch keeps 256 compiled patterns and forgets the rest: a thousand names against a thousand
weights would compile a million. Here plain names are looked up, and all patterns are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase, translate

from opdf_compile.errors import PlanError
from opdf_compile.graph import Match
from opdf_compile.spelling import nearest

_WILD = frozenset("*?[")


class Globs:
    """A set of globs; false where there are none.

    Args:
        given: The globs. One may come as a bare string; as a sequence it would be read letter by
            letter.
    """

    def __init__(self, given: Sequence[str] | None) -> None:
        """Sort plain names from patterns."""
        self._given = (given,) if isinstance(given, str) else tuple(given or ())
        self._plain = {glob for glob in self._given if _WILD.isdisjoint(glob)}
        self._wild = [glob for glob in self._given if glob not in self._plain]
        self._pattern = re.compile("|".join(map(translate, self._wild))) if self._wild else None

    def __bool__(self) -> bool:
        return bool(self._given)

    def name(self, found: Match) -> bool:
        """Whether one of the globs names the weight, by any of its names."""
        names = (found.key, *found.aliases)
        if not self._plain.isdisjoint(names):
            return True
        return self._pattern is not None and any(map(self._pattern.match, names))

    def require_used(self, weights: Iterable[Match]) -> None:
        """Refuse a glob that names nothing: it is misspelt.

        Raises:
            PlanError: One names none of the weights.
        """
        names = [name for found in weights for name in (found.key, *found.aliases)]
        known = set(names)
        for glob in self._given:
            if glob in known or (
                glob not in self._plain and any(fnmatchcase(name, glob) for name in names)
            ):
                continue
            below = [name for name in names if name.startswith(f"{glob}.")]
            near = below[:1] or nearest(glob, names)
            first = f"the first is {names[0] if names else 'none'!r}"
            shown = f"did you mean {near[0]!r}?" if near else first
            raise PlanError(
                f"the glob {glob!r} names none of the {len(known)} weights ({shown}); see "
                "opdf-compile inspect"
            )
