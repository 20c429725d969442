"""What is known of a value in a graph: does an input reach it, and which Parameters is it made of.

fed       an input of the model reaches it: an activation
made      a product of Parameters is in it: no Parameter can be told from another any more
origins   the Parameters that it is made of by views and arithmetic
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import Node

from opdf_compile.graph.layout import Layout, Sizes, followed
from opdf_compile.graph.ops import is_view, matrix_function, short_name
from opdf_compile.graph.recorded import concrete


@dataclass(frozen=True)
class Origin:
    """A Parameter that a value is made of.

    Attributes:
        parameter: The Parameter.
        target: The name that the graph reads it by.
        layout: For each axis of the value the Parameter's axes that it runs over.
        through: Names of the ops on the way that are no views, each once.
        scales: Whether it was stretched over the weight: one number a row, or a block.
        gathered: Whether rows were picked by an index: a table.
        selected: Whether a matrix was picked out of a stack by an index.
        function: A function of the whole matrix on the way, such as "matrix_exp".
    """

    parameter: Tensor
    target: str
    layout: Layout
    through: tuple[str, ...] = ()
    scales: bool = False
    gathered: bool = False
    selected: bool = False
    function: str = ""

    def rank(self) -> tuple[bool, bool, bool, int]:
        """Of two ways to one value the lower says what the Parameter is there."""
        return self.scales, self.gathered, bool(self.function), len(self.through)

    def past(self, name: str) -> Origin:
        """The origin after an op that a use shall mention."""
        return self if name in self.through else replace(self, through=(*self.through, name))


@dataclass(frozen=True)
class Provenance:
    """What is known of one node's value; see the head of this file.

    Attributes:
        origins: By the Parameter's id.
        constant: The name of a buffer or constant that is in it.
        parts: Of a tuple whose elements differ, what is known of each.
    """

    fed: bool = False
    made: bool = False
    origins: dict[int, Origin] = field(default_factory=dict)
    constant: str = ""
    parts: tuple[Provenance, ...] = ()

    def others(self, parameter: Tensor) -> bool:
        """Whether another Parameter than this one is in it."""
        return self.made or any(key != id(parameter) for key in self.origins)

    def opaque(self) -> Provenance:
        """The same without telling the Parameters apart."""
        return Provenance(self.fed, self.made or bool(self.origins), constant=self.constant)


FED = Provenance(fed=True)
NOTHING = Provenance()


def merged(values: Iterable[Provenance]) -> Provenance:
    """What is known of a value that is made of these."""
    known = [value for value in values if value is not NOTHING]
    if len(known) < 2:
        return known[0] if known else NOTHING
    if all(value is FED for value in known):
        return FED
    origins: dict[int, Origin] = {}
    for value in known:
        for key, origin in value.origins.items():
            if key not in origins or origin.rank() < origins[key].rank():
                origins[key] = origin
    return Provenance(
        any(value.fed for value in known),
        any(value.made for value in known),
        origins,
        next((value.constant for value in known if value.constant), ""),
    )


def example_shape(node: Any) -> Sizes | None:
    """The example's shape of the tensor that a node gives, or of the first of several."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    if isinstance(value, list | tuple):
        value = next((v for v in pytree.tree_leaves(value) if isinstance(v, Tensor)), None)
    if not isinstance(value, Tensor):
        return None
    return tuple(concrete(size) for size in value.shape)


def is_size(node: Node) -> bool:
    """Whether a node gives a number, such as a size: it tells nothing of an input's numbers."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int)


def handed_on(node: Node, operand: Node, value: Provenance) -> Provenance:
    """What an op that is no product hands on of one operand."""
    old, new = example_shape(operand), example_shape(node)
    if not value.origins or old is None or new is None:
        return value
    return replace(
        value, origins={key: _step(node, o, old, new) for key, o in value.origins.items()}
    )


def _step(node: Node, origin: Origin, old: Sizes, new: Sizes) -> Origin:
    sizes = tuple(origin.parameter.shape)
    if len(origin.layout) != len(old):
        origin = replace(origin, layout=(tuple(range(len(sizes))),) * len(old))
    joined = short_name(node) in ("cat", "stack", "concat", "concatenate")
    after = replace(
        origin,
        layout=followed(node, origin.layout, old, new, sizes),
        scales=origin.scales or (not joined and _stretched(origin.layout, old, new)),
    )
    if matrix_function(node):
        after = replace(after, function=after.function or short_name(node))
    return after if is_view(node) else after.past(short_name(node).strip("_"))


def _stretched(layout: Layout, old: Sizes, new: Sizes) -> bool:
    """Whether numbers were repeated along an axis inside the weight, not along a new one in front.

    (out, 1) -> (out, in) is a scale of each row; (out, in) -> (batch, out, in) is the same matrix
    for each element of a batch.
    """
    live = [place for place, size in enumerate(old) if size != 1 and layout[place]]
    if prod(new) <= prod(old) or len(live) < 2:
        return prod(new) > prod(old)
    shift = len(new) - len(old)
    if shift < 0 or any(o not in (n, 1) for o, n in zip(old, new[shift:], strict=True)):
        return False
    grown = [place for place, size in enumerate(old) if size == 1 != new[shift + place]]
    return any(place > live[0] for place in grown)
