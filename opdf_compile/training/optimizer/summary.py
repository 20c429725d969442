"""What an Overparam trains, deploys, leaves alone, and costs: a table to print."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from opdf_compile.graph import Refusal
from opdf_compile.planning import Plan, assumed_rows, dearest, flops_text


@dataclass(frozen=True)
class Summary:
    """The facts of one optimizer; prints as the plan's table and some lines.

    Attributes:
        plan: What is over-parameterised.
        optimizer: Name of the wrapped optimizer.
        other: Parameters of the student that are trained as they are.
        beside: Parameters of branches beside the student's convolutions, likewise.
        units: Number of units composed on this rank, and how many of them are batches.
        decay: What weight decay acts on.
        recompute: Whether the backward of compose makes the intermediate products again.
        rank: This rank and the number of ranks that share the program.
        held: Core parameters that are trained on this rank.
    """

    plan: Plan
    optimizer: str
    other: int
    units: tuple[int, int]
    decay: str
    recompute: bool
    rank: tuple[int, int]
    held: int
    beside: int = 0

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Weights that are left alone, with reasons."""
        return self.plan.refusals

    @property
    def trained(self) -> int:
        """Parameters that are trained: cores, branches, and everything that is not matched."""
        return sum(e.cost.parameters for e in self.plan.entries) + self.other + self.beside

    @property
    def deployed(self) -> int:
        """The same of the student as it ships: weights in place of cores."""
        return sum(entry.deployed for entry in self.plan.entries) + self.other

    @property
    def step_flops(self) -> int:
        """FLOPs that a step adds; with `recompute` some products are made twice."""
        cost = self.plan.cost
        return cost.step_flops + (cost.again_flops if self.recompute else 0)

    @property
    def predicted_step(self) -> float | None:
        """FLOPs of a step over the plain student's; None where these are not known."""
        plain = self.plan.student_step_flops
        return 1 + self.step_flops / plain if plain else None

    def to_json(self) -> dict[str, Any]:
        """The summary as plain values, schema "opdf-summary/1"."""
        return {
            "schema": "opdf-summary/1",
            "trained": self.trained,
            "deployed": self.deployed,
            "scale": self.plan.scale,
            "step_flops": self.step_flops,
            "dearest": [
                {"key": entry.key, "step_flops": entry.cost.step_flops}
                for entry in dearest(self.plan)
            ],
            "predicted_step": self.predicted_step,
            "peak_bytes": self.plan.peak_bytes,
            "optimizer": self.optimizer,
            "decay": self.decay,
            "units": self.units[0],
            "batches": self.units[1],
            "recompute": self.recompute,
            "rank": self.rank[0],
            "ranks": self.rank[1],
            "held": self.held,
            "refusals": [{"key": r.key, "reason": r.reason} for r in self.refusals],
            **({"branches": self._branches()} if self.plan.sites else {}),
        }

    def _branches(self) -> dict[str, int]:
        """What branches add: parameters, and FLOPs of a step on the example batch."""
        flops = sum(site.cost.step_flops for site in self.plan.sites)
        return {"sites": len(self.plan.sites), "parameters": self.beside, "step_flops": flops}

    def lines(self) -> list[str]:
        """What is said under the table."""
        branches, untrained = self._branches(), self.plan.cost.untrained
        cored = [entry for entry in self.plan.entries if not entry.metric]
        direct = [entry for entry in self.plan.entries if entry.metric]
        stepped = "the weights" if direct and not cored else "the cores"
        lines = [
            f"{self.trained:,} parameters trained, {self.deployed:,} deployed; "
            f"{self.optimizer} steps {stepped}, weight decay acts on {self.decay}"
        ]
        work = sum(entry.cost.step_flops for entry in direct)
        composed = self.plan.cost.step_flops - branches["step_flops"] - work
        if cored:
            again = ", composed again in the backward but for the last product of each"
            flops = composed + self.step_flops - self.plan.cost.step_flops
            lines.append(
                f"a step adds {flops_text(flops)}, whatever the batch, in {self.units[0]} "
                f"{'product' if self.units[0] == 1 else 'products'} of cores ({self.units[1]} "
                f"batched){again if self.recompute else ''}"
            )
        if composed:
            shares = (
                f"{entry.key} ({entry.cost.step_flops / composed:.0%})"
                for entry in dearest(self.plan)
            )
            lines.append("dearest to compose: " + ", ".join(shares))
        if (assumed := assumed_rows(self.plan)) is not None:
            lines.append(assumed)
        if direct:
            methods = ", ".join(sorted({entry.parametrization for entry in direct}))
            lines.append(
                f"weights without cores, stepped as they are: {len(direct)} ({methods}), "
                f"{flops_text(work)} more in a step, whatever the batch"
            )
        if branches["sites"]:
            lines.append(
                f"{_convolutions(branches['sites'])} branches: {self.beside:,} parameters, "
                f"stepped as they are, and {flops_text(branches['step_flops'])} more in a step on "
                "the example batch, until fold adds them up"
            )
        rates = sorted({rate for e in self.plan.entries for rate in e.rates if rate != 1})
        if rates:
            some = ", ".join(f"{rate:g}" for rate in rates)
            lines.append(f"some cores learn at a rate of their own: {some} times the group's")
        if untrained:
            lines.append(f"{untrained:,} entries of cores are kept and not trained")
        if self.rank[1] > 1:
            lines.append(
                f"rank {self.rank[0]} of {self.rank[1]} holds {self.held:,} of "
                f"{sum(entry.cost.parameters for entry in cored):,} core parameters"
            )
        return [*lines, *(f"{r.key} {r.reason}" for r in self.refusals)]

    def __str__(self) -> str:
        return "\n".join([self.plan.table(), *self.lines()])

    def _repr_html_(self) -> str:
        return self.plan.html_table() + "".join(f"<p>{escape(line)}</p>" for line in self.lines())


def _convolutions(count: int) -> str:
    return "1 convolution has" if count == 1 else f"{count} convolutions have"
