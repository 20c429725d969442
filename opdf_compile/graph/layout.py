"""Which axes of a Parameter each axis of a value runs over, through views and arithmetic.

    W (d, h, k)  --reshape-->  (d, h*k)  --t-->  (h*k, d)
    ((0,), (1,), (2,))         ((0,), (1, 2))    ((1, 2), (0,))

The layout tells which axes of the Parameter are the rows and the columns of the matrix that an op
reads. It is advice, never a condition: a weight is replaced where it is stored, which is exact
whatever a layout says, so what cannot be followed becomes "any of these axes".
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch.fx import Node

from opdf_compile.graph.ops import short_name

Layout = tuple[tuple[int, ...], ...]
Sizes = tuple[int, ...]


def followed(node: Node, layout: Layout, old: Sizes, new: Sizes, sizes: Sizes) -> Layout:
    """The layout after an op that is no product.

    `old` and `new` are the shapes of operand and result, `sizes` is the Parameter's.
    """
    order = _order(node, len(old))
    if order is not None and len(order) == len(new):
        return tuple(layout[axis] for axis in order)
    name, axis = short_name(node), _axis(node, len(old))
    if name in ("select", "unbind") and len(new) == len(old) - 1:
        return layout[:axis] + layout[axis + 1 :]
    if name in ("unsqueeze", "stack") and len(new) == len(old) + 1:
        place = axis % len(new)
        return (*layout[:place], (), *layout[place:])
    return _by_shape(layout, old, new, sizes)


def _by_shape(layout: Layout, old: Sizes, new: Sizes, sizes: Sizes) -> Layout:
    if old == new:
        return layout
    shift = len(new) - len(old)
    if shift >= 0 and all(o in (n, 1) for o, n in zip(old, new[shift:], strict=True)):
        return ((),) * shift + layout  # Broadcast.
    if not shift and all(n in (o, 1) for o, n in zip(old, new, strict=True)):
        return tuple(e if n == o else () for e, o, n in zip(layout, old, new, strict=True))
    if 0 not in old and prod(old) == prod(new):
        return reshaped(layout, old, new, sizes)
    if not shift:
        return layout  # A slice, a concatenation, padding.
    return (_union(layout),) * len(new)


def reshaped(layout: Layout, old: Sizes, new: Sizes, sizes: Sizes) -> Layout:
    """The layout after a reshape: runs of axes with equal products belong together."""
    result: list[tuple[int, ...]] = [()] * len(new)
    source = [(size, axes) for size, axes in zip(old, layout, strict=True) if size != 1]
    target = [place for place, size in enumerate(new) if size != 1]
    while target:
        taken, places = [source.pop(0)], [target.pop(0)]
        while (left := prod(s for s, _a in taken)) != (right := prod(new[p] for p in places)):
            if left < right:
                taken.append(source.pop(0))
            else:
                places.append(target.pop(0))
        axes = _union(tuple(a for _s, a in taken))
        whole = [axis for axis in axes if sizes[axis] != 1]
        same = [new[place] for place in places] == [sizes[axis] for axis in whole]
        for index, place in enumerate(places):
            result[place] = (whole[index],) if same else axes
    return tuple(result)


def _union(layout: Layout) -> tuple[int, ...]:
    return tuple(sorted({axis for axes in layout for axis in axes}))


def _order(node: Node, axes: int) -> list[int] | None:
    """The permutation that a view makes of the axes, or None."""
    name = short_name(node)
    order = list(range(axes))
    if name in ("t", "numpy_T"):
        return order[::-1]
    if name in ("mT", "mH", "matrix_H", "adjoint") and axes > 1:
        return [*order[:-2], order[-1], order[-2]]
    if name in ("transpose", "swapaxes", "swapdims"):
        a, b = _integer(node, 1, "dim0") % axes, _integer(node, 2, "dim1") % axes
        order[a], order[b] = b, a
        return order
    if name == "permute":
        given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dims", ())
        return [axis % axes for axis in given]
    return None


def _axis(node: Node, axes: int) -> int:
    axis = _integer(node, 1, "dim")
    return axis if short_name(node) in ("unsqueeze", "stack") and axis < 0 else axis % max(axes, 1)


def _integer(node: Node, index: int, name: str) -> int:
    value = node.args[index] if len(node.args) > index else node.kwargs.get(name, 0)
    return value if isinstance(value, int) else 0


def orientation(sizes: Sequence[int], roles: Sequence[str]) -> tuple[bool, int, int]:
    """How a Parameter is laid out as a matrix.

    Args:
        sizes: Its shape.
        roles: For each axis the labels (see `ops`) of the operand's axes that run over it.

    Returns:
        (whether it is stored (in, out), elements of the kernel that stay together, number of
        leading axes that are the rows).
    """
    if len(sizes) == 2:
        return (roles[0] == "i" and roles[1] == "o"), 1, 1
    trailing = len(sizes)
    while trailing > 2 and roles[trailing - 1] == "k":
        trailing -= 1
    kernel = prod(sizes[trailing:])
    return (
        False,
        kernel,
        _rows(["" if n == 1 else role for n, role in zip(sizes, roles, strict=True)]),
    )


def _rows(roles: Sequence[str]) -> int:
    """The leading axes that are rows: all before the longest tail that is of one kind.

    b o i -> (b o) i;   o i k k -> o (i k k);   i o o -> i (o o);   k i o -> (k i) o

    A kernel goes with what is before it, and so does an axis of size 1, whose role is "".
    """
    rows, kinds = len(roles), {"o", "i"}
    while rows > 1 and (roles[rows - 1] in ("", "k") or kinds & set(roles[rows - 1])):
        kinds = kinds & set(roles[rows - 1]) or kinds
        rows -= 1
    return min(rows, len(roles) - 1)
