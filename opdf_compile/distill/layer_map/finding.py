"""found_map: a layer map from two graphs, where names and numbers of layers differ.

Each model is a sequence of units: blocks (modules that repeat, or children of numbered containers)
and single weights. Two units are as alike as their parts can be paired in order; two weights by
kind, role, shape and op. The map is the order-preserving assignment of largest total likeness, a
longest path in a grid; among equals the one whose depths agree best: the end of student block l of
n lies at (l + 1) / n of the way, so blocks 1, 2, 3 of 3 meet blocks 2, 4, 6 of 6.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn

from opdf_compile.distill.layer_map.layers import Layer, in_common_units, layers_of
from opdf_compile.distill.layer_map.value import LayerMap
from opdf_compile.distill.layer_map.weights import holder_of
from opdf_compile.errors import InputError
from opdf_compile.graph import Traced

# A factor of 2.5 in one size, or 1.6 in both: a fused query-key-value is not a query.
FARTHEST = math.log(2.5)
# A unit that finds less than half of itself in another has another partner, or none.
LEAST = 0.5
# How much more likeness counts than depth: stages are told apart by shape before depth is asked.
LIKENESS = 10.0


@dataclass(frozen=True)
class Block:
    """A block, or a single weight.

    Attributes:
        path: The module's path, or the weight's name.
        layers: Its weights, in the order of their use.
        end: Where it ends among the units of its sort in its container, from 0 to 1.
    """

    path: str
    layers: tuple[Layer, ...]
    end: float = 0.0

    @property
    def signature(self) -> tuple[object, ...]:
        """What likeness depends on."""
        return tuple((x.kind, x.role, x.op, x.size) for x in self.layers)


@dataclass
class Finder:
    """Pairs the units of two models.

    Attributes:
        student: Classes of the student's modules, by path.
        teacher: The teacher's.
    """

    student: dict[str, str]
    teacher: dict[str, str]
    _known: dict[tuple[object, ...], float] = field(default_factory=dict)

    def pairs(
        self, student: Sequence[Layer], teacher: Sequence[Layer], paths: tuple[str, str]
    ) -> tuple[list[tuple[Layer, Layer]], float]:
        """The best pairs of two sequences, and the likeness of those."""
        left = units(student, paths[0], self.student)
        right = units(teacher, paths[1], self.teacher)
        chosen = assignment(len(left), len(right), lambda i, j: self._score(left[i], right[j]))
        pairs: list[tuple[Layer, Layer]] = []
        total = 0.0
        for i, j in chosen:
            inner, likeness = self._inside(left[i], right[j])
            pairs += inner
            total += likeness
        return pairs, total

    def _score(self, left: Block, right: Block) -> float | None:
        key = (left.signature, right.signature)
        if key not in self._known:
            self._known[key] = self._inside(left, right)[1]
        mine, theirs = (self._known[key] / len(unit.layers) for unit in (left, right))
        # A stage of the teacher may hold more blocks, so what the student finds counts most.
        if mine < LEAST:
            return None
        return LIKENESS * (0.8 * mine + 0.2 * theirs) + 1 - abs(left.end - right.end)

    def _inside(self, left: Block, right: Block) -> tuple[list[tuple[Layer, Layer]], float]:
        if len(left.layers) == len(right.layers) == 1:
            (mine,), (theirs,) = left.layers, right.layers
            value = likeness(mine, theirs)
            return ([(mine, theirs)] if value else []), value
        if (len(left.layers) == 1) != (len(right.layers) == 1):
            return [], 0.0
        return self.pairs(left.layers, right.layers, (left.path, right.path))


def found_map(student: Traced, teacher: Traced) -> LayerMap:
    """Find which teacher weight belongs to which student weight; look at the result.

    Args:
        student: As `opdf.trace` gives it.
        teacher: Likewise; as deep as the student or deeper.

    Returns:
        The map in the order in which the student uses its weights; norms and embeddings too. What
        has no partner is left out: `LayerMap.describe` names it.

    Raises:
        InputError: Nothing in the two graphs is alike.

    Example:
        >>> chosen = found_map(opdf.trace(student, (x,)), opdf.trace(teacher, (x,)))
        >>> print(chosen.describe(student, teacher))
    """
    finder = Finder(_classes(student), _classes(teacher))
    mine, theirs = in_common_units(layers_of(student), layers_of(teacher))
    pairs, _likeness = finder.pairs(mine, theirs, ("", ""))
    if not pairs:
        raise InputError(
            "found_map found no weights of student and teacher that are alike in kind, role and "
            "shape, wanted networks of one family; give the map as a table of names"
        )
    pairs.sort(key=lambda pair: pair[0].order)
    return LayerMap(tuple((mine.name, theirs.name) for mine, theirs in pairs))


def likeness(mine: Layer, theirs: Layer) -> float:
    """How alike two weights are, from 0 (no partners) to 1."""
    if mine.kind != theirs.kind:
        return 0.0
    sizes = zip(mine.size, theirs.size, strict=True)
    distance = sum(abs(math.log(a / b)) for a, b in sizes)
    if mine.kind == "table":
        # Vocabularies differ; the table's role tells words from positions.
        return 0.5 + 0.2 * (mine.role == theirs.role) + 0.3 * (mine.shape == theirs.shape)
    same_role, same_op = mine.role == theirs.role, mine.op == theirs.op
    # A value is no query, and no projection of the attention's result.
    other_part = mine.mixed != theirs.mixed or (mine.mixed and not same_role)
    if distance > FARTHEST or other_part:
        return 0.0
    return 0.4 + 0.3 * math.exp(-distance) + 0.2 * same_role + 0.1 * same_op


def units(layers: Sequence[Layer], path: str, classes: dict[str, str]) -> list[Block]:
    """The outermost blocks inside of a module, and the weights that are in none."""
    counts = _repeats(layers, path, classes)
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        block = next((p for p in _inside_of(layer.name, path) if counts.get(p, 0) > 1), None)
        groups.setdefault(block or layer.name, []).append(layer)
    first = sorted(groups.items(), key=lambda group: min(x.order for x in group[1]))
    made = [Block(name, tuple(inside)) for name, inside in first]
    return [_with_end(made, place) for place in range(len(made))]


def assignment(
    rows: int, columns: int, score: Callable[[int, int], float | None]
) -> list[tuple[int, int]]:
    """The order-preserving pairs of largest total score; None forbids a pair.

    Source: alignment of sequences as a longest path (Needleman, Wunsch 1970): right and down leave
    one out, the diagonal pairs two.
    """
    import networkx as nx

    grid = nx.DiGraph()
    grid.add_node((0, 0))
    for i in range(rows + 1):
        for j in range(columns + 1):
            if i < rows:
                grid.add_edge((i, j), (i + 1, j), weight=0.0)
            if j < columns:
                grid.add_edge((i, j), (i, j + 1), weight=0.0)
            value = score(i, j) if i < rows and j < columns else None
            if value is not None:
                grid.add_edge((i, j), (i + 1, j + 1), weight=value)
    path = nx.dag_longest_path(grid, weight="weight")
    steps = zip(path, path[1:], strict=False)
    return [a for a, b in steps if b == (a[0] + 1, a[1] + 1)]


def _with_end(made: Sequence[Block], place: int) -> Block:
    """A block's end among the blocks of its container; a single weight's among the single ones.

    So the last block of a stage meets the last block of a stage, whatever their numbers.
    """
    unit = made[place]
    sort = _sort(unit)
    beside = [p for p, other in enumerate(made) if _sort(other) == sort]
    return Block(unit.path, unit.layers, (beside.index(place) + 1) / len(beside))


def _sort(unit: Block) -> str | None:
    return unit.path.rpartition(".")[0] if len(unit.layers) > 1 else None


def _repeats(layers: Sequence[Layer], path: str, classes: dict[str, str]) -> Counter[str]:
    """How many weights each block has: modules with a number for a name, or of a repeated class."""
    sizes = Counter(p for layer in layers for p in _inside_of(layer.name, path))
    kinds = Counter(classes[p] for p, size in sizes.items() if size > 1 and p in classes)
    return Counter(
        {
            p: size
            for p, size in sizes.items()
            if p.rpartition(".")[2].isdigit() or kinds[classes.get(p, "")] > 1
        }
    )


def _inside_of(name: str, path: str) -> list[str]:
    """The modules around a parameter that are inside of a module, the outermost first."""
    parts = holder_of(name).split(".") if holder_of(name) else []
    start = len(path.split(".")) if path else 0
    return [".".join(parts[:end]) for end in range(start + 1, len(parts) + 1)]


def _classes(traced: Traced) -> dict[str, str]:
    """Classes of the modules by path, but for mere containers; none for a program."""
    if not isinstance(traced.source, nn.Module):
        return {}
    containers = nn.Sequential | nn.ModuleList | nn.ModuleDict
    return {
        path: type(part).__qualname__
        for path, part in traced.source.named_modules()
        if path and not isinstance(part, containers)
    }
