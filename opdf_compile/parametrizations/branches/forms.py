"""What branches beside a convolution and its BatchNorm a plan can ask for by one name.

A new one is a child of `BranchForm` that says which branches a site gets, and `register_branches`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from opdf_compile.errors import InternalError, PlanError
from opdf_compile.parametrizations.branches.site_form import STARTS, SiteForm
from opdf_compile.parametrizations.branches.steps import why_no_branch
from opdf_compile.parametrizations.request import Option

# Convolutions of one size side by side, of MobileOne-S0 and S1.
USUAL_COPIES = 4
MOST_COPIES = 64


# Options that every form has; they go into the spec as they are.
COMMON_OPTIONS: Mapping[str, Option] = MappingProxyType(
    {
        "start": Option(STARTS, "exact", "gains of 0 (a trained student) or 1 (as published)"),
        "seed": Option(int, 0, "of the weights that the branches start from"),
    }
)


class BranchForm(ABC):
    """Which branches a site gets.

    Attributes:
        name: The name by which plans refer to it.
        summary: What stands beside the convolution, in a few words.
        adds: The parameters that it adds: I channels to O in g groups, M elements of the kernel.
        source: Of the idea.
        options: What may be asked for in brackets beside `COMMON_OPTIONS`; `wanted` gets them.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    adds: ClassVar[str]
    source: ClassVar[str]
    options: ClassVar[Mapping[str, Option]] = MappingProxyType({})

    @abstractmethod
    def wanted(self, form: SiteForm, **options: Any) -> tuple[str, ...]:
        """Names of branches, see `branch_of`; those that the site cannot have are left out."""

    def branches(self, form: SiteForm, **options: Any) -> tuple[str, ...]:
        """Names of the branches that the site gets; empty where it can have none."""
        wanted = self.wanted(form, **options)
        return tuple(name for name in wanted if why_no_branch(name, form) is None)

    def why_not(self, form: SiteForm, **options: Any) -> str | None:
        """Why a site of this form gets no branches, read on from its name; None if it does."""
        if self.branches(form, **options):
            return None
        reasons = {why_no_branch(name, form): None for name in self.wanted(form, **options)}
        return " and ".join(str(reason) for reason in reasons) or "asks for no branch"


_REGISTERED: dict[str, BranchForm] = {}


def register_branches(form: BranchForm) -> None:
    """Make a form known by its name.

    Raises:
        InternalError: Another one has the name.
    """
    known = _REGISTERED.setdefault(form.name, form)
    if known is not form:
        raise InternalError(
            f"the name '{form.name}' is taken by {type(known).__name__}, so "
            f"{type(form).__name__} needs another one"
        )


def branch_forms() -> Mapping[str, BranchForm]:
    """All registered forms, by name."""
    return dict(sorted(_REGISTERED.items()))


class RepVgg(BranchForm):
    """k x k, 1 x 1 and the identity."""

    name = "repvgg"
    summary = "1x1 and identity beside k x k"
    adds = "O I / g + 4 O"
    source = "RepVGG, arXiv 2101.03697"

    def wanted(self, form: SiteForm, **options: Any) -> tuple[str, ...]:
        """Both; the identity where as many channels come out as go in, at stride 1."""
        return ("point", "identity")


class AcNet(BranchForm):
    """k x k, 1 x k and k x 1."""

    name = "acnet"
    summary = "1xk and kx1 beside k x k"
    adds = "2 k O I / g + 4 O, of a k x k kernel"
    source = "ACNet, arXiv 1908.03930"

    def wanted(self, form: SiteForm, **options: Any) -> tuple[str, ...]:
        """Both, of a kernel with two axes."""
        return ("row", "column")


class MobileOne(BranchForm):
    """Copies of k x k, 1 x 1 and the identity."""

    name = "mobileone"
    summary = "copies of k x k, 1x1 and identity"
    adds = "((n - 1) M + 1) O I / g + 2 (n + 1) O, of n copies"
    source = "MobileOne, arXiv 2206.04040"
    options = MappingProxyType(
        {"copies": Option(int, USUAL_COPIES, "convolutions of the site's size, its own included")}
    )

    def wanted(self, form: SiteForm, **options: Any) -> tuple[str, ...]:
        """`copies` convolutions, the student's own among them, and what `repvgg` has."""
        copies = int(options.get("copies", USUAL_COPIES))
        if not 1 <= copies <= MOST_COPIES:
            raise PlanError(
                f"mobileone has copies={copies}, wanted 1 (the convolution itself) to {MOST_COPIES}"
            )
        return (*(f"copy{k}" for k in range(1, copies)), "point", "identity")


class Dbb(BranchForm):
    """k x k, 1 x 1, 1 x 1 before k x k, and 1 x 1 before a mean."""

    name = "dbb"
    summary = "1x1, 1x1-kxk and 1x1-mean beside k x k"
    adds = "(M + 2) O I / g + I^2 / g + 8 O + 2 I"
    source = "Diverse Branch Block, arXiv 2103.13425"

    def wanted(self, form: SiteForm, **options: Any) -> tuple[str, ...]:
        """Four paths; of a depthwise convolution, where 1 x 1 mixes nothing, two."""
        if form.groups == form.out:
            return ("point_full", "average")
        return ("point", "point_full", "point_average")


# Taps and dilations beside a kernel of a size, as published.
_DILATED: dict[int, tuple[tuple[int, int], ...]] = {
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 2), (3, 3)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}


class Dilated(BranchForm):
    """A large depthwise kernel and smaller ones with gaps."""

    name = "dilated"
    summary = "smaller dilated kernels beside a large depthwise one"
    adds = "the kernels, and 2 O for each"
    source = "UniRepLKNet, arXiv 2311.15599"

    def wanted(self, form: SiteForm, **options: Any) -> tuple[str, ...]:
        """The published ones of the largest size that fits into the kernel."""
        fitting = [size for size in _DILATED if size <= min(form.kernel)]
        table = _DILATED[max(fitting)] if fitting else ((3, 2),)
        return tuple(f"dilated{taps}x{dilation}" for taps, dilation in table)


for _form in (RepVgg(), AcNet(), MobileOne(), Dbb(), Dilated()):
    register_branches(_form)
