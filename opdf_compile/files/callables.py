"""`package.module:callable?key=value` and `file.py:callable?key=value`: the code that words name.

This imports the user's code, and is meant to: unlike a model file, a callable *is* a program.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from opdf_compile.errors import InputError, error_line
from opdf_compile.files.atomic import existing_file
from opdf_compile.spelling import nearest

_CALLABLE = r":(?P<name>[A-Za-z_][\w.]*)(?:\?(?P<query>.*))?"
FILE_CALLABLE = re.compile(r"(?P<file>.+\.py)" + _CALLABLE)
MODULE_CALLABLE = re.compile(r"(?P<module>[A-Za-z_][\w.]*)" + _CALLABLE)


def parse_query(query: str | None, spec: str) -> dict[str, Any]:
    """Read `key=value&key=value`; values are Python literals, or else texts.

    Raises:
        InputError: A part has no name, or a name comes twice.
    """
    values: dict[str, Any] = {}
    for part in (query or "").split("&") if query else ():
        key, equals, text = part.partition("=")
        if not equals or not key.isidentifier():
            raise InputError(
                f"{spec} has the argument {part!r}, wanted key=value; write "
                "NAME?key=value&key=value"
            )
        if key in values:
            raise InputError(f"{spec} gives the argument {key!r} twice; give it once")
        values[key] = _literal(text)
    return values


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def parse_callable(spec: str) -> re.Match[str]:
    """Read `file.py:callable` or `package.module:callable`, with `?key=value&...`.

    Raises:
        InputError: It has no such form.
    """
    match = FILE_CALLABLE.fullmatch(spec) or MODULE_CALLABLE.fullmatch(spec)
    if match is None:
        raise InputError(
            f"{spec!r} names no code; wanted package.module:callable or file.py:callable"
        )
    return match


@contextlib.contextmanager
def imported_callable(match: re.Match[str], spec: str, wanted: str) -> Iterator[Callable[..., Any]]:
    """Import a callable; within the block its neighbours can be imported too.

    Args:
        match: Of `parse_callable`; a module may lie in the current folder.
        spec: What was given, for sentences.
        wanted: What to name instead of something that cannot be called, with a remedy.

    Raises:
        ArtefactError: The file is missing.
        InputError: It cannot be imported, or has no such callable.
    """
    if "file" in match.groupdict():
        file = existing_file(match["file"], wanted="a Python file").resolve()
        with importing_from(file.parent):
            yield _find(_import_file(file, spec), match["name"], spec, wanted)
        return
    with importing_from(Path.cwd()):
        yield _find(_import_module(match["module"], spec), match["name"], spec, wanted)


def _import_module(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # Importing runs the user's code.
        raise InputError(
            f"{name} of {spec} cannot be imported ({error_line(error)}); install it or run from "
            "the folder that holds it"
        ) from error


def _import_file(file: Path, spec: str) -> ModuleType:
    # The same name in every process: Python's own hash of a text is another in each.
    place = zlib.crc32(str(file).encode())
    name = f"opdf_model_{re.sub(r'[^0-9A-Za-z_]', '_', file.stem)}_{place:x}"
    found = importlib.util.spec_from_file_location(name, file)
    if found is None or found.loader is None:
        raise InputError(f"{file} of {spec} is no Python file; give FILE.py:CALLABLE")
    module = importlib.util.module_from_spec(found)
    # Classes are looked up by module name when a model is copied or pickled.
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # Importing runs the user's code.
        del sys.modules[name]
        raise InputError(
            f"{file} cannot be imported ({error_line(error)}); correct it, or see the traceback "
            "with --debug"
        ) from error
    return module


def _find(module: ModuleType, dotted: str, spec: str, wanted: str) -> Callable[..., Any]:
    found: Any = module
    for part in dotted.split("."):
        if not hasattr(found, part):
            names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            close = nearest(dotted, names, most=3) or sorted(names)[:5]
            raise InputError(
                f"{spec} names {dotted!r}, which {module.__file__ or module.__name__} does not "
                f"have; callables there: {', '.join(close) or 'none'}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{spec} names a {type(found).__name__}, wanted {wanted}")
    return found  # type: ignore[no-any-return]


@contextlib.contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Let code be imported from a folder by name, as the neighbours of `python FILE.py` are."""
    entry = str(folder.resolve())
    if entry in sys.path:
        yield
        return
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)
