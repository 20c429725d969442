"""One architecture through the pipeline, step by step, with a check after each.

trace -> match -> plan -> expand -> eval -> train -> fold -> [export -> verify]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from bench.facts import date_of_today, peak_mib
from torch import Tensor, nn

import opdf_compile as opdf
from opdf_compile.errors import first_line
from zoo.agreement import Agreement, compare, outputs, tolerances
from zoo.architecture import Architecture, Inputs
from zoo.attributes import Attributes
from zoo.census import census, coverage
from zoo.checks import (
    CheckFailed,
    Snapshot,
    loss_of,
    owned_tensors,
    planned_names,
    relative,
    require_bits,
    require_finite,
    require_form,
    require_idle,
    require_lossless,
    unchanged,
)
from zoo.forms import FORMS, Form
from zoo.other_sizes import run_at_other_sizes

BATCH, OTHER_BATCH = 2, 3
RATE = 1e-3
Note = Callable[[dict[str, Any]], None]


@dataclass
class Journey:
    """What the steps hand on.

    Attributes:
        architecture: What travels.
        cores: Cores per weight.
        row: The figures so far.
    """

    architecture: Architecture
    cores: int
    row: dict[str, Any]
    model: nn.Module = field(init=False)
    inputs: Inputs = field(init=False)
    before: Snapshot = field(init=False)
    traced: opdf.Traced = field(init=False)
    report: opdf.MatchReport = field(init=False)
    plan: opdf.Plan = field(init=False)
    form: Form = field(init=False)
    folded: nn.Module = field(init=False)

    def build(self) -> None:
        """Build the model and run it once, as a user would have."""
        self.model = self.architecture.build()
        self.inputs = self.architecture.example(BATCH)
        parameters = sum(p.numel() for p in self.model.parameters())
        self.row.update(model=type(self.model).__name__, parameters=parameters)
        outputs(self.model, self.inputs)
        self.before = Snapshot.of(self.model)

    def trace(self) -> None:
        """One graph per phase, by the strictest rung that holds; no submodule keeps anything."""
        attributes = Attributes.of(self.model)
        self.traced = opdf.trace(self.model, self.inputs)
        attributes.require_same(self.model, "trace")
        self.row["attributes"] = len(attributes.entries)
        self.row.update(rung=self.traced.rung, rungs=dict(self.traced.rungs))
        self.row["notes"] = list(self.traced.notes)
        self.row["batch"] = self._batch()

    def match(self) -> None:
        """Every Linear and Conv weight is a match or a refusal."""
        self.report = opdf.match(self.traced)
        taken = census(self.model, lambda: outputs(self.model, self.inputs))
        found = coverage(self.model, taken, self.report)
        self.row.update(
            matches=len(self.report.matches),
            refusals=[{"key": r.key, "reason": r.reason} for r in self.report.refusals],
            weights=found.total,
            matched=found.matched,
            tied=found.tied,
            refused=dict(found.reasons),
            silent=list(found.silent),
        )
        if found.silent:
            raise CheckFailed(
                f"{len(found.silent)} Linear or Conv weights are neither a match nor a refusal: "
                f"{', '.join(found.silent[:3])}"
            )

    def choose(self) -> None:
        """A plan with so many cores for every weight."""
        self.plan = opdf.plan(self.traced, cores=self.cores)
        self.row.update(planned=len(self.plan.entries), scale=self.plan.scale)

    def expand(self) -> None:
        """Nothing is lost: neither in a weight nor in what the model computes."""
        self.form = FORMS["module" if self.traced.rung == "module" else "graph"](
            self.model, self.traced, self.plan
        )
        originals = dict(self.model.named_parameters())
        errors = require_lossless(
            {e.key: originals[e.key] for e in self.plan.entries}, self.form.weights()
        )
        self.row["lossless"] = max(errors.values())
        self._require_agreement(self.model, BATCH, errors, "expanded")
        if self.row["batch"] == "free":
            self._require_agreement(self.model, OTHER_BATCH, errors, "expanded, at another batch")
        self._round_trip()

    def train(self) -> None:
        """One step: a finite loss, and cores that move wherever the student has a gradient."""
        before = {e.key: [c.clone() for c in self.form.cores(e.key)] for e in self.plan.entries}
        self.row["loss"] = require_finite(self.form.step(self.inputs, RATE))
        idle = unchanged(before, {key: self.form.cores(key) for key in before})
        self.row["idle"] = len(idle)
        if len(idle) == len(before):
            raise CheckFailed("the training step moved no core at all")
        if idle:
            torch.manual_seed(0)
            student = self.form.untrained.train()
            loss_of(student(**self.inputs)).backward()  # type: ignore[no-untyped-call]
            require_idle(idle, student)

    def fold(self) -> None:
        """The class, keys, shapes and dtypes as before; the numbers that were trained."""
        self.folded = self.form.fold()
        require_form(self.model, self.folded)
        trained = self.form.unplanned(planned_names(self.plan))
        require_bits(trained, owned_tensors(self.folded), "fold changed what was not planned")
        plain = dict(self.folded.named_parameters())
        composed = self.form.weights()
        errors = {key: relative(plain[key], weight) for key, weight in composed.items()}
        self._require_agreement(self.folded, BATCH, errors, "folded")
        self.before.require_same(self.model)

    def export(self) -> None:
        """Structure and numbers against the untouched student's file; the free axes are free."""
        both = {m: Attributes.of(m) for m in (self.model, self.folded)}
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "bundle"
            opdf.export_onnx(self.folded, self.inputs, bundle, reference=self.model)
            for module, attributes in both.items():
                attributes.require_same(module, "export")
            report = opdf.verify(bundle, only="structure,numerics")
            sizes = run_at_other_sizes(self.folded, self.architecture, bundle / "student.onnx")
        self.row["export"] = {
            "structure": report.structure.verdict,
            "numerics": report.numerics.verdict,
            "nodes": report.structure.nodes,
            "error": report.numerics.max_rel_error,
            "differences": list(report.structure.differences[:3]),
            "sizes": sizes,
        }
        self.before.require_same(self.model)
        if not report:
            raise CheckFailed(_refuted(report))
        if self._eval_is_free() and not sizes:
            raise CheckFailed("the file fixes the batch, which the eval graph leaves free")

    def _round_trip(self) -> None:
        """Folded at once, the student is the one that came."""
        back = self.form.untrained
        require_form(self.model, back)
        originals, planned = owned_tensors(self.model), planned_names(self.plan)
        rest = {name: t for name, t in originals.items() if name not in planned}
        require_bits(rest, owned_tensors(back), "expand and fold changed what was not planned")
        weights = dict(back.named_parameters())
        keys = [entry.key for entry in self.plan.entries]
        require_lossless({k: originals[k] for k in keys}, {k: weights[k] for k in keys})

    def _batch(self) -> str:
        tensors = [t for t in self.inputs.values() if isinstance(t, Tensor)]
        free = [bool(axes.get(0)) for axes in self.traced.axis_names.values()]
        if self.traced.rung == "module" or (free and len(free) == len(tensors) and all(free)):
            return "free"
        return "partly" if any(free) else "fixed"

    def _eval_is_free(self) -> bool:
        return any(axes.get(0) for axes in self.traced.axis_names.values())

    def _require_agreement(
        self, student: nn.Module, batch: int, errors: dict[str, float], what: str
    ) -> None:
        """The trained form computes what the plain student computes."""
        inputs = self.architecture.example(batch)
        found: Agreement = compare(
            outputs(self.form.module, inputs),
            outputs(student, inputs),
            tolerances(student, inputs, errors),
        )
        self.row.setdefault("agreement", {})[what] = found.error
        if not found:
            raise CheckFailed(
                f"{what}: "
                + (
                    found.problem
                    or f"outputs differ by {found.difference:.1e}, {found.error:.1f} times what "
                    "rounding explains"
                )
            )


