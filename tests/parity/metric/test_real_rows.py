"""An export that is right on random numbers and wrong on real pictures, in every runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import real_rows
from every_runtime import everywhere, processor

from opdf_compile.parity.verdict import verify

ROWS = 600
PARTS = "structure,numerics"


def pair(folder: Path, rows: int, *, clips: bool = True) -> tuple[Path, Path]:
    return (
        real_rows.write(folder / "student.onnx", 1, clips=clips, rows=rows),
        real_rows.write(folder / "reference.onnx", 2, clips=clips, rows=rows),
    )


@everywhere
def test_drawn_inputs_do_not_see_it(tmp_path: Path, runtime: str) -> None:
    assert verify(*pair(tmp_path, 0), only=PARTS, device=processor(runtime), runtime=runtime)


@everywhere
def test_numerics_on_the_users_rows_refutes_it(tmp_path: Path, runtime: str) -> None:
    report = verify(*pair(tmp_path, ROWS), only=PARTS, device=processor(runtime), runtime=runtime)
    assert report.structure.verdict == "pass" and report.numerics.verdict == "fail"
    (error,) = report.numerics.outputs
    # The worst element is one of the user's, which come behind the four drawn samples.
    assert error.element is not None and error.element.sample >= 4


@everywhere
def test_the_metric_refutes_it_against_the_torch_model_alone(tmp_path: Path, runtime: str) -> None:
    """Both files are wrong alike, so the reference excuses it; the torch model does not."""
    candidate, _ = pair(tmp_path, ROWS)
    report = verify(
        candidate,
        candidate,
        only="structure,metric",
        metric=real_rows.accuracy,
        device=processor(runtime),
        runtime=runtime,
    )
    against = report.metric.against
    assert (against["torch"].verdict, against["reference"].verdict) == ("fail", "pass")
    assert report.metric.scores["torch"] == pytest.approx(0.9)
    assert report.verdict == "fail" and report.exit_code == 1
    assert against["torch"].difference < -0.1


@everywhere
def test_a_right_export_passes(tmp_path: Path, runtime: str) -> None:
    candidate, reference = pair(tmp_path, ROWS, clips=False)
    report = verify(
        candidate,
        reference,
        only="structure,numerics,metric",
        metric=real_rows.accuracy,
        device=processor(runtime),
        runtime=runtime,
    )
    assert report, str(report)
    assert report.metric.scores["reference"] < 0.8
    assert any("the truth of all 600 rows" in note for note in report.environment["notes"])


def test_the_users_rows_do_not_excuse_the_drawn_ones(tmp_path: Path) -> None:
    """An error that is small beside outputs of real pictures is large beside drawn ones."""
    file = real_rows.write(tmp_path / "student.onnx", 1, clips=False, rows=0)
    from opdf_compile.artefacts import check_path, read_check, write_check

    data = read_check(check_path(file))
    pictures = 1000 * real_rows.photos(8)
    rows = [real_rows.sample(pictures, 1, np.zeros(8))]
    moved = [
        # Off by a hundred roundings of a drawn output, a thousandth of that of a picture's.
        type(s)(s.inputs, {"y": s.outputs["y"] + 1e-5}, s.error, s.rms, s.maxabs)
        for s in data.samples
    ]
    for samples, verdict in (([*data.samples, *rows], "pass"), ([*moved, *rows], "fail")):
        write_check(
            check_path(file),
            type(data)(("x",), ("y",), "float32", tuple(samples), data.onnx_sha256),
        )
        assert verify(file, only="numerics", device="cpu").numerics.verdict == verdict
