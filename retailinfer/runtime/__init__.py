"""Running models: `session.py` opens an ONNX model; `fallback.py` is the same on onnxruntime's Python package."""
