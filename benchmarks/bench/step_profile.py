"""Where the time of a hoisted step goes: by phase, and within a phase by kind of work.

The phases are marked from outside, on one optimizer's own objects, and each ends when the device
has done its work. An operator belongs to the phase in whose span it ran, on whatever thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from bench.clock import synchronise
from bench.forms import Form
from bench.reporting import number, table

STUDENT, STEP = "student forward and backward", "step: everything else"
# What is marked inside Overparam.step, and the phase that it is shown as.
_INSIDE = (
    ("program", "backward", "pull"),
    ("program", "changed", "check of the weights"),
    ("program", "write", "refresh"),
    ("inner", "step", "optimizer"),
)
PHASES = (STUDENT, *(phase for _, _, phase in _INSIDE), STEP)

KINDS = ("products", "copies", "other")
_PRODUCTS = re.compile(
    r"(^aten::(mm|bmm|addmm|baddbmm|matmul|linear|.*convolution.*)$)|gemm|cutlass"
)
_COPIES = re.compile(r"^aten::(copy_|clone|contiguous|cat|stack|fill_|zero_)$|copy|Memcpy|Memset")


@dataclass
class Phase:
    """Seconds of one phase in one step.

    Attributes:
        seconds: From its begin to its end.
        kinds: Seconds of operators by kind; what is left is allocation, Python and waiting.
    """

    seconds: float = 0.0
    kinds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))


def profile_step(form: Form, accumulation: int, device: torch.device, steps: int = 3) -> Any:
    """Profile some steps of a hoisted form.

    Args:
        form: A hoisted form, warmed up.
        accumulation: Micro-batches per step.
        device: Where it runs.
        steps: Steps, averaged.

    Returns:
        `Phase` by name, per step.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with _marked(form.optimizer, device), profile(activities=activities) as recorded:
        for _ in range(steps):
            with _span(STUDENT, device):
                form.micro_batches(accumulation)
            with _span(STEP, device):
                form.optimizer.step()
            form.optimizer.zero_grad()
    return collect(recorded.events(), steps)


def collect(events: Iterable[Any], steps: int) -> dict[str, Phase]:
    """Sum a profiler's events up by phase and kind, per step."""
    events = list(events)
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in events
        if event.name in PHASES and not _on_gpu(event)
    )
    phases = {name: Phase() for name in PHASES}
    for start, end, name in spans:
        phases[name].seconds += (end - start) * 1e-6 / steps
    inner = [span for span in spans if span[2] not in (STUDENT, STEP)]
    phases[STEP].seconds -= sum(end - start for start, end, _ in inner) * 1e-6 / steps
    kernels = any(_on_gpu(event) for event in events)
    for event in events:
        if event.name in PHASES or _on_gpu(event) is not kernels:
            continue
        time = event.self_device_time_total if kernels else event.self_cpu_time_total
        name = _phase_of(event.time_range.start, inner, spans)
        if name is not None:
            phases[name].kinds[kind_of(event.name)] += time * 1e-6 / steps
    return phases


def phase_table(title: str, phases: Mapping[str, Phase]) -> Any:
    """The phases for people, in milliseconds."""
    made = table(title, "phase", "total", *KINDS, left=1)
    for name, phase in phases.items():
        parts = (phase.seconds, *(phase.kinds[kind] for kind in KINDS))
        made.add_row(name, *(number(part * 1e3, 1) for part in parts))
    return made


def _on_gpu(event: Any) -> bool:
    name: str = event.device_type.name
    return name == "CUDA"


def kind_of(operator: str) -> str:
    """The kind of work that an operator or kernel does."""
    if _PRODUCTS.search(operator):
        return "products"
    return "copies" if _COPIES.search(operator) else "other"


def _phase_of(moment: float, *groups: list[tuple[float, float, str]]) -> str | None:
    for spans in groups:
        for start, end, name in spans:
            if start <= moment <= end:
                return name
    return None


@contextmanager
def _span(name: str, device: torch.device) -> Iterator[None]:
    synchronise(device)
    with record_function(name):
        yield
        synchronise(device)


@contextmanager
def _marked(optimizer: Any, device: torch.device) -> Iterator[None]:
    """Put a span around each method of `_INSIDE`, for the length of the block."""
    objects = [(getattr(optimizer, owner), name, phase) for owner, name, phase in _INSIDE]
    for target, name, phase in objects:
        setattr(target, name, _spanned(getattr(target, name), phase, device))
    try:
        yield
    finally:
        for target, name, _ in objects:
            delattr(target, name)  # The class's own method shows again.


def _spanned(method: Callable[..., Any], phase: str, device: torch.device) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with _span(phase, device):
            return method(*args, **kwargs)

    return run
