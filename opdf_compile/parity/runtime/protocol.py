"""What `verify` asks of a runtime, and all that it asks.

    Runtime   --resolve(word)-->      Device        where models run, and why there
    Runtime   --load(file, device)--> LoadedModel   arrays in, arrays out: numerics
    LoadedModel --bind(arrays)-->     BoundModel    runs on inputs that are in place: latency
    Runtime   --write_graph-->        an ONNX file of the operations that really run: structure

A runtime of one's own is an object with these members behind an entry point of the group
`opdf_compile.runtimes`; it inherits nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from opdf_compile.errors import DeviceError, InputError, first_line
from opdf_compile.parity.model_file import PathLike

Arrays = Mapping[str, Any]

_MEMORY = ("failed to allocate memory", "out of memory", "bad allocation", "bad_alloc")


@dataclass(frozen=True)
class Missing:
    """What keeps a runtime, or one of its devices, from being used.

    Attributes:
        piece: A clause that names it.
        remedy: The command or step that mends it.
    """

    piece: str
    remedy: str


@dataclass(frozen=True)
class Device:
    """Where models run, and why there.

    Attributes:
        name: "cpu", "cuda", or what else the runtime calls its devices.
        provider: The runtime's own name of what runs there.
        provider_options: Options that are pinned for every model, as strings.
        chosen_because: One clause for the report ("asked for", "auto: no NVIDIA driver ...").
        runtime: What runs there.
        precision: The floating-point type that is pinned; empty where the file decides.
    """

    name: str
    provider: str
    provider_options: Mapping[str, str] = field(default_factory=dict)
    chosen_because: str = "asked for"
    # Left out of the text of a device, which benchmarks record.
    runtime: Runtime = field(kw_only=True, repr=False, compare=False)
    precision: str = field(default="", kw_only=True, repr=False)


class RunFailed(DeviceError):
    """A runtime does not run a model on some inputs.

    Attributes:
        reason: What it says, on one line.
        of_memory: Whether memory ran out: a limit of the machine, not of the model.
    """

    def __init__(
        self, runtime: str, model: PathLike, error: Exception, *, reason: str = ""
    ) -> None:
        """Name the model and the runtime's reason; without one it is the error's first line."""
        self.reason = (reason or first_line(error))[:200].rstrip(".")
        self.of_memory = any(words in str(error).lower() for words in _MEMORY)
        super().__init__(
            f"{runtime} cannot run {model} on its check data ({self.reason}), wanted a model "
            "that runs; export it again, or try another --device"
        )


class BoundModel(Protocol):
    """A model with its inputs in place, ready to run."""

    def run(self) -> None:
        """Run once and wait for the outputs."""

    def seconds(self, runs: int) -> float:
        """Seconds per run over a block of runs; `seconds_per_run` measures them."""
        ...


class LoadedModel(Protocol):
    """One model on one device.

    Attributes:
        input_names: In the file's order.
        output_names: In the file's order.
        on_cpu: Whether all of it runs on the CPU.
        precision: The floating-point type that it computes in, read back from the runtime after
            loading; empty where that is the file's own.

    A runtime that may leave operators to another device has one more, `fallback`: which they are,
    as a clause; empty where there are none.
    """

    @property
    def input_names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def output_names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def on_cpu(self) -> bool: ...  # noqa: D102

    @property
    def precision(self) -> str: ...  # noqa: D102

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by name, bfloat16 widened to float32; inputs that it does not have are ignored.

        Raises:
            RunFailed: The runtime fails on these inputs, or they are not the model's.
        """
        ...

    def bind(self, inputs: Arrays) -> BoundModel:
        """Put the inputs in place and run once.

        Raises:
            InputError: The model cannot run on these inputs.
        """
        ...


@runtime_checkable
class Runtime(Protocol):
    """An inference runtime.

    Attributes:
        name: What users call it, and the report.
        unoptimised: How a user has it load a file without its graph optimisation, as a clause that
            follows "or"; empty where that cannot be switched off.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def unoptimised(self) -> str: ...  # noqa: D102

    def version(self) -> str | None:
        """Its version; None where it is not installed."""

    def devices(self) -> tuple[str, ...]:
        """The words that it takes for a device beside "auto", whether they work here or not."""
        ...

    def missing(self, device: str) -> Missing | None:
        """What keeps it from running on one of its devices; None where it runs there."""

    def resolve(self, device: str) -> Device:
        """Turn the user's word, or "auto", into a device that is known to work.

        Raises:
            DeviceError: It was asked for and cannot be used; names the missing piece.
            InputError: A word that the runtime does not know.
        """
        ...

    def load(
        self,
        model: PathLike,
        device: Device,
        *,
        threads: int | None = None,
        optimised: bool = True,
    ) -> LoadedModel:
        """Check a file, then load it.

        Args:
            model: The ONNX file.
            device: Where it runs.
            threads: In one operator; None for every core that this process may use.
            optimised: Let the runtime rewrite the graph, as it does unless told otherwise.

        Raises:
            ArtefactError: The file is missing, no ONNX model, or the runtime refuses the graph.
            DeviceError: The device cannot run it, or not unoptimised.
        """
        ...

    def write_graph(self, source: PathLike, target: Path, device: Device) -> None:
        """Write what runs in place of a checked file as an ONNX file, to be compared with another.

        Operators may be the runtime's own, in a domain of its own.

        Raises:
            ArtefactError: The runtime refuses the graph.
            DeviceError: It cannot run it, or does not tell what runs.
        """


def seconds_per_run(run: Callable[[], None], runs: int) -> float:
    """Seconds per run over a block of runs."""
    begin = time.perf_counter_ns()
    for _ in range(runs):
        run()
    # At least one tick, so that a coarse clock gives a ratio and no division by zero.
    return max(1, time.perf_counter_ns() - begin) / runs * 1e-9


def threads_wanted(threads: int | None) -> int:
    """Threads in one operator; 0 leaves the number to the runtime.

    Runtimes count the machine's cores, and more threads than cores wait for each other: a process
    that may not use all of them gets as many as it may.

    Raises:
        InputError: `threads` is not positive.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; a number from 1 up was wanted")
    if threads or not hasattr(os, "sched_getaffinity"):
        return threads or 0
    allowed = len(os.sched_getaffinity(0))
    return 0 if allowed == os.cpu_count() else allowed
