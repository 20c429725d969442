"""Distillation: data, losses and training loops that show what over-parameterisation gains."""
