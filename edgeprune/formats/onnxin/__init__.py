"""ONNX in: the operators of a file as PyTorch's, from which an ordinary program is captured."""

from edgeprune.formats.onnxin.reading import OnnxFile, is_onnx, program_of, read_network

__all__ = ["OnnxFile", "is_onnx", "program_of", "read_network"]
