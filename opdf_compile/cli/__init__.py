"""The command line: one thin file per command, and the only importer of typer and rich."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from opdf_compile.version import __version__

PROGRAM = "opdf-compile"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program, see `opdf_compile.cli.app`.

    Args:
        argv: The arguments without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        # Bug reports and CI logs ask for nothing else, and need no command to be imported.
        print(f"{PROGRAM} {__version__}")  # noqa: T201
        return 0
    from opdf_compile.cli.app import execute

    return execute(arguments)


__all__ = ["PROGRAM", "main"]
