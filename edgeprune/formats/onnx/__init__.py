"""ONNX files, read with care."""
