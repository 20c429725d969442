"""The settings that are tried: learning rates and weight decays on one lattice without ends.

rate   base 10^(place / 4): the scan takes every second place, the refinement those between.
decay  place 0 is none; place p >= 1 is anchor 10^(p - 2).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from opdf_compile.distill.recipe import OptimizerSection, optimizer_class

COARSE, FINE = 2, 1
RATE_SCAN = (0, -COARSE, COARSE, -2 * COARSE, 2 * COARSE)
DECAY_SCAN = (0, 1, 2, 3)
# Eight decades of rates and six of decays: whoever gets there has no optimum to find.
_RATE_END = 16
_DECAY_END = 6
_USUAL_DECAY = 0.01
_DIGITS = 2


@dataclass(frozen=True, order=True)
class Point:
    """A setting as places on the grid.

    Attributes:
        method: Name of the method.
        rate: Place of the learning rate.
        decay: Place of the weight decay.
    """

    method: str
    rate: int
    decay: int


@dataclass(frozen=True)
class Grid:
    """What the places stand for.

    Attributes:
        rate: Learning rate at place 0.
        decay: Weight decay at place 2.
        start: Place of the decay that rates are scanned at.
        decays: Whether the optimizer knows weight decay.
    """

    rate: float
    decay: float
    start: int
    decays: bool = True

    def lr(self, point: Point) -> float:
        """The learning rate, to two digits."""
        return float(f"{self.rate * 10 ** (point.rate / 4):.{_DIGITS}g}")

    def weight_decay(self, point: Point) -> float:
        """The weight decay, to two digits."""
        if point.decay == 0:
            return 0.0
        return float(f"{self.decay * 10.0 ** (point.decay - 2):.{_DIGITS}g}")


def grid_of(section: OptimizerSection) -> Grid:
    """The grid around a recipe's own setting."""
    decays = "weight_decay" in inspect.signature(optimizer_class(section)).parameters
    own = section.weight_decay if decays else 0.0
    return Grid(section.lr, own or _USUAL_DECAY, 2 if own else 0, decays)


def rate_neighbours(point: Point, stride: int = COARSE) -> list[Point]:
    """The next lower and the next higher rate."""
    places = (point.rate - stride, point.rate + stride)
    return [Point(point.method, p, point.decay) for p in places if abs(p) <= _RATE_END]


def decay_neighbours(point: Point) -> list[Point]:
    """The next lower and the next higher decay; below none there is nothing."""
    places = (point.decay - 1, point.decay + 1)
    return [Point(point.method, point.rate, p) for p in places if 0 <= p <= _DECAY_END]


def is_end(point: Point) -> bool:
    """Whether the grid goes no further."""
    return abs(point.rate) >= _RATE_END or point.decay >= _DECAY_END
