"""What expand and fold write, and how such a file is folded."""
