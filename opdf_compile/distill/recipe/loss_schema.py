"""The `[[loss]]` sections: one class per kind, so that a key that a kind has not is an error."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from opdf_compile.distill.recipe.section import AtLeastZero, Positive, Section, Share, Text


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


class _FromTeacher(_Loss):
    teacher: Text | None = Field(
        None,
        description="The teacher's output that it reads; the first by default.",
        examples=["logits"],
    )


class HintonLoss(_FromTeacher):
    """KL of softened logits, times the temperature squared."""

    kind: Literal["hinton"]
    temperature: Positive = Field(4.0, description="Softens both.")


class SkewLoss(_FromTeacher):
    """Skew KL and reverse skew KL (DistiLLM)."""

    kind: Literal["skew-kl", "reverse-skew-kl"]
    alpha: Share = Field(
        0.1, description="Share of the first distribution in the mixture; 0 is the plain KL."
    )


class CorrelationLoss(_FromTeacher):
    """Correlation between the logits of classes, of examples, and of their ranks."""

    kind: Literal["correlation"]
    classes: AtLeastZero = Field(1.0, description="Weight of the part over classes.")
    batch: AtLeastZero = Field(1.0, description="Weight of the part over the batch.")
    rank: AtLeastZero = Field(0.0, description="Weight of the differentiable rank part.")
    temperature: Positive = Field(4.0, description="Softens both; ranks do not depend on it.")


class HiddenLoss(_FromTeacher):
    """Mean squared difference of hidden states, or 1 - cos of their angle."""

    kind: Literal["hidden", "cosine"]
    projection: Literal["learned", "fixed", "none"] = Field(
        "none", description="From the student's width to the teacher's."
    )


class TaskLoss(_Loss):
    """The task itself, from the labels."""

    kind: Literal["task"]
    of: Literal["cross_entropy", "binary_cross_entropy", "mse"] = Field(
        "cross_entropy", description="One class of several, each class yes or no, or numbers."
    )
    label_smoothing: Share = Field(
        0.0, description="Share of a label that is spread over all classes; of cross entropy."
    )

    @property
    def needs_teacher(self) -> bool:
        """Labels alone."""
        return False


LossSection = Annotated[
    HintonLoss | SkewLoss | CorrelationLoss | HiddenLoss | TaskLoss, Field(discriminator="kind")
]
