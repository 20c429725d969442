"""Two nodes of one operator: their inputs, outputs, attributes and subgraphs."""

from __future__ import annotations

from collections.abc import Iterator

from opdf_compile.artefacts import Node
from opdf_compile.parity.structure.canonical import (
    all_default,
    explicit_attributes,
    show_attribute,
)
from opdf_compile.parity.structure.differences import Difference, at_nodes
from opdf_compile.parity.structure.lost import lost_bias


def compare_nodes(c: Node, r: Node) -> Iterator[Difference]:
    """Compare all that two nodes of one operator hold themselves."""
    for what, found, wanted in (
        ("inputs", len(c.inputs), len(r.inputs)),
        ("outputs", _present_outputs(c), _present_outputs(r)),
    ):
        if found == wanted:
            continue
        sentence = f"{c} has {what} {found} in the candidate and {r} {wanted} in the reference"
        bias = lost_bias(c, r) if what == "inputs" else ""
        if bias:
            yield at_nodes("bias", c, r, f"a bias was lost, {bias}: {sentence}")
        else:
            yield at_nodes(what, c, r, sentence)
    if all_default(c) and all_default(r) and c.version == r.version:
        return  # Two of one operator: most nodes, and nothing to compare.
    ours, theirs = explicit_attributes(c), explicit_attributes(r)
    for name in () if ours == theirs else sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            found_text, wanted_text = (
                show_attribute(side[name]) if name in side else "nothing" for side in (ours, theirs)
            )
            if found_text == wanted_text:
                wanted_text += " with other content"
            sentence = (
                f"attribute {name!r} of {c} is {found_text} in the candidate and "
                f"{wanted_text} in the reference"
            )
            yield at_nodes("attribute", c, r, sentence)
    if not (c.subgraphs or r.subgraphs):
        return
    counts = [{k: len(v) for k, v in node.subgraphs.items()} for node in (c, r)]
    if counts[0] != counts[1]:
        sentence = (
            f"{c} has subgraphs {counts[0]} in the candidate and {counts[1]} in the reference"
        )
        yield at_nodes("subgraph", c, r, sentence)


def _present_outputs(node: Node) -> tuple[bool, ...]:
    """Which outputs are asked for; trailing absent ones dropped."""
    last = max((value.index for value in node.outputs), default=-1)
    present = {value.index for value in node.outputs}
    return tuple(place in present for place in range(last + 1))
