"""The candidate's values in the reference's graph, wherever its file keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from opdf_compile.parity.runtime.registry import resolve_device
from opdf_compile.parity.structure import optimised
from opdf_compile.parity.structure.compare import compare_structure
from opdf_compile.parity.structure.optimised import _with_candidate_values, compare_optimised

WIDTH = 20


def write(path: Path, seed: int, **options: Any) -> Path:
    """Two products of large matrices, a small one and a bias."""
    draw = np.random.default_rng(seed).standard_normal
    shapes = {"a": (4, WIDTH), "b": (WIDTH, WIDTH), "c": (WIDTH,), "d": (WIDTH, 2)}
    weights = [numpy_helper.from_array(draw(s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["1"]),
        helper.make_node("MatMul", ["1", "b"], ["2"]),
        helper.make_node("Add", ["2", "c"], ["3"]),
        helper.make_node("MatMul", ["3", "d"], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("x", 4), ("y", 2))
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path, **options)
    return path


def beside(name: str, least: int = 0) -> dict[str, Any]:
    return {"save_as_external_data": True, "location": name, "size_threshold": least}


@pytest.mark.parametrize(
    "options", [{}, beside("values.data"), beside("copy-0.data"), beside("weights.bin", 1000)]
)
@pytest.mark.parametrize("largest", [0, 1 << 28])
def test_the_reference_gets_the_candidates_values(
    options: dict[str, Any], largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimised, "_LARGEST_WHOLE", largest)
    (tmp_path / "home").mkdir()
    candidate = write(tmp_path / "s.onnx", 0, **options)
    reference = write(
        tmp_path / "r.onnx", 1, **{**options, "location": "r.data"} if options else {}
    )
    raw = compare_structure(candidate, reference)
    assert raw.verdict == "pass"
    made = tmp_path / "home" / "reference.onnx"
    made.write_bytes(_with_candidate_values(raw, made.parent).SerializeToString())
    wanted, found = (
        sorted(numpy_helper.to_array(t).tobytes() for t in onnx.load(path).graph.initializer)
        for path in (candidate, made)
    )
    assert found == wanted
    assert compare_optimised(raw, candidate, resolve_device("cpu")).verdict == "pass"
