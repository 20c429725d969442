"""The map from student weights to teacher weights: a value to look at, check and edit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from opdf_compile.distill.layer_map.weights import main_weights, row_prefixes
from opdf_compile.errors import InputError
from opdf_compile.spelling import nearest
from opdf_compile.tables import text_table

TABLE = "layer_map"


@dataclass(frozen=True)
class LayerMap:
    """Pairs of weights, in the student's order.

    A pair names one weight of a layer; what else the layer has (a bias, a norm's shift) goes along.

    Attributes:
        pairs: (student weight, teacher weight), names as in `named_parameters`.

    Raises:
        InputError: A student weight is named twice.
    """

    pairs: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        counts = Counter(student for student, _teacher in self.pairs)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise InputError(
                f"the layer map names the student weight {twice[0]!r} {counts[twice[0]]} times, "
                "wanted each at most once; keep one of its teacher weights"
            )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, str]) -> LayerMap:
        """Of student weight -> teacher weight."""
        wrong = [key for key, value in mapping.items() if not isinstance(value, str)]
        if wrong:
            raise InputError(
                f"the layer map has a {type(mapping[wrong[0]]).__name__} for {wrong[0]!r}, wanted "
                'the name of a teacher weight; put names with dots in quotes: "a.weight" = '
                '"b.weight"'
            )
        return cls(tuple(mapping.items()))

    @classmethod
    def from_toml(cls, text: str) -> LayerMap:
        """Read what `to_toml` wrote, or a table without its head.

        Raises:
            InputError: The text is no TOML, or holds no names.
        """
        import tomllib

        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InputError(
                f'the layer map is no TOML ({error}), wanted lines of "student weight" = "teacher '
                'weight"'
            ) from error
        inner = table.get(TABLE, table)
        return cls.from_mapping(inner if isinstance(inner, dict) else table)

    def to_toml(self) -> str:
        """The table [layer_map], to edit, and to put under [student] of a recipe."""
        # A JSON string is a TOML basic string.
        rows = [f"{json.dumps(s)} = {json.dumps(t)}" for s, t in self.pairs]
        return "\n".join([f"[{TABLE}]", *rows, ""])

    def to_mapping(self) -> dict[str, str]:
        """Student weight -> teacher weight."""
        return dict(self.pairs)

    def only(self, student: Iterable[str], teacher: Iterable[str]) -> LayerMap:
        """The pairs of which both names are among those given, such as the keys of two plans."""
        left, right = set(student), set(teacher)
        return LayerMap(tuple((s, t) for s, t in self.pairs if s in left and t in right))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __str__(self) -> str:
        return text_table([("student", "teacher"), *self.pairs])

    def check(self, student: nn.Module, teacher: nn.Module) -> tuple[str, ...]:
        """Check the names against two models.

        Returns:
            What is unusual though allowed, in sentences: a teacher weight that is used twice, an
            order that is crossed, weights of other proportions. Empty for a map as it should be.

        Raises:
            InputError: A name is not there, or two weights can have nothing to do with each other
                (a matrix and a kernel, a vector and a matrix).
        """
        if not self.pairs:
            raise InputError("the layer map is empty, wanted at least one pair of weights")
        left = dict(student.named_parameters(remove_duplicate=False))
        right = dict(teacher.named_parameters(remove_duplicate=False))
        for s, t in self.pairs:
            _check_name(s, left, "student")
            _check_name(t, right, "teacher")
            _check_kind(s, left[s], t, right[t])
        return (*self._shared(), *self._crossed(list(left), list(right)), *self._odd(left, right))

    def describe(self, student: nn.Module, teacher: nn.Module) -> str:
        """The map as a table with shapes, what has no partner, and what is unusual."""
        notes = self.check(student, teacher)
        left = dict(student.named_parameters(remove_duplicate=False))
        right = dict(teacher.named_parameters(remove_duplicate=False))
        rows = [(s, _shape(left[s]), t, _shape(right[t])) for s, t in self.pairs]
        alone = sorted(set(main_weights(student)) - {s for s, _t in self.pairs})
        lines = [text_table([("student", "shape", "teacher", "shape"), *rows])]
        if alone:
            lines.append(f"{len(alone)} student weights without a partner: {', '.join(alone)}")
        return "\n".join([*lines, *notes])

    def _shared(self) -> Iterator[str]:
        counts = Counter(teacher for _student, teacher in self.pairs)
        for name, count in counts.items():
            if count > 1:
                yield f"the teacher weight {name!r} is the partner of {count} student weights"

    def _crossed(self, mine: list[str], theirs: list[str]) -> Iterator[str]:
        """One sentence for the first block that goes back in the teacher's order."""
        own = {name: place for place, name in enumerate(mine)}
        other = {name: place for place, name in enumerate(theirs)}
        pairs = sorted(self.pairs, key=lambda pair: own[pair[0]])
        for (s, t), (s_next, t_next) in zip(pairs, pairs[1:], strict=False):
            differ = _block(s) != _block(s_next) and _block(t) != _block(t_next)
            if differ and other[t_next] < other[t]:
                yield (
                    f"the order is crossed: {s_next!r} comes after {s!r}, but its partner "
                    f"{t_next!r} before {t!r}"
                )
                return

    def _odd(self, left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Iterator[str]:
        """One sentence for the first pair whose proportions differ by more than a factor of 2.5."""
        for s, t in self.pairs:
            mine, theirs = left[s].shape, right[t].shape
            if len(mine) < 2 or 0 in (*mine, *theirs):
                continue
            factor = (mine[0] / mine[1]) / (theirs[0] / theirs[1])
            if not 0.4 <= factor <= 2.5:
                yield (
                    f"{s!r} {_shape(left[s])} and {t!r} {_shape(right[t])} have other proportions: "
                    "are they of one role?"
                )
                return


def _block(name: str) -> str:
    """A name up to its first number."""
    row = next(row_prefixes(name), None)
    if row is None:
        return name
    start = len(row) + 1 if row else 0
    return name[: start + len(name[start:].split(".")[0])]


def _check_name(name: str, names: Mapping[str, Tensor], side: str) -> None:
    if name in names:
        return
    near = nearest(name, names, within=1)
    hint = f"; the nearest is {near[0]!r}" if near else ""
    raise InputError(
        f"the layer map names {name!r}, which the {side} has not; wanted a parameter's name{hint}"
    )


def _check_kind(s: str, left: Tensor, t: str, right: Tensor) -> None:
    kernels = left.ndim > 3 and left.shape[2:] != right.shape[2:]
    if left.ndim != right.ndim or kernels:
        raise InputError(
            f"the layer map pairs {s!r} {_shape(left)} with {t!r} {_shape(right)}, wanted two "
            "weights of one kind (as many axes, equal kernels); pair it with another, or leave "
            "it out"
        )


def _shape(weight: Tensor) -> str:
    return "x".join(map(str, weight.shape))
