"""What a parametrization is: two pure functions between a weight and its tensors, and a cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from opdf_compile.errors import FoldError, PlanError
from opdf_compile.parametrizations import matrix_spec
from opdf_compile.parametrizations.matrix_spec import MatrixSpec, WeightForm
from opdf_compile.parametrizations.request import Option
from opdf_compile.tensor import Cost, core_dtype


class Spec(Protocol):
    """The frozen, serialisable choice of one weight's tensors."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        ...

    @property
    def dtype(self) -> str:
        """Name of the weight's dtype, as in "float32"."""
        ...

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored as (in features, out features)."""
        ...

    def with_dtype(self, dtype: str) -> Self:
        """The same choice for a weight of another dtype."""
        ...


S = TypeVar("S", bound=MatrixSpec)
TensorShapes = tuple[tuple[int, ...], ...]

# One summand of a weight: place of a tensor -> the power of a factor that the tensor takes so that
# the summand takes the factor itself. {0: 1/2, 1: 1/2} for a product of two, {0: 1/a} for t^a.
ScalingTerm = Mapping[int, float]


class Parametrization(ABC, Generic[S]):
    """A pair of pure functions, and what a planner needs to choose between their specs.

    A child gives its name, the class of its specs, and the five functions that have no default;
    then `register` makes it known.

    Attributes:
        name: The name by which plans refer to it.
        summary: What the weight becomes, in a few words; see `listing`.
        adds: The parameters that it adds, in symbols or words.
        source: The paper.
        spec_type: The class of its specs.
        multilinear: Whether it is linear in each of its tensors, so that decay of the weight can
            be carried by them (see `training.optimizer.decay`).
        usual_cores: Number of tensors where nobody asks for one.
        options: What may be asked for in brackets, as in ``wide(expansion=8)``. `propose` and
            `candidates` get what was given as keywords, checked against these; ``cores``, if it is
            among them, is that of `propose`.
        retracts: Whether `retract` does something.
        metric: Whether it holds no cores, and the wrapped optimizer steps the weight itself; see
            `metric.MetricParametrization`.
        seeds: Whether `seeded` does something.
        copies: Whether a second tensor of the weight's size lives beside what is stepped: the
            composed weight, or a copy during the step.
    """

    name: str
    summary: ClassVar[str] = ""
    adds: ClassVar[str] = ""
    source: ClassVar[str] = ""
    spec_type: type[S]
    multilinear: bool = False
    usual_cores: int = 3
    options: ClassVar[Mapping[str, Option]] = MappingProxyType({})
    retracts: bool = False
    metric: bool = False
    seeds: bool = False
    copies: bool = True

    @abstractmethod
    def decompose(
        self, weight: Tensor, spec: S, *, device: torch.device | str | None = None
    ) -> tuple[Tensor, ...]:
        """The tensors of a weight, without loss and without randomness.

        Args:
            weight: Tensor of shape `spec.shape`.
            spec: The choice made for it.
            device: Where to factorise; the tensors come back on the weight's device.

        Raises:
            InputError: The weight does not fit the spec, or holds NaN or infinity.
        """

    def seeded(
        self,
        weight: Tensor,
        gradient: Tensor,
        spec: S,
        *,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, ...]:
        """The tensors of a weight that start along its gradient; without loss, as `decompose`.

        Args:
            weight: Tensor of shape `spec.shape`.
            gradient: Of a loss with respect to it, in any scale.
            spec: The choice made for it.
            device: As in `decompose`.

        Raises:
            InputError: The weight or the gradient holds NaN or infinity.
        """
        return self.decompose(weight, spec, device=device)

    @abstractmethod
    def compose(self, tensors: Sequence[Tensor], spec: S) -> Tensor:
        """The weight of its tensors: contiguous, of `spec.shape`, cast once to `spec.dtype`.

        It computes in the tensors' own dtype. make_fx, torch.export, torch.compile and autograd
        can trace it. What it needs beside the tensors it makes by ops on their device
        (``torch.arange(.., device=tensors[0].device)``); it reads no tensor of its own.
        """

    @abstractmethod
    def shapes(self, spec: S) -> TensorShapes:
        """Shapes of the tensors."""

    @abstractmethod
    def cost(self, spec: S) -> Cost:
        """Exact cost of composing the weight once."""

    @abstractmethod
    def propose(self, form: WeightForm, *, cores: int, **options: Any) -> S:
        """The usual spec with this many tensors, and with the options that were given.

        Raises:
            PlanError: The weight cannot be parametrized so.
        """

    def why_not(self, form: WeightForm) -> str | None:
        """Why no weight of this form is parametrized so, read on from its name; None if it is.

        A plan leaves such weights alone and lists them with the reason.
        """
        return None

    def candidates(self, form: WeightForm, **options: Any) -> tuple[S, ...]:
        """Specs to choose from, strictly increasing in added parameters; else the usual one.

        All of them have the options that were given.
        """
        return (self.propose(form, cores=self.usual_cores, **options),)

    def lighter(self, form: WeightForm, *, cores: int) -> tuple[S, ...]:
        """Specs for a weight whose own step is short: at most so many tensors, of any bond.

        All of them add enough to be worth their price; none where there is no such choice.
        """
        return ()

    def core_names(self, key: str, spec: S) -> tuple[str, ...]:
        """`<key>_cores.<i>`, entries of a ParameterList beside the weight."""
        return tuple(f"{key}_cores.{k}" for k in range(len(self.shapes(spec))))

    def core_dtype(self, spec: S) -> torch.dtype:
        """Dtype of the tensors: float32 for half weights, else the weight's own."""
        return core_dtype(getattr(torch, spec.dtype))

    def terms(self, spec: S) -> tuple[ScalingTerm, ...] | None:
        """What scales the weight: every summand of it, which is odd in the first tensor named.

        None where nothing says so; a multilinear weight is one summand. Without any summand the
        weight takes no decay: with decay="weight" it is left out.
        """
        count = len(self.shapes(spec))
        return (dict.fromkeys(range(count), 1 / count),) if self.multilinear else None

    def rates(self, spec: S) -> tuple[float, ...]:
        """Of each tensor the factor of its learning rate.

        `Overparam` gives them param groups of their own. In a loop over the inline form it is the
        user who does.
        """
        return (1.0,) * len(self.shapes(spec))

    def untrained(self, spec: S) -> tuple[int, ...]:
        """Places of the tensors that no optimizer steps: they are kept, saved and loaded."""
        return ()

    def retract(self, tensors: Sequence[Tensor], spec: S) -> None:
        """Bring the tensors of one weight, in place, to where a step must leave them.

        `Overparam` and `WeightProgram.refresh` call it after the optimizer's step and before the
        weight is composed, in the inline form the user does (`Expanded.retract`). What is there
        already stays there but for rounding.
        """

    def retract_all(self, many: Sequence[tuple[Sequence[Tensor], S]]) -> None:
        """`retract` of many weights at once, for those where it takes fewer calls."""
        for tensors, spec in many:
            self.retract(tensors, spec)

    def outside_clip_norm(self, spec: S) -> tuple[int, ...]:
        """Places of the tensors whose gradients a clip norm should not count.

        A clip under `Overparam` sees dL/dW and no tensor. See `Expanded.clip_norm_parameters`.
        """
        return ()

    def describe(self, spec: S) -> str:
        """The spec in short, for tables: its modes, ``[64,1,48]x[32,1,24]``, if it has any."""
        values: dict[str, Any] = dict(self.spec_to_json(spec))
        modes = [values[name] for name in ("out_modes", "in_modes") if name in values]
        return "x".join("[" + ",".join(map(str, m)) + "]" for m in modes)

    def spec_to_json(self, spec: S) -> dict[str, object]:
        """The spec as JSON values."""
        return matrix_spec.to_json(spec)

    def spec_from_json(self, data: Mapping[str, object]) -> S:
        """The spec of JSON values.

        Raises:
            PlanError: The values are no spec, or contradict each other.
        """
        return matrix_spec.from_json(self.spec_type, f"the spec of {self.name}", data)

    def require_usual(self, cores: Any, has: str, instead: str) -> None:
        """Refuse any other number of cores than the usual one.

        Args:
            cores: What was asked for.
            has: What there is, as "2 factors".
            instead: What to do beside leaving it out.

        Raises:
            PlanError: It is another one.
        """
        if cores != self.usual_cores:
            raise PlanError(
                f"{self.name} has {has}, found cores={cores!r}; leave cores out, {instead}"
            )

    def spec_of(self, shapes: TensorShapes, form: WeightForm) -> S:
        """The spec that tensors of these shapes would have, if any: the usual one of their number.

        Raises:
            PlanError: The weight has no such spec.
            FoldError: Shapes do not tell the spec, or no weight has tensors like these.
        """
        return self.propose(form, cores=len(shapes))

    def infer(self, shapes: Sequence[Sequence[int]], form: WeightForm) -> S:
        """The spec that has tensors of these shapes, for folding without a plan.

        Args:
            shapes: Of the tensors, in order.
            form: The weight; which of its axes are the rows is found here.

        Raises:
            FoldError: No spec of the weight has them.
        """
        found = tuple(tuple(shape) for shape in shapes)
        reasons = []
        for axes in range(1, len(form.shape)):
            try:
                spec = self.spec_of(found, replace(form, row_axes=axes))
            except PlanError as error:
                reasons.append(f"cores of shapes {_lists(found)} do not fit the weight: {error}")
                continue
            wanted = self.shapes(spec)
            if wanted == found:
                return spec
            reasons.append(
                f"cores of shapes {_lists(found)} were found, {self.name} has {_lists(wanted)}"
            )
        raise FoldError(reasons[0])


def _lists(shapes: TensorShapes) -> list[list[int]]:
    return [list(shape) for shape in shapes]
