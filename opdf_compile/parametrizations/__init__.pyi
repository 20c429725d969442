from .base import Spec as Spec
from .base import Term as Term
from .mpo_spec import MpoSpec as MpoSpec
from .mpo_spec import matrix_sizes as matrix_sizes
from .registry import register as register
from .registry import registered as registered
from .registry import registered_names as registered_names
