"""Branches with batch statistics beside a convolution and its BatchNorm, and how they fold."""
