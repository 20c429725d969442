"""The recipe's schema: one class per section of the file, one attribute per key.

The descriptions are what `docs/distill.md` prints, and the defaults are those of the file.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr, field_serializer

from opdf_compile.distill.recipe.language_schema import GenerationSection, LanguageSection
from opdf_compile.distill.recipe.loss_schema import LossSection
from opdf_compile.distill.recipe.section import (
    AtLeastZero,
    BelowOne,
    Count,
    Positive,
    RecipeText,
    Section,
    Text,
)


class InitSection(Section):
    """Start weights from a zoo of trained students."""

    kind: Literal["sampled", "nearest", "mean"] = Field(
        description="Drawn by a diffusion model of the zoo, or the nearest student, or their mean."
    )
    zoo: Text = Field(description="The folder; relative to the recipe.", examples=["zoo"])


class StudentSection(Section):
    """The network that ships."""

    model: Text = Field(
        description="A MODEL as on the command line; relative to the recipe.",
        examples=["student.py:build"],
    )
    weights: Text | None = Field(
        None, description="A .safetensors file with start weights.", examples=["start.safetensors"]
    )
    init: InitSection | None = Field(
        None,
        description='Start weights from a zoo of trained students: kind = "sampled" (drawn for '
        'the features of the data), "nearest" or "mean", and its folder, zoo (D2NWG).',
        examples=[{"kind": "sampled", "zoo": "zoo"}],
    )
    warm_start: bool = Field(False, description="Copy the teacher's mapped layers into it first.")
    layer_map: Literal["every-kth", "found"] | dict[str, str] = Field(
        "every-kth",
        description="Which teacher layer each student layer learns from: the rule every k-th "
        "block, found by role, shape and depth, or a table of student weight = teacher weight.",
    )


class TeacherSection(Section):
    """The network that is learned from."""

    model: Text = Field(
        description="A MODEL as on the command line; relative to the recipe.",
        examples=["student.py:build"],
    )
    weights: Text | None = Field(
        None, description="A .safetensors file with its weights.", examples=["teacher.safetensors"]
    )
    cache: bool = Field(
        False, description="Compute its outputs once and keep them on disk, not in every epoch."
    )
    pruned: BelowOne = Field(
        0.0,
        description="Share of each Linear and Conv weight, the smallest, that a copy of it lacks, "
        "whose outputs are mixed in (R2KD); 0 is no such copy.",
        examples=[0.1],
    )
    pruned_share: BelowOne = Field(0.3, description="Share of that copy in the mix.")
    cache_top_k: Count | None = Field(
        None,
        description="With cache: keep so many logits of each row, the largest, and the "
        "probability of all others together.",
        examples=[64],
    )


class DataSection(Section):
    """What is learned from, chosen with, and measured on."""

    source: Text = Field(
        description="digits, mnist1d, FILE.npz, FILE.safetensors, package.module:callable, "
        "FILE.py:callable, or hf:DIR (a data set that the package datasets saved); with "
        "[language] FILE.jsonl, a callable or hf:DIR.",
        examples=["digits"],
    )
    validation: Text | None = Field(
        None, description="A file for the validation part.", examples=["validation.npz"]
    )
    test: Text | None = Field(None, description="A file for the test part.", examples=["test.npz"])
    inputs: list[Text] | None = Field(
        None,
        description="Columns that go into the forward; all but the labels by default.",
        examples=[["images"]],
    )
    labels: Text | None = Field("labels", description="The column with the labels, if any.")
    validation_share: BelowOne = Field(0.15, description="Share split off where no part is given.")
    test_share: BelowOne = Field(0.15, description="Share split off where no part is given.")
    split_seed: int = Field(0, ge=0, description="Where the shuffle of the split starts.")
    batch: Count = Field(64, description="Examples per forward, summed over all processes.")


class PlanSection(Section):
    """How the student's weights are over-parameterised."""

    enabled: bool = Field(True, description="false distils the plain student.")
    parametrization: Text = Field(
        "mpo", description="A name in the registry, with options in brackets: wide(expansion=8)."
    )
    rules: dict[Text, Text] = Field(
        {},
        description="Globs in quotes and what they become; the first that names a weight counts.",
        examples=[{"head.*": "none"}],
    )
    cores: int | None = Field(
        None, ge=2, le=64, description="Cores per weight, at any price.", examples=[3]
    )
    scale: float | None = Field(
        None, gt=1, description="Training over deployed parameters.", examples=[2.0]
    )
    overhead: float | None = Field(
        None, gt=1, description="Cost of a step over the plain one.", examples=[1.2]
    )
    include: list[Text] = Field(
        [], description="Globs; only these weights.", examples=[["encoder.*"]]
    )
    exclude: list[Text] = Field([], description="Globs; not these weights.", examples=[["head.*"]])

    @property
    def by_default(self) -> bool:
        """Whether nothing says how much, or into what: the default plan."""
        says = {"parametrization", "rules", "cores", "scale", "overhead"}
        return self.model_fields_set.isdisjoint(says)

    @field_serializer("parametrization")
    def _said(self, parametrization: str) -> str | None:
        """None for the default plan, which is another one than that of the name."""
        return None if self.by_default else parametrization

    @field_serializer("rules")
    def _in_order(self, rules: dict[str, str]) -> list[list[str]]:
        """As pairs: the order of rules means something, that of a table's keys does not."""
        return [list(rule) for rule in rules.items()]


