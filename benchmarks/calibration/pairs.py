"""The pairs of a candidate and its reference, and what each part of verify has to say of them.

Latency's right answer for a slower candidate depends on the margin and on how much slower it truly
is, which is measured (truth.py); all other answers are known by construction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration import surgery
from calibration.students import Size, export_student
from opdf_compile.artefacts.check_file import check_path, read_check, write_check
from opdf_compile.files.atomic import sha256

# Weights and check data of several students, so that no verdict hangs on the luck of one.
STUDENTS = 4
# The reference's weights are those of another seed, as an untouched student's are.
_REFERENCE_SEED = 100


@dataclass(frozen=True)
class Pair:
    """One kind of pair.

    Attributes:
        name: As `--pairs` calls it.
        what: What differs, for the table.
        structure: The right verdict, "pass" or "fail".
        numerics: Likewise.
        latency: Likewise; "margin" where the true ratio decides, None where it is not measured.
        change: Makes the candidate out of the student's graph; None leaves it.
        slower: The slowdown that is wanted, for an added product.
        opset: Of the candidate's export.
        drawn: Whether every repetition draws the place of the change anew.
    """

    name: str
    what: str
    structure: str = "pass"
    numerics: str = "pass"
    latency: str | None = None
    change: surgery.Change | None = None
    slower: float | None = None
    opset: int | None = None
    drawn: bool = False

    def draw(self, repetition: int) -> int:
        """What tells the files of a repetition from those of others."""
        if self.drawn:
            return repetition
        return 0 if self.latency else repetition % STUDENTS

    @property
    def refuted_by(self) -> str:
        """The parts that must say fail, for the table."""
        parts = [part for part in ("structure", "numerics") if getattr(self, part) == "fail"]
        return ", ".join(parts) or "none"


def _slower(percent: int) -> Pair:
    return Pair(
        f"slower-{percent}",
        f"{percent} % slower: a MatMul added",
        structure="fail",
        latency="margin",
        slower=percent / 100,
    )


def _other(
    name: str, what: str, change: surgery.Change, *, numerics: str = "fail", drawn: bool = True
) -> Pair:
    return Pair(name, what, "fail", numerics, change=change, drawn=drawn)


PAIRS = {
    pair.name: pair
    for pair in (
        Pair("identical", "the same file twice", latency="pass"),
        Pair(
            "values",
            "other values, names and order of initialisers",
            latency="pass",
            change=surgery.reorder,
            drawn=True,
        ),
        *(_slower(percent) for percent in (1, 3, 5, 10)),
        Pair(
            "unfolded",
            "a weight left as its three cores",
            structure="fail",
            latency="pass",
            change=surgery.unfolded,
        ),
        *(
            Pair(
                f"{kind}-{text}",
                f"{'one weight' if kind == 'weight' else 'one element of a weight'} off by {text}",
                numerics="fail",
                change=change(size),
                drawn=True,
            )
            for kind, change in (
                ("weight", surgery.scaled_weight),
                ("element", surgery.scaled_element),
            )
            for text, size in (("1e-3", 1e-3), ("1e-2", 1e-2))
        ),
        _other("attribute", "one attribute (pads) changed", surgery.other_attribute),
        _other("identity", "one Identity added", surgery.added_identity, numerics="pass"),
        _other("sub", "two inputs of a Sub swapped", surgery.swapped_subtraction, drawn=False),
        _other("slice", "a bound of a Slice changed", surgery.other_slice),
        _other("resize", "a scale of a Resize changed", surgery.other_scale, drawn=False),
        _other("float16", "one initialiser in float16, and a Cast", surgery.half_initialiser),
        Pair("opset", "another opset", structure="fail", opset=18),
    )
}


@dataclass(frozen=True)
class Files:
    """One pair on the disk."""

    candidate: Path
    reference: Path

    @property
    def check(self) -> Path:
        """The candidate's check data."""
        return check_path(self.candidate)

    @property
    def reference_check(self) -> Path:
        """The reference's."""
        return check_path(self.reference)


def make(pair: Pair, size: Size, folder: Path, repetition: int, columns: int | None) -> Files:
    """Write the files of one repetition of a pair.

    Args:
        pair: Which.
        size: Of the network.
        folder: Gets the exports, which are kept, and the candidate.
        repetition: Chooses the student and the place of the change.
        columns: Of the added product, for a slower pair.
    """
    seed = 0 if pair.latency else repetition % STUDENTS  # One student, one true ratio.
    student = export_student(folder, size, seed, pair.opset)
    # The same file twice is the same file twice: a slower pair is compared with its own student,
    # so that nothing but the product is between the two.
    same = pair.name == "identical" or pair.slower is not None
    reference = export_student(folder, size, seed if same else _REFERENCE_SEED)
    change = surgery.added_product(columns) if columns else pair.change
    if change is None:
        return Files(student, reference)
    candidate = folder / f"candidate-{pair.name}.onnx"
    changed(student, candidate, change, np.random.default_rng([repetition, len(pair.name)]))
    return Files(candidate, reference)


def changed(
    student: Path, candidate: Path, change: surgery.Change, rng: np.random.Generator
) -> None:
    """Write a changed copy with the student's check data.

    The check data is signed for the changed file: whoever changed a file by mistake would have
    exported it like this, and verify refuses the check data of another file anyhow.
    """
    import onnx

    model = onnx.load(student)
    change(model, rng)
    onnx.checker.check_model(model)
    onnx.save(model, candidate)
    data = replace(read_check(check_path(student)), onnx_sha256=sha256(candidate))
    write_check(check_path(candidate), data)


def right_latency(pair: Pair, truth: Mapping[str, Any] | None, margin: float) -> str | None:
    """The right verdict on latency; "either" where the truth's interval holds the limit."""
    if pair.latency != "margin":
        return pair.latency
    if truth is None:
        return None
    if truth["ci_high"] < 1 + margin:
        return "pass"
    return "fail" if truth["ci_low"] > 1 + margin else "either"
