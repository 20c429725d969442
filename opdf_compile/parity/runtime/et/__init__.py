"""ExecuTorch: the program beside an ONNX file, on the processor with XNNPACK."""
