"""hoist: what makes a weight depends on parameters only, so it leaves the forward.

    T_k = get_attr K_cores.k;  W = compose(T_1..T_n);  y = op(x, W)          (expanded graph)
 -> program:  T_k -> W                                                       (once per step)
    forward:  W = get_attr K;  y = op(x, W)                                  (the student's own)

The split is found by dependence: a weight moves with all that it is computed from, and it must not
depend on an input. Whatever follows the weight (a transpose, a slice) belongs to the student's
forward and stays. A program falls apart into parts that share no core; each is a function
cores -> weights, and can be run, batched or given to a rank of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch.fx import Graph, GraphModule, Node

from opdf_compile.errors import InternalError, PlanError
from opdf_compile.graph import set_attribute
from opdf_compile.passes.compose_graph import WEIGHT_MARK, insert_compose
from opdf_compile.passes.contract import GraphChange, GraphPass, PassResult
from opdf_compile.passes.dependence import Dependence
from opdf_compile.passes.fold import erase_assertions, folded_weight
from opdf_compile.passes.regions import Region, core_key, find_regions
from opdf_compile.planning import Plan


@dataclass(frozen=True, eq=False)
class ProgramPart:
    """A piece of a weight program that shares no core with the others.

    Attributes:
        graph: Placeholders for `cores`, in order; returns a tuple of weights, in order of `keys`.
        keys: Names of the weights.
        cores: Names of the cores.
    """

    graph: Graph
    keys: tuple[str, ...]
    cores: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class HoistResult(PassResult):
    """A forward with plain weights, and the program that makes them.

    Attributes:
        program: get_attrs of cores, compose ops, and an output with one entry per weight.
        keys: Names of the weights, in the order of the program's output.
    """

    program: Graph | None = None
    keys: tuple[str, ...] = ()

    def parts(self) -> tuple[ProgramPart, ...]:
        """The program by connected components."""
        return program_parts(self.program, self.keys) if self.program is not None else ()


@dataclass(frozen=True)
class Hoist(GraphPass):
    """Move every compose subgraph out of the forward.

    What is left in the forward is a get_attr of the weight's own name, folded from the cores as
    they are now; the program keeps it up to date from then on.
    """

    def call(self, module: GraphModule) -> HoistResult:
        """Split the graph at its weights."""
        weights = _weights(module)
        if not weights:
            return HoistResult(module)
        dependence = Dependence(module.graph)
        for key, node in weights.items():
            _require_invariant(key, dependence.sources(node), dependence)
        program = _program_of(weights.values(), dependence)
        for key, node in weights.items():
            _leave_plain(module, key, node, dependence.sources(node))
        module.graph.eliminate_dead_code()
        module.delete_all_unused_submodules()
        changes = tuple(GraphChange(key, "moved out of the forward") for key in weights)
        return HoistResult(module, changes, program, tuple(weights))

    def ensures(self, result: PassResult) -> None:
        """The forward reads no core, and the program reads no input.

        Raises:
            InternalError: One does.
        """
        assert isinstance(result, HoistResult)
        for node in result.module.graph.nodes:
            if result.modified and node.op == "get_attr" and core_key(str(node.target)) is not None:
                raise InternalError(f"hoist left {node.target!r} in the forward; please report it")
        if result.program is not None and any(n.op == "placeholder" for n in result.program.nodes):
            raise InternalError("hoist moved an input into the weight program; please report it")


def weight_program(plan: Plan, devices: Mapping[str, torch.device] | None = None) -> Graph:
    """The program of a plan, without any forward: what `Hoist` finds in an expanded graph.

    Its output has one entry per plan entry, in order.

    `devices` tell where each weight lives; the CPU if None.

    Raises:
        PlanError: Two weights claim one core, which only one of them could be factorised into.
    """
    claimed: dict[str, str] = {}
    for entry in plan.entries:
        for name in entry.core_names:
            other = claimed.setdefault(name, entry.key)
            if other != entry.key:
                raise PlanError(
                    f"{other!r} and {entry.key!r} both claim the core {name!r}, wanted names of "
                    f"their own; mend core_names of the parametrization {entry.parametrization!r}"
                )
    graph = Graph()
    end = graph.output(())
    weights = [
        insert_compose(graph, entry, end, devices[entry.key] if devices else None)
        for entry in plan.entries
    ]
    end.args = (tuple(weights),)
    return graph


def program_parts(program: Graph, keys: Iterable[str]) -> tuple[ProgramPart, ...]:
    """A program as parts that share no core, in the order of their first weights.

    Args:
        program: get_attrs, ops, and an output with one node per weight.
        keys: Names of the weights, in the order of the output.
    """
    end = next(iter(reversed(program.nodes)))
    key_of: dict[Node, str] = dict(zip(end.args[0], keys, strict=True))
    # On a copy without the output, which reads every weight and would join all parts to one.
    body = Graph()
    mapped: dict[Node, Node] = {}
    body.graph_copy(program, mapped)
    _join_readers(body)
    named = {mapped[node]: key for node, key in key_of.items()}
    parts = [
        _part(nodes, {node: named[node] for node in nodes if node in named})
        for nodes in Dependence(body).components()
    ]
    place = {key: index for index, key in enumerate(key_of.values())}
    return tuple(sorted((p for p in parts if p.keys), key=lambda part: place[part.keys[0]]))


def _join_readers(graph: Graph) -> None:
    """One get_attr for each core: two of them would seem to share nothing."""
    first: dict[str, Node] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr" and first.setdefault(str(node.target), node) is not node:
            node.replace_all_uses_with(first[str(node.target)])
            graph.erase_node(node)


def _part(nodes: tuple[Node, ...], key_of: dict[Node, str]) -> ProgramPart:
    graph = Graph()
    mapped: dict[Node, Node] = {}
    cores = [node for node in nodes if node.op == "get_attr"]
    for place, core in enumerate(cores):
        mapped[core] = graph.placeholder(f"core_{place}")
    for node in nodes:
        if node not in mapped:
            mapped[node] = graph.node_copy(node, mapped.__getitem__)
    graph.output(tuple(mapped[node] for node in key_of))
    return ProgramPart(graph, tuple(key_of.values()), tuple(str(core.target) for core in cores))


def _weights(module: GraphModule) -> dict[str, Node]:
    """Weight nodes by key: as expand marked them, or as the graph alone tells after a reload."""
    marked = {n.meta[WEIGHT_MARK]: n for n in module.graph.nodes if WEIGHT_MARK in n.meta}
    if marked:
        return marked
    return {region.key: region.weight for region in find_regions(module)}


def _require_invariant(key: str, sources: tuple[Node, ...], dependence: Dependence) -> None:
    for node in sources:
        if node in dependence.varying:
            raise PlanError(
                f"the weight {key!r} cannot leave the forward: {node.name} in its compose subgraph "
                "depends on an input, a random number or a value that is written to; use the "
                "inline form (opdf.expand)"
            )


def _program_of(weights: Iterable[Node], dependence: Dependence) -> Graph:
    graph = Graph()
    mapped: dict[Node, Node] = {}
    for weight in weights:
        for node in dependence.sources(weight):
            if node not in mapped:
                mapped[node] = graph.node_copy(node, mapped.__getitem__)
                mapped[node].meta = dict(node.meta)
    graph.output(tuple(mapped[weight] for weight in weights))
    return graph


def _leave_plain(module: GraphModule, key: str, weight: Node, sources: tuple[Node, ...]) -> None:
    """Read the weight itself, holding what the cores make of it now."""
    for node in sources:
        erase_assertions(module, node)
    cores = tuple(node for node in sources if node.op == "get_attr")
    inner = tuple(node for node in sources if node.op != "get_attr")
    set_attribute(module, key, folded_weight(module, Region(key, cores, weight, inner)))
    # Where its first source stands, so that it comes before every reader.
    with module.graph.inserting_before(sources[0]):
        plain = module.graph.get_attr(key)
    plain.meta = {k: value for k, value in weight.meta.items() if k != WEIGHT_MARK}
    weight.replace_all_uses_with(plain)
