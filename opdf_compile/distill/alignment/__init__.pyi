from .core_alignment import CoreAlignment as CoreAlignment
from .joint import JointPlan as JointPlan
from .joint import joint_plan as joint_plan
