"""What branches are chosen for: the geometry of a site; and the choice that was made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import Any, Literal

from opdf_compile.errors import PlanError
from opdf_compile.graph import Site

Start = Literal["exact", "published"]
STARTS: tuple[Start, ...] = ("exact", "published")

# A site with more entries or axes than these is none: a plan that names one is damaged.
_MAX_SIZE = 2**24
_MAX_SEED = 2**63


@dataclass(frozen=True)
class SiteForm:
    """A convolution that a BatchNorm alone reads.

    Attributes:
        shape: Of the weight, (out, in / groups, *kernel) with one to three kernel axes.
        stride: Per axis.
        padding: Zeros on each side, per axis; -1 where the two sides differ.
        dilation: Steps between taps, per axis.
        groups: Of the convolution.

    Raises:
        PlanError: No convolution is of this form.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __post_init__(self) -> None:
        """Refuse what no convolution can be."""
        axes = len(self.shape) - 2
        least = {"shape": 1, "stride": 1, "padding": -1, "dilation": 1}
        for name, smallest in least.items():
            found = getattr(self, name)
            count = len(self.shape) if name == "shape" else axes
            whole = type(found) is tuple and all(type(size) is int for size in found)
            if (
                not whole
                or len(found) != count
                or any(not smallest <= size <= _MAX_SIZE for size in found)
            ):
                raise PlanError(f"{name} of a site is {found!r}, wanted {count} whole numbers")
        if axes not in (1, 2, 3):
            raise PlanError(f"a site's weight has 3 to 5 axes, found shape {list(self.shape)}")
        if type(self.groups) is not int or self.groups < 1 or self.out % self.groups:
            raise PlanError(
                f"groups of a site is {self.groups!r}, wanted a divisor of {self.out} channels"
            )

    @classmethod
    def of(cls, site: Site) -> SiteForm:
        """The form of a site that was found in a graph."""
        return SiteForm(site.shape, site.stride, site.padding, site.dilation, site.groups)

    @property
    def axes(self) -> int:
        """Number of kernel axes."""
        return len(self.shape) - 2

    @property
    def out(self) -> int:
        """Channels that it makes."""
        return self.shape[0]

    @property
    def channels(self) -> int:
        """Channels that it reads."""
        return self.shape[1] * self.groups

    @property
    def kernel(self) -> tuple[int, ...]:
        """Taps per axis."""
        return self.shape[2:]

    @property
    def is_point(self) -> bool:
        """Whether the kernel is of size 1."""
        return prod(self.kernel) == 1

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is read by itself alone."""
        return self.groups == self.channels == self.out

    def off_centre(self) -> str | None:
        """Why a smaller kernel in the middle of this one would read other positions, if it would.

        A branch of another size reads the same middle only if the kernel has one, and if the zeros
        around the input reach exactly to it.
        """
        if any(size % 2 == 0 for size in self.kernel):
            return f"has a kernel of even size {list(self.kernel)}, which has no middle tap"
        if any(step > 1 for step in self.dilation):
            return f"has the dilation {list(self.dilation)}: only kernels without gaps are folded"
        wanted = [size // 2 for size in self.kernel]
        if list(self.padding) != wanted:
            return f"has the padding {list(self.padding)}, branches of other sizes need {wanted}"
        return None


@dataclass(frozen=True)
class SiteSpec(SiteForm):
    """The branches of one site.

    Attributes:
        branches: Their names, see `branch_of`; the convolution itself is none of them.
        dtype: Of the convolution's weight; the branches have it, too.
        eps: Of the site's norm; the norms of the branches have it, too.
        momentum: Likewise.
        start: "exact": the last gain of each branch is 0 at first, so that the student computes
            what it did. "published": it is 1, as in the papers, for students that start anew.
        seed: Of the weights that the branches start from.

    Raises:
        PlanError: A value is of the wrong kind.
    """

    branches: tuple[str, ...] = ()
    dtype: str = "float32"
    eps: float = 1e-5
    momentum: float = 0.1
    start: Start = "exact"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no choice."""
        super().__post_init__()
        names = self.branches
        if type(names) is not tuple or not names or not all(type(n) is str for n in names):
            raise PlanError(f"branches of a site are {names!r}, wanted a list of names")
        if len(set(names)) < len(names):
            raise PlanError(f"branches of a site are {list(names)}, wanted each name once")
        if not re.fullmatch("float16|bfloat16|float32|float64", str(self.dtype)):
            raise PlanError(f"dtype of a site is {self.dtype!r}, wanted a floating-point one")
        for name in ("eps", "momentum"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise PlanError(f"{name} of a site is {value!r}, wanted a number from 0 to 1")
        if self.start not in STARTS:
            raise PlanError(f"start of a site is {self.start!r}, wanted one of {', '.join(STARTS)}")
        if type(self.seed) is not int or not 0 <= self.seed < _MAX_SEED:
            raise PlanError(f"seed of a site is {self.seed!r}, wanted a whole number from 0")

    @classmethod
    def chosen(
        cls, site: Site, branches: tuple[str, ...], *, start: Start = "exact", seed: int = 0
    ) -> SiteSpec:
        """The spec of a site with these branches."""
        form = (site.shape, site.stride, site.padding, site.dilation, site.groups)
        return cls(
            *form,
            branches=branches,
            dtype=site.dtype,
            eps=site.eps,
            momentum=site.momentum,
            start=start,
            seed=seed,
        )

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SiteSpec:
        """The spec of JSON values; the constructor checks them.

        Raises:
            PlanError: A key is missing or unknown, or a value does not fit.
        """
        known = [field.name for field in fields(cls)]
        odd = sorted(set(known) ^ set(map(str, data)))
        if odd:
            raise PlanError(f"the spec of a site has the keys {', '.join(known)}; see {odd[0]!r}")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**values)
