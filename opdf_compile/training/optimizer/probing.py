"""What an optimizer class says to the user's groups, learned from throwaway instances.

    each group, its options, one small tensor T_abcd   ->  as it is, or
        refused, at once or by a step, where (T)_a,bcd is taken            ->  as a matrix (T)_ab,cd
        stepped just as (T)_a,bcd is, and otherwise than (T)_ab,cd         ->  as a matrix (T)_ab,cd

The second line is a class that makes a matrix of a convolution's filters by itself: of a core the
one with a bond on either side is meant. Whatever a class refuses is found out here, so that no
weight is decomposed in vain.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from opdf_compile.errors import InputError
from opdf_compile.planning import Plan
from opdf_compile.training.optimizer.arguments import ELEMENTWISE, Maker, class_name, class_of
from opdf_compile.training.optimizer.groups import Group, options_of, tensors
from opdf_compile.training.optimizer.refusals import refusal, refused_other
from opdf_compile.training.optimizer.trials import (
    entries_after,
    kinds_of,
    moving,
    owned_options,
    trial_group,
    trying,
)


@dataclass(frozen=True)
class Probe:
    """What came of a class.

    Attributes:
        groups: For each group the options that the class gives it, those that it was given too.
        matrices: Whether the class steps matrices, not tensors of any number of axes.
    """

    groups: tuple[Group, ...]
    matrices: bool

    def shown(self, options: Mapping[str, Any], groups: Sequence[Group]) -> list[Group]:
        """The user's groups with all options that they have; the user's own tensors among them."""
        given = {key: value for key, value in options.items() if isinstance(value, Tensor)}
        return [
            {**of, **{k: v for k, v in given.items() if k in of}, **group}
            for of, group in zip(self.groups, groups, strict=True)
        ]

    @property
    def decays(self) -> bool:
        """Whether the class knows weight decay."""
        return any("weight_decay" in group for group in self.groups)


def probe(make: Maker, options: Mapping[str, Any], groups: Sequence[Group]) -> Probe:
    """Try a class with the user's groups.

    Raises:
        InputError: It is no optimizer class, refuses the groups or options, or cannot step cores.
    """
    _require_maker(make)
    # Cores have four axes. A class that takes none of four may still take them as matrices, and
    # what it says to four is what a user is told if it takes neither.
    try:
        made, matrices = _tried(make, options, groups, 4), False
    except Exception as as_cores:
        try:
            made, matrices = _tried(make, options, groups, 2), True
        except Exception:
            bare = _takes_only_tensors(make, options)
            raise InputError(refusal(make, options, groups, as_cores, bare=bare)) from as_cores
    if not isinstance(made, Optimizer):
        raise InputError(
            f"optimizer_class made a {type(made).__name__}, wanted a torch.optim.Optimizer; give "
            "an optimizer class such as torch.optim.AdamW"
        )
    if isinstance(made, torch.optim.SparseAdam):
        raise InputError(
            "SparseAdam takes sparse gradients only, and cores have dense ones; wrap another "
            "optimizer, such as torch.optim.AdamW, and leave sparse embeddings to a SparseAdam of "
            "their own"
        )
    known = tuple(options_of(group) for group in made.param_groups)
    trying_out = [moving(group, of) for group, of in zip(groups, known, strict=True)]
    return Probe(known, matrices or _wants_matrices(make, options, trying_out))


# A small core and the two matrices that it may be laid out as. Neither is square nor the other's
# transpose: a class that goes by rows, by columns or by the longer side steps the two apart.
_CORE, _FILTERS, _MATRIX = (2, 3, 2, 2), (2, 12), (6, 4)


def _wants_matrices(make: Maker, options: Mapping[str, Any], groups: Sequence[Group]) -> bool:
    if class_of(make) in ELEMENTWISE:
        return False
    as_core, as_filters, as_matrix = (
        _stepped(make, options, groups, torch.Size(shape)) for shape in (_CORE, _FILTERS, _MATRIX)
    )
    if as_matrix is None or as_filters is None:
        return False  # It cannot be tried out.
    if as_core is None:
        return True
    return torch.equal(as_core, as_filters) and not torch.equal(as_core, as_matrix)


def _stepped(
    make: Maker, options: Mapping[str, Any], groups: Sequence[Group], shape: torch.Size
) -> Tensor | None:
    """The entries of parameters of one shape after two steps; None if the class fails."""
    values = torch.linspace(-1.0, 1.0, shape.numel()).view(shape)
    tried = [trial_group(group, [nn.Parameter(values.clone())]) for group in groups]

    def slope(step: int, _place: int, p: Tensor) -> Tensor:
        # Another in each step: in the first one many classes only fill their state.
        return torch.linspace(1.0 + step, 9.0, p.numel()).sin()

    return entries_after(make, options, tried, slope, 2)


def _require_maker(make: Any) -> None:
    if not isinstance(make, Optimizer) and callable(make):
        return
    remedy = "plan=plan" if isinstance(make, Plan) else "torch.optim.AdamW, say, and its options"
    raise InputError(
        f"optimizer_class is a {type(make).__name__}, wanted a class to build the optimizer of "
        f"the cores with; give {remedy}"
    )


def _tried(make: Maker, options: Mapping[str, Any], groups: Sequence[Group], axes: int) -> Any:
    with trying(make):
        return make([_small(group, [axes]) for group in groups], **owned_options(options))


def _takes_only_tensors(make: Maker, options: Mapping[str, Any]) -> bool:
    """Whether a class that refuses groups takes the parameters themselves."""
    small = [nn.Parameter(torch.zeros(1, 1))]
    return _takes(make, options, small) and not _takes(make, options, [{"params": small}])


def _takes(make: Maker, options: Mapping[str, Any], params: list[Any]) -> bool:
    try:
        with trying(make):
            make(params, **owned_options(options))
    except Exception:
        return False
    return True


def _small(group: Group, axes: Collection[int]) -> Group:
    """A group with these options over one small tensor for each number of axes."""
    return trial_group(group, [nn.Parameter(torch.zeros([1] * count)) for count in axes])


def require_others(
    make: Maker,
    options: Mapping[str, Any],
    groups: Sequence[Group],
    matched: Collection[int],
    student: nn.Module,
) -> None:
    """Refuse parameters without cores that the class refuses, as a class of matrices does a bias.

    `matched` are ids of the weights that have cores.

    Raises:
        InputError: With the first one's name and what to do.
    """
    # By kind of group and number of axes, the first parameter of that form.
    forms: dict[tuple[int, int], Tensor] = {}
    for kind, group in zip(kinds_of(groups), groups, strict=True):
        for parameter in tensors(group):
            if id(parameter) not in matched:
                forms.setdefault((kind, parameter.ndim), parameter)
    for (place, axes), odd in forms.items():
        try:
            # All other groups as matrices, which the class takes: the odd form alone is on trial.
            tried = [_small(g, [axes if k == place else 2]) for k, g in enumerate(groups)]
            with trying(make):
                make(tried, **owned_options(options))
        except Exception as error:
            raise InputError(refused_other(make, odd, student, error)) from error


def build_inner(make: Maker, groups: list[Group], options: Mapping[str, Any]) -> Optimizer:
    """The wrapped optimizer over its groups.

    Raises:
        InputError: It refuses them, or there are none.
    """
    if not groups:
        raise InputError(
            "nothing is left to step here: the process_group has more ranks than the plan has "
            "weights, and no other parameter is trained; share out over fewer ranks"
        )
    try:
        return make(groups, **options)
    except Exception as error:
        shapes = sorted({tuple(p.shape) for group in groups for p in group["params"]}, key=str)
        some = ", ".join(map(str, shapes[:3])) + (", .." if len(shapes) > 3 else "")
        raise InputError(
            f"{class_name(make)} refuses the {len(groups)} param groups that hold the cores, "
            f"tensors of the shapes {some} ({error}), wanted an optimizer that takes them; wrap "
            "another one, such as torch.optim.AdamW"
        ) from error
