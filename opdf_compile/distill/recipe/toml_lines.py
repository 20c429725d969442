"""On which line of a TOML text each key stands.

tomllib gives values without positions, and so do the other readers. This scanner walks a text that
tomllib has accepted already, so it need not notice mistakes: it only tells keys from strings,
comments and brackets.
"""

from __future__ import annotations

import re
import tomllib

Path = tuple[str | int, ...]
_KEY = re.compile(r'[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'')
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{1,2}(?!"))?|\'\'\'.*?\'\'\'(?:\'{1,2}(?!\'))?'
    r'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'',
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}\n#]+")
_SPACE = re.compile(r"[ \t]+")
_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)+")


def key_lines(text: str) -> dict[Path, int]:
    """Find the line of every table, key and array item.

    Returns:
        Lines, counted from 1, by path: ("loss", 1, "temperature").
    """
    return _Scanner(text).scan()


def nearest_line(lines: dict[Path, int], path: Path) -> int:
    """The line of a path, or of the nearest thing around it; 1 where there is none."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0
        self._lines: dict[Path, int] = {}
        self._lengths: dict[Path, int] = {}

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._here("[["):
                table = self._new_item(self._header(2))
            elif self._here("["):
                table = self._inside(self._header(1))
                self._note(table)
            else:
                self._pair(table)
            self._skip(_BLANK)
        return self._lines

    def _here(self, mark: str) -> bool:
        return self._text.startswith(mark, self._at)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _note(self, path: Path) -> None:
        """Keep the line of a path and of what is around it, where they are first spoken of."""
        line = self._text.count("\n", 0, self._at) + 1
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], line)

    def _header(self, brackets: int) -> Path:
        self._at += brackets
        keys = self._dotted()
        self._at += brackets
        return keys

    def _new_item(self, keys: Path) -> Path:
        array = (*self._inside(keys[:-1]), keys[-1])
        self._note(array)
        place = self._lengths.get(array, 0)
        self._lengths[array] = place + 1
        self._note((*array, place))
        return (*array, place)

    def _inside(self, keys: Path) -> Path:
        """The path of a table, where a name that is an array means its last item."""
        path: Path = ()
        for key in keys:
            path = (*path, key)
            if path in self._lengths:
                path = (*path, self._lengths[path] - 1)
        return path

    def _dotted(self) -> Path:
        keys: list[str] = []
        while True:
            self._skip(_SPACE)
            found = _KEY.match(self._text, self._at)
            if found is None:
                raise ValueError(f"no key at character {self._at}")
            self._at = found.end()
            keys.append(_plain(found[0]))
            self._skip(_SPACE)
            if not self._here("."):
                return tuple(keys)
            self._at += 1

    def _pair(self, table: Path) -> None:
        start = self._at
        path = (*table, *self._dotted())
        end, self._at = self._at, start
        self._note(path)
        self._at = end + 1
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip(_SPACE)
        if self._here("["):
            self._items(path, "]")
        elif self._here("{"):
            self._items(path, "}")
        elif self._here('"') or self._here("'"):
            self._skip(_STRING)
        else:
            self._skip(_SCALAR)

    def _items(self, path: Path, close: str) -> None:
        """The items of an array, or the pairs of an inline table."""
        self._at += 1
        place = 0
        self._skip(_BLANK)
        while not self._here(close):
            if close == "}":
                self._pair(path)
            else:
                self._note((*path, place))
                self._value((*path, place))
            place += 1
            self._skip(_BLANK)
            self._at += self._here(",")
            self._skip(_BLANK)
        self._at += 1


def _plain(key: str) -> str:
    """A key without its quotes."""
    return next(iter(tomllib.loads(f"{key} = 0"))) if key[0] in "\"'" else key
