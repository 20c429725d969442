"""Docstrings as griffe reads them."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


class Examples(griffe.Extension):
    """Takes `Example:` for the section that griffe knows as `Examples:` only.

    Google's guide names both; griffe makes an admonition of the singular, and prose of its code.
    """

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section in the docstring of one module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = _EXAMPLE.sub("Examples:", obj.docstring.value)


class CalledPackage(griffe.Extension):
    """Leaves `parametrizations` of the stub out: the package of that name has the docstring.

    `opdf.parametrizations` is a package that can be called. Type checkers are told of the call, and
    griffe, which knows one thing by one name, would lose the package and all that is in it.
    """

    def on_module_members(self, *, mod: griffe.Module, **_: Any) -> None:
        """Drop the function where its module is read."""
        member = mod.members.get("parametrizations")
        if member is not None and not member.is_alias and member.is_function:
            del mod.members["parametrizations"]
