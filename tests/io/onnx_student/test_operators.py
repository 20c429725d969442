"""Every operator of the table against onnxruntime, and against onnx.reference where it has it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from opdf_compile.io.onnx_student.registry import known


def _beside(name: str) -> ModuleType:
    """Tests are no package: what they share lies beside them."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"onnx_student_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


oracle, table = _beside("oracle"), _beside("cases")
CASES = table.CASES
# Those that no row shows here: control flow has tests of its own, and these need opset 22 and more.
ELSEWHERE = {
    "If",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "Swish",
    "BitShift",
    "Scatter",
    "Constant",
}


def answers(case: object) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Our outputs, and those of each oracle that knows the operator."""
    model = oracle.one_node(
        case.op,
        case.arrays,
        case.attributes,
        opset=case.opset,
        constants=case.constants,
        outputs=case.outputs,
    )
    given = oracle.feeds(model, case.arrays)
    oracles = [oracle.by_runtime] + [oracle.by_reference] * case.reference
    return oracle.by_student(model, given), [ask(model, given) for ask in oracles]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_agrees_with_the_oracles(case: object) -> None:
    ours, oracles = answers(case)
    for theirs in oracles:
        oracle.require_equal(ours, theirs)


@pytest.mark.parametrize("case", CASES[::4], ids=str)
def test_a_wrong_operator_is_found(case: object) -> None:
    ours, oracles = answers(case)
    with pytest.raises(AssertionError):
        oracle.require_equal([_wrong(y) for y in ours], oracles[0])


def _wrong(y: np.ndarray) -> np.ndarray:
    if y.dtype == bool:
        return ~y
    return (y * 1.01 + 0.01).astype(y.dtype) if y.dtype.kind == "f" else y + y.dtype.type(1)


def test_every_operator_has_a_row() -> None:
    assert set(known()) - {case.op for case in CASES} - ELSEWHERE == set()
