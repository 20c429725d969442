"""opdf-compile: over-parameterise a student while it trains, fold it back, prove it is the same.

    import opdf_compile as opdf

    traced = opdf.trace(student, (x,))
    plan = opdf.plan(traced, cores=3)
    training = opdf.expand(traced, plan)     # train it
    student = opdf.fold(training)            # the class you came with, plain weights
    opdf.export_onnx(student, (x,), "out/", reference=untouched)
    assert opdf.verify("out/")

or, with over-parameterisation as a property of the optimizer:

    opt = opdf.Overparam(student, torch.optim.AdamW, lr=2e-5, cores=3)   # train as always

Every name is imported when it is first used, so that importing this package costs little more than
importing torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opdf_compile.distill.alignment.core_alignment import CoreAlignment
    from opdf_compile.distill.alignment.joint import JointPlan, joint_plan
    from opdf_compile.errors import OpdfError, UserError, WeightsChanged
    from opdf_compile.graph.matching import match
    from opdf_compile.graph.rows import Match, MatchReport, Refusal
    from opdf_compile.graph.tracing import Traced, trace
    from opdf_compile.io.checkpoints.checkpoint import (
        Checkpoint,
        latest_checkpoint,
        load_checkpoint,
        save_checkpoint,
    )
    from opdf_compile.io.export.exporting import export_onnx
    from opdf_compile.io.export.foreign_check import write_check_data
    from opdf_compile.io.onnx_student.reading import load_onnx
    from opdf_compile.parametrizations.registry import register
    from opdf_compile.parity.report.value import ParityReport
    from opdf_compile.parity.verdict import verify
    from opdf_compile.planning.choose import plan
    from opdf_compile.planning.value import Plan
    from opdf_compile.training.folding import fold
    from opdf_compile.training.hoisted.hoisting import hoist
    from opdf_compile.training.hoisted.program import WeightProgram
    from opdf_compile.training.inline.expanded import Expanded
    from opdf_compile.training.inline.expanding import expand
    from opdf_compile.training.optimizer.overparam import Overparam, overparam_class

__version__ = "0.2.0"

_HOME = {
    "CoreAlignment": "distill.alignment.core_alignment",
    "JointPlan": "distill.alignment.joint",
    "joint_plan": "distill.alignment.joint",
    "OpdfError": "errors",
    "UserError": "errors",
    "WeightsChanged": "errors",
    "Match": "graph.rows",
    "MatchReport": "graph.rows",
    "Refusal": "graph.rows",
    "match": "graph.match",
    "Traced": "graph.trace",
    "trace": "graph.trace",
    "register": "parametrizations.registry",
    "Plan": "plan.value",
    "plan": "plan.choose",
    "Expanded": "training.inline.expanded",
    "expand": "training.inline.expanding",
    "fold": "training.folding",
    "hoist": "training.hoisted.hoisting",
    "Overparam": "training.optimizer.overparam",
    "overparam_class": "training.optimizer.overparam",
    "WeightProgram": "training.hoisted.program",
    "export_onnx": "io.onnx.export",
    "load_onnx": "io.onnx_student.reading",
    "Checkpoint": "io.checkpoints.checkpoint",
    "latest_checkpoint": "io.checkpoints.checkpoint",
    "load_checkpoint": "io.checkpoints.checkpoint",
    "save_checkpoint": "io.checkpoints.checkpoint",
    "ParityReport": "verify.report.value",
    "verify": "verify.verdict",
    "write_check_data": "io.foreign_check",
}

__all__ = [
    "Checkpoint",
    "CoreAlignment",
    "Expanded",
    "JointPlan",
    "Match",
    "MatchReport",
    "OpdfError",
    "Overparam",
    "ParityReport",
    "Plan",
    "Refusal",
    "Traced",
    "UserError",
    "WeightProgram",
    "WeightsChanged",
    "expand",
    "export_onnx",
    "fold",
    "hoist",
    "joint_plan",
    "latest_checkpoint",
    "load_checkpoint",
    "load_onnx",
    "match",
    "overparam_class",
    "plan",
    "register",
    "save_checkpoint",
    "trace",
    "verify",
    "write_check_data",
]


class _Package(ModuleType):
    """Keeps `opdf.plan` and `opdf.verify` functions.

    Importing the subpackage of the same name sets it as an attribute of its parent; that assignment
    is dropped here. ``from opdf_compile.planning import Plan`` works as ever.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOME[name]}")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
