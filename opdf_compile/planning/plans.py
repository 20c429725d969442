"""The plan: a frozen, printable, editable value.

trained  = sum of the cores' parameters          deployed = sum of the weights' parameters
scale    = trained / deployed
step     = (student step FLOPs + compose step FLOPs) / student step FLOPs
memory   = cores x (value, gradient, two AdamW moments) + untrained cores + composed weights
           + largest intermediate
           + branches x (value, gradient, two AdamW moments) + their activations
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opdf_compile.errors import PlanError, require_type
from opdf_compile.graph import MatchReport, Refusal, Site
from opdf_compile.planning.entry import SCHEMA, PlanEntry
from opdf_compile.planning.site_entry import SiteEntry
from opdf_compile.spelling import did_you_mean
from opdf_compile.tables import html_table, text_table
from opdf_compile.tensor import Cost

# Value, gradient and AdamW's two moments.
_STATES = 4


@dataclass(frozen=True)
class Plan:
    """Which match gets which parametrization; prints as a table with totals.

    Attributes:
        entries: One per weight.
        refusals: Weights left alone, by the matcher or by this plan, with reasons.
        student_step_flops: FLOPs of one training step of the student on the example batch; 0 where
            the plan was made from a module without a graph.
        request: What was asked for, such as {"cores": 3}.
        rung: The rung of the tracer's ladder that the model stood on; "module" where it was planned
            without a graph. Two plans that differ only here are equal.
        notes: What the tracer had to give up, in sentences.
        sites: Of each convolution that gets branches beside itself and its BatchNorm.
    """

    entries: tuple[PlanEntry, ...]
    refusals: tuple[Refusal, ...] = ()
    student_step_flops: int = 0
    request: dict[str, Any] = field(default_factory=dict)
    rung: str = field(default="module", compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    sites: tuple[SiteEntry, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a weight that is planned twice.

        Raises:
            PlanError: Two entries have one key.
        """
        seen: set[str] = set()
        for entry in self.decisions:
            if entry.key in seen:
                raise PlanError(
                    f"the plan names {entry.key!r} twice, wanted each weight once; "
                    "remove one of the entries"
                )
            seen.add(entry.key)

    @property
    def decisions(self) -> tuple[PlanEntry | SiteEntry, ...]:
        """The entries of both kinds: weights of cores, and sites with branches."""
        return (*self.entries, *self.sites)

    @property
    def model(self) -> nn.Module | None:
        """The module that the plan was made for, while it lives and in the process that made it.

        It lets `Overparam` take param groups, which know no names. It is no part of the plan's
        value: two equal plans may have been made for two modules, and a file keeps none.
        """
        found: Callable[[], nn.Module | None] | None = self.__dict__.get("_model")
        return None if found is None else found()

    def made_for(self, model: nn.Module) -> Plan:
        """This plan, remembering the module without keeping it alive."""
        remembering = replace(self)
        remembering.__dict__["_model"] = weakref.ref(model)
        return remembering

    def __getstate__(self) -> dict[str, Any]:
        """Without the module: a weak reference cannot be pickled."""
        return {key: value for key, value in self.__dict__.items() if key != "_model"}

    @property
    def cost(self) -> Cost:
        """The cost of composing all weights once, and of all branches on the example batch."""
        return sum((entry.cost for entry in self.decisions), Cost())

    @property
    def deployed(self) -> int:
        """Parameters of the folded weights."""
        return sum(entry.deployed for entry in self.decisions)

    @property
    def scale(self) -> float:
        """Training parameters over deployed parameters, over the planned weights."""
        return self.cost.parameters / self.deployed if self.decisions else 1.0

    @property
    def overhead(self) -> float | None:
        """Predicted FLOPs of a training step over the plain student's; None without a graph."""
        if not self.student_step_flops:
            return None
        return 1 + self.cost.step_flops / self.student_step_flops

    @property
    def peak_bytes(self) -> int:
        """Predicted memory that training holds for the planned weights, in bytes."""
        cost, total = self.cost, 0
        for entry in self.entries:
            core = entry.core_dtype.itemsize
            held = _STATES * entry.cost.parameters + entry.cost.untrained
            # Beside a weight that is stepped itself there is at most a copy, during the step.
            beside = entry.deployed if entry.by.copies else 0
            total += core * (held + beside)
        for site in self.sites:
            size = getattr(torch, site.spec.dtype).itemsize
            total += _STATES * size * site.added + site.activation_bytes
        return total + 4 * cost.largest_intermediate

    def validate_sites(self, found: Mapping[str, Site | str]) -> None:
        """Check that every site is one of the model at hand, see `find_sites`.

        Raises:
            PlanError: It is none there, or has another geometry.
        """
        for site in self.sites:
            site.require_site(found.get(site.key))

    def validate(self, report: MatchReport) -> None:
        """Check that every entry fits a match of the model at hand.

        Raises:
            PlanError: A key, shape, dtype or orientation differs.
        """
        offers = (r.offer for r in report.refusals if r.offer is not None)
        known = {m.key: m for m in (*report.matches, *offers)}
        for entry in self.entries:
            if entry.key not in known:
                raise PlanError(_unknown(entry.key, report))
            found = known[entry.key]
            _agree(entry, "shape", list(entry.spec.shape), list(found.shape))
            _agree(entry, "dtype", entry.spec.dtype, found.dtype)
            _agree(entry, "transposed", entry.spec.transposed, found.transposed)
            # A name that the plan does not know would keep a plain weight of its own: untied.
            _agree(entry, "aliases", sorted(entry.aliases), sorted(found.aliases))

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values, schema "opdf-plan/1"."""
        return {
            "schema": SCHEMA,
            "request": self.request,
            "rung": self.rung,
            "notes": list(self.notes),
            "entries": [entry.to_json() for entry in self.entries],
            **({"sites": [site.to_json() for site in self.sites]} if self.sites else {}),
            "refusals": [{"key": r.key, "reason": r.reason} for r in self.refusals],
            "totals": {
                "weights": len(self.decisions),
                "deployed": self.deployed,
                "trained": self.cost.parameters,
                "scale": self.scale,
                "student_step_flops": self.student_step_flops,
                "compose_step_flops": self.cost.step_flops,
                "predicted_step": self.overhead,
                "peak_bytes": self.peak_bytes,
            },
        }

    @classmethod
    def from_json(cls, value: Any) -> Plan:
        """Read a plan back; totals and costs are computed anew.

        Raises:
            PlanError: The value is no plan, or contradicts itself.
        """
        from opdf_compile.planning.plan_schema import parsed_plan

        given = parsed_plan(value)
        flops = given.totals.get("student_step_flops", 0)
        return cls(
            entries=tuple(given.planned()),
            refusals=tuple(Refusal(r.key, r.reason) for r in given.refusals),
            student_step_flops=flops if isinstance(flops, int) and flops > 0 else 0,
            request=given.request,
            rung=given.rung,
            notes=tuple(given.notes),
            sites=tuple(given.planned_sites()),
        )

    def dumps(self) -> str:
        """The plan as JSON text."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; the file is replaced in one step."""
        from opdf_compile.planning.files import write_text

        write_text(Path(path), self.dumps())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan file.

        Raises:
            PlanError: There is no such file, or it holds no plan.
        """
        from opdf_compile.planning.files import read_plan

        return cls.from_json(read_plan(Path(path)))

    def rows(self) -> list[tuple[str, ...]]:
        """Cells of the table: key, parametrization, shape, modes, deployed, trained, FLOPs."""
        return [
            (
                entry.key,
                entry.parametrization,
                "x".join(map(str, entry.spec.shape)),
                entry.modes,
                f"{entry.deployed:,}",
                f"{entry.cost.parameters:,}",
                f"{entry.cost.step_flops:,}",
            )
            for entry in self.decisions
        ]

    def totals(self) -> str:
        """One line: weights, parameters, scale, predicted step and memory."""
        step = f"{self.overhead:.2f}x" if self.overhead else "unknown without a graph"
        return (
            f"{len(self.decisions)} weights: {self.deployed:,} parameters deployed, "
            f"{self.cost.parameters:,} trained (scale {self.scale:.2f}); "
            f"predicted step {step}, memory {self.peak_bytes / 2**20:,.1f} MiB"
        )

    def left(self) -> list[str]:
        """The weights that are left alone, those with one reason in one line."""
        keys: dict[str, list[str]] = {}
        for refusal in self.refusals:
            keys.setdefault(refusal.reason, []).append(refusal.key)
        return [f"left alone ({reason}): {_some(names)}" for reason, names in keys.items()]

    def table(self) -> str:
        """What is planned, as text: a row per weight, and the totals."""
        return "\n".join([text_table([_HEAD, *self.rows()], right=(4, 5, 6)), self.totals()])

    def __str__(self) -> str:
        return "\n".join([self.table(), *self.left()])

    def _repr_html_(self) -> str:
        return self.html_table() + "".join(f"<p>{escape(line)}</p>" for line in self.left())

    def html_table(self) -> str:
        """The same as `table`, as HTML."""
        return f"{html_table([_HEAD, *self.rows()])}<p>{escape(self.totals())}</p>"


_HEAD = ("weight", "by", "shape", "modes", "deployed", "trained", "FLOPs/step")


# Names in a line of weights that are left alone.
_NAMED = 8


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _agree(entry: PlanEntry, what: str, planned: object, found: object) -> None:
    if planned != found:
        raise PlanError(
            f"the plan gives {entry.key!r} {what} {planned}, the model has {found}; "
            "make a plan for this model (opdf-compile plan MODEL -o plan.json)"
        )


def _unknown(key: str, report: MatchReport) -> str:
    refused = {r.key: r.reason for r in report.refusals}
    if key in refused:
        return f"the plan names {key!r}, but it {refused[key]}; remove the entry"
    hint = did_you_mean(key, [m.key for m in report.matches])
    return (
        f"the plan names {key!r}, the model has no such weight{hint}; make a plan for this model "
        "(opdf-compile plan MODEL -o plan.json)"
    )


def require_plan(plan: object) -> None:
    """Refuse what is no plan; the path of one is a near miss.

    Raises:
        InputError: It is no plan.
    """
    remedy = "make one with opdf.plan(student), or read a file with opdf.Plan.load(path)"
    require_type(plan, Plan, "the plan", f"a Plan; {remedy}")
