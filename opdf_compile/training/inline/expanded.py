"""The inline form: a module that runs the expanded graph of its phase.

train()  ->  train graph        one set of cores, other weights and buffers under the student's
eval()   ->  eval graph         own names; the cores of W are called W_cores.0, W_cores.1, ..
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from opdf_compile.graph import AxisNames, CallArguments, Phase, attribute
from opdf_compile.passes import WEIGHT_MARK
from opdf_compile.planning import Plan, retract
from opdf_compile.training.inline.calling import Convention
from opdf_compile.training.inline.phase import PhaseGraph


class CoreList(nn.ParameterList):
    """The cores of one weight; a change of dtype may widen them and never narrows them.

    A core in bfloat16 would lose 2e-3 of the weight, so `.half()` and `.bfloat16()` on the model
    move the composed weight (its closing cast) and leave the cores in float32.
    """

    def __init__(
        self,
        tensors: Iterable[Tensor],
        *,
        requires_grad: bool = True,
        untrained: Collection[int] = (),
    ) -> None:
        """Take ownership of the tensors as Parameters; those at the places `untrained` stay."""
        super().__init__(
            nn.Parameter(t, requires_grad=requires_grad and place not in untrained)
            for place, t in enumerate(tensors)
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype.itemsize >= tensor.dtype.itemsize:
                return moved
            return tensor.to(moved.device)

        return super()._apply(keep_precision, recurse)  # type: ignore[no-untyped-call]


class Expanded(nn.Module):
    """An over-parameterised student; made by `expand`, brought back by `fold`.

    It owns copies: training it does not touch the model that was traced. `train()`, `eval()`,
    `to()`, `state_dict()`, `copy.deepcopy` and `torch.compile` work as on any module. `.half()` and
    `.bfloat16()` change the weights that the ops read and leave the cores in float32.
    A forward that casts to its input's dtype has that dtype as a constant in its graph: move such
    a student before it is traced.

    Attributes:
        plan: What was expanded.
        convention: How it is called.
        example: The example inputs it was traced with, as ``(args, kwargs)``.
        axis_names: The dynamic axes of each input, by name.
    """

    def __init__(
        self,
        plan: Plan,
        phases: Mapping[Phase, PhaseGraph],
        convention: Convention,
        source: nn.Module | ExportedProgram,
        example: CallArguments,
        axis_names: AxisNames,
    ) -> None:
        """Use `expand`; this only stores its parts."""
        super().__init__()
        # The graphs read their tensors from this bare module. It shares its dicts with `self`, so
        # there is one set of tensors; but a student's layer may be called `plan` or `weight`, and
        # on `self` such a name would find the attribute or the method of this class instead.
        tree = nn.Module()
        for part in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[part] = tree.__dict__[part]
        self._tree = (tree,)
        self.plan = plan
        self._phases = dict(phases)
        self.convention = convention
        # In a tuple, so that the student is not a submodule: its weights are not trained here.
        self._source = (source,)
        self.example = example
        self.axis_names = axis_names

    @property
    def source(self) -> nn.Module | ExportedProgram:
        """A private copy of what was traced: the skeleton that `fold` fills.

        Its planned weights hold no numbers: those are in the cores.
        """
        return self._source[0]

    @property
    def tree(self) -> nn.Module:
        """Holds the tensors under the student's own names, and no other attributes."""
        return self._tree[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph of the present phase.

        Args:
            *args: Inputs as the student takes them.
            **kwargs: Likewise.

        Returns:
            What the student returns.

        Raises:
            InputError: The inputs are not those that the graph was traced with.
        """
        phase: Phase = "train" if self.training else "eval"
        leaves = self.convention.flatten(args, kwargs, phase)
        return self._phases[phase].run(self.tree, leaves)

    def phase(self, name: Phase) -> PhaseGraph:
        """The graph of a phase."""
        return self._phases[name]

    def cores(self, key: str) -> tuple[Tensor, ...]:
        """The cores of one weight, in order."""
        found = attribute(self.tree, f"{key}_cores")
        if not isinstance(found, nn.ParameterList):
            raise KeyError(key)
        return tuple(found)

    def clip_norm_parameters(self) -> list[nn.Parameter]:
        """The parameters whose gradients make a clip norm: all but gains and what is untrained.

        `clip_grad_norm_` of these leaves the others as they are. To scale all of them by a norm of
        these, as a clip of dL/dW does in the hoisted form, take torch's `get_total_norm` of their
        gradients and `clip_grads_with_norm_` of `parameters()`.
        """
        left_out = {n for e in self.plan.entries for n in e.outside_clip_norm | e.untrained}
        return [p for name, p in self.named_parameters() if name not in left_out]

    def retract(self) -> None:
        """Bring cores to where a step must leave them (md: the norm that is held), in place.

        To be called after each step of an optimizer. For most parametrizations there is nothing to
        do; in the hoisted form it is done for you.
        """
        retract((entry, self.cores(entry.key)) for entry in self.plan.entries)

    def weight(self, key: str) -> Tensor:
        """One weight composed now, in the cores' dtype; differentiable."""
        entry = next(e for e in self.plan.entries if e.key == key)
        return entry.compose(self.cores(key))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = {old: fn(torch.empty(0, dtype=old)).dtype for old in self._weight_dtypes()}
        if any(new is not old for old, new in moved.items()):
            self._phases = {
                phase: graph.with_weight_dtypes(moved) for phase, graph in self._phases.items()
            }
        return self

    def _weight_dtypes(self) -> set[torch.dtype]:
        """The dtypes of the composed weights, over all phases."""
        return {
            node.args[1]
            for phase in self._phases.values()
            for node in phase.graph.nodes
            if WEIGHT_MARK in node.meta
        }

    def extra_repr(self) -> str:
        """One line: weights, scale."""
        return self.plan.totals()
