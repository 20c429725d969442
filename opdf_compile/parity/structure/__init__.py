"""Graphs: linked views, the walk that compares them, differences with their neighbourhood."""
