"""Optimizer classes of many packages, plain and over-parameterised."""
