"""How much memory a session holds: from before it is created until after its first run.

The runtime's arenas grow to the peak of the first run and keep what they have. On CUDA the growth
is what the device loses, on the CPU it is what the C library's allocator has handed out (glibc
counts that exactly; the resident set of the process would depend on what was freed before). What
cannot be known is None and never guessed.

The smallest growth of several sessions counts: one-off allocations of the process, such as the
libraries' own tables and kernels, fall on whichever session comes first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from opdf_compile.parity.runtime.driver import DRIVER, load_library


class Growth:
    """What one session added; `bytes` is filled when the `with` block ends."""

    bytes: int | None = None


@contextmanager
def growth(device: str | None) -> Iterator[Growth]:
    """Measure the block: create a session and run it once inside.

    Args:
        device: "cpu", "cuda" or "tensorrt"; on others, and for None, nothing is measured.
    """
    found = Growth()
    meters = {"cpu": _heap_used, "cuda": _device_used, "tensorrt": _device_used}
    used = meters.get(device.split(":")[0]) if device else None
    if used is None:
        yield found
        return
    before = used()
    yield found
    after = used()
    if before is not None and after is not None and after > before:
        found.bytes = after - before


def smallest(found: Sequence[int | None]) -> int | None:
    """The smallest growth that could be measured; None where none could."""
    return min((value for value in found if value is not None), default=None)


def largest(found: Sequence[int | None]) -> int | None:
    """The largest known value; None where nothing is known."""
    return max((value for value in found if value is not None), default=None)


class _MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2, over all arenas of the allocator."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _heap_used() -> int | None:
    """Bytes that the C library has handed out, on the heap and as mappings of their own."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):  # Another system, or a C library without it.
        return None
    mallinfo2.restype = _MallocInfo
    info = mallinfo2()
    return int(info.uordblks) + int(info.hblkhd)


def _device_used() -> int | None:
    """Bytes in use on the first CUDA device, asked of the driver itself.

    torch may be a build without CUDA beside a runtime that has it; the driver is always there.
    """
    driver = load_library(DRIVER)
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
