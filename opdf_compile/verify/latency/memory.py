"""How much memory a session takes, from before it is created until after its first run.

On CUDA it is what the device loses: the runtime's arena grows to the peak of the first run and
keeps what it has. On the CPU it is the process's own peak, which Linux counts and lets a process
reset. What cannot be known is None and never guessed.

The smallest growth of several sessions counts: one-off allocations of the process, such as the
libraries' own kernels, fall on whichever session comes first.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
# "5" resets the peak resident set; see proc(5).
_RESET_PEAK = "5"
_DRIVERS = ("nvcuda.dll",) if os.name == "nt" else ("libcuda.so.1",)


class Growth:
    """What one session added; `bytes` is filled when the `with` block ends."""

    bytes: int | None = None


@contextmanager
def growth(device: str | None) -> Iterator[Growth]:
    """Measure the block: create a session and run it once inside.

    Args:
        device: "cpu" or "cuda"; None measures nothing.
    """
    found = Growth()
    if device is None:
        yield found
        return
    begin, end = _meters(device)
    before = begin()
    yield found
    after = end()
    if before is not None and after is not None and after > before:
        found.bytes = after - before


def smallest(found: Sequence[int | None]) -> int | None:
    """The smallest growth that could be measured; None where none could."""
    return min((value for value in found if value is not None), default=None)


def largest(found: Sequence[int | None]) -> int | None:
    """The largest known value; None where nothing is known."""
    return max((value for value in found if value is not None), default=None)


def _meters(device: str) -> tuple[Callable[[], int | None], Callable[[], int | None]]:
    if device.startswith("cuda"):
        return _device_used, _device_used
    return _resident_from_now, _peak_resident


def _resident_from_now() -> int | None:
    """Resident bytes, after freed memory went back to the system and the peak was reset."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text(_RESET_PEAK)
    # Another system, another C library, or a /proc that may not be written.
    except (OSError, AttributeError, TypeError):
        return None
    return _status("VmRSS")


def _peak_resident() -> int | None:
    return _status("VmHWM")


def _status(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None


def _device_used() -> int | None:
    """Bytes in use on the first CUDA device, asked of the driver itself.

    torch may be a build without CUDA beside a runtime that has it; the driver is always there.
    """
    driver = _driver()
    if driver is None:
        return None
    device, context = ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ready = (
        driver.cuInit(0) == 0
        and driver.cuDeviceGet(ctypes.byref(device), 0) == 0
        and driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
    )
    if not ready:
        return None
    try:
        if driver.cuCtxPushCurrent_v2(context) != 0:
            return None
        asked = driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        return total.value - free.value if asked == 0 else None
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)


def _driver() -> ctypes.CDLL | None:
    for name in _DRIVERS:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
