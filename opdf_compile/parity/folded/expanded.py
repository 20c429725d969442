"""Weights that a file computes from cores: exact, as fast as the student, and not what ships.

Cores and branches are known by the names that `expand` gives them (``W_cores.0``,
``W_branches.point.conv.weight``), which torch's exporter keeps, so they are found where both files
were never folded and the graphs are equal. A student's own modules may be called so, too. It takes
more to be sure: W is the name of a weight, and cores are read by nodes that depend on constants
alone. Without that such names refute only where the other file has them not.

A tool that multiplied some of them out gave the products names of its own. What is left is then
known by its form: a product of matrices that are constants, read as the weight of a layer, more
often than in the reference. A student may have such products by itself, and then both files have
them; that is told and refutes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Container
from dataclasses import dataclass

from opdf_compile.artefacts import LinkedModel, Node, Value
from opdf_compile.parity.model_file import ModelFile

# Behind the name of a part a tool may write what it did: `W_cores.0_quantized`.
_PART = re.compile(
    r"(?P<key>.+)_(?:(?P<cores>cores)\.\d+\w*|branches\.[a-z]\w*\.(?:conv|norm)\d*\.\w+)(?:\.T)?"
)
_WEIGHT_NAME = re.compile(r"(?:.*\.)?\w*weight\w*")
_PRODUCTS = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")
# Where a layer reads its weights.
_WEIGHTS = {
    **dict.fromkeys(("MatMul", "Gemm", "Einsum"), (0, 1)),
    **dict.fromkeys(("Conv", "ConvTranspose"), (1,)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2)),
}
_CORES, _BRANCHES = "computed from cores", "spread over branches"


@dataclass(frozen=True, slots=True)
class _Mark:
    """What names of constants say of a weight.

    Attributes:
        key: Its name.
        how: How it is still expanded, in words.
        sure: Whether more than those names says that it is a weight that `expand` knew.
    """

    key: str
    how: str
    sure: bool


def still_expanded(
    candidate: ModelFile, reference: ModelFile | None, planned: Collection[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sentences that refute, and notes.

    Args:
        candidate: The file about to ship.
        reference: The export of the untouched student, if there is one.
        planned: Weights that a plan over-parameterised, as far as something says so.

    Raises:
        ArtefactError: A file cannot be read.
    """
    known = _computed(candidate.view)
    marks = _marked(candidate.view, known, planned)
    products = _products(known)
    if reference is None:
        sure = [mark for mark in marks if mark.sure]
        return tuple(_sentences(candidate, sure)), _notes(candidate.name, marks, [])
    their_known = _computed(reference.view)
    their_marks = _marked(reference.view, their_known, planned)
    ours, theirs = _refuting(marks, their_marks), _refuting(their_marks, marks)
    # A product of named cores is the named weight; only further ones are told by their form.
    named = sum(mark.how == _CORES for mark in ours)
    surplus = max(len(products) - len(_products(their_known)) - named, 0)
    ours += [_Mark(value.name, _CORES, sure=True) for value in products[:surplus]]
    sentences = [
        *_sentences(candidate, ours),
        *(f"{text}, for it is no untouched student" for text in _sentences(reference, theirs)),
    ]
    return tuple(sentences), () if sentences else _notes("both files", marks, products)


def _refuting(marks: list[_Mark], others: list[_Mark]) -> list[_Mark]:
    """What is sure, and what the other file does not have: then it is not the student's own."""
    return [mark for mark in marks if mark.sure or mark not in others]


def _notes(where: str, marks: list[_Mark], products: list[Value]) -> tuple[str, ...]:
    notes = []
    if products:
        shown = ", ".join(map(str, products[:3])) + (", .." if len(products) > 3 else "")
        notes.append(
            f"in {where} {_counted(len(products))} from constants alone ({shown}); if these are "
            "cores, fold before export"
        )
    notes += [
        f"in {where} something is named as if {mark.key!r} were {mark.how}, and nothing says that "
        "this is a weight of the student; if it is, fold before export"
        for mark in marks
        if not mark.sure
    ]
    return tuple(notes)


def _sentences(file: ModelFile, marks: list[_Mark]) -> list[str]:
    found = []
    for how in (_CORES, _BRANCHES):
        keys = [mark.key for mark in marks if mark.how == how]
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


def _marked(view: LinkedModel, known: Container[Node], planned: Collection[str]) -> list[_Mark]:
    """The weights that parts are named after which a node reads; in the file's order."""
    names = {name for graph in view.graphs for name in graph.values}
    found: dict[_Mark, None] = {}
    for value in (value for graph in view.graphs for value in graph.values.values()):
        match = _PART.fullmatch(value.name) if value.constant and value.readers else None
        if match is None or (match["cores"] and not _is_composed(value, known)):
            continue
        key = match["key"]
        # The name of a part may have got a prefix, of a wrapper or of a merged model.
        sure = _WEIGHT_NAME.fullmatch(key) or any(key.endswith(name) for name in planned)
        # Branches stand beside their weight; cores stand in its place.
        sure = sure or (not match["cores"] and key in names)
        found[_Mark(key, _CORES if match["cores"] else _BRANCHES, sure=bool(sure))] = None
    return list(found)


def _is_composed(core: Value, known: Container[Node]) -> bool:
    """Whether a node reads it that depends on constants alone, as all of `compose` does."""
    return any(
        all(v.is_absent or _is_constant(v) or v.node in known for v in reader.inputs)
        for reader, _place in core.readers
    )


@dataclass(frozen=True, slots=True)
class _Computed:
    """What is known of a value that depends on constants alone."""

    matrix: bool
    product: bool


def _computed(view: LinkedModel) -> dict[Node, _Computed]:
    """What is known of the nodes that depend on constants alone."""
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
    if value.constant is not None and _is_constant(value):
        return _Computed(sum(size > 1 for size in value.constant.shape) > 1, product=False)
    return None if value.node is None else known.get(value.node)


def _is_constant(value: Value) -> bool:
    return value.constant is not None and value.input_of is None


def _is_weight(reader: Node, place: int, known: dict[Node, _Computed]) -> bool:
    return reader not in known and place in _WEIGHTS.get(reader.op, ())
