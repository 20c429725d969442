"""What a recipe becomes: everything that a training run needs, and nothing about how it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from opdf_compile.planning import Plan

if TYPE_CHECKING:
    from opdf_compile.distill.augmenting import Augmentation
    from opdf_compile.distill.layer_map import LayerMap
    from opdf_compile.distill.losses import WeightedSum
    from opdf_compile.distill.online import OnlineTeacher
    from opdf_compile.distill.recipe.schema import Recipe
    from opdf_compile.training import Alignment

Batch = Mapping[str, Tensor]
Outputs = Mapping[str, Tensor]


class Examples(Protocol):
    """A map-style dataset whose items are mappings of tensors."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def __getitem__(self, index: int, /) -> Batch:
        """One example: tensors by column, without a batch axis."""
        ...


@dataclass(frozen=True, eq=False)
class Data:
    """The three parts of the data.

    Attributes:
        train: What is learned from.
        validation: What is chosen with.
        test: What the result is stated on; no choice looks at it. May be empty.
        inputs: The columns that go into the forward, in this order.
        labels: The column with the labels, or None.
        collate: Makes a batch of a list of examples, or of a `Table` of them.
        fingerprint: A hash over the contents of all parts.
        source: Where it came from, in words.
        end: The token that ends a response, of a language model whose tokens have one.
    """

    train: Examples
    validation: Examples
    test: Examples
    inputs: tuple[str, ...]
    labels: str | None
    collate: Callable[[Any], dict[str, Tensor]]
    fingerprint: str = ""
    source: str = ""
    end: int | None = None

    def arguments(self, batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """A forward's (args, kwargs): one input goes by position, several by name."""
        if len(self.inputs) == 1:
            return (batch[self.inputs[0]],), {}
        return (), {name: batch[name] for name in self.inputs}


@dataclass(frozen=True, eq=False)
class Metric:
    """What validations compare.

    Attributes:
        name: For tables and logs.
        pieces: Of (student outputs, teacher outputs or None, batch): a sum over examples and how
            many there were, both 0-d tensors. The metric is the sum of sums over the sum of
            counts, whatever the batches and the processes.
        higher_is_better: Which way is up.
        needs_teacher: Whether the teacher's outputs are read.
        of_mean: What becomes of the mean over all examples; nothing by default.
    """

    name: str
    pieces: Callable[[Outputs, Outputs | None, Batch], tuple[Tensor, Tensor]]
    higher_is_better: bool
    needs_teacher: bool = False
    of_mean: Callable[[float], float] = float


@dataclass(frozen=True, eq=False)
class Job:
    """A prepared recipe.

    Attributes:
        recipe: As it was read.
        base: The folder that relative paths start from.
        make_student: A fresh student of a seed, warm-started if the recipe says so.
        teacher: In eval mode, without gradients; None where nothing needs one.
        data: The parts.
        example: A small batch, for tracing and export.
        losses: Makes the weighted sum; learned projections are its parameters, so one call per run.
        plan: The plan for a student of `make_student`, or None for plain training.
        optimizer: Of (student, plan, *, lr=None, weight_decay=None, alignment=None): plain where
            the plan is None. None means the recipe's.
        metric: What validations compare.
        dynamic: Free axes of the inputs, for the export; None leaves the first axis of all free.
        layer_map: Student weights and teacher weights, or None.
        alignment: Makes the alignment of one run, or None.
        online: Makes, of (teacher, batch), the teacher with the modules that learn along, or None.
        augmentation: How the second look at a batch is taken, or None.
        notes: What a user should know, in sentences.
    """

    recipe: Recipe
    base: Path
    make_student: Callable[[int], nn.Module]
    teacher: nn.Module | None
    data: Data
    example: dict[str, Tensor]
    losses: Callable[[], WeightedSum]
    plan: Callable[[nn.Module], Plan | None]
    optimizer: Callable[..., Optimizer]
    metric: Metric
    dynamic: Mapping[str, Any] | None = None
    layer_map: LayerMap | None = None
    alignment: Callable[[], Alignment] | None = None
    online: Callable[[nn.Module, Batch], OnlineTeacher] | None = None
    augmentation: Augmentation | None = None
    notes: tuple[str, ...] = field(default=())

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """A model's outputs on a batch, by name; see `named_outputs`."""
        args, kwargs = self.data.arguments(batch)
        return named_outputs(model(*args, **kwargs))


def named_outputs(value: Any) -> dict[str, Tensor]:
    """Name what a forward returned.

    A tensor is "logits". Mappings (also those of transformers) keep their keys; a tuple inside is
    counted, as in "hidden_states.3". A bare tuple's parts are "0", "1", ...
    """
    if isinstance(value, Tensor):
        return {"logits": value}
    if isinstance(value, tuple | list) and not isinstance(value, Mapping):
        value = {str(place): part for place, part in enumerate(value)}
    named: dict[str, Tensor] = {}
    for key, part in value.items() if isinstance(value, Mapping) else ():
        if isinstance(part, Tensor):
            named[str(key)] = part
        elif isinstance(part, Mapping | tuple | list):
            named.update({f"{key}.{name}": t for name, t in named_outputs(part).items()})
    return named
