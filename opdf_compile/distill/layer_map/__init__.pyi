from .copying import CopyReport as CopyReport
from .copying import copy_layers as copy_layers
from .finding import found_map as found_map
from .rule import every_kth as every_kth
from .value import LayerMap as LayerMap
