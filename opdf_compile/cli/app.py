"""The program: its commands, and what an error becomes on a terminal.

| how a command ends                     | exit code       | stderr                            |
|----------------------------------------|-----------------|-----------------------------------|
| it returns                             | 0, or its code  |                                   |
| `UserError`, or wrong usage            | 2               | one sentence                      |
| Ctrl-C                                 | 130             | one word, or how to go on         |
| anything else                          | 70              | one sentence that asks for a report |

A traceback is shown only with `--debug`.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, cast

import typer

from opdf_compile.cli import (
    PROGRAM,
    advise,
    check_data,
    demo,
    diff,
    distill,
    doctor,
    expand,
    export,
    fold,
    inspect,
    parametrizations,
    plan,
    verify,
)
from opdf_compile.cli.printable import printable
from opdf_compile.errors import OpdfError, RunInterrupted, UserError
from opdf_compile.version import __version__

INTERNAL = 70
INTERRUPTED = 130
USAGE = 2

# Typer re-exports BadParameter only; its base is what every mistake in usage derives from.
_UsageError = cast(type[Exception], typer.BadParameter.__base__)

app = typer.Typer(
    name=PROGRAM,
    help=(
        "Over-parameterise a PyTorch student while it trains, ship the small model as ONNX, and "
        "prove that it is as small and as fast as if it had never been touched."
    ),
    epilog=f"$ {PROGRAM} demo\n\n$ {PROGRAM} inspect 'timm:resnet18?num_classes=10'",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version, and stop.",
            is_eager=True,
            callback=_print_version,
        ),
    ] = False,
) -> None:
    """Options that stand before a command."""


for _module in (
    inspect,
    parametrizations,
    plan,
    expand,
    fold,
    export,
    verify,
    diff,
    check_data,
    distill,
    advise,
    demo,
    doctor,
):
    app.command(_module.NAME, epilog=_module.EXAMPLES)(_module.command)


def execute(arguments: list[str]) -> int:
    """Runs the program with the arguments that follow its name; its exit code."""
    arguments = arguments or ["--help"]
    # Read before parsing: also a mistake in usage can then be debugged.
    debug = "--debug" in arguments
    try:
        code = app(arguments, prog_name=PROGRAM, standalone_mode=False)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _fail(*_explain(error))
    if code == INTERRUPTED:
        # Newer versions of typer make this code of a KeyboardInterrupt, and say nothing.
        return _fail("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _explain(error: Exception) -> tuple[str, int]:
    """The sentence and the exit code of an error that ended a command."""
    if isinstance(error, _UsageError):
        return _usage_sentence(error), USAGE
    if isinstance(error, UserError | RunInterrupted):
        return str(error), error.exit_code
    if isinstance(error, ModuleNotFoundError) and _is_base(name := str(error.name).split(".")[0]):
        return f"this command needs {name}, which is not installed; pip install {name}", USAGE
    code = error.exit_code if isinstance(error, OpdfError) else INTERNAL
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return f"internal error: {what[:300]}; please report it with the output of --debug", code


def _is_base(module: str) -> bool:
    """Whether a package that is installed with this one has the module; `verify` needs few."""
    from opdf_compile.cli.environment import BASE

    return module.replace("_", "-") in {name.replace("_", "-") for name in BASE}


def _usage_sentence(error: Exception) -> str:
    """Typer's message as one sentence that ends in the remedy."""
    message: str = error.format_message()  # type: ignore[attr-defined]
    message = message.replace("Value error, ", "").replace(". Did you", ", did you").rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message}; see {context.command_path if context else PROGRAM} --help"


def _fail(message: str, code: int) -> int:
    # One line whatever the message holds: a library's own text may run over several.
    print(f"{PROGRAM}: {printable(' '.join(message.split()))}", file=sys.stderr)  # noqa: T201
    return code
