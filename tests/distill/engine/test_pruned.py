"""A teacher mixed with a pruned copy of itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opdf_compile.distill.engine import Teaching, machine_for
from opdf_compile.distill.engine.pruned import Pruned, mixed
from opdf_compile.distill.recipe import Job
from opdf_compile.distill.run import run
from opdf_compile.distill.run.events import Stepped

Make = Callable[..., Job]


def smallest_gone(weight: Tensor, share: float) -> Tensor:
    """The oracle: sort, and let the smallest go."""
    count = round(share * weight.numel())
    order = weight.abs().flatten().argsort()
    kept = weight.clone().flatten()
    kept[order[:count]] = 0
    return kept.view_as(weight)


def test_each_layer_loses_its_smallest_weights() -> None:
    """Each its own share; biases, norms and the module itself stay."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(12, 5))
    module.eval().double()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = torch.randn(4, 2, 6).double()

    found = Pruned(module, 0.3)(x)

    oracle = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(12, 5))
    oracle.double().load_state_dict(before)
    with torch.no_grad():
        for layer in (oracle[0], oracle[3]):
            layer.weight.copy_(smallest_gone(layer.weight, 0.3))
    torch.testing.assert_close(found, oracle.eval()(x), rtol=0, atol=0)
    assert not torch.allclose(found, module(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_mix_is_a_line_between_two() -> None:
    first = {"logits": torch.tensor([1.0, 2.0]), "places": torch.tensor([3])}
    second = {"logits": torch.tensor([2.0, 0.0]), "places": torch.tensor([5])}
    found = mixed(first, second, 0.3)
    torch.testing.assert_close(found["logits"], torch.tensor([1.3, 1.4]))
    assert found["places"].tolist() == [3]


TEACHER = "false\\npruned = 0.4\\npruned_share = 0.25"


def test_what_is_taught_is_the_mix(make: Make) -> None:
    """0.75 of the teacher's logits and 0.25 of the copy's."""
    job = make(cache=TEACHER, student="student")
    machine = machine_for(job.recipe.training)
    teaching = Teaching(job, machine.teacher(job.teacher), machine)
    assert isinstance(job.teacher, nn.Module)
    x = job.example["x"]
    with torch.no_grad():
        whole = job.teacher(x)
        wanted = 0.75 * whole + 0.25 * Pruned(job.teacher, 0.4)(x)

    found = teaching("train", [0], job.example)

    assert found is not None
    torch.testing.assert_close(found["logits"], wanted)
    assert not torch.allclose(wanted, whole)


class Killed(BaseException):
    """Ends a run where it is raised."""


def test_the_mix_is_cached_apart_and_a_killed_run_goes_on(
    make: Make, tmp_path: Path, outcome: Callable[[Path], dict[str, Any]]
) -> None:
    """Cached answers train as computed ones do, to the bit; another mix is another cache."""
    training = "epochs = 2\\ncheckpoint_every = 3"

    def dies(event: object) -> None:
        if isinstance(event, Stepped) and event.step == 4:
            raise Killed

    cached = TEACHER.replace("false", "true")
    run(make(cache=TEACHER, training=training), tmp_path / "computed")
    with pytest.raises(Killed):
        run(make(cache=cached, training=training), tmp_path / "kept", watch=dies)
    run(make(cache=cached, training=training), tmp_path / "kept")
    weights = [tmp_path / name / "student.safetensors" for name in ("computed", "kept")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    run(make(cache="true", training=training), tmp_path / "plain")
    keys = [next((tmp_path / name / "cache").iterdir()).name for name in ("kept", "plain")]
    assert keys[0] != keys[1]
