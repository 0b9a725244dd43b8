"""What a file is that no model can be read from, by its first bytes, and what its owner can do about it."""

from __future__ import annotations

import re

_FLOAT = "give the PyTorch network that it was made from"
# First bytes -> what writes such a file, and the way out.
_STARTS = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras .h5)", "edgeprune prunes PyTorch networks"),
    (b"GGUF", "a GGUF file (llama.cpp)", _FLOAT),
    (b"\x93NUMPY", "a NumPy array", "weights are read as a state_dict (torch.save, safetensors)"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", "unpack it first"),
    (b"BZh", "a bzip2 archive", "unpack it first"),
    (b"\xfd7zXZ\x00", "an xz archive", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"version https://git-lfs", "a pointer of Git LFS instead of the file", "fetch the file: git lfs pull"),
    (b"<", "a web page or XML", "was it downloaded whole?"),
)
_FLATBUFFERS = {
    b"TFL3": ("a TensorFlow Lite file", _FLOAT),
    b"ORTM": ("an ORT-format file", _FLOAT),
    b"ET12": ("an ExecuTorch file", _FLOAT),
}
# A protobuf whose field 1 is a small number (ir_version), and whose next is a text or the graph.
_ONNX = re.compile(rb"\x08[\x01-\x20](?:\x12.|\x3a|\x42)", re.DOTALL)
_ZIP_PARTS = (
    ("saved_model.pb", "a TensorFlow SavedModel", "edgeprune prunes PyTorch networks"),
    ("model.weights.h5", "a Keras file", "edgeprune prunes PyTorch networks"),
    ("MAR-INF/MANIFEST.json", "a TorchServe archive", "unpack it and give its weights"),
)


def foreign_kind(data: bytes) -> str | None:
    """E.g. "an ONNX file; give the PyTorch network that it was made from"; None for what is not known."""
    for start, kind, remedy in _STARTS:
        if data.lstrip()[: len(start)] == start if start == b"<" else data.startswith(start):
            return f"{kind}; {remedy}"
    if data[4:8] in _FLATBUFFERS:
        return "; ".join(_FLATBUFFERS[data[4:8]])
    if data[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    return None


def starts_as_onnx(data: bytes) -> bool:
    """Whether a file begins as those of ONNX do."""
    return _ONNX.match(data) is not None


def foreign_zip(names: list[str]) -> str | None:
    """What a zip is that holds these records, their root folder taken off or not; None for what is not known."""
    for part, kind, remedy in _ZIP_PARTS:
        if any(name == part or name.endswith(f"/{part}") for name in names):
            return f"{kind}; {remedy}"
    if names and all(name.endswith(".npy") for name in names):
        return "an .npz of arrays; weights are read as a state_dict (torch.save, safetensors)"
    return None


def is_torchscript(names: list[str]) -> bool:
    """Whether a zip with these records, below their root folder, is what `torch.jit.save` writes."""
    return {"constants.pkl", "data.pkl"} <= set(names) or any(name.startswith("code/__torch__") for name in names)


def pickled_class(message: str) -> str | None:
    """The class that the weights-only loader stopped at, e.g. `ultralytics.nn.tasks.DetectionModel`."""
    found = re.search(r"GLOBAL ([\w.]{1,120})", message)
    return found[1] if found else None
