"""`opdf-compile parametrizations`: what plans can ask for by name, and with which options."""

from __future__ import annotations

from opdf_compile.cli import options as o
from opdf_compile.cli.formats import table
from opdf_compile.cli.terminal import opened

NAME = "parametrizations"
EXAMPLES = "$ opdf-compile parametrizations\n\n$ opdf-compile parametrizations --json -"


def command(
    json: o.Json = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """List what --parametrization and --rule of plan can name, with options and sources."""
    with opened(json, quiet=quiet, verbose=verbose, debug=debug) as terminal:
        from opdf_compile.parametrizations import list_parametrizations

        listing = list_parametrizations()
        rows = table("Parametrizations", *listing.head)
        for row in listing:
            rows.add_row(*row.cells())
        terminal.show(rows, *listing.option_lines(), listing.costs)
        terminal.result(listing.to_json())
