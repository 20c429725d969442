"""fold: the branches beside every site go into its convolution and its norm; needs no plan.

    y = batch_norm(conv(x, W)) + sum branch(x)   ->   y = batch_norm(conv(x, W))

with other numbers in W and in the norm. The names of the tensors below ``W_branches`` say which
branches there are, and the graph says the rest: see `parametrizations.branches`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import GraphModule, Node

from opdf_compile.errors import FoldError, InternalError, PlanError
from opdf_compile.graph import PHASES, SiteNodes, SiteView, named_tensors, set_attribute, site_of
from opdf_compile.parametrizations import SiteSpec, branch_forms
from opdf_compile.passes.contract import GraphChange, GraphPass, PassResult
from opdf_compile.planning import SiteEntry

_MARK = "_branches."

aten = torch.ops.aten


def branch_key(name: str, names: Container[str]) -> tuple[str, str] | None:
    """The weight and the branch that a tensor's name belongs to; None if it is of no branch.

    Args:
        name: Of the tensor.
        names: Of all tensors: a student's own module may be called so, too.
    """
    key, _mark, rest = name.rpartition(_MARK)
    return (key, rest.partition(".")[0]) if key in names and "." in rest else None


@dataclass(frozen=True)
class FoldSites(GraphPass):
    """Fold branches into convolutions and norms."""

    def call(self, module: GraphModule) -> PassResult:
        """Fold every site of the graph."""
        view, changes = SiteView(module), []
        for key, branches in _sites(module).items():
            nodes = _nodes(view, key)
            entry = _entry(module, key, nodes, branches)
            before = named_tensors(module)
            values = entry.fold(before)
            _drop(module, nodes, entry)
            for name, value in values.items():
                own = before[name]
                kept = isinstance(own, nn.Parameter)
                made = nn.Parameter(value, requires_grad=own.requires_grad) if kept else value
                set_attribute(module, name, made)
            changes.append(GraphChange(key, f"folded from {entry.modes.replace('+', ', ')}"))
        module.delete_all_unused_submodules()
        return PassResult(module, tuple(changes))

    def ensures(self, result: PassResult) -> None:
        """No branch is read any more.

        Raises:
            InternalError: One is.
        """
        named = named_tensors(result.module)
        for name in _read(result.module):
            if branch_key(name, named) is not None:
                raise InternalError(f"fold left {name!r} in the graph; please report it")


def _read(module: GraphModule) -> Iterator[str]:
    return (str(node.target) for node in module.graph.nodes if node.op == "get_attr")


def _sites(module: GraphModule) -> dict[str, tuple[str, ...]]:
    """The branches of each weight, in the order of the graph."""
    named = named_tensors(module)
    found: dict[str, dict[str, None]] = {}
    for name in _read(module):
        place = branch_key(name, named)
        if place is not None:
            found.setdefault(place[0], {})[place[1]] = None
    return {key: tuple(branches) for key, branches in found.items()}


def _nodes(view: SiteView, key: str) -> SiteNodes:
    for phase in PHASES:
        nodes = view.nodes(key, phase)
        if isinstance(nodes, SiteNodes):
            return nodes
    raise FoldError(
        f"branches stand beside {key!r}, but it {nodes}; wanted the graph that expand wrote"
    )


def _entry(module: GraphModule, key: str, nodes: SiteNodes, branches: tuple[str, ...]) -> SiteEntry:
    site = site_of(module, key, nodes)
    try:
        spec = SiteSpec.chosen(site, branches)
        # Which form asked for them is not known any more, and nothing depends on it.
        return SiteEntry(key, site.norm, next(iter(branch_forms())), spec, site.bias)
    except PlanError as error:
        raise FoldError(f"the branches of {key!r} do not fit their site: {error}") from error


def _drop(module: GraphModule, nodes: SiteNodes, entry: SiteEntry) -> None:
    """Take the branches out of the graph: the sums behind the norm, and what only they read."""
    last = nodes.norm
    for _branch in entry.spec.branches:
        users = list(last.users)
        if (
            len(users) != 1
            or users[0].target is not aten.add.Tensor
            or users[0].args[0] is not last
        ):
            raise FoldError(
                f"the graph does not add the branches of {entry.key!r} to its norm, wanted the "
                "graph that expand wrote"
            )
        last = users[0]
    readers = list(last.users)
    for reader in readers:
        reader.replace_input_with(last, nodes.norm)
    prefix = f"{entry.branches_name}."
    below: set[Node] = set()
    for node in module.graph.nodes:
        own = node.op == "get_attr" and str(node.target).startswith(prefix)
        if own or any(given in below for given in node.all_input_nodes):
            below.add(node)
    for node in reversed(list(module.graph.nodes)):
        if node in below:
            module.graph.erase_node(node)
