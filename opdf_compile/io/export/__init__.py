"""From a torch model to an ONNX file: translations, sizes, names, and the file itself."""
