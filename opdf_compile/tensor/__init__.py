"""Tensor algebra of matrix product operators: torch in, torch out; knows no graph and no file."""
