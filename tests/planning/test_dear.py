"""One dear weight is named with its cost and the way to leave it alone; usual layers are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import nn

from opdf_compile.planning.choose import plan
from opdf_compile.planning.dear import cost_warning, dearest, plain_step


def meta(*layers: tuple[int, int]) -> nn.Module:
    """Linear layers without memory: a plan needs shapes only."""
    return nn.Sequential(*(nn.Linear(*sizes, device="meta") for sizes in layers))


BERT = ((768, 768),) * 4 + ((768, 3072), (3072, 768))
DETECTOR = ((256, 256), (12544, 1024), (1024, 1024))


def test_the_box_head_of_a_detector_is_named_with_what_to_paste() -> None:
    said = cost_warning(plan(meta(*DETECTOR), cores=3))
    assert said is not None
    # 552,440,168,448 FLOPs of compose against 6 x 12,845,056 per row are 7,168 rows.
    assert "1.weight (1024x12544) adds 552 GFLOP to every step" in said
    assert "as much as training it on 7,168 rows" in said
    assert "4,096 rows through every planned weight" in said
    assert "exclude=['1.weight'] (--exclude '1.weight' on the command line)" in said
    assert "2.weight" not in said


@pytest.mark.parametrize("asked", [{"cores": 3}, {"cores": 5}, {"scale": 2.0}])
def test_nothing_is_said_of_a_bert(asked: dict[str, float]) -> None:
    assert cost_warning(plan(meta(*BERT), **asked)) is None  # type: ignore[arg-type]


def test_what_is_pasted_ends_the_warning() -> None:
    model = meta(*DETECTOR)
    assert cost_warning(plan(model, cores=3, exclude=["1.weight"])) is None


def test_several_dear_weights_are_all_excluded() -> None:
    said = cost_warning(plan(meta((16384, 4096), (16384, 4096), (64, 64)), cores=3))
    assert said is not None
    assert "exclude=['0.weight', '1.weight'] (--exclude '0.weight' --exclude '1.weight'" in said
    assert "to leave them alone" in said


def test_a_large_example_is_believed_and_a_small_one_is_not() -> None:
    made = plan(meta((1024, 1024)), cores=5)
    assert cost_warning(made) is not None
    small = replace(made, student_step_flops=6 * 2 * 1024 * 1024)
    assert "4,096 rows" in (cost_warning(small) or "")
    large = replace(made, student_step_flops=6 * 65536 * 1024 * 1024)
    assert plain_step(large) == large.student_step_flops
    assert cost_warning(large) is None
    between = replace(made, student_step_flops=6 * 5000 * 1024 * 1024)
    assert "taken as that of the example batch" in (cost_warning(between) or "")


def test_the_dearest_come_first() -> None:
    made = plan(meta(*DETECTOR), cores=3)
    assert [entry.key for entry in dearest(made)] == ["1.weight", "2.weight", "0.weight"]
    assert [entry.key for entry in dearest(made, 1)] == ["1.weight"]
