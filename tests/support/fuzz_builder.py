"""A random module, written as the Python code that a person would paste to see it again.

The builder writes ``__init__`` and ``forward`` line by line and runs each line at once on real
tensors, so a step knows the shapes that it has at hand, and needs no formula for those it makes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

BATCH = 3
NAMES = {"torch": torch, "nn": nn, "F": F, "weight_norm": nn.utils.parametrizations.weight_norm}


@dataclass
class Builder:
    """The code so far, and what it has computed on an example.

    Attributes:
        draw: Hypothesis's draw function.
        init: Lines of ``__init__``.
        forward: Lines of ``forward``.
        values: Name and value of every floating-point result so far, the inputs first.
        reusable: Module attribute -> the shape behind the batch axis that it was called with.
    """

    draw: Any
    init: list[str] = field(default_factory=list)
    forward: list[str] = field(default_factory=list)
    values: dict[str, Tensor] = field(default_factory=dict)
    reusable: dict[str, tuple[int, ...]] = field(default_factory=dict)
    scope: dict[str, Any] = field(default_factory=lambda: dict(NAMES, self=nn.Module()))
    _count: int = 0

    def attempt(self, step: Callable[[Builder], None]) -> None:
        """Take a step, or leave everything as it was where a layer cannot take these sizes."""
        init, forward = len(self.init), len(self.forward)
        values, reusable = dict(self.values), dict(self.reusable)
        try:
            step(self)
        except (RuntimeError, ValueError, IndexError, AssertionError):
            del self.init[init:], self.forward[forward:]
            self.values, self.reusable = values, reusable

    def pick(self, *choices: Any) -> Any:
        """One of the choices; the simplest comes first."""
        return self.draw(st.sampled_from(choices))

    def chance(self) -> bool:
        """A coin that shrinks to False."""
        return bool(self.draw(st.booleans()))

    def fresh(self, stem: str) -> str:
        """A new name."""
        self._count += 1
        return f"{stem}{self._count}"

    def module(self, expression: str, stem: str = "m") -> str:
        """Add ``self.<name> = <expression>``."""
        name = self.fresh(stem)
        self.line_of_init(f"self.{name} = {expression}")
        return name

    def weight(self, *shape: int) -> str:
        """Add a raw Parameter."""
        sizes = ", ".join(map(str, shape))
        return self.module(
            f"nn.Parameter(torch.randn({sizes}) / {max(shape[-1], 1) ** 0.5:.3f})", "w"
        )

    def line_of_init(self, line: str) -> None:
        """Add a line to ``__init__`` and run it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of weights without entries.
            exec(line, self.scope)
        self.init.append(line)

    def line(self, line: str) -> None:
        """Add a line to ``forward`` and run it on the example."""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(line, self.scope)
        self.forward.append(line)

    def give(self, expression: str, stem: str = "v") -> str:
        """Add ``<name> = <expression>``, a new value."""
        name = self.fresh(stem)
        self.line(f"{name} = {expression}")
        self.values[name] = self.scope[name]
        return name

    def reads(self, name: str, value: Tensor) -> None:
        """Make an input known."""
        self.scope[name] = value
        if value.is_floating_point():
            self.values[name] = value

    def value(self, *, rank: int | None = None, least: int = 2) -> tuple[str, Tensor]:
        """A value of a rank, or of `least` and more; the latest are the likeliest."""
        fitting = [
            (name, value)
            for name, value in self.values.items()
            if (value.ndim == rank if rank else value.ndim >= least) and value.numel() > 0
        ]
        recent = fitting[-4:][::-1]
        if recent:
            found: tuple[str, Tensor] = self.pick(*recent)
            return found
        return self._shaped(rank or least)

    def _shaped(self, rank: int) -> tuple[str, Tensor]:
        """A value brought to a rank: axes of size 2 or 3 are added, or axes are averaged away."""
        name, value = next(pair for pair in reversed(self.values.items()) if pair[1].numel() > 0)
        if value.ndim > rank:
            made = self.give(f"{name}.flatten({rank - 1})")
        else:
            missing = rank - value.ndim
            tail = "[" + ", ".join(["...", *["None"] * missing]) + "]"
            sizes = ", ".join(["1"] * value.ndim + [str(self.pick(2, 3))] * missing)
            made = self.give(f"{name}{tail}.repeat({sizes})")
        return made, self.values[made]
