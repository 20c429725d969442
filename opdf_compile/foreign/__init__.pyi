from .folding import By as By
from .folding import FoldedModel as FoldedModel
from .folding import fold_model as fold_model
