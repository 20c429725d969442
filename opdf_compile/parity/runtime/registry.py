"""Which runtimes there are: the built-in ones, and what other packages add by an entry point.

    [project.entry-points."opdf_compile.runtimes"]
    mine = "my_package.runtime:MyRuntime"

An entry point is loaded only when its runtime is asked for, so a broken one disturbs nobody else.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

from opdf_compile.errors import InputError, error_line
from opdf_compile.parity.runtime.cv.runtime import OpenCv, OpenCvClassic
from opdf_compile.parity.runtime.et.runtime import ExecuTorch
from opdf_compile.parity.runtime.nc.runtime import Ncnn, NcnnHalf
from opdf_compile.parity.runtime.ort.runtime import OnnxRuntime
from opdf_compile.parity.runtime.ov.runtime import OpenVino
from opdf_compile.parity.runtime.protocol import Device, Runtime
from opdf_compile.parity.runtime.web.runtime import OnnxRuntimeWeb
from opdf_compile.spelling import did_you_mean

GROUP = "opdf_compile.runtimes"
BUILT_IN: dict[str, Callable[[], Runtime]] = {
    made.name: made
    for made in (
        OnnxRuntime,
        OpenVino,
        OpenCv,
        OpenCvClassic,
        Ncnn,
        NcnnHalf,
        ExecuTorch,
        OnnxRuntimeWeb,
    )
}
DEFAULT = OnnxRuntime.name


def runtime_names() -> tuple[str, ...]:
    """The names that `runtime_of` knows, the default first."""
    added = (point.name for point in metadata.entry_points(group=GROUP))
    return tuple(dict.fromkeys((*BUILT_IN, *added)))


def runtime_of(name: str) -> Runtime:
    """A runtime by its name.

    Raises:
        InputError: There is none of that name, or its entry point is broken.
    """
    # A package cannot take the name of a built-in one, whose verdicts would then be its own.
    if name in BUILT_IN:
        return BUILT_IN[name]()
    points = {point.name: point for point in metadata.entry_points(group=GROUP)}
    if name not in points:
        known = runtime_names()
        raise InputError(
            f"--runtime {name!r} is unknown{did_you_mean(name, known)}; give one of "
            f"{', '.join(known)}"
        )
    return _loaded(points[name])


def resolve_device(device: str = "auto", runtime: str = DEFAULT) -> Device:
    """Turn the user's words into a device that is known to work.

    Args:
        device: "auto", or a device of the runtime: "cpu", "cuda".
        runtime: Its name, or NAME:DEVICE.

    Raises:
        DeviceError: The runtime or the device was asked for and cannot be used; names the missing
            piece.
        InputError: A word has no meaning, or two different devices were named.
    """
    if not isinstance(runtime, str):
        raise InputError(f"runtime is {runtime!r}; give NAME or NAME:DEVICE, as {DEFAULT!r}")
    name, colon, named = runtime.partition(":")
    if colon and name and not named:
        raise InputError(f"--runtime {runtime!r} names no device behind the colon; give {name!r}")
    if colon and not name:
        whole = f"{DEFAULT}:{named or 'cpu'}"
        raise InputError(f"--runtime {runtime!r} names no runtime before the colon; give {whole}")
    if named and device not in ("auto", named):
        raise InputError(
            f"--runtime {runtime} names the device {named!r} and --device {device!r}; give one of "
            "them"
        )
    return runtime_of(name).resolve(named or device)


def _loaded(point: metadata.EntryPoint) -> Runtime:
    try:
        found = point.load()
        made = found() if isinstance(found, type) else found
    except Exception as error:  # It is somebody else's code: anything can be wrong with it.
        raise InputError(
            f"the runtime {point.name!r} cannot be loaded from {point.value} ("
            f"{error_line(error)}); mend or uninstall {_package_of(point)}, or give another "
            "--runtime"
        ) from error
    if not isinstance(made, Runtime):
        lacks = sorted(name for name in _MEMBERS if not hasattr(made, name))
        raise InputError(
            f"the runtime {point.name!r} from {point.value} lacks {', '.join(lacks)}; mend or "
            f"uninstall {_package_of(point)}, or give another --runtime"
        )
    if made.name != point.name:
        # Reports would name another runtime than the one that ran.
        raise InputError(
            f"the runtime {point.name!r} from {point.value} calls itself {made.name!r}; mend or "
            f"uninstall {_package_of(point)}, or give another --runtime"
        )
    return made


_MEMBERS = (
    *("name", "unoptimised", "version", "devices", "missing"),
    *("resolve", "load", "write_graph"),
)


def _package_of(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else "its package"
