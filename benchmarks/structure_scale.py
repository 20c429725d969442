"""Time and memory of the structural comparison against the number of nodes, 100 to 100,000.

chain      one operator after another, each with a weight: the deepest graph
residual   a mix of unary and binary operators, as in a network with residual sums
fan-out    equal nodes that all read one value and are summed: the widest graph
constants  every node reads its own copy of one equal small constant
concat     one Concat of all values
dead       nodes that no output depends on

Each pair is compared equal and with one attribute changed at the input side, the last place where
the walk looks. `load` reads and parses both files; `compare` links and walks them. The least
processor time of several rounds counts: noise only adds. Exponents are fitted from 1,000 nodes on.
Every pair has a process of its own; its peak is that of the whole process, libraries and all.

Usage: python benchmarks/structure_scale.py [--sizes 100,1000] [--rounds N] [--json FILE]
           [--plot FILE.png]
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.growth import exponent
from bench.reporting import Report, environment, number, table
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from opdf_compile.artefacts.onnx_file import read_onnx
from opdf_compile.files.atomic import atomic_write
from opdf_compile.parity.structure.compare import compare_structure

SCHEMA = "opdf-structure-scale/1"
SIZES = (100, 300, 1000, 3000, 10_000, 30_000, 100_000)
TARGET = (100_000, 15.0)  # nodes, seconds
_COLOURS = ("#0072b2", "#009e73", "#e69f00", "#d55e00", "#56b4e9", "#7f7f7f")
_Parts = tuple[list[NodeProto], list[TensorProto], str]
_node = helper.make_node


def _vector(name: str) -> TensorProto:
    return numpy_helper.from_array(np.ones(4, np.float32), name)


def _chain(size: int) -> _Parts:
    nodes = [_node("Mul", [f"v{i}" if i else "h", f"w{i}"], [f"v{i + 1}"]) for i in range(size)]
    return nodes, [_vector(f"w{i}") for i in range(size)], f"v{size}"


def _residual(size: int) -> _Parts:
    nodes = [_node("Relu", ["h"], ["v1"]), _node("Exp", ["v1"], ["v2"])]
    for i in range(2, size):
        reads = [f"v{i}", f"v{i - 1}"] if i % 3 == 0 else [f"v{i}"]
        nodes.append(_node("Add" if len(reads) == 2 else "Relu", reads, [f"v{i + 1}"]))
    return nodes, [], f"v{size}"


def _fan_out(size: int) -> _Parts:
    half = size // 2
    nodes = [_node("Relu", ["h"], [f"r{i}"]) for i in range(half)]
    sums = [_node("Add", [f"s{i}" if i else "h", f"r{i}"], [f"s{i + 1}"]) for i in range(half)]
    return [*nodes, *sums], [], f"s{half}"


def _constants(size: int) -> _Parts:
    nodes = [_node("Add", [f"v{i}" if i else "h", f"c{i}"], [f"v{i + 1}"]) for i in range(size)]
    values = numpy_helper.from_array(np.array(0.5, np.float32))
    copies = [TensorProto.FromString(values.SerializeToString()) for _ in range(size)]
    for i, copy in enumerate(copies):
        copy.name = f"c{i}"
    return nodes, copies, f"v{size}"


def _concat(size: int) -> _Parts:
    nodes = [_node("Relu", ["h"], [f"r{i}"]) for i in range(size)]
    return [*nodes, _node("Concat", [f"r{i}" for i in range(size)], ["all"], axis=0)], [], "all"


def _dead(size: int) -> _Parts:
    nodes = [_node("Relu", ["h"], [f"r{i}"]) for i in range(size)]
    return nodes, [], "r0"


FAMILIES: dict[str, Callable[[int], _Parts]] = {
    "chain": _chain,
    "residual": _residual,
    "fan-out": _fan_out,
    "constants": _constants,
    "concat": _concat,
    "dead": _dead,
}


def model(family: str, size: int, *, axis: int = 0, reverse: bool = False) -> ModelProto:
    """A graph of about so many nodes behind one Softmax; `reverse` turns the initialisers round."""
    nodes, constants, last = FAMILIES[family](size)
    nodes = [_node("Softmax", ["x"], ["h"], axis=axis), *nodes, _node("Neg", [last], ["y"])]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], constants[::-1] if reverse else constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def least(rounds: int, run: Callable[[], object]) -> float:
    """The least processor time of several rounds."""
    times = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def measured(family: str, size: int, rounds: int, folder: Path) -> dict[str, Any]:
    """One row: seconds of load and of comparison, equal and with one difference, and the peak."""
    paths = [folder / f"{name}.onnx" for name in ("reference", "equal", "other")]
    for path, axis in zip(paths, (0, 0, 1), strict=True):
        made = model(family, size, axis=axis, reverse=path is not paths[0])
        path.write_bytes(made.SerializeToString())
    with multiprocessing.get_context("spawn").Pool(1) as alone:
        timed = alone.apply(compared, (paths, rounds))
    return {"family": family, "size": size, **timed}


def compared(paths: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Compare an equal pair and one with a difference, in a process that does nothing else."""
    reference, equal, other = paths
    found = [compare_structure(path, reference) for path in (equal, other)]
    if [bool(result) for result in found] != [True, False]:
        raise SystemExit(f"{reference} is judged wrongly: {found[0].differences[:1]}")
    nodes = found[0].nodes
    del found
    load = least(rounds, lambda: (read_onnx(reference), read_onnx(equal)))
    whole = [
        least(rounds, lambda path=path: compare_structure(path, reference))  # type: ignore[misc]
        for path in (equal, other)
    ]
    return {
        "nodes": nodes,
        "load_seconds": load,
        "equal_seconds": whole[0],
        "different_seconds": whole[1],
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def slopes(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The exponent of the whole time of each family, from 1,000 nodes on."""
    found = {}
    for family in dict.fromkeys(r["family"] for r in rows):
        mine = [r for r in rows if r["family"] == family and r["size"] >= 1000]
        if len(mine) > 1:
            found[family] = exponent([r["nodes"] for r in mine], [r["equal_seconds"] for r in mine])
    return found


def plot(rows: Sequence[dict[str, Any]], found: dict[str, float], path: Path) -> None:
    """Nodes against seconds of the equal pair, and of the pair with one difference."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.6), dpi=120, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, kind in zip(panels, ("equal", "different"), strict=True):
        for colour, family in zip(_COLOURS, FAMILIES, strict=True):
            mine = [r for r in rows if r["family"] == family]
            label = f"{family}, exponent {found[family]:.2f}" if family in found else family
            seconds = [r[f"{kind}_seconds"] for r in mine]
            panel.loglog([r["nodes"] for r in mine], seconds, "o-", color=colour, label=label)
        title = "an equal pair" if kind == "equal" else "one difference, at the input"
        panel.set_title(title, loc="left")
        panel.plot(*TARGET, marker="_", markersize=26, color="#222222", linestyle="none")
        panel.annotate("target", TARGET, (0, 6), textcoords="offset points", ha="center")
        panel.set_xlabel("nodes")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("processor seconds, files read")
    panels[0].legend(frameon=False, fontsize=8, loc="upper left")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def main(words: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    made = argparse.ArgumentParser("structure_scale.py", description=__doc__.splitlines()[0])
    made.add_argument("--sizes", default=",".join(map(str, SIZES)), help="nodes, by commas")
    made.add_argument("--rounds", type=int, default=3, help="rounds; the least counts (3)")
    made.add_argument("--json", metavar="FILE", help="write the rows")
    made.add_argument("--plot", type=Path, metavar="FILE.png", help="draw nodes against seconds")
    options = made.parse_args(words)
    report = Report(SCHEMA, options.json)
    asked = {"sizes": options.sizes, "rounds": options.rounds}
    before = environment(torch.device("cpu"), asked)
    rows = []
    with tempfile.TemporaryDirectory() as folder, report.progress("structure") as bar:
        for place, family in enumerate(FAMILIES):
            for size in map(int, options.sizes.split(",")):
                bar.callback(f"{family}, {size} nodes", place / len(FAMILIES))
                rows.append(measured(family, size, options.rounds, Path(folder)))
    found = slopes(rows)
    columns = ("nodes", "load", "equal", "one difference", "peak GiB")
    shown = table("Processor seconds of compare_structure; load is part of both", "graph", *columns)
    for r in rows:
        cells = [number(r[f"{k}_seconds"]) for k in ("load", "equal", "different")]
        shown.add_row(r["family"], str(r["nodes"]), *cells, number(r["peak_gib"]))
    report.show(shown, *(f"{name}: nodes^{slope:.2f}" for name, slope in found.items()))
    report.write(before, rows, slopes=found)
    if options.plot is not None:
        plot(rows, found, options.plot)


if __name__ == "__main__":
    main()
