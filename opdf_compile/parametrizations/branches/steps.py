"""A branch: linear layers and norms, one after the other; and the branches that have a name.

    point           1x1, norm                            RepVGG, arXiv 2101.03697
    identity        norm                                 RepVGG; of channels kept, at stride 1
    copy1, ..       another k x k, norm                  MobileOne, arXiv 2206.04040
    row, column     1 x k or k x 1, norm                 ACNet, arXiv 1908.03930
    point_full      1x1, norm, border, k x k, norm       Diverse Branch Block, arXiv 2103.13425
    point_average   1x1, norm, border, mean, norm        Diverse Branch Block
    average         mean, norm                           Diverse Branch Block, depthwise
    dilated3x2, ..  3 taps per axis, dilation 2, norm    UniRepLKNet, arXiv 2311.15599; depthwise

The name and the form of a site tell the layers, so that a file of tensors needs no plan to be
folded. `border` puts around a norm's output what it makes of zeros: where the layers after it read
zeros instead, the branch would be no convolution at the border.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from opdf_compile.errors import PlanError
from opdf_compile.parametrizations.branches.site_form import SiteForm

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Conv:
    """A convolution without bias.

    Attributes:
        shape: Of its weight.
        stride: Per axis.
        padding: Likewise.
        dilation: Likewise.
        groups: Of the convolution.
        plus_input: Whether its input is added to its output: the weight is learned as the
            difference from the identity.
    """

    shape: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes
    groups: int
    plus_input: bool = False


@dataclass(frozen=True)
class Norm:
    """A BatchNorm.

    Attributes:
        features: Channels.
        border: How far it is continued on each side, by what it makes of zero.
    """

    features: int
    border: Sizes


@dataclass(frozen=True)
class Average:
    """The mean over a window, zeros at the border counted.

    Attributes:
        channels: Channels.
        kernel: Taps per axis.
        stride: Per axis.
        padding: Likewise.
    """

    channels: int
    kernel: Sizes
    stride: Sizes
    padding: Sizes


Step = Conv | Norm | Average


@dataclass(frozen=True)
class Branch:
    """Layers one after the other; the last one is a norm.

    Attributes:
        name: Among the branches of its site.
        steps: Each with its name in the branch.
    """

    name: str
    steps: tuple[tuple[str, Step], ...]


_DILATED = re.compile(r"dilated([1-9]\d{0,2})x([1-9]\d{0,2})")
_COPY = re.compile(r"copy[1-9]\d{0,3}")
_NAMES = "point, identity, copy1, row, column, point_full, point_average, average or dilated3x2"


def why_no_branch(name: str, form: SiteForm) -> str | None:
    """Why a site has no branch of this name, read on from the site's name; None if it has."""
    dilated = _DILATED.fullmatch(name)
    if dilated:
        return form.off_centre() or _why_not_dilated(form, *map(int, dilated.groups()))
    if _COPY.fullmatch(name):
        return _why_uneven(form)
    if name == "point_full":
        return _why_uneven(form) or _why_a_point(form)
    if name in ("point_average", "average"):
        return _why_uneven(form) or _why_a_point(form) or _why_no_mean(name, form)
    if name == "identity":
        return form.off_centre() or _why_not_identity(form)
    if name == "point":
        return form.off_centre() or _why_a_point(form)
    if name in ("row", "column"):
        return form.off_centre() or _why_not_crossed(form)
    raise PlanError(f"a branch is called {name!r}, wanted {_NAMES}")


def _why_uneven(form: SiteForm) -> str | None:
    return "has unlike padding on its two sides" if min(form.padding) < 0 else None


def _why_a_point(form: SiteForm) -> str | None:
    return "has a kernel of size 1 already" if form.is_point else None


def _why_no_mean(name: str, form: SiteForm) -> str | None:
    if any(step > 1 for step in form.dilation):
        return f"has the dilation {list(form.dilation)}, a mean has none"
    if name == "average" and form.channels != form.out:
        return f"makes {form.out} channels of {form.channels}"
    return None


def _why_not_identity(form: SiteForm) -> str | None:
    if form.channels != form.out:
        return f"makes {form.out} channels of {form.channels}"
    if any(step > 1 for step in form.stride):
        return f"has the stride {list(form.stride)}"
    return None


def _why_not_crossed(form: SiteForm) -> str | None:
    if form.axes != 2 or min(form.kernel) < 2:
        return f"has a kernel of size {list(form.kernel)}, wanted two axes longer than 1"
    return None


def _why_not_dilated(form: SiteForm, taps: int, dilation: int) -> str | None:
    if not form.is_depthwise:
        return "is no depthwise convolution"
    reach = dilation * (taps - 1) + 1
    if taps % 2 == 0 or reach > min(form.kernel):
        return (
            f"has a kernel of size {list(form.kernel)}; {taps} taps at dilation {dilation} "
            f"reach over {reach}"
        )
    return None


def branch_of(name: str, form: SiteForm) -> Branch:
    """The layers of a branch.

    Args:
        name: As in the head of this file.
        form: The site it stands beside.

    Raises:
        PlanError: The site has no such branch.
    """
    reason = why_no_branch(name, form)
    if reason is not None:
        raise PlanError(f"the site has no branch {name!r}: it {reason}")
    if name.startswith("point_"):
        return Branch(name, _two_layers(name, form))
    norm = ("norm", Norm(form.out, (0,) * form.axes))
    if name == "identity":
        return Branch(name, (norm,))
    if name == "average":
        mean = Average(form.out, form.kernel, form.stride, form.padding)
        return Branch(name, (("mean", mean), norm))
    return Branch(name, (("conv", _single(name, form)), norm))


def _single(name: str, form: SiteForm) -> Conv:
    """The only convolution of a branch, centred in the site's own kernel."""
    dilated = _DILATED.fullmatch(name)
    kernel, dilation = form.kernel, form.dilation
    if dilated:
        taps, step = map(int, dilated.groups())
        kernel, dilation = (taps,) * form.axes, (step,) * form.axes
    elif name == "point":
        kernel = (1,) * form.axes
    elif name in ("row", "column"):
        kernel = (1, form.kernel[1]) if name == "row" else (form.kernel[0], 1)
    padding = form.padding
    if kernel != form.kernel or dilation != form.dilation:
        padding = tuple(d * (k // 2) for k, d in zip(kernel, dilation, strict=True))
    shape = (*form.shape[:2], *kernel)
    return Conv(shape, form.stride, padding, dilation, form.groups)


def _two_layers(name: str, form: SiteForm) -> tuple[tuple[str, Step], ...]:
    """1x1, norm with a border, and a full kernel or a mean."""
    ones, zeros = (1,) * form.axes, (0,) * form.axes
    depthwise = form.groups == form.out
    last: tuple[str, Step]
    if name == "point_full":
        inner = form.channels * (2 if depthwise else 1)
        shape = (form.out, inner // form.groups, *form.kernel)
        last = ("conv", Conv(shape, form.stride, zeros, form.dilation, form.groups))
    else:
        inner = form.out
        last = ("mean", Average(inner, form.kernel, form.stride, zeros))
    point = Conv(
        (inner, form.shape[1], *ones),
        ones,
        zeros,
        ones,
        form.groups,
        plus_input=name == "point_full" and inner == form.channels,
    )
    return (
        ("conv1", point),
        ("norm1", Norm(inner, form.padding)),
        last,
        ("norm", Norm(form.out, zeros)),
    )
