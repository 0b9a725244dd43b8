"""onnxruntime sessions with every option that matters set, and its errors in one line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.errors import InputError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_FATAL_ONLY = 4  # onnxruntime's own log goes to stderr; what matters comes as an exception


def session(path: Path, threads: int = 1) -> InferenceSession:
    """A CPU session of an ONNX file: `threads` within an operator, one operator at a time.

    Raises:
        InputError: no such file, or not a model that onnxruntime takes.
    """
    import onnxruntime

    if not path.is_file():
        raise InputError(f"{path}: expected an ONNX file, got {'a folder' if path.is_dir() else 'nothing there'}")
    if threads < 1:
        raise InputError(f"threads: expected at least 1, got {threads}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _FATAL_ONLY
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no base class below Exception
        raise InputError(f"{path}: onnxruntime cannot load it: {_first_line(error)}") from error


def run(model: InferenceSession, array: np.ndarray) -> np.ndarray:
    """The first output of a model with one input, for `array` `(batch, ...)`.

    Raises:
        InputError: more than one input, or an array that does not fit it.
    """
    name = input_name(model)
    try:
        return np.asarray(model.run(None, {name: array})[0])
    except Exception as error:
        raise InputError(f"input {name!r} of shape {array.shape}: onnxruntime failed: {_first_line(error)}") from error


def input_name(model: InferenceSession) -> str:
    """The name of the one input of `model`; raises InputError where there are more."""
    inputs = model.get_inputs()
    if len(inputs) != 1:
        raise InputError(f"expected an ONNX model with one input, got {[value.name for value in inputs]}")
    return str(inputs[0].name)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
