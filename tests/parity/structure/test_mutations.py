"""Mutations of six real graphs: every semantic change is refuted, every cosmetic one passes.

The tables are in `mutations_semantic.py` and `mutations_cosmetic.py`, the graphs in
`mutation_graphs.py`. A mutation that finds nothing to change in a graph is not applied there; each
must find something in one of the six. The check data is claimed for every mutated file, because its
own hash would refute a changed file before any number is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from mutation_graphs import GRAPHS, Exports, claim_check_data
from mutation_tools import Change, DoesNotApply
from mutations_cosmetic import COSMETIC
from mutations_semantic import BY_NUMERICS, BY_STRUCTURE
from onnx import ModelProto

from opdf_compile.artefacts.check_file import check_path
from opdf_compile.parity.numerics.checking import check_numerics
from opdf_compile.parity.runtime.registry import resolve_device
from opdf_compile.parity.structure.compare import compare_structure

# It alone has a branch, a loop and a local function; one export takes seconds.
QUICK = ("detector",)
SLOW = tuple(name for name in GRAPHS if name not in QUICK)


@dataclass(frozen=True)
class Wanted:
    """The verdicts that a table's mutations must get; None where it does not matter."""

    table: dict[str, Change]
    structure: str
    numerics: str | None


TABLES = {
    "cosmetic": Wanted(COSMETIC, "pass", "pass"),
    "by structure": Wanted(BY_STRUCTURE, "fail", None),
    "by numerics": Wanted(BY_NUMERICS, "pass", "fail"),
}


def applied(reference: Path, table: dict[str, Change], folder: Path) -> Iterator[tuple[str, Path]]:
    """Each mutation that finds something to change, with the file it made."""
    original = reference.read_bytes()
    for place, (name, change) in enumerate(table.items()):
        model = ModelProto.FromString(original)
        try:
            change(model)
        except DoesNotApply:
            continue
        path = folder / f"{place}.onnx"
        path.write_bytes(model.SerializeToString())
        yield name, path


def wrong_verdicts(reference: Path, wanted: Wanted, folder: Path) -> tuple[list[str], set[str]]:
    """What was judged wrongly, in words, and which mutations were applied."""
    wrong, seen = [], set()
    device = resolve_device("cpu")
    for name, path in applied(reference, wanted.table, folder):
        seen.add(name)
        for pair in ((path, reference), (reference, path)):
            found = compare_structure(*pair)
            if found.verdict != wanted.structure:
                wrong.append(f"{name}: structure {found.verdict} {found.differences[:1]}")
        if wanted.numerics is None:
            continue
        numbers = check_numerics(path, claim_check_data(path, check_path(reference)), device)
        if numbers.verdict != wanted.numerics:
            wrong.append(f"{name}: numerics {numbers.verdict}, {numbers.worst}")
    return wrong, seen


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize(
    "graph", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_no_mutation_gets_a_wrong_verdict(
    graph: str, kind: str, exports: Exports, tmp_path: Path
) -> None:
    wrong, seen = wrong_verdicts(exports(graph), TABLES[kind], tmp_path)
    assert wrong == []
    assert len(seen) >= 5


def test_the_tables_hold_more_than_sixty_mutations() -> None:
    names = [name for wanted in TABLES.values() for name in wanted.table]
    assert len(set(names)) == len(names) >= 60


@pytest.mark.slow
def test_each_mutation_applies_to_a_graph(exports: Exports, tmp_path: Path) -> None:
    pairs = {
        (kind, name, graph)
        for graph in GRAPHS
        for kind, wanted in TABLES.items()
        for name, _ in applied(exports(graph), wanted.table, tmp_path)
    }
    found = {(kind, name) for kind, name, _ in pairs}
    assert {(k, n) for k, w in TABLES.items() for n in w.table} == found
    assert len(pairs) >= 500


@pytest.mark.parametrize("name", ["detector"])
def test_a_mutated_file_is_known_by_its_hash_first(
    name: str, exports: Exports, tmp_path: Path
) -> None:
    reference = exports(name)
    model = onnx.load(reference)
    model.doc_string = "touched"
    path = tmp_path / "touched.onnx"
    path.write_bytes(model.SerializeToString())
    found = check_numerics(path, check_path(reference), resolve_device("cpu"))
    assert found.verdict == "not_checked" and "rewritten after export" in found.worst
