"""Memory is counted exactly, or it is None."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from opdf_compile.parity.latency import memory
from opdf_compile.parity.latency.memory import growth, largest, smallest

MEBIBYTE = 1 << 20


@pytest.mark.skipif(memory._heap_used() is None, reason="needs a C library with mallinfo2")
def test_the_heap_grows_by_what_was_allocated() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    with growth("cpu") as found:
        block = libc.malloc(40 * MEBIBYTE)
    libc.free(block)
    assert found.bytes is not None
    assert 40 * MEBIBYTE <= found.bytes < 41 * MEBIBYTE


def test_what_is_not_asked_or_not_known_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with growth(None) as nothing:
        pass
    monkeypatch.setattr(memory, "_heap_used", lambda: None)
    with growth("cpu") as unknown:
        pass
    levels = iter([5, 3])
    monkeypatch.setattr(memory, "_heap_used", lambda: next(levels))
    with growth("cpu") as shrunk:
        pass
    assert (nothing.bytes, unknown.bytes, shrunk.bytes) == (None, None, None)


def test_smallest_and_largest_skip_what_is_not_known() -> None:
    assert smallest([None, 7, 3]) == 3
    assert largest([None, 7, 3]) == 7
    assert smallest([]) is None and largest([None]) is None


class Driver:
    """libcuda with 80 GiB, of which each question finds another 64 MiB taken."""

    total = 80 << 30

    def __init__(self, *, starts: bool = True) -> None:
        self.starts, self.used, self.retained = starts, 0, 0

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's own names
        return 0 if self.starts else 100

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        assert ordinal == 0
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:  # noqa: N802
        self.retained += 1
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:  # noqa: N802
        self.retained -= 1
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:  # noqa: N802
        return 0

    def cuCtxPopCurrent_v2(self, context: Any) -> int:  # noqa: N802
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:  # noqa: N802
        self.used += 64 * MEBIBYTE
        ctypes.cast(free, ctypes.POINTER(ctypes.c_size_t))[0] = self.total - self.used
        ctypes.cast(total, ctypes.POINTER(ctypes.c_size_t))[0] = self.total
        return 0


def test_on_cuda_it_is_what_the_device_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(memory, "load_library", lambda name: driver)
    with growth("cuda") as found:
        pass
    assert found.bytes == 64 * MEBIBYTE
    assert driver.retained == 0


@pytest.mark.parametrize("driver", [None, Driver(starts=False)])
def test_without_a_driver_it_is_none(
    driver: Driver | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "load_library", lambda name: driver)
    with growth("cuda") as found:
        pass
    assert found.bytes is None
