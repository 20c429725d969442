"""The MODEL argument: every way in which a model, its weights and its inputs are read."""