class AlignmentSection(Section):
    """The pull of the student's cores towards the teacher's; left out, there is none."""

    weight: Positive = Field(1.0, description="Weight of the alignment loss.")


class OnlineSection(Section):
    """Small modules in the frozen teacher that are trained along; left out, there are none."""

    rank: Count = Field(8, description="Inner size of the path beside each weight.")
    include: list[Text] = Field(
        [], description="Globs of the teacher's Linear weights.", examples=[["encoder.*"]]
    )
    exclude: list[Text] = Field([], description="Globs; not these weights.", examples=[["head.*"]])
    lr: Positive | None = Field(
        None, description="Peak learning rate of the paths; the student's.", examples=[0.001]
    )
    task: Positive = Field(1.0, description="Weight of the task loss of the teacher's answers.")
    anchor: AtLeastZero = Field(1.0, description="Weight of KL(answer with paths, answer without).")


class AugmentSection(Section):
    """A second look at every batch, mixed or partly hidden; left out, there is none."""

    kind: Literal["mixup", "cutmix", "cutout"] = Field(
        description="What becomes of the examples; rows of embeddings are mixed by mixup.",
        examples=["mixup"],
    )
    alpha: Positive | None = Field(
        None,
        description="Of the Beta distribution of the shares; 0.2 for mixup, 1 for cutmix.",
        examples=[0.4],
    )
    teacher: AtLeastZero = Field(
        1.0, description="Weight of the losses that compare with the teacher, on the second look."
    )
    labels: AtLeastZero = Field(
        0.0, description="Weight of the task loss there, by the share of each example's label."
    )


class OptimizerSection(Section):
    """The optimizer; other keys are options of its class (betas, momentum, nesterov, ...)."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    name: Text = Field(
        "AdamW",
        description="A class of torch.optim, or MuonAdamW: Muon for matrices, AdamW for the rest.",
    )
    lr: Positive = Field(description="Peak learning rate.", examples=[0.001])
    weight_decay: AtLeastZero = Field(0.0, description="Weight decay.")
    decay: Literal["weight", "cores"] = Field(
        "weight", description="What decays: the weight as in the plain student, or its cores."
    )
    no_decay: list[Text] = Field(
        [], description="Globs of parameters without weight decay.", examples=[["*.bias"]]
    )

    @property
    def options(self) -> dict[str, Any]:
        """The keys that go to the optimizer's class as they are."""
        return dict(self.model_extra or {})


class ScheduleSection(Section):
    """The learning rate over the run."""

    kind: Literal["cosine", "linear", "constant"] = Field("cosine", description="Its shape.")
    warmup: AtLeastZero = Field(
        0.1, description="Linear rise at the start: a share below 1, or a number of steps."
    )


