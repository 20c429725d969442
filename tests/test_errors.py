"""What is told of an exception whose message is somebody else's."""

from __future__ import annotations

import pytest

from opdf_compile.errors import error_line, first_line


@pytest.mark.parametrize(
    ("message", "line", "named"),
    [
        ("it broke.", "it broke", "ValueError: it broke"),
        ("\n\n  here: \n and there", "here:", "ValueError: here:"),
        ("", "ValueError", "ValueError"),
        (" \n ", "ValueError", "ValueError"),
    ],
)
def test_the_first_line_that_says_something(message: str, line: str, named: str) -> None:
    assert first_line(ValueError(message)) == line
    assert error_line(ValueError(message)) == named


def test_a_long_message_is_cut() -> None:
    assert first_line(ValueError("x" * 300)) == "x" * 200
    assert error_line(ValueError("x" * 300), 10) == f"ValueError: {'x' * 10}"
