"""Where in a model a node of its graph stands: for sentences that people act on."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch.fx import Node

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = str(Path(torch.__file__).parent)


def operator_name(node: Node) -> str:
    """An operator as people look it up, without its overload: ``aten.dropout``."""
    space, _, name = str(getattr(node.target, "name", lambda: "")()).partition("::")
    return f"{space}.{name.partition('.')[0]}" if name else str(node.target)


def _module_of(node: Node) -> str:
    """The submodule that a node comes from, quoted, or the forward of the model's class."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "the graph"
    path, kind = stack[-1]
    if path:
        return f"{str(path)!r}"
    name = kind if isinstance(kind, str) else getattr(kind, "__qualname__", str(kind))
    return f"the forward of {name.rpartition('.')[2]}"


def _line_of(node: Node) -> str:
    """The line of the user's own code, ``net.py:21``; empty where the graph does not say."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [(file, line) for file, line in frames if not file.startswith(_TORCH)]
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""


def node_place(node: Node) -> str:
    """Operator, submodule and line: ``aten.dropout in 'encoder.drop' (net.py:21)``."""
    line = _line_of(node)
    return f"{operator_name(node)} in {_module_of(node)}" + (f" ({line})" if line else "")
