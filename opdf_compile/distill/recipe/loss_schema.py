"""The `[[loss]]` sections: one class per kind, so that a key that a kind has not is an error.

Each makes its loss. A new kind is a class here, and its name in `LossSection`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal, get_args

from pydantic import Field
from torch import Tensor, nn

from opdf_compile.distill import losses
from opdf_compile.distill.recipe.section import AtLeastZero, BelowOne, Positive, Section, Text
from opdf_compile.errors import InputError


class _Loss(Section):
    name: Text | None = Field(
        None, description="Its name in logs; the kind by default.", examples=["soft"]
    )
    weight: Positive = Field(1.0, description="Its weight in the sum.")
    student: Text | None = Field(
        None,
        description="The student's output that it reads; the first by default.",
        examples=["logits"],
    )
    mask: Text | None = Field(
        None, description="A column of the data: 1 counts, 0 does not.", examples=["attention_mask"]
    )

    @property
    def needs_teacher(self) -> bool:
        """Whether it compares with the teacher."""
        return True


class FromTeacher(_Loss):
    """A loss that compares with the teacher."""

    teacher: Text | None = Field(
        None,
        description="The teacher's output that it reads; the first by default.",
        examples=["logits"],
    )

    @abstractmethod
    def make(self, student: Tensor, teacher: Tensor) -> nn.Module:
        """The loss, for outputs like these two; what it learns starts from random numbers.

        Raises:
            InputError: It cannot compare them.
        """


class HintonSection(FromTeacher):
    """KL of softened logits, times the temperature squared."""

    kind: Literal["hinton"]
    temperature: Positive = Field(4.0, description="Softens both.")

    def make(self, _student: Tensor, _teacher: Tensor) -> nn.Module:
        """A HintonKD."""
        return losses.HintonKD(self.temperature)


class SkewSection(FromTeacher):
    """Skew KL and reverse skew KL (DistiLLM)."""

    kind: Literal["skew-kl", "reverse-skew-kl"]
    alpha: BelowOne = Field(
        0.1, description="Share of the first distribution in the mixture; 0 is the plain KL."
    )
    detach: bool = Field(
        False, description="Of the reverse one: no gradient through the mixture (DistiLLM-2)."
    )

    def make(self, _student: Tensor, _teacher: Tensor) -> nn.Module:
        """A SkewKL or a ReverseSkewKL."""
        if self.kind == "skew-kl":
            return losses.SkewKL(self.alpha)
        return losses.ReverseSkewKL(self.alpha, detach=self.detach)


class CorrelationSection(FromTeacher):
    """Correlation between the logits of classes, of examples, and of their ranks."""

    kind: Literal["correlation"]
    classes: AtLeastZero = Field(1.0, description="Weight of the part over classes.")
    batch: AtLeastZero = Field(1.0, description="Weight of the part over the batch.")
    rank: AtLeastZero = Field(0.0, description="Weight of the differentiable rank part.")
    temperature: Positive = Field(4.0, description="Softens both; ranks do not depend on it.")

    def make(self, _student: Tensor, _teacher: Tensor) -> nn.Module:
        """A CorrelationLoss."""
        return losses.CorrelationLoss(
            self.classes, self.batch, self.rank, temperature=self.temperature
        )


class HiddenSection(FromTeacher):
    """Mean squared difference of hidden states, or 1 - cos of their angle."""

    kind: Literal["hidden", "cosine"]
    projection: Literal["learned", "fixed", "none"] = Field(
        "none", description="From the student's width to the teacher's."
    )

    def make(self, student: Tensor, teacher: Tensor) -> nn.Module:
        """A HiddenStateLoss or a CosineLoss."""
        kind = losses.HiddenStateLoss if self.kind == "hidden" else losses.CosineLoss
        widths = student.shape[-1], teacher.shape[-1]
        if self.projection != "none":
            return kind(*widths, projection=self.projection)
        if widths[0] != widths[1]:
            raise InputError(
                f"the {self.kind} loss compares {widths[0]} numbers of the student with "
                f'{widths[1]} of the teacher, wanted equal widths; add projection = "learned"'
            )
        return kind()


class TaskSection(_Loss):
    """The task itself, from the labels."""

    kind: Literal["task"]
    of: Literal["cross_entropy", "binary_cross_entropy", "mse"] = Field(
        "cross_entropy", description="One class of several, each class yes or no, or numbers."
    )
    label_smoothing: BelowOne = Field(
        0.0, description="Share of a label that is spread over all classes; of cross entropy."
    )

    @property
    def needs_teacher(self) -> bool:
        """Labels alone."""
        return False

    def make(self, reduction: Literal["mean", "none"] = "mean") -> losses.TaskLoss:
        """A TaskLoss."""
        return losses.TaskLoss(self.of, label_smoothing=self.label_smoothing, reduction=reduction)


LossSection = Annotated[
    HintonSection | SkewSection | CorrelationSection | HiddenSection | TaskSection,
    Field(discriminator="kind"),
]

LOSS_SECTIONS = get_args(get_args(LossSection)[0])
