"""Weights that a file computes from cores: exact, as fast as the student, and not what ships.

Cores are known by the names that `expand` gives them (``W_cores.0``, ``W_branches.dense.weight``),
which torch's exporter keeps, so they are found where both files were never folded and the graphs
are equal. A student's own modules may be called so, too: cores are multiplied with each other
before a layer reads them, and branches stand beside a weight W of the file. A tool that multiplied
some of them out gave the products names of its own. What is left is then known by its form: a
product of matrices that are constants, read as the weight of a layer, more often than in the
reference. A student may have such products by itself, and then both files have them; that is told
and refutes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from opdf_compile.artefacts import LinkedModel, Node, Value
from opdf_compile.parity.model_file import ModelFile

_CORE = re.compile(r"(?P<key>.+)_cores\.\d+")
_BRANCH = re.compile(r"(?P<key>.+)_branches\.\w+\.[\w.]+")
# What a tool that merges a norm leaves of the names in the file.
_WEIGHT = "weight"
_PRODUCTS = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")
# Where a layer reads its weights.
_WEIGHTS = {
    **dict.fromkeys(("MatMul", "Gemm", "Einsum"), (0, 1)),
    **dict.fromkeys(("Conv", "ConvTranspose"), (1,)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2)),
}


def still_expanded(
    candidate: ModelFile, reference: ModelFile | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sentences that refute, and notes.

    Raises:
        ArtefactError: A file cannot be read.
    """
    known = _computed(candidate.view)
    cores, branches = _marked(candidate.view, known)
    products = _products(known)
    beside = [] if reference is None else _products(_computed(reference.view))
    surplus = 0 if reference is None else len(products) - len(beside) - len(cores)
    # A product of named cores is the named weight; only further ones are told by their form.
    weights = [*cores, *(value.name for value in products[: max(surplus, 0)])]
    sentences = _sentences(candidate, weights, branches)
    if reference is not None:
        sentences += [
            f"{text}, for it is no untouched student" for text in _of_reference(reference)
        ]
    if sentences or not products or reference is None:
        return tuple(sentences), ()
    shown = ", ".join(str(value) for value in products[:3]) + (", .." if len(products) > 3 else "")
    note = (
        f"in both files {_counted(len(products))} from constants alone ({shown}); if these are "
        "cores, fold before export"
    )
    return (), (note,)


def _of_reference(reference: ModelFile) -> list[str]:
    return _sentences(reference, *_marked(reference.view, _computed(reference.view)))


def _sentences(file: ModelFile, cores: list[str], branches: list[str]) -> list[str]:
    found = []
    for keys, how in ((cores, "computed from cores"), (branches, "spread over branches")):
        if keys:
            shown = ", ".join(repr(name) for name in keys[:3])
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            found.append(
                f"still expanded: {_counted(len(keys), how)} in {file.name} ({shown}{more}); fold "
                "before export"
            )
    return found


def _counted(count: int, how: str = "computed") -> str:
    return f"1 weight is {how}" if count == 1 else f"{count} weights are {how}"


def _marked(view: LinkedModel, known: Mapping[Node, _Computed]) -> tuple[list[str], list[str]]:
    """The weights whose cores, and those whose branches, a node reads; in the file's order."""
    cores: dict[str, None] = {}
    branches: dict[str, None] = {}
    for graph in view.graphs:
        read = {name: v for name, v in graph.values.items() if v.constant and v.readers}
        for name, value in read.items():
            core, branch = _CORE.fullmatch(name), _BRANCH.fullmatch(name)
            if core and any(node in known for node, _ in value.readers):
                cores[core["key"]] = None
            elif branch and (branch["key"] in read or branch["key"].endswith(_WEIGHT)):
                branches[branch["key"]] = None
    return list(cores), list(branches)


@dataclass(frozen=True, slots=True)
class _Computed:
    """What is known of a value that depends on constants alone."""

    matrix: bool
    product: bool


def _computed(view: LinkedModel) -> dict[Node, _Computed]:
    """The nodes that depend on constants alone."""
    known: dict[Node, _Computed] = {}
    # A node of a valid file stands behind those that it reads, so one pass in file order suffices.
    for node in view.nodes:
        parts = [_of(value, known) for value in node.inputs if not value.is_absent]
        if parts and not node.subgraphs and node.function is None and None not in parts:
            whole = [part for part in parts if part is not None]
            # The second factor of a norm's estimate (W v) is a vector: no core, but what a student
            # with a spectral norm has.
            multiplied = node.op in _PRODUCTS and sum(part.matrix for part in whole[:2]) == 2
            known[node] = _Computed(
                any(part.matrix for part in whole),
                multiplied or any(part.product for part in whole),
            )
    return known


def _products(known: dict[Node, _Computed]) -> list[Value]:
    """Weights of layers that are products of constant matrices."""
    values = (v for node, found in known.items() if found.product for v in node.outputs)
    return [value for value in values if any(_is_weight(n, p, known) for n, p in value.readers)]


def _of(value: Value, known: dict[Node, _Computed]) -> _Computed | None:
    if value.constant is not None and value.input_of is None:
        return _Computed(sum(size > 1 for size in value.constant.shape) > 1, product=False)
    return None if value.node is None else known.get(value.node)


def _is_weight(reader: Node, place: int, known: dict[Node, _Computed]) -> bool:
    return reader not in known and place in _WEIGHTS.get(reader.op, ())
