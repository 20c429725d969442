"""Every error opdf-compile raises on purpose; the class says whose fault it is.

`UserError` and its children mean that something the caller gave cannot be used; the message is one
sentence that names the thing, what was found, what was wanted and the remedy. `InternalError` means
that the compiler broke its own contract and that a report is welcome.
"""

from __future__ import annotations

from types import UnionType
from typing import ClassVar


class OpdfError(Exception):
    """Root of all errors of this package.

    Attributes:
        exit_code: What the command line exits with when this error ends it.
    """

    exit_code: ClassVar[int] = 70


class UserError(OpdfError):
    """The caller's input cannot be used."""

    exit_code: ClassVar[int] = 2


class InputError(UserError):
    """An argument, option or example input has the wrong form."""


class ArtefactError(UserError):
    """A file cannot be read, is not trusted, or cannot be written."""


class TraceError(UserError):
    """torch.export cannot hold the model as a graph."""


class PlanError(UserError):
    """A plan does not fit the model, or contradicts itself."""


class FoldError(UserError):
    """Cores and student do not belong together."""


class NoCores(FoldError):
    """A file was to be folded from its cores, and holds none."""


class WeightsChanged(UserError):
    """Weights hold something else than their cores last made of them."""


class ExportError(UserError):
    """The ONNX exporter cannot express the model."""


class RecipeError(UserError):
    """A recipe says something that cannot be done; the message starts with its file and line."""


class DeviceError(UserError):
    """The device or execution provider that was asked for is not there."""


class RunInterrupted(OpdfError):
    """A training run was told to stop, saved where it was, and says how to go on."""

    exit_code: ClassVar[int] = 130


class InternalError(OpdfError):
    """A pass or a checker broke its own contract; please report it."""


def require_type(
    value: object, kind: type | UnionType | tuple[type, ...], name: str, wanted: str
) -> None:
    """Refuse an argument of another type, before its first use fails in words of Python's own.

    Args:
        value: The argument.
        kind: What it must be, as isinstance takes it.
        name: What the sentence calls it, with its article: "the plan".
        wanted: What was wanted, and the remedy: "a Plan; read a file with opdf.Plan.load(path)".

    Raises:
        InputError: It is of another type.
    """
    if not isinstance(value, kind):
        raise InputError(f"{name} is a {type(value).__name__}, wanted {wanted}")


def first_line(error: BaseException, most: int = 200) -> str:
    """What an exception says on its first line, without the period; its class if it is silent."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:most].rstrip(".")


def error_line(error: BaseException, most: int = 200) -> str:
    """An exception as "Type: message", on one line."""
    name, line = type(error).__name__, first_line(error, most)
    return name if line == name else f"{name}: {line}"
