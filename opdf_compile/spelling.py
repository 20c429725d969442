"""What somebody probably meant: the known name that is the fewest slips away from what was written.

A slip is a letter too many, too few or wrong, or two neighbours swapped; each counts 1. A letter in
the other case, or another separator (``-`` for ``_``), is no more than a tenth of one: of Adam and
AdamW, "Adamw" means the second, although it is one letter from the first as well.

Source: the optimal string alignment distance, R. Lowrance and R. A. Wagner, "An extension of the
string-to-string correction problem", J. ACM 22(2), 1975.
"""

from __future__ import annotations

from collections.abc import Iterable

_HALF_A_NAME = 0.4
_ALIKE = 0.1
_SEPARATORS = frozenset("-_. ")


def nearest(
    name: str, known: Iterable[str], *, most: int = 1, within: float = _HALF_A_NAME
) -> list[str]:
    """The known names that are nearest to one that is not known.

    Args:
        name: What was written.
        known: The names that there are.
        most: How many to give.
        within: Slips per letter, of the longer of both names, up to which a name is near; 1 takes
            any.

    Returns:
        The nearest first; of equally near ones in the order of `known`. Often none.

    Example:
        >>> nearest("Adamw", ["Adam", "AdamW", "SGD"])
        ['AdamW']
    """
    near = []
    for place, other in enumerate(known):
        most_slips = within * max(len(name), len(other))
        if abs(len(name) - len(other)) > most_slips:
            continue
        slips = _slips(name, other)
        if slips <= most_slips:
            near.append((slips, place, other))
    return [other for _, _, other in sorted(near)[:most]]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest known name as a remark in brackets, with a space before it; often nothing."""
    near = nearest(name, known)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _slips(a: str, b: str) -> float:
    """Slips between two names: d[i][j] of their first i and j letters, row by row."""
    before: list[float] = []
    row = [float(j) for j in range(len(b) + 1)]
    for i, x in enumerate(a, start=1):
        two_before, before, row = before, row, [float(i)]
        for j, y in enumerate(b, start=1):
            least = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + _change(x, y))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                least = min(least, two_before[j - 2] + 1)
            row.append(least)
    return row[-1]


def _change(x: str, y: str) -> float:
    if x == y:
        return 0.0
    alike = x.casefold() == y.casefold() or {x, y} <= _SEPARATORS
    return _ALIKE if alike else 1.0
