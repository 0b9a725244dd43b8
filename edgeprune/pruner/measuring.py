"""What a Pruner measures: this machine's profile where a latency is asked for, and files in onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from edgeprune.commands.onnxfile import draft, write_onnx
from edgeprune.commands.resolve import own_device
from edgeprune.cost.coverage import check_known
from edgeprune.errors import BudgetError
from edgeprune.export.parity import samples_of
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import analyze
from edgeprune.graph.specs import InputSpec, file_inputs, input_specs
from edgeprune.graph.tokens import only_kept
from edgeprune.measure.candidates import OnnxGauge, PeakGauge, foreign, is_held, timed
from edgeprune.measure.peaks import check_peak
from edgeprune.measure.profiling import Timing
from edgeprune.progress import Progress
from edgeprune.pruner.asked import Asked
from edgeprune.records import ModelInfo, Vocabulary
from edgeprune.results import LatencyComparison
from edgeprune.search.candidate import Gauge, Measured


@dataclass(frozen=True, slots=True)
class Measurements:
    """Both networks as files: their bytes, the slim one's error against PyTorch, and how long both take."""

    dense_bytes: int
    slim_bytes: int
    parity: float
    latency: LatencyComparison


class SizeGauge:
    """Measures the file's size beside the dense network's, where no budget asks for the time: it counts as equal."""

    def __init__(self, dense: Program) -> None:
        self._dense_bytes = _draft_bytes(dense)

    def __call__(self, program: Program, surely: bool) -> Measured:
        """A size is sure at once."""
        return Measured(1.0, 1.0, _draft_bytes(program), self._dense_bytes)


def _draft_bytes(program: Program) -> int:
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        path = Path(folder) / "draft.onnx"
        _draft(program, path)
        return path.stat().st_size


def info_of(program: Program) -> ModelInfo:
    """What the files of a run say of its network: the first input's shape as it was captured, without the batch."""
    first = input_specs(program)[0]
    return ModelInfo(input_shape=first.example[1:] if first.batched else first.example)


def _draft(program: Program, path: Path) -> None:
    draft(info_of(program), program, path)


def with_device(asked: Asked, dense: Program, told: Progress) -> Asked:
    """The choices with the profile that is planned with: the one given, or this machine's where a latency is asked for.

    Raises:
        InputError: the one given has not the network's layers.
    """
    device = asked.manner.device
    if device is not None:
        graph = analyze(dense, attention=asked.manner.attention)
        check_known(graph, device, "device", "make it with edgeprune profile, from the network as a .pt2")
        return asked
    if asked.budgets.max_latency is None:
        return asked
    device = own_device(dense, Timing(threads=asked.threads), told)
    return replace(asked, manner=replace(asked.manner, device=device))


def gauge_for(asked: Asked, dense: Program, told: Progress) -> Gauge | None:
    """What measures a network, where a budget is held by measuring it."""
    if not asked.budgets.is_measured:
        return None
    of_files = _file_gauge(asked, dense, told)
    return of_files if asked.budgets.max_ram is None else PeakGauge(dense, of_files)


def _file_gauge(asked: Asked, dense: Program, told: Progress) -> Gauge | None:
    if asked.budgets.max_latency is not None:
        feed = file_feed(dense, asked.manner.vocabularies)
        return OnnxGauge(dense, feed, asked.threads, told, _draft, foreign(asked.manner.device))
    return None if asked.budgets.max_bytes is None else SizeGauge(dense)


def file_feed(program: ExportedProgram, kept: Mapping[str, Vocabulary]) -> dict[str, np.ndarray]:
    """One row for each input of a program's file, by name; drawn, and seen to be taken. A state starts by itself.

    Ids are among those that are `kept`: what is cut of the program takes no others.
    """
    specs = input_specs(program)
    inputs = samples_of(program)[0].inputs
    rows = (_row(spec, array, kept.get(spec.name)) for spec, array in zip(specs, inputs, strict=True))
    return dict(zip(file_inputs(program), rows, strict=True))


def _row(spec: InputSpec, array: np.ndarray, kept: Vocabulary | None) -> np.ndarray:
    row = array[:1] if spec.batched else array
    return row if kept is None else only_kept(torch.from_numpy(row), kept).numpy()


def measured(asked: Asked, dense: Program, slim: Program, told: Progress) -> Measurements:
    """Export both networks, check the slim one against PyTorch, and time them in turn.

    Raises:
        BudgetError: the slim file misses a budget, by what was measured.
        InputError: ONNX cannot express the network.
        ParityError: a file disagrees with PyTorch.
    """
    told.stage("measure in onnxruntime")
    feed = file_feed(dense, asked.manner.vocabularies)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        paths = Path(folder) / "dense.onnx", Path(folder) / "slim.onnx"
        exports = [write_onnx(one, info_of(dense), path) for one, path in zip((dense, slim), paths, strict=True)]
        limit, device = asked.budgets.max_latency, asked.manner.device
        latency = timed(paths, feed, limit, device, threads=asked.threads, progress=told)
    found = Measurements(exports[0].size_bytes, exports[1].size_bytes, exports[1].parity, latency)
    _check(asked, found, slim)
    return found


def _check(asked: Asked, found: Measurements, slim: Program) -> None:
    latency, most = found.latency, asked.budgets.max_bytes
    if not is_held(latency, asked.budgets.max_latency, asked.manner.device):
        raise BudgetError(
            f"keep_latency {asked.budgets.max_latency}: got {latency.slim_p50_ms:.3g} ms, {latency.ratio:.3f} of the "
            f"dense network's {latency.dense_p50_ms:.3g} ms; try again on a quiet machine, or allow a little more"
        )
    if most is not None and found.slim_bytes > most:
        raise BudgetError(f"max_size: expected at most {most:,} bytes of ONNX, got {found.slim_bytes:,}")
    check_peak(slim, asked.budgets.max_ram, "max_ram")
