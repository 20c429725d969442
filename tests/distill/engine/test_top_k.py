"""Rows kept as their largest logits and a mass: what is kept, and how far a loss may move."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from language_models import written
from scipy.special import softmax

from opdf_compile.distill.engine import TopK
from opdf_compile.distill.recipe import prepare, read_recipe
from opdf_compile.distill.run import run

Array = np.ndarray
ROWS, CLASSES = 400, 50


def drawn(seed: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a teacher and of a student that knows something of it."""
    generator = torch.Generator().manual_seed(seed)
    teacher, noise = torch.randn(2, ROWS, CLASSES, generator=generator, dtype=torch.float64)
    return spread * teacher, spread * (0.5 * teacher + noise)


def read_back(logits: torch.Tensor, k: int) -> Array:
    top_k = TopK(k)
    return softmax(top_k.read(top_k.kept({"logits": logits}))["logits"].numpy(), -1)


@pytest.mark.parametrize("k", [1, 5, 49])
def test_the_largest_come_back_and_the_rest_shares_its_mass(k: int) -> None:
    teacher, _ = drawn(0, 3.0)
    p, found = softmax(teacher.numpy(), -1), read_back(teacher, k)
    order = np.argsort(-p, -1)
    large, small = order[:, :k], order[:, k:]
    np.testing.assert_allclose(
        np.take_along_axis(found, large, -1), np.take_along_axis(p, large, -1), rtol=1e-12
    )
    mass = np.take_along_axis(p, small, -1).sum(-1, keepdims=True)
    rest = np.take_along_axis(found, small, -1)
    np.testing.assert_allclose(rest, np.broadcast_to(mass / (CLASSES - k), rest.shape), rtol=1e-12)


def test_few_classes_are_kept_whole() -> None:
    teacher, _ = drawn(0, 3.0)
    kept = TopK(CLASSES).kept({"logits": teacher})
    assert list(kept) == ["logits"]
    assert kept["logits"] is teacher


def kl(p: Array, q: Array) -> Array:
    return (p * np.log(p / q)).sum(-1)


def skewed(p: Array, q: Array, alpha: float) -> Array:
    return kl(p, alpha * p + (1 - alpha) * q)


@pytest.mark.parametrize("spread", [0.5, 3.0, 8.0])
@pytest.mark.parametrize("k", [2, 10, 40])
def test_losses_move_by_no_more_than_the_bound(k: int, spread: float) -> None:
    """The three bounds of top_k.py."""
    teacher, student = drawn(1, spread)
    p, q, kept = softmax(teacher.numpy(), -1), softmax(student.numpy(), -1), read_back(teacher, k)
    order = np.argsort(-p, -1)
    small = order[:, k:]
    r = np.take_along_axis(p, small, -1).sum(-1)
    s, least = (f(np.take_along_axis(q, small, -1)) for f in (lambda x: x.sum(-1), _least))
    smallest = np.take_along_axis(p, order[:, k - 1 : k], -1)[:, 0]
    a = 0.1
    moved = {
        "skew": np.abs(skewed(p, q, a) - skewed(kept, q, a)),
        "reverse": np.abs(skewed(q, p, a) - skewed(q, kept, a)),
        "kl": np.abs(kl(p, q) - kl(kept, q)),
    }
    bound = {
        "skew": r * np.log1p((1 - a) * s / (a * r)),
        "reverse": s * np.log1p((1 - a) * r / (a * s)),
        "kl": r * np.log(smallest / least) + r * np.log(s / r),
    }
    for name, value in moved.items():
        # Rounding of sums of 50 numbers below 1.
        assert (value <= bound[name] + 1e-12).all(), name


def test_the_bound_is_reached() -> None:
    """A rest that is one class of the teacher's and, to the student, every other one."""
    p, q = np.full(1000, 1e-12), np.full(1000, 0.1 / 998)
    p[:3], q[:3] = (0.5, 0.4, 0.1), (0.5, 0.4, 1e-12)
    logits = torch.tensor(np.log(p))[None]
    kept = read_back(logits, 2)
    r, s, a = p[2:].sum(), q[2:].sum(), 0.1
    moved = abs(skewed(p, q, a) - skewed(kept, q, a))
    assert moved == pytest.approx(r * np.log1p((1 - a) * s / (a * r)), rel=0.01)


def _least(values: Array) -> Array:
    return values.min(-1)


def test_the_oracle_of_the_bound_can_fail() -> None:
    """A rest that is thrown away moves the loss by more than the bound."""
    teacher, student = drawn(1, 3.0)
    p, q = softmax(teacher.numpy(), -1), softmax(student.numpy(), -1)
    order = np.argsort(-p, -1)
    cut = p.copy()
    np.put_along_axis(cut, order[:, 2:], 1e-30, -1)
    r = np.take_along_axis(p, order[:, 2:], -1).sum(-1)
    s = np.take_along_axis(q, order[:, 2:], -1).sum(-1)
    moved = np.abs(skewed(p, q, 0.1) - skewed(cut, q, 0.1))
    assert (moved > r * np.log1p(9 * s / r)).any()


@pytest.mark.parametrize("form", ["cache = true", "cache = true\ncache_top_k = 23"])
def test_a_kept_teacher_trains_as_one_that_runs_at_every_step(form: str, tmp_path: Path) -> None:
    """Rows of unequal length too; 23 classes of 23 are all of them."""
    results = [trained(tmp_path / name, teacher) for name, teacher in (("a", ""), ("b", form))]
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_a_part_of_the_logits_trains_nearly_as_all_of_them(tmp_path: Path) -> None:
    whole = trained(tmp_path / "a", "")
    part = trained(tmp_path / "b", "cache = true\ncache_top_k = 12")
    assert part != whole
    assert part == pytest.approx(whole, rel=0.05)
    kept = next((tmp_path / "b" / "run" / "cache").glob("*/train-00000.safetensors"))
    assert b"logits/rest" in kept.read_bytes()


def trained(folder: Path, teacher: str) -> list[float]:
    """The losses that a run logs."""
    folder.mkdir()
    job = prepare(read_recipe(written(folder, teacher=teacher)), base=folder)
    run(job, folder / "run")
    lines = (folder / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    found = [entry["loss"] for entry in entries if entry["event"] == "step"]
    assert len(found) == 10
    assert all(map(math.isfinite, found))
    return found
