"""Checkpoint folders: JSON and safetensors, written at once, read on any number of ranks."""
