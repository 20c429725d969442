"""What Overparam asks of an alignment: a loss on the cores themselves, added once per step.

    step():   pull dL/dW to the cores  ->  add dL_align/dcores  ->  decay  ->  wrapped optimizer

It reads no activations, so it costs no forward, and it is added after whatever scaled or clipped
dL/dW. `opdf.CoreAlignment` is one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from opdf_compile.errors import InputError
from opdf_compile.planning import Plan
from opdf_compile.training.hoisted.program import WeightProgram
from opdf_compile.training.optimizer.arguments import is_lbfgs

States = Mapping[str, Mapping[str, Any]]


class Alignment(Protocol):
    """A loss on the cores of a weight program.

    Attributes:
        last: The loss of the last step, a scalar without a graph; None before the first.
    """

    last: Tensor | None

    def check(self, plan: Plan, student: nn.Module) -> object:
        """Refuse what `attach` would, before a weight is decomposed.

        Raises:
            InputError: The alignment does not fit the plan.
        """
        ...

    def attach(self, program: WeightProgram, keys: Collection[str] | None = None) -> None:
        """Get ready for a program whose cores are as `decompose` made them.

        It may change the gauge of the cores, never the weights. All ranks that share a program
        call it together. `keys` are the weights whose cores were made anew since the last call;
        all if None.
        """
        ...

    def add_gradients(self, program: WeightProgram) -> None:
        """Add the loss's gradient to those of the cores that have one, and set `last`."""
        ...

    def state_by_name(self) -> dict[str, dict[str, Any]]:
        """What is kept for each weight whose cores are held here; no key begins with "cores."."""
        ...

    def require_state(self, states: States) -> None:
        """Refuse a state that `load_state_by_name` could not take.

        Raises:
            InputError: Nothing is changed.
        """
        ...

    def load_state_by_name(self, states: States) -> None:
        """Take over what `state_by_name` gave; other entries of a weight are passed over."""
        ...


def require_alignable(alignment: Any, optimizer_class: Callable[..., Any]) -> None:
    """Refuse an alignment that is none, and an optimizer that compares losses.

    Raises:
        InputError: With the remedy.
    """
    if alignment is None:
        return
    if not hasattr(alignment, "add_gradients"):
        raise InputError(
            f"alignment is a {type(alignment).__name__}, wanted an opdf.CoreAlignment; make one "
            "with opdf.CoreAlignment(teacher, layer_map, weight=..)"
        )
    if is_lbfgs(optimizer_class):
        raise InputError(
            "LBFGS compares the losses that the closure returns, and the alignment is in the "
            "gradients only; leave alignment out, or take an optimizer that looks at gradients "
            "alone, such as torch.optim.AdamW"
        )