class TrainingSection(Section):
    """How long and in which way."""

    epochs: Count | None = Field(None, description="Passes over the training part.", examples=[30])
    steps: Count | None = Field(
        None, description="Optimizer steps, in place of epochs.", examples=[1000]
    )
    seed: int = Field(0, ge=0, description="Start weights, order of examples, dropout.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where it trains.")
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = Field(
        "fp32", description="fp32, mixed bf16 or fp16, or all in fp64."
    )
    accumulation: Count = Field(1, description="Batches per optimizer step.")
    clip: Positive | None = Field(
        None,
        description="Largest norm of the gradient, of student and projections together.",
        examples=[1.0],
    )
    evaluate_every: Count | None = Field(
        None,
        description="Optimizer steps between validations; each epoch by default.",
        examples=[100],
    )
    checkpoint_every: Count | None = Field(
        None,
        description="Optimizer steps between checkpoints; each epoch by default.",
        examples=[100],
    )
    keep: Count = Field(2, description="Checkpoints to keep.")
    early_stopping: Count | None = Field(
        None,
        description="Stop after so many validations without a better one; the best is kept.",
        examples=[5],
    )
    metric: Text = Field(
        "auto",
        description="accuracy, agreement (with the teacher), cosine, kl, mse, perplexity, or a "
        "callable; auto takes perplexity with [language], accuracy where labels are classes, mse "
        "where they are numbers, and otherwise what the first loss compares.",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of an average of the weights, which then ships.",
        examples=[0.999],
    )
    log_with: list[Text] = Field(
        [],
        description="Trackers of Accelerate: tensorboard, wandb, ...",
        examples=[["tensorboard"]],
    )


class ExportSection(Section):
    """What is written at the end."""

    enabled: bool = Field(True, description="false leaves the trained weights alone.")
    axes: dict[str, str] | None = Field(
        None,
        description="Free axes of the inputs by letters, fixed ones by numbers, such as "
        '{input_ids = "BxS"}; the first axis of each by default.',
        examples=["BxS"],
    )
    opset: int | None = Field(None, ge=13, description="ONNX opset.", examples=[18])
    dtype: Literal["fp32", "fp16", "bf16"] | None = Field(
        None,
        description="Number format of the ONNX file; the student's by default.",
        examples=["fp16"],
    )


class VerifySection(Section):
    """Proof that the folded student is the untouched one's equal."""

    enabled: bool = Field(True, description="false writes the bundle without a verdict.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where it is measured.")
    margin: Positive | Literal["auto"] = Field("auto", description="Allowed latency excess.")
    budget: Positive = Field(30.0, description="Seconds for the latency measurement.")


class Recipe(Section):
    """A whole recipe."""

    student: StudentSection
    teacher: TeacherSection | None = None
    data: DataSection
    language: LanguageSection | None = None
    generation: GenerationSection | None = None
    plan: PlanSection = PlanSection()
    loss: list[LossSection] = Field(min_length=1)
    alignment: AlignmentSection | None = None
    online: OnlineSection | None = None
    augment: AugmentSection | None = None
    optimizer: OptimizerSection
    schedule: ScheduleSection = ScheduleSection()
    training: TrainingSection
    export: ExportSection = ExportSection()
    verify: VerifySection = VerifySection()

    _source: RecipeText = PrivateAttr(default_factory=lambda: RecipeText("the recipe", "", {}))

    def remember(self, source: RecipeText) -> None:
        """Keep the text that this was read from, for messages and the lock file."""
        self._source = source

    @property
    def text(self) -> str:
        """The file's contents; empty for a recipe that was made in Python."""
        return self._source.text

    def place(self, *path: str | int) -> str:
        """Where a key stands, as "FILE:LINE", for the start of a sentence."""
        return self._source.place(path)

    @property
    def needs_teacher(self) -> bool:
        """Whether a loss, the alignment or the warm start reads the teacher."""
        losses = any(loss.needs_teacher for loss in self.loss)
        return losses or self.alignment is not None or self.student.warm_start
