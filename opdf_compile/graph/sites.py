"""Sites: a convolution and the BatchNorm that alone reads it.

    x -> conv(x, W, b) -> batch_norm(., gamma, beta, mean, var) -> ..

Branches with batch statistics stand beside the two: they read x, and are added to what the norm
gives. That folds only where nothing else sees the value between, in either phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from opdf_compile.graph.convolution import CONVOLUTIONS, geometry
from opdf_compile.graph.edit import attribute, get_attrs
from opdf_compile.graph.op_arguments import arguments
from opdf_compile.graph.ops import FROZEN, NOT_DENSE, short_name
from opdf_compile.graph.provenance import example_shape
from opdf_compile.graph.sharing import is_weight_dtype, names_of_parameters
from opdf_compile.graph.traced import PHASES, Phase, Traced

_NORM = torch.ops.aten.batch_norm.default

# What batch_norm takes behind its input, in order.
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")

NOT_ALONE = "is read {} times in the {} graph: branches beside one reader would change the others"
NO_CONVOLUTION = "is read by {}: branches with batch statistics stand beside a convolution"
NO_NORM = "is read by a convolution that {} reads, not a BatchNorm"
FROZEN_NORM = "has a frozen BatchNorm (it is in eval mode while the student trains)"
OTHER_READERS = "is read by a convolution whose output {} other ops read before its BatchNorm"


@dataclass(frozen=True)
class Site:
    """A convolution and the BatchNorm that alone reads it.

    Attributes:
        key: Name of the convolution's weight.
        norm: Names of the norm's tensors: weight, bias, running_mean, running_var.
        shape: Of the weight: (out, in / groups, *kernel).
        dtype: Of the weight, "float32" and the like.
        stride: Per axis, as padding and dilation are.
        padding: Zeros on each side.
        dilation: Steps between taps.
        groups: Of the convolution.
        eps: Of the norm.
        momentum: Of the norm.
        bias: Name of the convolution's bias, or None.
        outputs: Positions of the output on the example batch, batch included; 0 if unknown.
        modules: Whether each of the two is the call of the module that holds its tensors.
    """

    key: str
    norm: dict[str, str]
    shape: tuple[int, ...]
    dtype: str
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    eps: float
    momentum: float
    bias: str | None = None
    outputs: int = 0
    modules: bool = True


@dataclass(frozen=True, eq=False)
class SiteNodes:
    """A site in one graph.

    Attributes:
        convolution: The node of the convolution.
        norm: The node of the norm.
    """

    convolution: Node
    norm: Node

    @property
    def input(self) -> Node:
        """What branches read."""
        found = self.convolution.args[0]
        assert isinstance(found, Node)
        return found


def find_sites(traced: Traced) -> dict[str, Site | str]:
    """For every Parameter with two axes or more: its site, or why it is none.

    Args:
        traced: A model; sites need a graph of both phases.

    Returns:
        By the weight's name; a reason reads on from it: "is read by linear: ...".
    """
    views = {phase: SiteView(graph) for phase, graph in traced.graphs.items()}
    return {key: _found(key, views) for key in _weights(traced)}


def _weights(traced: Traced) -> list[str]:
    """Names of the Parameters that may be weights of convolutions, each once."""
    source = traced.source
    roots = [source] if isinstance(source, nn.Module) else list(traced.graphs.values())
    names: dict[int, str] = {}
    for root in roots:
        axes = {id(parameter): parameter.ndim for parameter in root.parameters()}
        for key, found in names_of_parameters(root).items():
            if axes[key] > 1:
                names.setdefault(key, found[0])
    return list(dict.fromkeys(names.values()))


def _found(key: str, views: Mapping[Phase, SiteView]) -> Site | str:
    if len(views) != len(PHASES):
        return "stands in a model without a graph of both phases"
    seen = {phase: views[phase].nodes(key, phase) for phase in PHASES}
    for found in seen.values():
        if isinstance(found, str):
            return found
    train, evaluated = seen["train"], seen["eval"]
    assert isinstance(train, SiteNodes) and isinstance(evaluated, SiteNodes)
    if not _tensor(views["train"].graph, key).requires_grad:
        return FROZEN
    site = site_of(views["train"].graph, key, train)
    other = site_of(views["eval"].graph, key, evaluated)
    if site != replace(other, outputs=site.outputs, modules=site.modules):
        return "is read by another convolution or BatchNorm in eval mode than in training"
    return replace(site, modules=site.modules and other.modules)


class SiteView:
    """One graph, and who reads each of its tensors."""

    def __init__(self, graph: GraphModule) -> None:
        """Look at every get_attr once."""
        self.graph = graph
        self._readers: dict[int, list[Node]] = {}
        for node, value in get_attrs(graph):
            if isinstance(value, Tensor):
                self._readers.setdefault(id(value), []).extend(node.users)

    def nodes(self, key: str, phase: Phase) -> SiteNodes | str:
        """The two nodes of the site of a weight, or why it has none."""
        weight = attribute(self.graph, key)
        readers = self._readers.get(id(weight), [])
        if not isinstance(weight, Tensor) or not readers:
            return f"is not read by the {phase} graph"
        if not is_weight_dtype(weight):
            return NOT_DENSE.format(weight.dtype)
        if len(readers) > 1:
            return NOT_ALONE.format(len(readers), phase)
        convolution = readers[0]
        places = [p for p, given in enumerate(convolution.args) if self._value(given) is weight]
        if convolution.target not in CONVOLUTIONS or places != [1]:
            return NO_CONVOLUTION.format(short_name(convolution))
        return self._with_norm(convolution, phase)

    def _with_norm(self, convolution: Node, phase: Phase) -> SiteNodes | str:
        users = list(convolution.users)
        norms = [u for u in users if u.target is _NORM and u.args[0] is convolution]
        if not norms:
            reader = "nothing" if not users else short_name(users[0])
            return NO_NORM.format("the caller" if reader == "output" else reader)
        if len(users) > 1:
            return OTHER_READERS.format(len(users) - 1)
        reason = self._why_not(norms[0], phase)
        return SiteNodes(convolution, norms[0]) if reason is None else reason

    def _why_not(self, norm: Node, phase: Phase) -> str | None:
        """Why branches do not fold into this norm."""
        tensors = {n: self._value(norm.args[place]) for place, n in enumerate(NORM_TENSORS, 1)}
        if tensors["running_mean"] is None or tensors["running_var"] is None:
            return "has a BatchNorm without running statistics, which no fold can write"
        if tensors["weight"] is None or tensors["bias"] is None:
            return "has a BatchNorm without gain and bias (affine=False), which the fold writes"
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                return f"has a BatchNorm whose {name} is computed in the graph"
            if len(self._readers.get(id(value), [])) > 1:
                return f"has a BatchNorm whose {name} other ops read as well"
        if bool(norm.args[5]) != (phase == "train"):
            if phase == "train":
                return FROZEN_NORM
            return "has a BatchNorm that takes the statistics of the batch in eval mode too"
        return None

    def _value(self, given: Any) -> Any:
        if isinstance(given, Node) and given.op == "get_attr":
            return attribute(self.graph, str(given.target))
        return given


def site_of(graph: GraphModule, key: str, nodes: SiteNodes) -> Site:
    """What the two nodes say of their site."""
    weight = _tensor(graph, key)
    bias = arguments(nodes.convolution)["bias"]
    shape = example_shape(nodes.convolution)
    momentum, eps = nodes.norm.args[6:8]
    return Site(
        key=key,
        norm={n: str(_node(nodes.norm, place).target) for place, n in enumerate(NORM_TENSORS, 1)},
        shape=tuple(weight.shape),
        dtype=str(weight.dtype).removeprefix("torch."),
        **geometry(nodes.convolution, tuple(weight.shape[2:]))._asdict(),
        eps=cast(float, eps),
        momentum=cast(float, momentum),
        bias=str(bias.target) if isinstance(bias, Node) else None,
        outputs=0 if shape is None else prod(shape) // shape[1],
        modules=_by_module(nodes.convolution, 1) and _by_module(nodes.norm, 1),
    )


def _by_module(node: Node, place: int) -> bool:
    """Whether a node is written by the module that holds one of its tensors."""
    calls = list((node.meta.get("nn_module_stack") or {}).values())
    return bool(calls) and str(calls[-1][0]) == str(_node(node, place).target).rpartition(".")[0]


def _tensor(graph: GraphModule, name: str) -> Tensor:
    found = attribute(graph, name)
    assert isinstance(found, Tensor)
    return found


def _node(node: Node, place: int) -> Node:
    found = node.args[place]
    assert isinstance(found, Node)
    return found
