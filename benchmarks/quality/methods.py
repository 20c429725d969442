"""What is compared: forms, losses and lengths of run, all tuned alike."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from quality import forms
from quality.forms import Form

SOFT_SHARE = 0.9


@dataclass(frozen=True)
class Method:
    """One side of a comparison.

    Attributes:
        name: Its name in the rows.
        form: How weights are held: plain, mpo, svd, wide, powerprop.
        soft_share: Share of the teacher in the loss.
        averaged: Scored on an average of the weights instead of the last ones.
        clock: "" for equal steps; "cached" or "online": as many more steps as the primary method's
            step takes longer, with the teacher's logits stored or its forward in every step.
    """

    name: str
    form: str = "plain"
    soft_share: float = SOFT_SHARE
    averaged: bool = False
    clock: str = ""


PLAIN = Method("plain")
METHODS = (
    PLAIN,
    Method("mpo", "mpo"),
    Method("svd", "svd"),
    Method("powerprop", "powerprop"),
    Method("wide", "wide"),
    Method("ema", averaged=True),
    Method("no-kd", soft_share=0.0),
    Method("plain-cached-clock", clock="cached"),
    Method("plain-online-clock", clock="online"),
)
BY_NAME = {method.name: method for method in METHODS}


def form_of(name: str, student: nn.Module) -> Form:
    """The form of a student by its name."""
    makers = {
        "plain": forms.plain,
        "mpo": lambda s: forms.package(s, "mpo", 3),
        "svd": lambda s: forms.package(s, "svd", 2),
        "wide": forms.wide,
        "powerprop": forms.powered,
    }
    return makers[name](student)
