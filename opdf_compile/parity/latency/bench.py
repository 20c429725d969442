"""Makes groups of sessions and times rounds on them; measures what comes with a session.

A group is three sessions made one after the other in random order: reference, candidate and a
second reference, the control. All of them are bound to the inputs of every shape.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opdf_compile.parity.latency.latency_result import SESSION_ROLES, SessionRole
from opdf_compile.parity.latency.memory import growth, smallest
from opdf_compile.parity.latency.shape_option import Shape
from opdf_compile.parity.latency.timing import calm_seconds, warm_up
from opdf_compile.parity.model_file import ModelFile
from opdf_compile.parity.runtime.protocol import BoundModel, Device, LoadedModel

# Enough sessions for the smallest growth to be free of the process's one-off allocations.
_MEMORY_SESSIONS = 3


class SessionBench:
    """The three sessions of the current group, and what was seen when sessions were made.

    Attributes:
        inputs: Arrays by name, for each shape.
        cold: Seconds to create each session, by role, in the order of the groups.
    """

    def __init__(
        self,
        models: Mapping[SessionRole, ModelFile],
        device: Device,
        inputs: Sequence[Mapping[str, Any]],
        threads: int | None,
        rng: np.random.Generator,
    ) -> None:
        self.models, self.device, self.inputs = models, device, tuple(inputs)
        self.cold: dict[SessionRole, list[float]] = {role: [] for role in SESSION_ROLES}
        self._threads, self._rng = threads, rng
        self._memory: dict[tuple[Path, int], list[int | None]] = {}
        self._bound: dict[tuple[SessionRole, int], BoundModel] = {}

    def open(self, first: int) -> None:
        """Make a new group; random order, since the first one made may get the better memory.

        Args:
            first: The shape that sessions run first, so that their memory is that of this shape.
        """
        self._bound = {}  # The last group goes before the next one takes memory.
        for role in self._shuffled():
            session = self._first_run(role, first)
            for shape, inputs in enumerate(self.inputs):
                if shape != first:
                    self._bound[role, shape] = session.bind(inputs)

    def warm_up(self, shape: int) -> float:
        """Run every session on a shape until it is steady; return seconds of one run."""
        return max(warm_up(self._bound[role, shape]) for role in self._shuffled())

    def round(self, shape: int, runs: int, single: float) -> dict[SessionRole, float]:
        """Seconds per run of one block of each session, in random order."""
        return {
            role: calm_seconds(self._bound[role, shape], runs, single) for role in self._shuffled()
        }

    def close(self) -> None:
        """Let the sessions go."""
        self._bound = {}

    def memory(self, role: SessionRole, shape: int) -> int | None:
        """Peak bytes of a session that ran this shape first; None where it is not known."""
        return smallest(self._memory.get((self.models[role].path, shape), []))

    def _first_run(self, role: SessionRole, first: int) -> LoadedModel:
        model, device = self.models[role], self.device
        seen = self._memory.setdefault((model.path, first), [])
        with growth(device.name if len(seen) < _MEMORY_SESSIONS else None) as grown:
            began = time.perf_counter()
            session = device.runtime.load(model, device, threads=self._threads)
            self.cold[role].append(time.perf_counter() - began)
            self._bound[role, first] = session.bind(self.inputs[first])
        if len(seen) < _MEMORY_SESSIONS:
            seen.append(grown.bytes)
        return session

    def _shuffled(self) -> list[SessionRole]:
        return [SESSION_ROLES[index] for index in self._rng.permutation(len(SESSION_ROLES))]


def shapes_of(inputs: Mapping[str, Any]) -> dict[str, Shape]:
    """The shape of every input."""
    return {name: tuple(np.shape(array)) for name, array in inputs.items()}


def file_bytes(file: ModelFile) -> int:
    """Bytes on disk of a model, external initialisers included."""
    files = [file.path, *(file.path.parent / name for name in file.external_files)]
    return sum(int(one.stat().st_size) for one in files)
