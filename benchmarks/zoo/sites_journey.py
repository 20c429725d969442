"""One architecture with branches beside its convolutions, step by step, with a check after each.

trace -> sites -> branch -> expand -> train -> fold -> [export -> verify]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import opdf_compile as opdf
from opdf_compile.errors import PlanError
from opdf_compile.graph import Site, find_sites
from zoo.agreement import compare, outputs, tolerances
from zoo.architecture import Architecture, Inputs
from zoo.checks import CheckFailed, Snapshot, loss_of, require_bits, require_finite, require_form
from zoo.journey import BATCH, RATE, Note, new_row, walk

_NORM = nn.modules.batchnorm._BatchNorm


@dataclass
class SitesJourney:
    """What the steps hand on.

    Attributes:
        architecture: What travels.
        form: The branches, as `parametrization=` names them.
        row: The figures so far.
    """

    architecture: Architecture
    form: str
    row: dict[str, Any]
    model: nn.Module = field(init=False)
    inputs: Inputs = field(init=False)
    before: Snapshot = field(init=False)
    traced: opdf.Traced = field(init=False)
    plan: opdf.Plan | None = None
    trained: dict[str, nn.Module] = field(default_factory=dict)
    folded: dict[str, nn.Module] = field(default_factory=dict)

    def build(self) -> None:
        """Build the model, with norms whose numbers are not those that torch starts from."""
        self.model = self.architecture.build()
        self.inputs = self.architecture.example(BATCH)
        drawn = torch.Generator().manual_seed(0)
        norms = [module for module in self.model.modules() if isinstance(module, _NORM)]
        with torch.no_grad():
            for norm in norms:
                if norm.affine and norm.running_mean is not None and norm.running_var is not None:
                    norm.weight.mul_(1 + 0.2 * torch.rand(norm.weight.shape, generator=drawn))
                    norm.running_mean.add_(
                        0.1 * torch.randn(norm.running_mean.shape, generator=drawn)
                    )
        parameters = sum(p.numel() for p in self.model.parameters())
        self.row.update(parameters=parameters, norms=len(norms))
        outputs(self.model, self.inputs)
        self.before = Snapshot.of(self.model)

    def trace(self) -> None:
        """One graph per phase."""
        self.traced = opdf.trace(self.model, self.inputs)
        self.row["rung"] = self.traced.rung

    def sites(self) -> None:
        """Each weight of a convolution is a site with branches, or says why not."""
        found = find_sites(self.traced)
        self.row["sites"] = sum(isinstance(site, Site) for site in found.values())
        try:
            self.plan = opdf.plan(self.traced, parametrization=self.form, min_size=1)
        except PlanError as error:
            if "no weight is left to plan" not in str(error):
                raise
            self._require_a_word_for_each(found)
            said = found if self.row["norms"] else {}
            reasons = {key: reason for key, reason in said.items() if isinstance(reason, str)}
            self.row.update(planned=0, refusals=_rows(reasons))
            return
        reasons = {r.key: r.reason for r in self.plan.refusals}
        self.row.update(planned=len(self.plan.sites), refusals=_rows(reasons))
        self._require_a_word_for_each({s.key for s in self.plan.sites} | reasons.keys())

    def _require_a_word_for_each(self, said: Container[str]) -> None:
        """Every convolution module has a site, or a reason."""
        convs = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        modules = dict(self.model.named_modules()).items()
        silent = [
            f"{n}.weight"
            for n, m in modules
            if isinstance(m, convs) and isinstance(m.weight, nn.Parameter)
        ]
        silent = [name for name in silent if name not in said]
        if silent:
            raise CheckFailed(f"{len(silent)} convolutions without a word: {silent[0]}")

    def branch(self) -> None:
        """The module form computes what the student does; where it cannot, it says why."""
        if self.plan is None:
            return
        try:
            self.trained["modules"] = opdf.branch(self.model, self.plan)
        except PlanError as error:
            self.row["inline_only"] = str(error)
            return
        self._require_agreement("modules", self.trained["modules"], self.model)

    def expand(self) -> None:
        """So does the inline form."""
        if self.plan is None:
            return
        self.trained["inline"] = opdf.expand(self.traced, self.plan)
        self._require_agreement("inline", self.trained["inline"], self.model)

    def train(self) -> None:
        """Two steps: the gains move from 0, and then what is before them."""
        for name, module in self.trained.items():
            before = {n: p.detach().clone() for n, p in module.named_parameters()}
            for seed in range(2):
                torch.manual_seed(seed)
                module.train()
                loss = loss_of(module(**self.inputs))
                self.row.setdefault("loss", {})[name] = require_finite(loss)
                loss.backward()  # type: ignore[no-untyped-call]
                with torch.no_grad():
                    for parameter in module.parameters():
                        if parameter.grad is not None:
                            parameter.sub_(parameter.grad, alpha=RATE)
                            parameter.grad = None
            beside = [n for n in before if "branches." in n]
            after = dict(module.named_parameters())
            still = [n for n in beside if torch.equal(before[n], after[n])]
            self.row.setdefault("still", {})[name] = len(still)
            if len(still) == len(beside):
                raise CheckFailed(f"{name}: two steps moved no branch at all")

    def fold(self) -> None:
        """Class, keys and flags as before; outputs as with branches; the caller's untouched."""
        for name, module in self.trained.items():
            folded = opdf.fold(module)
            folded.train(self.model.training)
            require_form(self.model, folded)
            self.folded[name] = folded
            self._require_agreement(f"{name}, folded", folded, module, like=folded)
        self.before.require_same(self.model)
        if len(self.folded) == 2:
            counters = [
                {n: b for n, b in m.named_buffers() if n.endswith("num_batches_tracked")}
                for m in self.folded.values()
            ]
            require_bits(counters[0], counters[1], "the two forms count batches differently")

    def export(self) -> None:
        """Structure and numbers against the untouched student's file."""
        if not self.folded:
            return
        student = next(iter(self.folded.values()))
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "bundle"
            opdf.export_onnx(student, self.inputs, bundle, reference=self.model)
            report = opdf.verify(bundle, only="structure,numerics")
        self.row["export"] = {
            "structure": report.structure.verdict,
            "numerics": report.numerics.verdict,
            "error": report.numerics.max_rel_error,
        }
        if not report:
            raise CheckFailed(f"parity: {report.structure.verdict}, {report.numerics.verdict}")

    def _require_agreement(
        self, what: str, found: nn.Module, wanted: nn.Module, like: nn.Module | None = None
    ) -> None:
        """Outputs in eval mode; what rounding explains is measured on a plain student."""
        plain = like or wanted
        errors = {n: 2.0**-24 for n, p in plain.named_parameters() if p.ndim > 1}
        allowed = tolerances(plain, self.inputs, errors)
        gap = compare(outputs(found, self.inputs), outputs(wanted, self.inputs), allowed)
        self.row.setdefault("agreement", {})[what] = gap.error
        if not gap:
            raise CheckFailed(
                f"{what}: {gap.problem or f'outputs differ by {gap.difference:.1e}'}, "
                f"{gap.error:.1f} times what rounding explains"
            )


def _rows(reasons: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "reason": reason} for key, reason in reasons.items()]


STEPS: tuple[tuple[str, Callable[[SitesJourney], None]], ...] = (
    ("build", SitesJourney.build),
    ("trace", SitesJourney.trace),
    ("sites", SitesJourney.sites),
    ("branch", SitesJourney.branch),
    ("expand", SitesJourney.expand),
    ("train", SitesJourney.train),
    ("fold", SitesJourney.fold),
    ("export", SitesJourney.export),
)


def travel_sites(
    architecture: Architecture, *, form: str, export: bool, note: Note
) -> dict[str, Any]:
    """Take one architecture through all steps; arguments as of `travel`."""
    row = new_row(architecture, export)
    return walk(SitesJourney(architecture, form, row), STEPS, row, export=export, note=note)
