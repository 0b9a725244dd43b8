"""An ONNX file beside its network in PyTorch: onnxruntime says what is right."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.formats.onnxin.nodes import Graph
from edgeprune.lines import first_line, one_line, shown

TOLERANCE = 1e-4  # of the largest number of an output
_FATAL_ONLY = 4


def check_equal(source: bytes | str | os.PathLike[str], graph: Graph, network: Any, inputs: Sequence[Tensor]) -> None:
    """Raise InputError where a network does not give what onnxruntime gives for the file.

    Args:
        source: the file's bytes, or its path where weights lie beside it.
        graph: of the file.
        network: takes the inputs.
        inputs: a value for each, `(batch, ...)`; where the file states its batch, as many rows are run at a time.
    """
    session = _session(source)
    states = graph.inputs[0].sizes[:1]
    stated = states[0] if states else None
    expected = _expected(session, graph, inputs, stated)
    found = network(*inputs)
    outputs = list(found.values()) if isinstance(found, dict) else [found]
    for name, own, wanted in zip(graph.outputs, outputs, expected, strict=True):
        _compare(name, own.detach(), wanted)


def _session(source: bytes | str | os.PathLike[str]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # its errors share no base class below Exception
        raise InputError(f"onnxruntime cannot load it: {one_line(first_line(error), 200)}") from error


def _expected(session: Any, graph: Graph, inputs: Sequence[Tensor], stated: int | None) -> list[np.ndarray]:
    """What onnxruntime gives, row by row where the file states its batch."""
    n_rows = int(inputs[0].shape[0]) if inputs[0].dim() else 1
    step = stated or n_rows
    runs = []
    for start in range(0, n_rows, step):
        feed = {
            given.name: x[start : start + step].numpy() if x.dim() else x.numpy()
            for given, x in zip(graph.inputs, inputs, strict=True)
        }
        try:
            runs.append([np.asarray(output) for output in session.run(list(graph.outputs), feed)])
        except Exception as error:
            raise InputError(f"onnxruntime cannot run it: {one_line(first_line(error), 200)}") from error
    if len(runs) == 1:
        return runs[0]
    return [_rows(parts) for parts in zip(*runs, strict=True)]


def _rows(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts[0].ndim else parts[0]


def _compare(name: str, own: Tensor, wanted: np.ndarray) -> None:
    where = f"output {shown(name)}: expected what onnxruntime gives"
    if tuple(own.shape) != wanted.shape:
        raise InputError(f"{where}, of shape {list(wanted.shape)}, got {list(own.shape)}")
    if wanted.size == 0:
        return
    expected = torch.from_numpy(np.ascontiguousarray(wanted))
    if not expected.is_floating_point():
        n_other = int((own.to(expected.dtype) != expected).sum())
        if n_other:
            raise InputError(f"{where}, got {n_other} of {wanted.size} numbers that are others")
        return
    _compare_floats(where, own.double(), expected.double())


def _compare_floats(where: str, own: Tensor, expected: Tensor) -> None:
    finite = torch.isfinite(expected)
    if not torch.equal(own[~finite].nan_to_num(), expected[~finite].nan_to_num()):
        raise InputError(f"{where}, got NaN or infinity elsewhere")
    if not bool(finite.any()):
        raise InputError(f"{where}, which is NaN or infinity everywhere")
    error = float((own - expected)[finite].abs().max())
    scale = max(float(expected[finite].abs().max()), 1e-12)
    if not error <= TOLERANCE * scale:
        raise InputError(f"{where} within {TOLERANCE:g} of its largest number, got {error / scale:.2g}")
