"""Names from files on a terminal: spelled out where they would command it, else as they are."""

from __future__ import annotations

import logging

import pytest

from opdf_compile.cli.formats import table
from opdf_compile.cli.printable import printable
from opdf_compile.cli.terminal import opened


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("layer.0.weight", "layer.0.weight"),
        ("caf\u00e9 \u6f22\u5b57 \U0001f600", "caf\u00e9 \u6f22\u5b57 \U0001f600"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\rb\nc\td", r"a\rb\nc\td"),
        ("a\u202eb\u2066c\u2028d", r"a\u202eb\u2066c\u2028d"),
        ("a\x9b0mb\x7f", r"a\x9b0mb\x7f"),
        ("a\udc80", r"a\udc80"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).isprintable()


def test_lines_stay_where_they_are_wanted() -> None:
    assert printable("a\nb\x1b", lines=True) == "a\nb\\x1b"


def test_every_way_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    odd = "\x1b[0m[/red]\rx"
    with opened(None, quiet=False, verbose=False, debug=False) as terminal:
        rows = table("Title", "name")
        rows.add_row(odd)
        terminal.show(rows, odd)
        terminal.warn(odd)
        logging.getLogger("opdf_compile").warning("%s", odd)
        # A bar's description is no markup either: this one would close a tag that is not open.
        with terminal.busy(odd):
            pass
    out, err = capsys.readouterr()
    assert out.count(r"\x1b[0m[/red]\rx") == 2 and err.count(r"\x1b[0m[/red]\rx") == 2
    assert "\x1b" not in out + err and "\r" not in out + err
