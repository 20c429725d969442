"""Several losses as one number that reports its parts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opdf_compile.distill.losses.loss import Loss, both
from opdf_compile.distill.losses.task import TaskLoss
from opdf_compile.errors import InputError

_Returned = Tensor | Mapping[str, Any]
Pieces = dict[str, tuple[Tensor, Tensor]]


class Term(nn.Module):
    """A loss with the names of what it reads.

    A name is a key of what a model returned, or a column of the batch; "hidden_states.3" is the
    fourth part of a tuple. What a model returned may be one tensor: it is "logits" then.

    Args:
        loss: A `Loss`, or any module of (student, teacher) that gives the mean of a batch, such as
            torch's own.
        student: The student's output, or a column of the batch.
        teacher: The teacher's output; not read where there are labels.
        labels: A column of the batch to compare with in place of the teacher; "labels" for a
            `TaskLoss`.
        mask: A column of the batch, or an output of the student, that says which rows count.

    Raises:
        InputError: In forward and pieces, a name is not there.
    """

    def __init__(
        self,
        loss: nn.Module,
        student: str = "logits",
        teacher: str = "logits",
        labels: str | None = None,
        mask: str | None = None,
    ) -> None:
        super().__init__()
        self.loss, self.student, self.teacher = loss, student, teacher
        self.labels = "labels" if labels is None and isinstance(loss, TaskLoss) else labels
        self.mask = mask

    @property
    def needs_teacher(self) -> bool:
        """Whether it reads the teacher's outputs."""
        return self.labels is None

    def extra_repr(self) -> str:
        """What print shows."""
        target = f"teacher {self.teacher}" if self.labels is None else f"labels {self.labels}"
        return f"student {self.student}, {target}" + (f", mask {self.mask}" if self.mask else "")

    def pieces(
        self, student: _Returned, teacher: _Returned | None = None, batch: _Returned | None = None
    ) -> tuple[Tensor, Tensor]:
        """The sum over the rows that count, and how many they are.

        A loss that is no `Loss` counts the batch as one row.
        """
        found = read_output(self.student, (student, batch), "student")
        if self.labels is None:
            target = read_output(self.teacher, (teacher,), "teacher")
        else:
            target = read_output(self.labels, (batch, student), "batch")
        options = (
            {} if self.mask is None else {"mask": read_output(self.mask, (batch, student), "batch")}
        )
        if isinstance(self.loss, Loss):
            return self.loss.pieces(found, target, **options)
        value: Tensor = self.loss(found, target, **options)
        return value, torch.ones_like(value.detach())

    def rows_in(self, batch: Mapping[str, Tensor]) -> float:
        """What the count of `pieces` grows with: examples, or rows that mask and labels pass."""
        rows: Tensor | None = None
        if self.mask is not None and self.mask in batch:
            rows = batch[self.mask] != 0
        if self.labels is not None and self.labels in batch and isinstance(self.loss, Loss):
            rows = both(rows, self.loss._left_out(batch[self.labels]))
        return float(len(next(iter(batch.values()))) if rows is None else rows.sum())

    def forward(
        self, student: _Returned, teacher: _Returned | None = None, batch: _Returned | None = None
    ) -> Tensor:
        """The mean over the rows that count, a 0-d tensor."""
        total, count = self.pieces(student, teacher, batch)
        return total / count.clamp_min(1)


