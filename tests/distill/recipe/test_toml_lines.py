"""Lines of keys, for every form that TOML has."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opdf_compile.distill.recipe.toml_lines import key_lines, nearest_line

TEXT = '''\
# a comment with [brackets] and = signs
top = 1
"quoted key" = "a # in a text"  # [no]
a.b.c = "dotted"

[first]   # a header
x = [1, 2,
  3, [4,
  5]]
text = """
not = "a key"
[nor a table]
"""  # after
raw = \'\'\'a """ 'quote' \\\'\'\'
inline = { y = 1, z.w = [true, { v = 2 }] }

[ first . "sub table" ]
time = 1979-05-27T07:32:00Z
[[many]]
k = 1
[many.inner]
deep = "]"
[[many]]
k = 2
[[many.rows]]
r = 1
[[many.rows]]
r = 2
last = "\\"escaped\\" = "'''

LINES = {
    ("top",): 2,
    ("quoted key",): 3,
    ("a", "b", "c"): 4,
    ("first",): 6,
    ("first", "x"): 7,
    ("first", "x", 2): 8,
    ("first", "x", 3, 1): 9,
    ("first", "text"): 10,
    ("first", "raw"): 14,
    ("first", "inline", "z", "w", 1, "v"): 15,
    ("first", "sub table"): 17,
    ("first", "sub table", "time"): 18,
    ("many", 0): 19,
    ("many", 0, "inner", "deep"): 22,
    ("many", 1): 23,
    ("many", 1, "rows", 0, "r"): 26,
    ("many", 1, "rows", 1, "r"): 28,
    ("many", 1, "rows", 1, "last"): 29,
}


def paths(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    """Every path of what tomllib read: the oracle for which keys there are."""
    parts: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        parts = list(value.items())
    if isinstance(value, list):
        parts = list(enumerate(value))
    inner = [paths(part, (*path, key)) for key, part in parts]
    return set().union({path} if path else set(), *inner)


@pytest.mark.parametrize("path", LINES)
def test_the_line_of_a_key(path: tuple[str | int, ...]) -> None:
    assert key_lines(TEXT)[path] == LINES[path]


def test_all_keys_are_found_and_no_others() -> None:
    assert set(key_lines(TEXT)) == paths(tomllib.loads(TEXT))


def test_what_is_not_there_is_where_its_surroundings_are() -> None:
    lines = key_lines(TEXT)
    assert nearest_line(lines, ("many", 1, "gone")) == 23
    assert nearest_line(lines, ("gone", "altogether")) == 1


WORDS = st.sampled_from(["a", "b", "long-key", '"quo.ted"', "'x'"])
VALUES = st.sampled_from(
    [
        "1",
        '"t # ="',
        "'''\n] = [\n'''",
        '"""\n"x" """',
        "[1,\n 2, # c\n]",
        "{ p = 1 }",
        "[[], [{q = 1}]]",
    ]
)


@given(st.lists(st.tuples(WORDS, WORDS, VALUES), max_size=6))
def test_any_text_that_tomllib_reads(rows: list[tuple[str, str, str]]) -> None:
    text, lines, expected = "", 1, {}
    for place, (head, key, value) in enumerate(rows):
        text += f"[[t{place}.{head}]]\n\n{key} = {value} # end\n"
        names = [next(iter(tomllib.loads(f"{word} = 0"))) for word in (head, key)]
        expected[f"t{place}", names[0], 0, names[1]] = lines + 2
        lines += 3 + value.count("\n")
    found = key_lines(text)
    assert {path: found[path] for path in expected} == expected
    assert set(found) == paths(tomllib.loads(text))
