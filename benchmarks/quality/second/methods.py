"""What is compared: how a student's weights are held while it trains.

Every method trains with the package itself: a plan, then `opdf.branch` or `opdf.Overparam`. `plain`
is the student and torch's optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Peak learning rates at which the search begins; it goes where the best lies. They are those of the
# development tasks, in steps of sqrt(10).
CENTRES = {"adamw": 10**-1.5, "sgd": 10**-0.5, "muon": 10**-1.5}
_CONVS = (1, 2)
# A step of hyperball has the length that the rate says, whatever the optimizer's own.
_ANGLES = dict.fromkeys(CENTRES, 3e-2)


@dataclass(frozen=True)
class Method:
    """One side of a comparison.

    Attributes:
        name: Its name in the rows.
        asks: What a plan is asked for; empty is plain. From random starts, which all students
            here have, branches and `orepa` begin as published.
        branches: Whether it is trained by `opdf.branch`, else by `opdf.Overparam`.
        axes: Axes of the convolutions that it can be used with; 0 is a student of matrices.
        centres: Optimizers that it works with, and the rate at which the search begins.
        control: What the rate of a gain is due to, if not to the method: it answers that and is no
            contender.
    """

    name: str
    asks: str = ""
    branches: bool = False
    axes: tuple[int, ...] = (0, 1, 2)
    centres: dict[str, float] = field(default_factory=lambda: dict(CENTRES))
    control: bool = False


PLAIN = Method("plain")
METHODS = (
    PLAIN,
    Method("repvgg", "repvgg(start=published)", branches=True, axes=_CONVS),
    Method("mobileone", "mobileone(copies=4,start=published)", branches=True, axes=_CONVS),
    Method("dbb", "dbb(start=published)", branches=True, axes=_CONVS),
    Method("acnet", "acnet(start=published)", branches=True, axes=(2,)),
    Method("gains", "gains"),
    Method("md", "md"),
    Method("hyperball", "hyperball", centres=_ANGLES),
    Method("ham", "ham"),
    # HAM without the part that its gradient sets: what is left is its decay.
    Method("ham-decay", "ham(alpha=0)", control=True),
    # No optimizer whose step turns a gradient can take constant scales.
    Method("repopt", "repopt", axes=_CONVS, centres={k: CENTRES[k] for k in ("adamw", "sgd")}),
    Method("do_conv", "do_conv", axes=_CONVS),
    Method("orepa", "orepa(start=paper)", axes=_CONVS),
    Method("wide", "wide"),
    Method("mpo", "mpo(cores=3)"),
)
BY_NAME = {method.name: method for method in METHODS}