STEPS: tuple[tuple[str, Callable[[Journey], None]], ...] = (
    ("build", Journey.build),
    ("trace", Journey.trace),
    ("match", Journey.match),
    ("plan", Journey.choose),
    ("expand", Journey.expand),
    ("train", Journey.train),
    ("fold", Journey.fold),
    ("export", Journey.export),
)


def travel(architecture: Architecture, *, cores: int, export: bool, note: Note) -> dict[str, Any]:
    """Take one architecture through all steps.

    Args:
        architecture: What travels.
        cores: Cores per weight.
        export: Whether the last step is part of the journey.
        note: Told the row before each step and at the end.

    Returns:
        The row: figures, and where it failed if it did.
    """
    row = new_row(architecture, export)
    return walk(Journey(architecture, cores, row), STEPS, row, export=export, note=note)


def walk(
    journey: Any,
    steps: Sequence[tuple[str, Callable[[Any], None]]],
    row: dict[str, Any],
    *,
    export: bool,
    note: Note,
) -> dict[str, Any]:
    """Take a journey's steps one after the other, until one fails."""
    for name, step in steps:
        if name == "export" and not export:
            continue
        row["step"] = name
        note(row)
        started, worked = time.perf_counter(), time.process_time()
        try:
            step(journey)
        except Exception as error:  # Models, libraries and torch.export raise what they like.
            row.update(status="failed", reason=_reason(error))
        row["seconds"][name] = round(time.perf_counter() - started, 3)
        row["processor_seconds"] = round(row["processor_seconds"] + time.process_time() - worked, 3)
        row["peak_mib"] = peak_mib()
        if row["status"] == "failed":
            break
        row["reached"] = name
    else:
        row.update(status="passed", step=None)
    note(row)
    return row


def new_row(architecture: Architecture, export: bool) -> dict[str, Any]:
    """The row of an architecture that has not started."""
    return {
        "name": architecture.name,
        "library": architecture.library,
        "status": "running",
        "reason": None,
        "step": None,
        "reached": None,
        "date": date_of_today(),
        "export_asked": export,
        "seconds": {},
        "processor_seconds": 0.0,
        "peak_mib": None,
    }


def _reason(error: Exception) -> str:
    sentence = first_line(error)
    return sentence if isinstance(error, CheckFailed) else f"{type(error).__name__}: {sentence}"


def _refuted(report: opdf.ParityReport) -> str:
    if report.structure.verdict != "pass":
        found = report.structure.differences
        return f"structure: {found[0] if found else report.structure.verdict}"
    notes = report.environment.get("notes", ())
    return f"numerics {report.numerics.verdict}: {'; '.join(map(str, notes))[:300]}"
