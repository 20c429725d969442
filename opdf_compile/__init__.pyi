import opdf_compile.parametrizations.listing as _listing

from .distill.alignment import CoreAlignment as CoreAlignment
from .distill.alignment import JointPlan as JointPlan
from .distill.alignment import joint_plan as joint_plan
from .errors import OpdfError as OpdfError
from .errors import UserError as UserError
from .errors import WeightsChanged as WeightsChanged
from .foreign import FoldedModel as FoldedModel
from .foreign import fold_model as fold_model
from .graph import Match as Match
from .graph import MatchReport as MatchReport
from .graph import Refusal as Refusal
from .graph import Traced as Traced
from .graph import match as match
from .graph import trace as trace
from .io import Checkpoint as Checkpoint
from .io import export_onnx as export_onnx
from .io import latest_checkpoint as latest_checkpoint
from .io import load_checkpoint as load_checkpoint
from .io import load_onnx as load_onnx
from .io import save_checkpoint as save_checkpoint
from .io import write_check_data as write_check_data
from .parametrizations import register as register
from .parity import ParityReport as ParityReport
from .parity import verify as verify
from .planning import Plan as Plan
from .planning import plan as plan
from .training import Expanded as Expanded
from .training import Overparam as Overparam
from .training import WeightProgram as WeightProgram
from .training import attach as attach
from .training import branch as branch
from .training import expand as expand
from .training import fold as fold
from .training import hoist as hoist
from .training import overparam_class as overparam_class

def parametrizations() -> _listing.Listing: ...

__all__: list[str]
__version__: str
