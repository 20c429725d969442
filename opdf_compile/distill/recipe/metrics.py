"""What validations compare: sums over examples and their counts."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdf_compile.distill import losses as kinds
from opdf_compile.distill.recipe.checks import NEED_TEACHER
from opdf_compile.distill.recipe.job import Batch, Metric, Outputs
from opdf_compile.distill.recipe.loss_terms import FAVOURITE, logits_of
from opdf_compile.distill.recipe.models import placed
from opdf_compile.distill.recipe.paths import located_model
from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.distill.recipe.tokens import LABELS, MASK
from opdf_compile.errors import RecipeError
from opdf_compile.files import importing_from
from opdf_compile.io import find_callable

_UP = ("accuracy", "agreement", "cosine")
_NEED_LABELS = ("accuracy", "mse", "perplexity")
_Piece = tuple[Tensor, Tensor]


def make_metric(
    recipe: Recipe, base: Path, losses: kinds.WeightedSum, labels: str | None, batch: Batch
) -> Metric:
    """The metric that a recipe names.

    Raises:
        RecipeError: It needs labels that the data does not have.
    """
    name = recipe.training.metric
    if ":" in name:
        return _custom(recipe, base, name)
    if name == "auto" and recipe.language is not None:
        name = "perplexity"
    elif name == "auto" and labels is not None:
        name = "mse" if batch[labels].is_floating_point() else "accuracy"
    elif name == "auto":
        name = "cosine" if recipe.loss[0].kind in ("hidden", "cosine") else "kl"
    if name in _NEED_LABELS and labels is None:
        raise RecipeError(
            f"{recipe.place('training', 'metric')}: the metric {name} compares with labels and the "
            "data has none, wanted a column of them; name it with labels in [data], or write "
            'metric = "cosine"'
        )
    terms = list(losses.terms.values())
    term = next((t for t in terms if t.needs_teacher == (name in NEED_TEACHER)), terms[0])
    # What the first term counts may be on rows that validation has none of.
    mask = term.mask if recipe.language is None else MASK
    reader = _Reader(term, labels, mask)
    pieces = getattr(reader, name)
    of_mean = perplexity_of if name == "perplexity" else float
    return Metric(name, pieces, name in _UP, name in NEED_TEACHER, of_mean)


def likelihood() -> Metric:
    """The mean negative log-likelihood of a language model's responses, in nats per token."""
    reader = _Reader(kinds.Term(kinds.TaskLoss()), LABELS, MASK)

    def pieces(student: Outputs, teacher: Outputs | None, batch: Batch) -> _Piece:
        return reader.perplexity({FAVOURITE: logits_of(student)}, teacher, batch)

    return Metric("negative log-likelihood", pieces, higher_is_better=False)


def perplexity_of(nats: float) -> float:
    """Of the mean negative log-likelihood; infinite where it is too large for a number."""
    return math.exp(nats) if nats < math.log(sys.float_info.max) else nats * math.inf


def try_metric(
    recipe: Recipe, metric: Metric, student: Outputs, teacher: Outputs | None, batch: Batch
) -> None:
    """Compute a callable's metric once, so that one that fails is found before training.

    Raises:
        RecipeError: It raises, or gives no sum and count.
    """
    if ":" not in recipe.training.metric:
        return
    try:
        with torch.no_grad():
            sizes = [part.numel() for part in metric.pieces(student, teacher, batch)]
    except Exception as error:  # A metric is the user's code.
        found = f"{type(error).__name__}: {str(error).strip()[:150]}"
    else:
        if sizes == [1, 1]:
            return
        found = f"it returned {sizes[0]} and {sizes[1]} numbers"
    raise RecipeError(
        f"{recipe.place('training', 'metric')}: {recipe.training.metric} is no metric ({found}), "
        "wanted a callable of (student outputs, teacher outputs or None, batch) that returns a sum "
        "over examples and their number; correct it"
    )


def _custom(recipe: Recipe, base: Path, name: str) -> Metric:
    """A callable of (student outputs, teacher outputs or None, batch) -> (sum, count)."""
    with importing_from(base), placed(recipe, "training", "metric"):
        function: Callable[..., Any] = find_callable(located_model(name, base))

    def pieces(student: Outputs, teacher: Outputs | None, batch: Batch) -> _Piece:
        total, count = function(student, teacher, batch)
        return torch.as_tensor(total), torch.as_tensor(count)

    up = bool(getattr(function, "higher_is_better", True))
    return Metric(name.rpartition(":")[2], pieces, up, needs_teacher=recipe.teacher is not None)


class _Reader:
    """The metrics over what one loss reads: its outputs and its mask."""

    def __init__(self, term: kinds.Term, labels: str | None, mask: str | None) -> None:
        self._student, self._teacher, self._mask = term.student, term.teacher, mask
        self._labels = labels

    def accuracy(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> _Piece:
        """Share of labels that are the student's first choice."""
        labels = batch[self._labels or ""]
        right = student[self._student].argmax(-1) == labels
        return self._sum(right, batch, labels >= 0)

    def agreement(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> _Piece:
        """Share of examples where student and teacher choose the same."""
        return self._sum(
            student[self._student].argmax(-1) == self._other(teacher).argmax(-1), batch
        )

    def cosine(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> _Piece:
        """Mean cosine of the angle between the student's and the teacher's output."""
        pair = student[self._student].double(), self._other(teacher).double()
        return self._sum(torch.cosine_similarity(*pair, dim=-1), batch)

    def kl(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> _Piece:
        """Mean KL(teacher || student) in nats."""
        logs = torch.log_softmax(self._other(teacher).double(), -1)
        ours = torch.log_softmax(student[self._student].double(), -1)
        return self._sum((logs.exp() * (logs - ours)).sum(-1), batch)

    def perplexity(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> _Piece:
        """Negative log-likelihood of the labels in nats; perplexity is exp of its mean."""
        labels = batch[self._labels or ""]
        counted = labels >= 0
        logs = torch.log_softmax(student[self._student].double(), -1)
        picked = logs.gather(-1, labels.clamp_min(0)[..., None].long())[..., 0]
        return self._sum(-picked, batch, counted)

    def mse(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> _Piece:
        """Mean squared difference from the labels."""
        labels = batch[self._labels or ""].double()
        error = (student[self._student].double().reshape(labels.shape) - labels).square()
        return error.sum(), torch.tensor(float(error.numel()), device=error.device)

    def _other(self, teacher: Outputs | None) -> Tensor:
        return (teacher or {})[self._teacher]

    def _sum(self, values: Tensor, batch: Batch, counted: Tensor | None = None) -> _Piece:
        """Values ``(...)`` of the rows that count; a mask may leave out more."""
        keep = torch.ones_like(values, dtype=torch.bool) if counted is None else counted
        if self._mask is not None and self._mask in batch:
            keep = keep & (batch[self._mask] != 0)
        return values.double()[keep].sum(), keep.double().sum()
