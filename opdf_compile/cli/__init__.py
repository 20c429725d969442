"""The command line: one thin file per command, and the only importer of typer and rich."""

from __future__ import annotations

from opdf_compile.cli.app import main

__all__ = ["main"]
