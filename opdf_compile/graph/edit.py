"""Edit helpers for FX graphs that keep names and metadata."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen

from opdf_compile.graph.sharing import owner


def insert_graph(graph: Graph, inner: Graph, inputs: Sequence[Node], before: Node) -> Node:
    """Copy a graph with one output into another.

    Args:
        graph: The graph that grows.
        inner: The graph to copy; its placeholders stand for `inputs`, in order.
        inputs: Nodes of `graph`.
        before: The copies come before this node.

    Returns:
        The node that `inner` returns.
    """
    places = [node for node in inner.nodes if node.op == "placeholder"]
    mapped: dict[Node, Node] = dict(zip(places, inputs, strict=True))
    with graph.inserting_before(before):
        for node in inner.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                result = node.args[0]
                result = result[0] if isinstance(result, tuple | list) else result
                assert isinstance(result, Node)
                return mapped[result]
            mapped[node] = graph.node_copy(node, mapped.__getitem__)
            # Shapes were recorded on tensors without memory; torch.export records its own anew.
            mapped[node].meta = {}
    raise AssertionError("a graph has an output node")


def copied(graph: Graph, codegen: CodeGen) -> Graph:
    """A copy of a graph with the metadata of its nodes.

    `codegen` is what it takes and returns: that of the original, or leaves as a plain CodeGen.
    """
    fresh = Graph()
    mapped: dict[Node, Node] = {}
    result = fresh.graph_copy(graph, mapped)
    mapped[next(iter(reversed(graph.nodes)))] = fresh.output(result)
    for old, new in mapped.items():
        new.meta = dict(old.meta)
    fresh.set_codegen(codegen)
    return fresh


def attribute(module: nn.Module, target: str) -> object:
    """The value that a dotted name stands for, or None."""
    value: object = module
    for part in target.split("."):
        value = getattr(value, part, None)
    return value


def get_attrs(graph_module: GraphModule) -> list[tuple[Node, object]]:
    """Every get_attr node with the value it reads."""
    return [
        (node, attribute(graph_module, str(node.target)))
        for node in graph_module.graph.nodes
        if node.op == "get_attr"
    ]


def ensure_container(root: nn.Module, target: str) -> tuple[nn.Module, str]:
    """The module that shall hold a dotted name, made of empty modules where it is not there yet."""
    path, _, name = target.rpartition(".")
    holder = root
    for part in filter(None, path.split(".")):
        child = getattr(holder, part, None)
        if child is None:
            child = nn.Module()
            holder.add_module(part, child)
        holder = child
    return holder, name


def set_attribute(root: nn.Module, target: str, value: object, *, persistent: bool = True) -> None:
    """Put a Parameter, a buffer or a module at a dotted name."""
    holder, name = ensure_container(root, target)
    if isinstance(value, nn.Parameter):
        holder.register_parameter(name, value)
    elif isinstance(value, torch.Tensor):
        holder.register_buffer(name, value, persistent=persistent)
    elif isinstance(value, nn.Module):
        holder.add_module(name, value)
    else:
        setattr(holder, name, value)


def is_persistent(root: nn.Module, target: str) -> bool:
    """Whether a buffer is part of the state dict."""
    holder, name = owner(root, target)
    return name not in holder._non_persistent_buffers_set


def over_tensors_of(root: nn.Module, graph: Graph) -> GraphModule:
    """A graph module over the parameters and buffers of another module.

    GraphModule registers every buffer as persistent, which would add keys to the state dict and
    turn constants into state; here they stay what they were.
    """
    module = GraphModule(root, graph)
    for name, _buffer in list(module.named_buffers(remove_duplicate=False)):
        if not is_persistent(root, name):
            holder, last = owner(module, name)
            holder._non_persistent_buffers_set.add(last)
    return module


def drop_dtype_checks(graph: Graph) -> None:
    """Remove the assertions that torch.export puts before casts.

    They hold the dtype of the trace, so they would stop a module that `.half()` has moved.
    """
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)
