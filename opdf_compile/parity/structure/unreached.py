"""What no output depends on: dead nodes, functions that nobody calls, constants that nobody reads.

They compute nothing, but they are not what the untouched student ships. The walk from the outputs
cannot see them, so they are paired by what they compute and then walked like the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping

from opdf_compile.artefacts import LinkedModel, Node, Value, element_type, nodes_behind
from opdf_compile.parity.structure.canonical import called_operator, explicit_attributes
from opdf_compile.parity.structure.differences import Difference, describe_node
from opdf_compile.parity.structure.walk import Walk


def compare_unreached(
    candidate: LinkedModel, reference: LinkedModel, walk: Walk
) -> list[Difference]:
    """Compare the unreached parts; call it after the walk from the outputs."""
    return [
        *_compare_uncalled(candidate, reference, walk),
        *_compare_dead(candidate, reference, walk),
        *_compare_unused(candidate, reference),
    ]


def _compare_uncalled(
    candidate: LinkedModel, reference: LinkedModel, walk: Walk
) -> list[Difference]:
    sides = []
    for view in (candidate, reference):
        called = {id(node.function) for node in view.nodes if node.function}
        sides.append({k: s for k, s in view.functions.items() if id(s) not in called})
    for key in sides[0].keys() & sides[1].keys():
        walk.enter(sides[0][key], sides[1][key])
    walk.run()
    return [
        Difference(
            "function",
            (key[1], "") if key in sides[0] else ("", key[1]),
            f"local function {key[1]!r} is called by nobody and only in the "
            f"{'candidate' if key in sides[0] else 'reference'}",
        )
        for key in sorted(sides[0].keys() ^ sides[1].keys())
    ]


def _compare_dead(candidate: LinkedModel, reference: LinkedModel, walk: Walk) -> list[Difference]:
    ours, theirs = _dead_sinks(candidate), _dead_sinks(reference)
    # When the graphs differ anyway, dead nodes cannot be told apart by what they read, and equal
    # numbers of them would only repeat the difference.
    if not (ours or theirs) or (walk.differences and len(ours) == len(theirs)):
        return []
    codes: dict[Hashable, int] = {}
    partners = {node: id(partner) for node, partner in walk.nodes.items()}
    waiting = _by_meaning(reference, theirs, {n: id(n) for n in walk.nodes.values()}, codes)
    surplus = []
    for key, nodes in _by_meaning(candidate, ours, partners, codes).items():
        for node in nodes:
            if waiting[key]:
                walk.pair_nodes(node, waiting[key].pop(0))
            else:
                surplus.append(_dead_difference(node, "candidate"))
    walk.run()
    left = [node for nodes in waiting.values() for node in nodes]
    return [*surplus, *(_dead_difference(node, "reference") for node in left)]


def _dead_sinks(view: LinkedModel) -> list[Node]:
    """Dead nodes whose results nothing reads; all other dead nodes lead to one of these."""
    reached = nodes_behind(view.main.outputs)
    return [
        node
        for node in view.nodes
        if node not in reached and not any(v.readers or v.output_of for v in node.outputs)
    ]


def _by_meaning(
    view: LinkedModel, sinks: list[Node], reached: Mapping[Node, int], codes: dict[Hashable, int]
) -> defaultdict[int, list[Node]]:
    """Group dead sinks by a code that is equal for equal computations on both sides."""
    known: dict[Node, int] = {}

    def meaning(value: Value) -> Hashable:
        if value.node is not None:
            partner = reached.get(value.node)
            return (value.index, ("reached", partner) if partner else known.get(value.node, -1))
        if value.constant is not None:
            constant = value.constant
            # Dead nodes that differ in trained weights alone are partners, as reached ones are.
            return (constant.dtype, constant.shape, constant.parameter or constant.fingerprint)
        return ("input", value.index, value.input_of is None)

    # A node of a valid file stands behind those that it reads, so one pass in file order suffices.
    # Both sides share the codes, so that equal numbers mean equal computations; keys made of keys
    # would grow with the depth of the graph.
    for node in view.nodes:
        if node not in reached:
            key = (
                called_operator(node),
                tuple(sorted(explicit_attributes(node).items(), key=lambda item: item[0])),
                tuple(meaning(value) for value in node.inputs),
            )
            known[node] = codes.setdefault(key, len(codes))
    groups: defaultdict[int, list[Node]] = defaultdict(list)
    for node in sinks:
        groups[known[node]].append(node)
    return groups


def _dead_difference(node: Node, side: str) -> Difference:
    names = (node.label, "") if side == "candidate" else ("", node.label)
    sentence = f"{node} is only in the {side}, and no output depends on it"
    nodes = (node, None) if side == "candidate" else (None, node)
    return Difference("dead", names, sentence, nodes=nodes, **{side: describe_node(node)})


def _compare_unused(candidate: LinkedModel, reference: LinkedModel) -> list[Difference]:
    """Compare dtypes and shapes of constants that nobody reads; equal ones may be shared."""
    sides = [
        {
            (value.constant.dtype, value.constant.shape): value.name
            for graph in view.graphs
            for value in graph.values.values()
            if value.constant and not (value.input_of or value.readers or value.output_of)
        }
        for view in (candidate, reference)
    ]
    differences = []
    for key in sorted(sides[0].keys() ^ sides[1].keys()):
        ours = key in sides[0]
        name = sides[0 if ours else 1][key]
        differences.append(
            Difference(
                "unused",
                (name, "") if ours else ("", name),
                f"initialiser {name!r} ({element_type(key[0])}{list(key[1])}) is read by nobody "
                f"and only in the {'candidate' if ours else 'reference'}",
            )
        )
    return differences
