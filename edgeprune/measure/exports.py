"""The files of an export timed beside the dense network, each in its own runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeprune.export.executorch import write_executorch
from edgeprune.export.executorch_runtime import executorch_runner
from edgeprune.export.onnx import draft_onnx
from edgeprune.measure.latency import measure_files, measure_runners
from edgeprune.progress import Progress
from edgeprune.records import Model
from edgeprune.results import ExportedFile

_SECONDS = 6.0  # of one runtime


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """The dense network, and one of its inputs, `(1, ...)`."""

    model: Model
    example: np.ndarray


def beside_dense(
    files: Sequence[ExportedFile], dense: Dense, example: np.ndarray, plain: np.ndarray, told: Progress
) -> list[ExportedFile]:
    """The files with their latency, where they hold the network.

    Args:
        files: what was written, in a folder of its own.
        dense: what they are timed beside.
        example: one input `(batch, ...)` of the ONNX and the ORT file.
        plain: the same, normalised, as the .pte file takes it.
        told: told of the progress.
    """
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as place:
        timed = _in_onnxruntime(files, dense, example, Path(place), told)
        timed |= _in_executorch(files, dense, plain, Path(place), told)
    figures = [timed.get(file.path, (None, None)) for file in files]
    return [replace(file, p50_ms=ms, ratio=ratio) for file, (ms, ratio) in zip(files, figures, strict=True)]


def _in_onnxruntime(
    files: Sequence[ExportedFile], dense: Dense, example: np.ndarray, place: Path, told: Progress
) -> dict[str, tuple[float, float]]:
    paths = [Path(file.path) for file in files if Path(file.path).suffix in (".onnx", ".ort")]
    paths = [path for path in paths if path.name not in ("full.onnx", "preprocess.onnx")]
    draft_onnx(dense.model.program, place / "dense.onnx")
    inputs = [np.repeat(dense.example, len(example), axis=0), *[example] * len(paths)]
    times = measure_files([place / "dense.onnx", *paths], inputs, max_seconds=_SECONDS, progress=told)
    return _figures([str(path) for path in paths], times)


def _in_executorch(
    files: Sequence[ExportedFile], dense: Dense, plain: np.ndarray, place: Path, told: Progress
) -> dict[str, tuple[float, float]]:
    paths = [Path(file.path) for file in files if Path(file.path).suffix == ".pte"]
    if not paths:
        return {}
    file, inputs = place / "dense.pte", np.repeat(dense.example, len(plain), axis=0)
    write_executorch(dense.model.program, file, None, batch=len(plain))
    runners = [executorch_runner(file, inputs), *(executorch_runner(path, plain) for path in paths)]
    return _figures([str(path) for path in paths], measure_runners(runners, max_seconds=_SECONDS, progress=told))


def _figures(names: Sequence[str], times: np.ndarray) -> dict[str, tuple[float, float]]:
    """File -> its p50 and that over the first column's, the dense network's."""
    medians = np.median(times, axis=0)
    return {name: (float(ms), float(ms / medians[0])) for name, ms in zip(names, medians[1:], strict=True)}
