"""What a MODEL argument becomes, and the fixed random state in which models are built."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.export import ExportedProgram

_Kind = Literal["pt2", "callable", "timm", "hf", "pickle", "onnx"]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with example inputs.

    Attributes:
        model: A module in the train/eval state that its loader returned (the tracer exports both
            phases itself), a program, or the programs of an archive by name ("model", "eval").
        args: Positional example inputs.
        kwargs: Example inputs by name.
        dynamic: A letter or number per axis of each input, or None: the first axis of all is free.
        name: A short name for messages and files.
        kind: Which kind of MODEL it was.
        drawn: Whether the example inputs were drawn from declared types alone.
        notes: What a user should know, in sentences.
        folder: The folder of an `hf:` model.
        extra_files: Configuration and tokenizer files of an `hf:` model, which a bundle carries.
        extra: Texts that rode along in a `.pt2`, by name.
    """

    model: nn.Module | ExportedProgram | dict[str, ExportedProgram]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    dynamic: dict[str, tuple[str | int | None, ...]] | None = None
    name: str = "model"
    kind: _Kind = "callable"
    drawn: bool = False
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    extra_files: tuple[Path, ...] = ()
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def programs(self) -> dict[str, ExportedProgram]:
        """The programs of a `.pt2` by name; empty for a module."""
        if isinstance(self.model, ExportedProgram):
            return {"model": self.model}
        return self.model if isinstance(self.model, dict) else {}


# Where the random numbers of a model that is built start.
_SEED: ContextVar[int] = ContextVar("seed", default=0)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block, models are built from the random numbers of another seed."""
    token = _SEED.set(seed)
    try:
        yield
    finally:
        _SEED.reset(token)


@contextlib.contextmanager
def fixed_randomness() -> Iterator[None]:
    """Build a model from the same random numbers on every run; the caller's state comes back.

    The same MODEL argument then has the same random weights in every command: a student and its
    untouched reference start equal. `seeded` gives others.
    """
    import numpy as np

    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            random.seed(_SEED.get())
            np.random.seed(_SEED.get() % 2**32)
            torch.manual_seed(_SEED.get())
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
