"""The rule "every k-th block": student block l learns from teacher block (l + 1) N / n - 1.

Blocks are the children of numbered containers (`encoder.layer.3`). Those of one container that have
the same parameters inside make one row of n; a row is mapped on the teacher's row of the same kind,
so the last block always meets the last. Where n does not divide N the position is rounded up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from opdf_compile.distill.layer_map.value import LayerMap
from opdf_compile.distill.layer_map.weights import main_weights
from opdf_compile.errors import InputError

Pairs = list[tuple[str, str]]


@dataclass
class _Tree:
    """Names with dots as a tree; a leaf has a weight."""

    name: str = ""
    axes: int = 0
    parts: dict[str, _Tree] = field(default_factory=dict)

    def kind(self) -> tuple[object, ...]:
        """What two blocks of one row have in common: names and axes of what is inside.

        How many numbered blocks are inside of it has no part in that: a stage is a stage.
        """
        inside = {("#" if key.isdigit() else key, part.kind()) for key, part in self.parts.items()}
        return (self.axes, frozenset(inside))


def every_kth(student: nn.Module, teacher: nn.Module) -> LayerMap:
    """Map blocks by the rule, and inside them weights of equal names.

    Weights outside of numbered blocks (embeddings, heads) are not mapped; `copy_layers` copies
    those of equal names all the same.

    Raises:
        InputError: There are no blocks, or their weights have other names in the teacher.
    """
    left, right = _tree(main_weights(student)), _tree(main_weights(teacher))
    # A base model in one is a part of the other: "bert.encoder" here, "encoder" there.
    starts = [(s, t) for s in _roots(left) for t in _roots(right)]
    pairs = max((_pairs(s, t, inside=False) for s, t in starts), key=len)
    if not pairs:
        raise InputError(
            f"every_kth found no blocks of equal names in {type(student).__name__} and "
            f"{type(teacher).__name__}, wanted numbered ones such as layer.0.weight in both; use "
            "found_map, which looks at the graphs, or a table of names"
        )
    return LayerMap(tuple(pairs))


def partner(place: int, count: int, others: int) -> int:
    """The teacher's block for the student's block `place` of `count`, among `others`."""
    return -(-(place + 1) * others // count) - 1


def _tree(weights: Mapping[str, Tensor]) -> _Tree:
    root = _Tree()
    for name, weight in weights.items():
        node = root
        for part in name.split("."):
            node = node.parts.setdefault(part, _Tree())
        node.name, node.axes = name, weight.ndim
    return root


def _roots(tree: _Tree) -> list[_Tree]:
    return [tree, *(part for key, part in tree.parts.items() if not key.isdigit())]


def _pairs(student: _Tree, teacher: _Tree, *, inside: bool) -> Pairs:
    if student.name and teacher.name:
        return [(student.name, teacher.name)] if inside and student.axes == teacher.axes else []
    pairs: Pairs = []
    numbered = [key for key in student.parts if key.isdigit()]
    for key, part in student.parts.items():
        if key in numbered:
            continue
        if key in teacher.parts:
            pairs += _pairs(part, teacher.parts[key], inside=inside)
    for key, other in _rows(student, teacher, numbered):
        pairs += _pairs(student.parts[key], teacher.parts[other], inside=True)
    return pairs


def _rows(student: _Tree, teacher: _Tree, numbered: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of numbered children, in the student's order."""
    others = [key for key in teacher.parts if key.isdigit()]
    chosen: dict[str, str] = {}
    kinds = dict.fromkeys(student.parts[key].kind() for key in numbered)
    for kind in kinds:
        mine = [key for key in numbered if student.parts[key].kind() == kind]
        theirs = [key for key in others if teacher.parts[key].kind() == kind]
        if len(theirs) >= len(mine):
            for place, key in enumerate(mine):
                chosen[key] = theirs[partner(place, len(mine), len(theirs))]
    return [(key, chosen[key]) for key in numbered if key in chosen]
