"""The walk: two linked graphs are followed from their outputs together.

Edges of an ONNX graph are ordered, so a matched pair of outputs forces every other pair: there is
nothing to search, each node is visited once, and the time is linear in the edges. Nodes must pair
off one to one; a node that would need two partners shows a value that one side computes once and
the other twice. Constants need no such bookkeeping, because files share equal ones at will.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from opdf_compile.artefacts import Graph, Node, Value, is_stored_weight
from opdf_compile.parity.structure.canonical import called_operator, same_constant
from opdf_compile.parity.structure.declarations import compare_function_opsets
from opdf_compile.parity.structure.differences import (
    MOST_DIFFERENCES,
    Difference,
    at_nodes,
    at_values,
    describe_graph,
)
from opdf_compile.parity.structure.lost import lost_between, lost_bias
from opdf_compile.parity.structure.node_pairs import compare_nodes


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a pair of values is read; put into words only when they differ.

    Attributes:
        number: Place among the inputs of the readers, or among the outputs of the graph.
        readers: The two nodes that read the values; None where a graph returns them.
        graph: The candidate's graph that returns the values.
    """

    number: int
    readers: tuple[Node, Node] | None = None
    graph: Graph | None = None

    def __str__(self) -> str:
        if self.readers is not None:
            return f"input {self.number} of {self.readers[0]}"
        if self.graph is not None:
            return f"output {self.number} of {describe_graph(self.graph)}"
        return "what no output depends on"


