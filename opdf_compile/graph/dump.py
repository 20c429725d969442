"""A stable text form of a graph, for golden tests and for reading.

    %0 : get_attr l.weight
    %1 : placeholder x [2, 4] float32
    %2 : aten.linear.default(%1, %0) [2, 3] float32
    return (%2)

Nodes are numbered in order, so names that a torch version invents do not show.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from opdf_compile.graph.uses import submodule


def dump(graph_module: GraphModule, *, shapes: bool = True, indent: str = "") -> str:
    """The graph as text, nested graphs indented under the call that holds them."""
    numbers: dict[Node, str] = {}
    lines: list[str] = []
    for node in graph_module.graph.nodes:
        if node.op == "output":
            lines.append(f"{indent}return {_text(node.args[0], numbers)}")
            continue
        numbers[node] = f"%{len(numbers)}"
        tail = _shape(node) if shapes else ""
        lines.append(f"{indent}{numbers[node]} : {_line(node, numbers)}{tail}")
        inner = submodule(graph_module, node)
        if inner is not None:
            lines.append(dump(inner, shapes=shapes, indent=indent + "    "))
    return "\n".join(lines)


def _line(node: Node, numbers: dict[Node, str]) -> str:
    if node.op in ("get_attr", "placeholder"):
        return f"{node.op} {node.target}"
    arguments = [_text(a, numbers) for a in node.args]
    arguments += [f"{key}={_text(value, numbers)}" for key, value in node.kwargs.items()]
    target = node.target if isinstance(node.target, str) else _name(node.target)
    return f"{target}({', '.join(arguments)})"


def _name(target: Any) -> str:
    name = str(target)
    return name if name.startswith("aten.") else getattr(target, "__name__", name)


def _text(value: Any, numbers: dict[Node, str]) -> str:
    if isinstance(value, Node):
        return numbers.get(value, f"?{value.name}")
    if isinstance(value, tuple | list):
        inner = ", ".join(_text(item, numbers) for item in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    return repr(value)


def _shape(node: Node) -> str:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return ""
    sizes = ", ".join(str(size) for size in value.shape)
    return f" [{sizes}] {str(value.dtype).removeprefix('torch.')}"
