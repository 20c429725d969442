"""What runtimes have in common that have one device, and passes that cannot be switched off."""

from __future__ import annotations

from collections.abc import Mapping

from opdf_compile.errors import DeviceError, InputError
from opdf_compile.parity.runtime.protocol import Device, Runtime

CPU = "cpu"


def resolve_only(
    runtime: Runtime, word: str, provider: str, options: Mapping[str, str], precision: str = ""
) -> Device:
    """The only device of a runtime, for its name and "auto".

    Args:
        runtime: Whose device it is.
        word: The user's.
        provider: The runtime's own name of what runs.
        options: Pinned for every model.
        precision: The floating-point type that is pinned; empty where the file decides.

    Raises:
        DeviceError: The runtime cannot be used; names the missing piece.
        InputError: Another word.
    """
    (device,) = runtime.devices()
    if word not in ("auto", device):
        raise InputError(f"{runtime.name} has no device {word!r}; give auto or {device}")
    missing = runtime.missing(device)
    if missing is not None:
        raise DeviceError(
            f"--runtime {runtime.name} was asked for but {missing.piece}; {missing.remedy}, or "
            "give another --runtime"
        )
    because = "auto: its only device" if word == "auto" else "asked for"
    return Device(device, provider, options, because, runtime=runtime, precision=precision)


def require_optimised(runtime: Runtime, model: object, optimised: bool) -> None:
    """Refuse to load without graph passes that cannot be switched off.

    Raises:
        DeviceError: That was asked for.
    """
    if not optimised:
        raise DeviceError(
            f"{runtime.name} cannot load {model} without its graph optimisation; give another "
            "--runtime"
        )
