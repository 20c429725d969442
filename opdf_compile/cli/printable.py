"""Texts from files, safe to show: a name must not move the cursor or rewrite what was printed.

A name in a model file, a plan or a header may hold any character. ESC starts a terminal's commands
(colours, titles, clearing the screen), a carriage return overwrites the line, and the marks for
right-to-left text show a name in another order than it is.
"""

from __future__ import annotations

import unicodedata

# Cc: control characters, Cf: marks such as right-to-left overrides, Zl and Zp: line separators,
# Cs and Co: halves of surrogate pairs and private use.
_UNSAFE = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs", "Co"})


def printable(text: str, *, lines: bool = False) -> str:
    r"""The text with every control character spelled out.

    Args:
        text: Any text; a name in it may come from a file.
        lines: Keep line breaks, for a text of several lines such as a traceback.

    Example:
        >>> printable("a\x1b[31mb")
        'a\\x1b[31mb'
    """
    if text.isprintable():
        return text
    return "".join(letter if lines and letter == "\n" else _spelled(letter) for letter in text)


def _spelled(letter: str) -> str:
    if unicodedata.category(letter) not in _UNSAFE:
        return letter
    return letter.encode("unicode_escape").decode("ascii")
