"""What ships, as it is read again: ONNX files, their record and interface, check data, bundles."""
