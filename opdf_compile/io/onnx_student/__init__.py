"""An ONNX file as a student: its nodes as torch code, its weights as Parameters, and back again."""
