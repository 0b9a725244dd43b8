"""ExecuTorch's runtime: whether it is there, and .pte files run in it, with its own words where they fail."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeprune.errors import InputError
from edgeprune.runtimes import target

MAX_BYTES = 2**31 - 2**20
_METHOD = "forward"


def check_installed() -> None:
    """Refuse early where ExecuTorch is missing or broken.

    Raises:
        InputError: says which extra to install.
    """
    advice = target("executorch").install
    if importlib.util.find_spec("executorch") is None:
        raise InputError(f"ExecuTorch is not installed: {advice}")
    try:
        with _quiet_import():
            import executorch.backends.xnnpack.partition.xnnpack_partitioner
            import executorch.exir
            import executorch.runtime  # noqa: F401 - all that is needed later
    except ImportError as error:
        raise InputError(f"ExecuTorch is installed but does not load ({error}): {advice}") from error


def executorch_runner(path: Path, inputs: Any, threads: int = 1) -> Callable[[], None]:
    """One inference of a .pte file per call, with all that need not be timed done before.

    Args:
        path: the file.
        inputs: array of the batch that the file takes (a sequence of them for several inputs).
        threads: of XNNPACK. The number is the process's: runners that are timed in turn must have the same one.

    Raises:
        InputError: ExecuTorch is not installed, or the file does not load or run on the inputs.
    """
    check_installed()
    if threads < 1:
        raise InputError(f"threads: expected at least 1, got {threads}")
    if not path.is_file() or not 0 < path.stat().st_size <= MAX_BYTES:
        raise InputError(f"{path}: expected a .pte file of 1 byte to 2 GiB")
    arrays = [inputs] if isinstance(inputs, (np.ndarray, torch.Tensor)) else list(inputs)
    tensors = [torch.as_tensor(array).contiguous() for array in arrays]
    method = Method(path.read_bytes(), str(path), threads)
    method.run(tensors)
    return lambda: method.run_unwatched(tensors)


class Method:
    """The one method of a .pte file, ready to run."""

    def __init__(self, content: bytes, name: str, threads: int | None = None) -> None:
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        self._name = name
        with _runtime_log() as log:
            try:
                if threads is not None and portable_lib._threadpool_get_thread_count() != threads:
                    portable_lib._unsafe_reset_threadpool(threads)
                self._program = Runtime.get().load_program(content)
                self._method: Any = self._program.load_method(_METHOD)
            except (RuntimeError, KeyError) as error:
                raise InputError(f"{name}: ExecuTorch cannot load it: {_reason(log(), error)}") from error

    def run(self, inputs: Sequence[Any]) -> list[np.ndarray]:
        """All output tensors; raises InputError, in the runtime's own words, where it fails."""
        with _runtime_log() as log:
            try:
                outputs = self._method.execute(inputs)
            except RuntimeError as error:
                raise InputError(f"{self._name}: ExecuTorch cannot run it: {_reason(log(), error)}") from error
        return [output.detach().numpy() for output in outputs if isinstance(output, torch.Tensor)]

    def run_unwatched(self, inputs: Sequence[Any]) -> None:
        """The same without what only matters at the first time."""
        self._method.execute(inputs)


def kernels() -> set[str]:
    """The kernels that the runtime has, e.g. `aten::sum.IntList_out`."""
    from executorch.runtime import Runtime

    with _runtime_log():
        return Runtime.get().operator_registry.operator_names


def _reason(log: str, error: BaseException) -> str:
    """What the runtime said of a failure: the operator if it names one, and the first of its messages."""
    said = [match.group(1).strip() for match in re.finditer(r"^\[[\w.]+:\d+\] (.+)$", log, re.MULTILINE)]
    said = [text for text in said if not text.startswith(("Reading file", "Failed to open midr", "CPU info", "Reset"))]
    operator = re.search(r"in operator ([\w:.]+?):? ", log)
    named = f"{operator.group(1).replace('::', '.')}: " if operator else ""
    return named + (said[0] if said else str(error))


@contextlib.contextmanager
def _runtime_log() -> Iterator[Callable[[], str]]:
    """Keep what ExecuTorch's C++ writes to `sys.stderr` from the user, and yield a function that gives it."""
    log = io.StringIO()
    with contextlib.redirect_stderr(log):
        yield log.getvalue


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Keep away what torchao and PyTorch say while ExecuTorch is imported."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
