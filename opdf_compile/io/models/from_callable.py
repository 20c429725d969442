"""`package.module:callable?key=value` and `file.py:callable?key=value`: code that builds a model.

This runs the user's code, and is meant to: unlike a model file, a callable *is* a program.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from opdf_compile.errors import InputError, error_line
from opdf_compile.files import (
    FILE_CALLABLE,
    MODULE_CALLABLE,
    imported_callable,
    parse_callable,
    parse_query,
)
from opdf_compile.io.models.loaded import LoadedModel, fixed_randomness


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
    with _found(parse_callable(spec), spec) as found:
        return found


def call_callable(spec: str) -> Any:
    """What a callable returns that need not build a model, from fixed random numbers.

    Args:
        spec: `file.py:callable` or `package.module:callable`, with `?key=value&...`.

    Raises:
        ArtefactError: The file is missing.
        InputError: It has no such form, cannot be imported, has no such callable, or this fails.
    """
    return _made(parse_callable(spec), spec)


def _made(match: re.Match[str], spec: str) -> Any:
    with _found(match, spec) as build:
        return _call(build, match, spec)


@contextlib.contextmanager
def _found(match: re.Match[str], spec: str) -> Iterator[Callable[..., Any]]:
    wanted = "a callable that returns a torch.nn.Module; wrap it in a function"
    with fixed_randomness(), imported_callable(match, spec, wanted) as found:
        yield found


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