class WeightedSum(nn.Module):
    """The sum of weighted losses.

    Args:
        terms: By name: the weight, and a `Term` or a loss that reads logits (for a `TaskLoss` the
            column "labels").

    Attributes:
        weights: By name; may be changed between steps.
        parts: By name, the mean of each loss before its weight in the last forward, detached 0-d
            tensors.

    Raises:
        InputError: No term, or a weight that is no number from 0 on.

    Example:
        >>> loss = WeightedSum({"soft": (0.9, HintonKD(4.0)), "hard": (0.1, TaskLoss())})
        >>> loss(student(x), teacher(x), {"labels": y}).backward()
    """

    def __init__(self, terms: Mapping[str, tuple[float, nn.Module]]) -> None:
        super().__init__()
        if not terms:
            raise InputError("WeightedSum got no terms, wanted at least one name: (weight, loss)")
        wrong = [f"{n}: {w}" for n, (w, _loss) in terms.items() if not (0 <= w < math.inf)]
        if wrong:
            raise InputError(
                f"WeightedSum got the weights {', '.join(wrong)}, wanted numbers from 0 on"
            )
        self.weights = {name: float(weight) for name, (weight, _loss) in terms.items()}
        # A list, because names may have dots, which names of modules may not.
        self._terms = nn.ModuleList(
            loss if isinstance(loss, Term) else Term(loss) for _weight, loss in terms.values()
        )
        self.parts: dict[str, Tensor] = {}

    @property
    def terms(self) -> dict[str, Term]:
        """The terms by name."""
        found = zip(self.weights, self._terms, strict=True)
        return {name: term for name, term in found if isinstance(term, Term)}

    @property
    def needs_teacher(self) -> bool:
        """Whether a term reads the teacher's outputs."""
        return any(term.needs_teacher for term in self.terms.values())

    def pieces(
        self, student: _Returned, teacher: _Returned | None = None, batch: _Returned | None = None
    ) -> Pieces:
        """By name: the sum over the rows that count, and how many they are."""
        return {name: term.pieces(student, teacher, batch) for name, term in self.terms.items()}

    def combine(self, pieces: Pieces, counts: Mapping[str, Tensor | float] | None = None) -> Tensor:
        """Weight and add what `pieces` gave; sets `parts`.

        Args:
            pieces: Sums and counts of this process and batch.
            counts: What to divide each sum by in place of its own count. Where gradients of W
                processes are averaged afterwards (DDP), the exact mean over all rows comes out
                with the count over all processes, divided by W.
        """
        means = {}
        for name, (total, own) in pieces.items():
            count = own if counts is None else torch.as_tensor(counts[name], device=own.device)
            # Less than one row counts where the mean is over few rows of many processes.
            means[name] = torch.where(count > 0, total / count.clamp_min(1e-9), 0 * total)
        self.parts = {name: mean.detach() for name, mean in means.items()}
        weighted = [self.weights[name] * mean for name, mean in means.items()]
        return torch.stack([part.to(weighted[0].device) for part in weighted]).sum()

    def forward(
        self,
        student: _Returned,
        teacher: _Returned | None = None,
        batch: _Returned | None = None,
        *,
        counts: Mapping[str, Tensor | float] | None = None,
    ) -> Tensor:
        """The weighted sum, a 0-d tensor; sets `parts`.

        Args:
            student: What the student returned: a tensor, or a mapping (transformers' own too).
            teacher: What the teacher returned; None where no term reads it.
            batch: The batch, for labels and masks.
            counts: See `combine`.

        Raises:
            InputError: A name is not there, or shapes or dtypes do not fit.
        """
        return self.combine(self.pieces(student, teacher, batch), counts)

    def extra_repr(self) -> str:
        """What print shows."""
        return ", ".join(f"{weight} x {name}" for name, weight in self.weights.items())


def read_output(name: str, sources: Sequence[_Returned | None], whose: str) -> Tensor:
    """The first tensor of that name."""
    mappings = [{"logits": s} if isinstance(s, Tensor) else s for s in sources if s is not None]
    for mapping in mappings:
        found = _at(name, mapping)
        if isinstance(found, Tensor):
            return found
    there = sorted({str(key) for mapping in mappings for key in mapping})
    raise InputError(
        f"a loss reads {name!r} of the {whose}, found {', '.join(there) or 'nothing'}; name one of "
        "these (the fourth part of a tuple is NAME.3), or let the model return it"
    )


def _at(name: str, mapping: Mapping[str, Any]) -> Any:
    if name in mapping:
        return mapping[name]
    head, _, place = name.rpartition(".")
    parts = _at(head, mapping) if head else None
    if isinstance(parts, Mapping):
        return parts.get(place)
    if not isinstance(parts, tuple | list) or not place.isdigit() or int(place) >= len(parts):
        return None
    return parts[int(place)]
