"""Parameters that take the place of others, in the module and in the param groups alike.

`fully_shard` makes new Parameters under the old names; what prepares a model together with its
optimizer (Accelerate under FSDP2) then puts them into the optimizer's param groups as well. What
the wrapped optimizer steps and keeps by Parameter goes over to them here, found by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from opdf_compile.graph import owner
from opdf_compile.training.hoisted.binding import is_sharded, sharded_as
from opdf_compile.training.optimizer.groups import Group, tensors


class ParameterNames:
    """A student's parameters by object and by name; it keeps none of them alive."""

    def __init__(self, module: nn.Module) -> None:
        """List the parameters; of a tied one the first name."""
        self._module = module
        # Weak: what `fully_shard` replaces is whole, and a name must not keep it in memory.
        self._of: MutableMapping[Tensor, str] = WeakTensorKeyDictionary()
        self._known: dict[str, None] = {}
        self.update(dict(module.named_parameters()))

    def __contains__(self, parameter: Tensor) -> bool:
        """Whether it is one of them."""
        return parameter in self._of

    def get(self, parameter: Tensor) -> str | None:
        """The name of a parameter."""
        return self._of.get(parameter)

    def alive(self, names: Collection[str]) -> dict[str, Tensor]:
        """Those parameters of the names given that something else still holds."""
        return {name: parameter for parameter, name in self._of.items() if name in names}

    def update(self, named: Mapping[str, nn.Parameter]) -> None:
        """Know these under their names, in place of others."""
        for name, parameter in named.items():
            self._known[name] = None
            self._of[parameter] = name

    def replaced(self, groups: Iterable[Group]) -> dict[str, nn.Parameter]:
        """The Parameters that stand under known names now and are not those that were known.

        One that no param group holds is left out: clipping and zero_grad would miss it.
        """
        held = {id(parameter) for group in groups for parameter in tensors(group)}
        found = {}
        for name in self._known:
            parameter = standing(self._module, name)
            if parameter is not None and parameter not in self and id(parameter) in held:
                found[name] = parameter
        return found


def standing(module: nn.Module, name: str) -> nn.Parameter | None:
    """The Parameter that stands under a name now; None where there is none any more."""
    try:
        holder, last = owner(module, name)
    except AttributeError:
        return None
    return holder._parameters.get(last)


def hand_over(inner: Optimizer, by: Mapping[Tensor, nn.Parameter]) -> None:
    """Step other parameters in place of these, with the state that these had.

    The lists of the groups stay the same objects: some optimizers keep them elsewhere too.
    """
    for group in inner.param_groups:
        group["params"][:] = [by.get(parameter, parameter) for parameter in group["params"]]
    for old, new in by.items():
        state = inner.state.pop(old, None)
        if state:
            inner.state[new] = {key: _laid_out(value, old, new) for key, value in state.items()}


def _laid_out(value: Any, old: Tensor, new: Tensor) -> Any:
    """A value of a parameter's state as it belongs to one that may be sharded now."""
    if not is_sharded(new) or not isinstance(value, Tensor) or value.shape != old.shape:
        return value
    return sharded_as(value.detach().to(new.device), new)
