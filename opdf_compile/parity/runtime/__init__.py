"""ONNX Runtime: checked files, resolved devices, sessions and runs."""