class Walk:
    """Pairs found so far, pairs still to check, and what differed.

    Attributes:
        nodes: Partner in the reference of each matched node of the candidate.
        differences: What was found, nearest to the outputs first.
    """

    def __init__(self) -> None:
        self.nodes: dict[Node, Node] = {}
        self.differences: list[Difference] = []
        self._back: dict[Node, Node] = {}
        self._graphs: dict[Graph, Graph] = {}
        self._graphs_back: dict[Graph, Graph] = {}
        self._work: deque[tuple[Value, Value, Slot]] = deque()
        self._lost: set[tuple[Value, Value]] = set()

    def run(self) -> None:
        """Follow everything that was entered, until it is done or too much differs."""
        # Breadth first, so that what is told first is nearest to the outputs: all that lies behind
        # a difference may differ because of it.
        while self._work and len(self.differences) < MOST_DIFFERENCES:
            self._match_values(*self._work.popleft())

    def enter(self, candidate: Graph, reference: Graph) -> bool:
        """Pair two graphs and their outputs; False if one already has another partner."""
        if candidate in self._graphs or reference in self._graphs_back:
            return self._graphs.get(candidate) is reference
        self._graphs[candidate] = reference
        self._graphs_back[reference] = candidate
        for what, c, r in (
            ("inputs", candidate.inputs, reference.inputs),
            ("outputs", candidate.outputs, reference.outputs),
        ):
            if len(c) != len(r):
                self._differ_graphs(what, candidate, reference, f"{len(c)} {what}", f"{len(r)}")
        self._compare_declarations(candidate, reference)
        for slot, (c_value, r_value) in enumerate(
            zip(candidate.outputs, reference.outputs, strict=False)
        ):
            self._work.append((c_value, r_value, Slot(slot, graph=candidate)))
        return True

    def pair_nodes(self, candidate: Node, reference: Node) -> None:
        """Pair two nodes that no output reaches."""
        self._pair(candidate, reference, Slot(0), None)

    def _compare_declarations(self, candidate: Graph, reference: Graph) -> None:
        if candidate.function is None or reference.function is None:
            return
        names = [
            (list(f.attribute), sorted(a.name for a in f.attribute_proto))
            for f in (candidate.function, reference.function)
        ]
        if names[0] != names[1]:
            self._differ_graphs(
                "function", candidate, reference, f"attributes {names[0]}", f"{names[1]}"
            )
        if not compare_function_opsets(candidate, reference):
            self._differ_graphs(
                "opset",
                candidate,
                reference,
                f"operator sets {dict(candidate.opsets)}",
                f"{dict(reference.opsets)}",
            )

    def _differ_graphs(self, kind: str, c: Graph, r: Graph, found: str, wanted: str) -> None:
        sentence = f"{describe_graph(c)} has {found} in the candidate and {wanted} in the reference"
        self.differences.append(Difference(kind, (c.name, r.name), sentence))

    def _match_values(self, c: Value, r: Value, where: Slot) -> None:
        # In the order of what a value is first of all: an input may have a constant as its default,
        # and is an input all the same.
        if self._lose(c, r, where):
            return
        if c.node is not None and r.node is not None:
            self._pair(c.node, r.node, where, (c, r))
        elif c.input_of is not None and r.input_of is not None:
            if self._graphs.get(c.input_of) is not r.input_of or c.index != r.index:
                self._differ_edge(c, r, where)
        elif c.node or r.node or c.input_of or r.input_of or not (c.constant and r.constant):
            if c is not r and not (c.is_absent and r.is_absent):
                self._differ_edge(c, r, where)
        else:
            self._match_constants(c, r, where)

    def _lose(self, c: Value, r: Value, where: Slot) -> bool:
        """Tell an activation or a bias that was lost, and go on behind it."""
        # Each reader of the lost node comes by, and finds the same.
        if self._lost and (c, r) in self._lost:
            return True
        if r.node is None or r.node in self._back:
            return False
        if c.node is not None and called_operator(c.node) == called_operator(r.node):
            return False
        lost = lost_between(c, r)
        if lost is None:
            return False
        self._lost.add((c, r))
        article = "an" if lost.kind == "activation" else "a"
        sentence = (
            f"{article} {lost.kind} was lost, {lost.what}: {where} is {c} in the candidate, and "
            f"the reference has that behind {lost.value}"
        )
        self.differences.append(at_values(lost.kind, c, r, sentence, where.readers))
        self._work.append((c, lost.value, where))
        return True

    def _differ_edge(self, c: Value, r: Value, where: Slot) -> None:
        sentence = f"{where} is {c} in the candidate and {r} in the reference"
        self.differences.append(at_values("edge", c, r, sentence, where.readers))

    def _match_constants(self, c: Value, r: Value, where: Slot) -> None:
        a, b = c.constant, r.constant
        if a is None or b is None or same_constant(a, b):
            return
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            sentence = f"{where} is {c} in the candidate and {r} in the reference"
        elif a.parameter != b.parameter:
            side = "candidate" if a.parameter else "reference"
            sentence = (
                f"{where} has other values in the two files and only the {side} calls it a "
                f"parameter of the model ({c}; {r})"
            )
        else:
            ours, theirs = (f"{v}{_numbers(v)}" for v in (c, r))
            sentence = (
                f"{where} is a constant with other values in the two files ({ours}; {theirs})"
            )
        self.differences.append(at_values("constant", c, r, sentence, where.readers))

    def _pair(self, c: Node, r: Node, where: Slot, values: tuple[Value, Value] | None) -> None:
        if values and values[0].index != values[1].index:
            self._differ_edge(*values, where)
            return
        if c in self.nodes or r in self._back:
            if self.nodes.get(c) is r or self._shares_weight(c, r):
                return
            self._differ_sharing(c, r, where)
            return
        # Paired before they are compared: otherwise every further reader of two unlike nodes would
        # find the same difference again.
        self.nodes[c] = r
        self._back[r] = c
        if called_operator(c) != called_operator(r):
            bias = lost_bias(c, r)
            sentence = (
                f"a bias was lost, {bias}: {where} is {c} in the candidate and {r} in the reference"
                if bias
                else f"{where} is {c} in the candidate and {r} in the reference"
            )
            self.differences.append(at_nodes("bias" if bias else "operator", c, r, sentence))
            # Operands of unlike operators do not correspond; following them would bury this one
            # difference under its consequences.
            return
        self.differences.extend(compare_nodes(c, r))
        self._enter_nested(c, r)
        readers = (c, r)
        for slot, (c_value, r_value) in enumerate(zip(c.inputs, r.inputs, strict=False)):
            self._work.append((c_value, r_value, Slot(slot, readers)))

    def _shares_weight(self, c: Node, r: Node) -> bool:
        """Whether two nodes unpack stored weights, which files share at will, and are alike.

        An exporter merges equal initialisers, so that one of the untouched student's zero biases
        is quantised, and unpacked, for all of their readers.
        """
        if not (is_stored_weight(c) and is_stored_weight(r)):
            return False
        constants = [(a.constant, b.constant) for a, b in zip(c.inputs, r.inputs, strict=False)]
        alike = all(a is b or (a and b and same_constant(a, b)) for a, b in constants)
        return alike and len(c.inputs) == len(r.inputs) and not any(compare_nodes(c, r))

    def _differ_sharing(self, c: Node, r: Node, where: Slot) -> None:
        known, other = self.nodes.get(c), self._back.get(r)
        if known is not None:
            sentence = (
                f"{where} is {c} in the candidate, which stands for {known} of the reference "
                f"elsewhere, but here the reference has {r}"
            )
        else:
            sentence = (
                f"{where} is {c} in the candidate, but here the reference reads {r} again, which "
                f"stands for {other} of the candidate elsewhere"
            )
        self.differences.append(at_nodes("sharing", c, r, sentence, where.readers))

    def _enter_nested(self, c: Node, r: Node) -> None:
        for name in sorted(c.subgraphs.keys() & r.subgraphs.keys()):
            for c_graph, r_graph in zip(c.subgraphs[name], r.subgraphs[name], strict=False):
                self.enter(c_graph, r_graph)
        if c.function is None or r.function is None:
            return
        if not self.enter(c.function, r.function):
            sentence = (
                f"{c} calls {describe_graph(c.function)} in the candidate where the reference "
                f"calls {describe_graph(r.function)}, which stands for another one elsewhere"
            )
            self.differences.append(at_nodes("function", c, r, sentence))


def _numbers(value: Value) -> str:
    """The numbers of a small constant, which tell more than its name."""
    constant = value.constant
    return "" if constant is None or not constant.is_small else f" = {constant.numbers()}"
