"""An ONNX file beside its network in PyTorch: onnxruntime says what is right."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.formats.onnxin.batchdims import as_in_file
from edgeprune.formats.onnxin.beneath import file_beneath, graph_beneath, is_faint
from edgeprune.formats.onnxin.network import network_of
from edgeprune.formats.onnxin.nodes import Graph
from edgeprune.graph.comparison import TIMES_ROUNDING, outputs_in_float64, own_rounding
from edgeprune.graph.comparison import outputs as outputs_of
from edgeprune.lines import first_line, one_line, shown

TOLERANCE = 1e-4  # of the largest number of an output
_MOST = 1e-2  # beyond which right and wrong cannot be told apart
_TINY = 1e-12
_FATAL_ONLY = 4


def check_equal(
    source: bytes | str | os.PathLike[str], graph: Graph, network: nn.Module, inputs: Sequence[Tensor]
) -> None:
    """Raise InputError where a network does not give what onnxruntime gives for the file.

    A difference is rounding where it is no larger than a few times the network's own, which float64 tells: a variance
    that is written as a mean of squares less a squared mean rounds much.

    Args:
        source: the file's bytes, or its path where weights lie beside it.
        graph: of the file.
        network: takes the inputs; it is not used again, as it may become one in float64.
        inputs: a value for each, `(batch, ...)`; where the file states its batch, as many rows are run at a time.
    """
    session = _session(source)
    states = graph.inputs[0].sizes[:1]
    stated = states[0] if states else None
    outputs = outputs_of(network, inputs)
    expected = _expected(session, graph, inputs, stated, outputs)
    in_float64 = cache(lambda: outputs_in_float64(network, inputs))
    for place, (name, own, wanted) in enumerate(zip(graph.outputs, outputs, expected, strict=True)):
        try:
            _compare(name, own, wanted)
        except InputError:
            if _is_right_beneath(source, graph, name, own, wanted, inputs):
                continue
            exact = in_float64()
            rounding = own_rounding(own, exact[place]) if exact else 0.0
            if not rounding:
                raise
            _compare(name, own, wanted, rounding)


def _is_right_beneath(  # noqa: PLR0913 - a file, an output of it, and what was compared
    source: bytes | str | os.PathLike[str],
    graph: Graph,
    name: str,
    own: Tensor,
    wanted: np.ndarray,
    inputs: Sequence[Tensor],
) -> bool:
    """Whether an output differs by a rounding of 1 alone, and what its operator was taken of is onnxruntime's.

    Raises:
        InputError: that is another.
    """
    inner = graph_beneath(graph, name) if is_faint(own, wanted) else None
    states_batch = bool(graph.inputs[0].sizes) and graph.inputs[0].sizes[0] is not None
    if inner is None or isinstance(source, bytes) or states_batch:
        return False
    check_equal(file_beneath(os.fspath(source), inner), inner, network_of(inner), inputs)
    return True


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


def _expected(
    session: Any, graph: Graph, inputs: Sequence[Tensor], stated: int | None, own: Sequence[Tensor]
) -> list[np.ndarray]:
    """What onnxruntime gives, row by row where the file states its batch; laid together as the `own` outputs are."""
    n_rows = int(inputs[0].shape[0]) if inputs[0].dim() else 1
    step = stated or n_rows
    settled = {name: tensor.numpy() for name, tensor in graph.settled.items()}
    runs = []
    for start in range(0, n_rows, step):
        feed = {
            given.name: np.ascontiguousarray(as_in_file(x[start : start + step] if x.dim() else x, given.batch_dim))
            for given, x in zip(graph.inputs, inputs, strict=True)
        }
        try:
            runs.append(
                [
                    _batch_first(graph, *found)
                    for found in zip(graph.outputs, session.run(list(graph.outputs), {**settled, **feed}), strict=True)
                ]
            )
        except Exception as error:
            raise InputError(f"onnxruntime cannot run it: {one_line(first_line(error), 200)}") from error
    if len(runs) == 1:
        return runs[0]
    outputs = zip(graph.outputs, zip(*runs, strict=True), own, strict=True)
    return [_rows(name, parts, tuple(output.shape)) for name, parts, output in outputs]


def _batch_first(graph: Graph, name: str, output: Any) -> np.ndarray:
    array = np.asarray(output)
    return np.moveaxis(array, graph.batch_dims[name], 0) if name in graph.batch_dims else array


def _rows(name: str, parts: Sequence[np.ndarray], own: tuple[int, ...]) -> np.ndarray:
    """One array of all rows, along the dim that holds them: it may be the second, as in `(steps, batch, classes)`.

    What is the same for all rows, such as a detector's anchors, stands for them once.
    """
    if parts[0].shape == own and all(np.array_equal(part, parts[0], equal_nan=True) for part in parts[1:]):
        return parts[0]
    if not parts[0].ndim:
        raise InputError(f"output {shown(name)}: expected one number of any batch, got others of other rows")
    more = [dim for dim, (size, part) in enumerate(zip(own, parts[0].shape, strict=False)) if size != part]
    return np.concatenate(parts, axis=more[0] if len(more) == 1 else 0)


def _compare(name: str, own: Tensor, wanted: np.ndarray, rounding: float = 0.0) -> None:
    where = f"output {shown(name)}: expected what onnxruntime gives"
    if tuple(own.shape) != wanted.shape:
        raise InputError(f"{where}, of shape {list(wanted.shape)}, got {list(own.shape)}")
    if wanted.size == 0:
        return
    expected = torch.from_numpy(np.array(wanted))  # not ascontiguousarray, which makes a single number a list of one
    if not expected.is_floating_point():
        n_other = int((own.to(expected.dtype) != expected).sum())
        if n_other:
            raise InputError(f"{where}, got {n_other} of {wanted.size} numbers that are others")
        return
    _compare_floats(where, own.double(), expected.double(), rounding)


def _compare_floats(where: str, own: Tensor, expected: Tensor, rounding: float) -> None:
    finite = torch.isfinite(expected)
    if not torch.equal(own[~finite].nan_to_num(), expected[~finite].nan_to_num()):
        raise InputError(f"{where}, got NaN or infinity elsewhere")
    if not bool(finite.any()):
        raise InputError(f"{where}, which is NaN or infinity everywhere")
    error = float((own - expected)[finite].abs().max())
    scale = max(float(expected[finite].abs().max()), _TINY)
    allowed = max(TOLERANCE, min(TIMES_ROUNDING * rounding / scale, _MOST))
    if not error <= allowed * scale:
        raise InputError(f"{where} within {allowed:.2g} of its largest number, got {error / scale:.2g}")
