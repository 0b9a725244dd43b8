"""onnxruntime sessions with every option that matters set, and its errors in one line."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.errors import InputError
from edgeprune.lines import error_line, first_line, one_line
from edgeprune.memory import bounded_memory

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_FATAL_ONLY = 4  # onnxruntime's own log goes to stderr; what matters comes as an exception

# What a file is run on: an array for its one input, or one for each by name.
Feed = np.ndarray | Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a foreign network may take: `n_bytes` of memory that the process grows by, and `seconds` of one run."""

    n_bytes: int
    seconds: float


def session(path: Path, threads: int = 1, bounds: Bounds | None = None) -> InferenceSession:
    """A CPU session of an ONNX file: `threads` within an operator, one operator at a time.

    Args:
        path: the file.
        threads: within an operator.
        bounds: what a file that comes from anywhere may take while it is loaded; its constants are computed then.

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
    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    try:
        with bounded_memory(bounds.n_bytes) if bounds else nullcontext():
            # Without a fallback, which is the CPU again after a note on stdout.
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # its errors share no base class below Exception
        reason = first_line(error).replace(f"Load model from {path} failed:", "")
        raise InputError(f"{path}: onnxruntime cannot load it: {one_line(reason, 200)}") from error


def run(model: InferenceSession, array: np.ndarray, bounds: Bounds | None = None) -> np.ndarray:
    """The first output of a model with one input, for `array` `(batch, ...)`.

    Raises:
        InputError: more than one input, an array that does not fit it, or a run that takes more than `bounds`.
    """
    return run_by_name(model, {input_name(model): array}, bounds)[0]


def run_by_name(
    model: InferenceSession, inputs: Mapping[str, np.ndarray], bounds: Bounds | None = None
) -> list[np.ndarray]:
    """All outputs of a model for its inputs by name.

    Raises:
        InputError: inputs that are not the model's, or a run that takes more than `bounds`.
    """
    try:
        found = model.run(None, dict(inputs)) if bounds is None else _bounded_run(model, dict(inputs), bounds)
        return [np.asarray(output) for output in found]
    except InputError:  # of one that looks at what it gives, see `OneByOne`
        raise
    except Exception as error:
        shapes = ", ".join(f"input {name!r} of shape {array.shape}" for name, array in inputs.items())
        raise InputError(f"{shapes}: onnxruntime failed: {error_line(error)}") from error


def runner(path: Path, inputs: Feed, threads: int = 1) -> Callable[[], None]:
    """One inference of a file a call, with all that need not be timed done before; errors as `run_by_name`."""
    model = session(path, threads)
    feed = dict(inputs) if isinstance(inputs, Mapping) else {input_name(model): inputs}
    run_by_name(model, feed)  # says what is wrong with the inputs, if anything

    def once() -> None:
        model.run(None, feed)

    return once


def input_name(model: InferenceSession) -> str:
    """The name of the one input of `model`; raises InputError where there are more."""
    inputs = model.get_inputs()
    if len(inputs) != 1:
        raise InputError(f"expected an ONNX model with one input, got {[value.name for value in inputs]}")
    return str(inputs[0].name)


def _bounded_run(model: InferenceSession, inputs: dict[str, np.ndarray], bounds: Bounds) -> list[Any]:
    """onnxruntime looks between two operators whether it is to stop."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = _FATAL_ONLY
    timer = threading.Timer(bounds.seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        with bounded_memory(bounds.n_bytes):
            return list(model.run(None, inputs, options))
    except Exception as error:
        if options.terminate:
            raise TimeoutError(f"it took more than {bounds.seconds:.0f} s") from error
        raise
    finally:
        timer.cancel()
