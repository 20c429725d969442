"""`opdf-compile doctor`: what is installed, what is missing or in conflict, and the remedy.

It exits 0 when the main job can run, also with warnings (no GPU, an extra that is not installed),
and 1 when something must be mended first.
"""

from __future__ import annotations

from rich.text import Text

from opdf_compile.cli import options as o
from opdf_compile.cli.formats import table
from opdf_compile.cli.terminal import opened

NAME = "doctor"
EXAMPLES = "$ opdf-compile doctor\n\n$ opdf-compile doctor --json -"
_MARKS = {
    "ok": Text("ok", "green"),
    "note": Text("note", "yellow"),
    "problem": Text("problem", "red"),
}


def command(
    json: o.Json = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> int:
    """Show versions, devices and execution providers, and how to mend what is wrong.

    Exits 0 when the main job can run (notes do not count), 1 when there is a problem.
    """
    with opened(json, quiet=quiet, verbose=verbose, debug=debug) as terminal:
        from opdf_compile.cli.environment import examine

        with terminal.busy("looking around"):
            findings = examine()
        rows = table("Environment", "", "what", "found")
        for finding in findings:
            rows.add_row(_MARKS[finding.level], finding.name, finding.found)
        remedies = [f"{f.name}: {f.remedy}" for f in findings if f.remedy]
        usable = all(finding.level != "problem" for finding in findings)
        terminal.show(rows, *remedies, "ready" if usable else "not ready: see above")
        terminal.result(
            {
                "schema": "opdf-doctor/1",
                "usable": usable,
                "findings": [vars(finding) for finding in findings],
            }
        )
        return 0 if usable else 1
