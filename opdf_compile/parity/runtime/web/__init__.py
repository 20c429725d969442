"""onnxruntime-web: WASM under node, a process of its own that is asked over its pipes."""
