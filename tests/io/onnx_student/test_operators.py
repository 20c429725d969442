"""Every operator of the table against onnxruntime, and against onnx.reference where it has it."""

from __future__ import annotations

import numpy as np
import onnx_oracle as oracle
import pytest
from operator_cases import CASES, Case

from opdf_compile.io.onnx_student.operator_table import known

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


def answers(case: Case) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
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
def test_an_operator_agrees_with_the_oracles(case: Case) -> None:
    ours, oracles = answers(case)
    for theirs in oracles:
        oracle.require_equal(ours, theirs)


@pytest.mark.parametrize("case", CASES[::4], ids=str)
def test_a_wrong_operator_is_found(case: Case) -> None:
    ours, oracles = answers(case)
    with pytest.raises(AssertionError):
        oracle.require_equal([_wrong(y) for y in ours], oracles[0])


def _wrong(y: np.ndarray) -> np.ndarray:
    if y.dtype == bool:
        return ~y
    return (y * 1.01 + 0.01).astype(y.dtype) if y.dtype.kind == "f" else y + y.dtype.type(1)


def test_every_operator_has_a_row() -> None:
    assert set(known()) - {case.op for case in CASES} - ELSEWHERE == set()
