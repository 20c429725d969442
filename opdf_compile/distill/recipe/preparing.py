"""From a checked recipe to a `Job`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from opdf_compile.distill.augmenting import Augmentation, augmentation
from opdf_compile.distill.recipe.axes import Axes, export_axes
from opdf_compile.distill.recipe.casting import fitting, float_dtype
from opdf_compile.distill.recipe.checks_data import require_fitting_data
from opdf_compile.distill.recipe.data_parts import load_data
from opdf_compile.distill.recipe.examples import examples_at
from opdf_compile.distill.recipe.job import Batch, Data, Job, named_outputs
from opdf_compile.distill.recipe.loss_terms import FAVOURITE, make_losses, try_losses
from opdf_compile.distill.recipe.metrics import make_metric, try_metric
from opdf_compile.distill.recipe.models import fresh_student, load_teacher, placed
from opdf_compile.distill.recipe.optimizing import make_optimizer, parameter_groups
from opdf_compile.distill.recipe.paths import located
from opdf_compile.distill.recipe.planning import make_plan
from opdf_compile.distill.recipe.schema import Recipe
from opdf_compile.distill.recipe.tokens import INPUTS, longest_prompt
from opdf_compile.distill.recipe.warm_start import make_layer_map, warm_started
from opdf_compile.errors import InputError, RecipeError, UserError, error_line
from opdf_compile.graph import phase_flags
from opdf_compile.planning import Plan

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from opdf_compile.distill.layer_map import LayerMap
    from opdf_compile.distill.losses import WeightedSum
    from opdf_compile.distill.online import OnlineTeacher
    from opdf_compile.training import Alignment

_EXAMPLES = 8


def prepare(recipe: Recipe, *, base: str | os.PathLike[str] = ".") -> Job:
    """Load student, teacher and data, and check that they fit the recipe and one another.

    Args:
        recipe: As `read_recipe` gave it.
        base: The folder that its relative paths start from: the recipe's own.

    Returns:
        Everything that a run needs, on the CPU.

    Raises:
        RecipeError: Something cannot be loaded, or does not fit; the sentence starts with the line.

    Example:
        >>> job = prepare(read_recipe("digits.toml"))  # doctest: +SKIP
        >>> student = job.make_student(0)  # doctest: +SKIP
    """
    folder = Path(base)
    loaded = fresh_student(recipe, folder, recipe.training.seed)
    student = loaded.model
    assert isinstance(student, nn.Module)
    teacher = load_teacher(recipe, folder)
    data = load_data(recipe, folder, student)
    rows = [data.validation[row] for row in range(min(_EXAMPLES, len(data.validation)))]
    data, notes = fitting(recipe, data, student, rows)
    example = data.collate(rows)
    layer_map = make_layer_map(recipe, student, teacher, data.arguments(example))
    notes = (*loaded.notes, *notes)
    if layer_map is not None and teacher is not None:
        with placed(recipe, "student", "layer_map"):
            notes += layer_map.check(student, teacher)
    dynamic = export_axes(recipe, data, example, loaded.dynamic)
    made = _Made(recipe, folder, teacher, data, example, layer_map, dynamic)
    losses = made.try_everything(student)
    augmentation = made.augmentation(student) if recipe.augment is not None else None
    parameter_groups(recipe, student)
    metric = make_metric(recipe, folder, losses, data.labels, example)
    try_metric(recipe, metric, *made.outputs, example)
    return Job(
        recipe=recipe,
        base=folder,
        make_student=made.student,
        teacher=teacher,
        data=data,
        example=example,
        losses=made.losses,
        plan=made.plan,
        optimizer=made.optimizer,
        metric=metric,
        dynamic=dynamic,
        layer_map=layer_map,
        alignment=made.alignment if recipe.alignment is not None else None,
        online=made.online if recipe.online is not None else None,
        augmentation=augmentation,
        notes=notes,
    )


@dataclass(eq=False)
class _Made:
    """What a job makes anew for each run."""

    recipe: Recipe
    base: Path
    teacher: nn.Module | None
    data: Data
    example: dict[str, Tensor]
    layer_map: LayerMap | None
    dynamic: Axes | None
    outputs: tuple[dict[str, Tensor], dict[str, Tensor] | None] = ({}, None)
    _plan: Plan | None = field(default=None)
    _starts: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    _planned: torch.dtype | None = None

    def student(self, seed: int) -> nn.Module:
        """A fresh student in train mode."""
        student = fresh_student(self.recipe, self.base, seed).model
        assert isinstance(student, nn.Module)
        if self.recipe.student.init is not None:
            self._start_from_zoo(student, seed)
        if self.recipe.student.warm_start:
            warm_started(self.recipe, student, self.teacher, self.layer_map)
        return student.train()

    def _start_from_zoo(self, student: nn.Module, seed: int) -> None:
        """Take start weights from the recipe's zoo; those of a seed are drawn once."""
        from opdf_compile.distill.zoo import data_features, zoo_start

        section = self.recipe.student.init
        assert section is not None
        with placed(self.recipe, "student", "init"):
            if seed not in self._starts:
                features = data_features(*self._inputs_and_labels(), self._classes())
                folder = located(section.zoo, self.base)
                self._starts[seed] = zoo_start(section.kind, folder, student, features, seed=seed)
            student.load_state_dict(self._starts[seed], strict=False)

    def _inputs_and_labels(self) -> tuple[Tensor, Tensor]:
        """All of the training part."""
        whole = torch.arange(len(self.data.train))
        batch = self.data.collate(examples_at(self.data.train, whole))
        if self.data.labels is None:
            raise InputError(
                "a start from a zoo is chosen by the features of labelled data and there are no "
                "labels, wanted their column; name it with labels in [data]"
            )
        return batch[self.data.inputs[0]], batch[self.data.labels]

    def _classes(self) -> int:
        """How many the student tells apart."""
        ours, _theirs = self.outputs
        found = ours[FAVOURITE] if FAVOURITE in ours else next(iter(ours.values()))
        return int(found.shape[-1])

    def losses(self) -> WeightedSum:
        """The losses of one run."""
        return make_losses(self.recipe, *self.outputs, self.data.labels)

    def plan(self, student: nn.Module) -> Plan | None:
        """The recipe's plan; all students of one recipe and dtype have the same."""
        if not self.recipe.plan.enabled:
            return None
        dtype = float_dtype(student)
        if self._plan is None or self._planned != dtype:
            self._planned = dtype
            # The default plan is what a step can pay for, and the step is one of a whole batch.
            batch = self._batch() if self.recipe.plan.by_default else self.example
            example = {
                name: tensor.to(dtype) if tensor.is_floating_point() else tensor
                for name, tensor in batch.items()
            }
            arguments = self.data.arguments(example)
            self._plan = make_plan(self.recipe, student, arguments, self.teacher, self.layer_map)
        # A plan remembers which student it is for; the decision is the same for all of them.
        return self._plan.made_for(student)

    def _batch(self) -> dict[str, Tensor]:
        """The first examples of the training part: as many as a forward of training has."""
        count = min(self.recipe.data.batch, len(self.data.train))
        return self.data.collate(examples_at(self.data.train, torch.arange(count)))

    def optimizer(self, student: nn.Module, plan: Plan | None, **given: Any) -> Optimizer:
        """The optimizer of one run."""
        return make_optimizer(self.recipe, student, plan, **given)

    def augmentation(self, student: nn.Module) -> Augmentation:
        """How the recipe's second look at a batch is taken."""
        section = self.recipe.augment
        assert section is not None
        teacher = self.teacher if section.teacher else None
        with placed(self.recipe, "augment", "kind"):
            return augmentation(
                section.kind,
                section.alpha,
                lambda batch: self._forward(student, batch),
                self.example,
                self.data.inputs,
                teacher=None if teacher is None else lambda batch: self._forward(teacher, batch),
            )

    def online(self, teacher: nn.Module, batch: Batch) -> OnlineTeacher:
        """The teacher with the recipe's modules in it, for the device that it is on."""
        from opdf_compile.distill.online import online_teacher

        section = self.recipe.online
        assert section is not None
        with placed(self.recipe, "online"):
            return online_teacher(
                teacher,
                *self.data.arguments(batch),
                rank=section.rank,
                include=section.include,
                exclude=section.exclude,
                dynamic=self.dynamic,
            )

    def alignment(self) -> Alignment:
        """The alignment of one run."""
        from opdf_compile.distill.alignment import CoreAlignment

        assert self.recipe.alignment is not None and self.teacher is not None
        with placed(self.recipe, "alignment"):
            made: Alignment = CoreAlignment(
                self.teacher, self.layer_map, weight=self.recipe.alignment.weight
            )
        return made

    def try_everything(self, student: nn.Module) -> WeightedSum:
        """One forward of both and every loss on it, so that a misfit is found before training."""
        with placed(self.recipe, "student", "model"):
            ours = self._forward(student, self.example)
        theirs = None
        if self.teacher is not None:
            with placed(self.recipe, "teacher", "model"):
                theirs = self._forward(self.teacher, self.example)
        self.outputs = ours, theirs
        losses = self.losses()
        if self.recipe.online is not None and self.teacher is not None:
            # Only a run has the device that its graph is for; here it is made to see that it can.
            self.online(self.teacher, self.example)
        require_fitting_data(self.recipe, self.data, ours)
        self._require_length(student)
        try_losses(self.recipe, losses, ours, theirs, self.example)
        return losses

    def _require_length(self, student: nn.Module) -> None:
        """One forward of the longest that the student may write."""
        section = self.recipe.generation
        if section is None or section.policy == "data":
            return
        prompt, new = longest_prompt(self.data.train), section.max_new_tokens
        ids = torch.zeros(1, prompt + new, dtype=torch.int64)
        try:
            self._forward(student, dict(zip(INPUTS, (ids, torch.ones_like(ids)), strict=True)))
        except RecipeError as error:
            raise RecipeError(
                f"{self.recipe.place('generation', 'max_new_tokens')}: the student rejects "
                f"{prompt + new} tokens ({error_line(error.__cause__ or error, 100)}), which a "
                f"prompt of {prompt} and max_new_tokens = {new} come to, wanted no more than it "
                "takes; make max_new_tokens smaller"
            ) from error

    def _forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Outputs in eval mode, without gradients; the model's modes are as before."""
        args, kwargs = self.data.arguments(batch)
        try:
            with torch.no_grad(), phase_flags(model, "eval"):
                found = named_outputs(model(*args, **kwargs))
        except UserError:
            raise
        except Exception as error:  # A forward is the user's code.
            raise RecipeError(self._rejects(error, batch)) from error
        if not found:
            raise RecipeError(
                f"{self.recipe.place('student', 'model')}: the forward returns no tensor, wanted a "
                "tensor, a tuple or a mapping of tensors"
            )
        return found

    def _rejects(self, error: Exception, batch: Batch) -> str:
        shapes = ", ".join(
            f"{name} {list(batch[name].shape)} of {str(batch[name].dtype).removeprefix('torch.')}"
            for name in self.data.inputs
        )
        return (
            f"{self.recipe.place('data')}: the model rejects the inputs {shapes} "
            f"({error_line(error, 150)}), wanted columns that its "
            "forward takes; name them with inputs in [data], or change their shapes"
        )
