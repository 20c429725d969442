"""Reading an ONNX file that nobody vouches for; `io.onnx.files` does it for students as well."""

from opdf_compile.artefacts.onnx_file import load_onnx, load_with_data

__all__ = ["load_onnx", "load_with_data"]
