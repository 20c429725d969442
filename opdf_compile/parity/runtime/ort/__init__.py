"""ONNX Runtime: resolved devices, sessions and runs."""
