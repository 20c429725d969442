"""The tensor constraint loss: a student's auxiliary cores are drawn to its teacher's.

L_Aux = 1/n_aux  sum over auxiliary cores of MSE(student core, teacher core)

The central core is in no sum. The gauge is fixed once at the start (see `tensor.gauge`).
Source: arXiv 2411.06448, eq. 5.
"""

from __future__ import annotations

from opdf_compile.distill.alignment.core_alignment import CoreAlignment
from opdf_compile.distill.alignment.joint import JointPlan, joint_plan
from opdf_compile.distill.alignment.report import AlignmentReport

__all__ = ["AlignmentReport", "CoreAlignment", "JointPlan", "joint_plan"]
