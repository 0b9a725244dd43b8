"""An int8 file whose weights were finetuned as they are rounded, where int8 after training loses too much.

The file is made as any other: the finetuned weights go back into the float file, which is quantised anew, by the ranges
of the activations that were learnt with them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn

from edgeprune.errors import InputError, NotFiniteError, TrainingError, came_from_outside
from edgeprune.export.fakequant import FakeQuantized, OnnxModule
from edgeprune.export.floatfile import open_float
from edgeprune.export.judging import Judge, Judged, QuantizedFile, check_places, exact_beside, record_of
from edgeprune.export.quantize import Work, search, work_of
from edgeprune.files import write_atomically
from edgeprune.lines import error_line
from edgeprune.progress import Progress
from edgeprune.records import Metric, VariantKind
from edgeprune.results import LeftOut

KIND: VariantKind = "int8-finetuned"

Train = Callable[[nn.Module, nn.Module], None]
Better = Callable[[Path, Path], bool]


@dataclass(frozen=True, slots=True, eq=False)
class Finetuning:
    """How int8 is finetuned.

    `train` trains a network of the file's inputs in place, beside the float one, which it may be taught by, in so many
    `epochs`; `better` says whether the second of two files is better than the first beyond doubt; `structure` is that
    of the outputs, see `answers.structure_of`.
    """

    epochs: int
    train: Train
    better: Better
    structure: Any


def write_finetuned(  # noqa: PLR0913 - as for `write_int8`
    source: Path,
    out: Path,
    calibration: Any,
    finetuning: Finetuning,
    *,
    value: Callable[[Path], float],
    metric: Metric,
    max_drop: float,
    reduce_range: bool,
    progress: Progress,
) -> QuantizedFile | LeftOut:
    """Finetune int8 where all layers in int8 after training cost more than `max_drop`.

    Args:
        source: the float file.
        out: the file to write, of the same tensors in int8 as the one that `write_int8` makes of all layers.
        calibration: as for `write_int8`.
        finetuning: how it is finetuned.
        value: as for `write_int8`.
        metric: as for `write_int8`.
        max_drop: as for `write_int8`.
        reduce_range: as for `write_int8`.
        progress: told of the stages.

    Returns:
        The file, `note` saying what was won back; or why there is none: it is not needed, cannot be trained, or is not
        better beyond doubt.

    Raises:
        InputError: as `write_int8`.
    """
    check_places(source, out, max_drop)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        work = work_of(open_float(source, calibration), Path(folder), reduce_range)
        judge = Judge(work.file, value, metric, max_drop, threads=1)
        progress.stage("int8: all layers")
        try:
            before = judge(work.quantized((), "before"))
        except NotFiniteError as error:
            return LeftOut(KIND, f"all layers in int8 are nothing to start from: {error_line(error)}")
        if before.within_budget:
            return LeftOut(KIND, f"int8 of all layers keeps the budget without: {judge.in_words(before.worst)}")
        progress.stage("int8: finetune")
        try:
            module, teacher = _networks(work, finetuning.structure)
            finetuning.train(module, teacher)
        except (InputError, TrainingError) as error:
            if came_from_outside(error):  # a full disk says nothing of the network
                raise
            return LeftOut(KIND, f"it cannot be trained as int8: {error_line(error)}")
        tuned = _with(work, module)
        try:
            after = judge(tuned.quantized((), "after"))
        except NotFiniteError as error:
            return LeftOut(KIND, f"finetuning came to nothing: {error_line(error)}")
        told = _told(judge, before, after, finetuning.epochs)
        if not _is_better(before, after, finetuning.better):
            return LeftOut(KIND, f"{told}: not better beyond doubt")
        judged, in_float = search(tuned, judge, progress)
        write_atomically(out, judged.path.read_bytes())
    file = record_of(KIND, judged, out, [layer.name for layer in in_float], len(work.layers))
    return replace(file, note=told)


def _networks(work: Work, structure: Any) -> tuple[FakeQuantized, OnnxModule]:
    """The network that is trained and the float one; raises InputError for what cannot be taken from the file."""
    if not work.file.batched:
        raise InputError("expected a file with a free batch, got a fixed one")
    floats = onnx.load(work.source)
    module = FakeQuantized(onnx.load(work.quantized((), "plain", fitted=False)), floats, structure, work.reduce_range)
    teacher = OnnxModule(floats, structure)
    for network in (module, teacher):
        network.settle({name: array[:2] for name, array in work.file.feeds[0].items()})
    return module, teacher


def _with(work: Work, module: FakeQuantized) -> Work:
    """The file with the weights that were trained, to be quantised by the ranges that were."""
    folder = work.folder / "finetuned"
    folder.mkdir()
    model, weights = onnx.load(work.source), module.trained()
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    source = folder / "prepared.onnx"
    onnx.save(model, source)
    ranges = json.loads(work.ranges.read_text(encoding="utf-8"))
    for name, bounds in module.ranges().items():
        entry = ranges["data"][name]
        for end, bound in zip(("lowest", "highest"), bounds, strict=True):
            shape = np.shape(entry[end]["data"])
            entry[end]["data"] = np.full(shape, bound, np.float32).tolist()
    made = replace(work, folder=folder, source=source)
    made.ranges.write_text(json.dumps(ranges), encoding="utf-8")
    return made


def _is_better(before: Judged, after: Judged, better: Better) -> bool:
    """Whether it is beyond doubt, on this CPU and as the files mean it."""
    if after.cost >= before.cost:
        return False
    pairs = [(before.path, after.path)]
    if before.meant is not None and after.meant is not None:
        pairs.append((exact_beside(before.path), exact_beside(after.path)))
    return all(better(*pair) for pair in pairs)


def _told(judge: Judge, before: Judged, after: Judged, epochs: int) -> str:
    """What was won back, e.g. `1 epoch: 4.10 points lost before, 0.50 after, 88 % won back`."""
    lost, left = before.cost, after.cost
    share = f", {100 * (lost - left) / lost:.0f} % won back" if lost > 0 else ""
    number, unit = judge.metric.number, f" {judge.metric.unit}".rstrip()
    counted = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    return f"{counted} of all layers in int8: {number(lost)}{unit} lost before, {number(left)}{unit} after{share}"
