"""Reading an ONNX file that nobody vouches for; `io.onnx_files` does it for students as well."""

from opdf_compile.io.onnx_files import load_onnx, load_with_data

__all__ = ["load_onnx", "load_with_data"]
