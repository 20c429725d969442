"""`package.module:callable?key=value` and `file.py:callable?key=value`: code that builds a model.

This runs the user's code, and is meant to: unlike a model file, a callable *is* a program.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from opdf_compile.errors import InputError, error_line
from opdf_compile.files import existing_file
from opdf_compile.io.models.loaded import LoadedModel, fixed_randomness
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


def load_callable(match: re.Match[str], spec: str) -> LoadedModel:
    """Build a model with a callable from a Python file, or from an importable module.

    Args:
        match: Of `FILE_CALLABLE` or `MODULE_CALLABLE`; a module may lie in the current folder.
        spec: The MODEL argument, for sentences.

    Raises:
        ArtefactError: The file is missing.
        InputError: It cannot be imported, has no such callable, or the callable fails.
    """
    return _unpack(_made(match, spec), match["name"], spec)


def names_code(spec: str) -> bool:
    """Whether an argument has the form of a callable, in a file or a module."""
    return bool(FILE_CALLABLE.fullmatch(spec) or MODULE_CALLABLE.fullmatch(spec))


def find_callable(spec: str) -> Callable[..., Any]:
    """The callable that `file.py:callable` or `package.module:callable` names, without calling it.

    Raises:
        ArtefactError: The file is missing.
        InputError: It has no such form, cannot be imported, or has no such callable.
    """
    with _found(_parsed(spec), spec) as found:
        return found


def call_callable(spec: str) -> Any:
    """What a callable returns that need not build a model, from fixed random numbers.

    Args:
        spec: `file.py:callable` or `package.module:callable`, with `?key=value&...`.

    Raises:
        ArtefactError: The file is missing.
        InputError: It has no such form, cannot be imported, has no such callable, or this fails.
    """
    return _made(_parsed(spec), spec)


def _parsed(spec: str) -> re.Match[str]:
    match = FILE_CALLABLE.fullmatch(spec) or MODULE_CALLABLE.fullmatch(spec)
    if match is None:
        raise InputError(
            f"{spec!r} names no code; wanted package.module:callable or file.py:callable"
        )
    return match


def _made(match: re.Match[str], spec: str) -> Any:
    with _found(match, spec) as build:
        return _call(build, match, spec)


@contextlib.contextmanager
def _found(match: re.Match[str], spec: str) -> Iterator[Callable[..., Any]]:
    """Import a callable; within the block its neighbours can be imported too."""
    if "file" in match.groupdict():
        file = existing_file(match["file"], wanted="a Python file").resolve()
        with importing_from(file.parent), fixed_randomness():
            yield _find(_import_file(file, spec), match["name"], spec)
        return
    with importing_from(Path.cwd()), fixed_randomness():
        yield _find(_import_module(match["module"], spec), match["name"], spec)


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


def _find(module: ModuleType, dotted: str, spec: str) -> Callable[..., Any]:
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
        raise InputError(
            f"{spec} names a {type(found).__name__}, wanted a callable that returns a "
            "torch.nn.Module; wrap it in a function"
        )
    return found  # type: ignore[no-any-return]


def _call(build: Callable[..., Any], match: re.Match[str], spec: str) -> Any:
    arguments = parse_query(match["query"], spec)
    if isinstance(build, nn.Module):
        raise InputError(
            f"{spec} names a model that is there already, wanted a callable that builds one; wrap "
            "it in a function"
        )
    try:
        return build(**arguments)
    except (Exception, SystemExit) as error:  # The callable is the user's code.
        raise InputError(
            f"{spec} raised {error_line(error)}; correct its arguments or the callable (--debug "
            "shows the traceback)"
        ) from error


def _unpack(made: Any, name: str, spec: str) -> LoadedModel:
    """A Module, (Module, args) or (Module, args, kwargs)."""
    if isinstance(made, nn.Module):
        return LoadedModel(made, name=name, kind="callable")
    if isinstance(made, tuple) and 2 <= len(made) <= 3 and isinstance(made[0], nn.Module):
        model, args, *rest = made
        kwargs = rest[0] if rest else {}
        if isinstance(args, Mapping) and not rest:
            args, kwargs = (), args
        if not isinstance(args, tuple | list):
            args = (args,)
        if isinstance(kwargs, Mapping):
            return LoadedModel(model, tuple(args), dict(kwargs), name=name, kind="callable")
    raise InputError(
        f"{spec} returned a {type(made).__name__}, wanted a torch.nn.Module, (Module, args) or "
        "(Module, args, kwargs); change what it returns"
    )


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
