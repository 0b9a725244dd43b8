"""Smaller numbers for `edgeprune export --int8`: the files, and which one to ship."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from edgeprune.data import batches
from edgeprune.data.inputs import one_tensor
from edgeprune.export import ort
from edgeprune.export.conversions import write_dynamic, write_half
from edgeprune.export.quantize import QuantizedFile, write_int8
from edgeprune.export.target import Material
from edgeprune.export.variants import FLOAT, compare_variants
from edgeprune.measure.chance import check_above_chance
from edgeprune.measure.latency import measure_files, ratio_interval
from edgeprune.progress import Progress
from edgeprune.records import DataSource
from edgeprune.requests import ExportRequest
from edgeprune.results import LeftOut, VariantTable

CALIBRATION = 256  # samples
_KINDS = ("int8", "dynamic", "fp16")
_BATCH = 256
_SECONDS = 12.0  # of timing the variants


def variant_files(name: str) -> list[str]:
    """The files beside that of the float network of this name."""
    return [f"{name}.{kind}.onnx" for kind in _KINDS]


def write_variants(request: ExportRequest, material: Material, told: Progress) -> VariantTable:
    """int8, dynamic and half-precision files of the float one, timed beside it, and which one to ship."""
    data, network, drop = material.data, material.network, request.max_drop
    raw = material.raw("train", CALIBRATION)
    assert data is not None and raw is not None  # else it was refused before
    calibration = material.inputs(raw).file
    if not request.allow_chance:
        check_above_chance(material.model, data)
    accuracy = _accuracy(material, data)
    int8, dynamic, half = (material.folder / name for name in variant_files(material.name))
    told.stage("quantise to int8")
    made: list[QuantizedFile | LeftOut] = [
        write_int8(network, int8, calibration, accuracy=accuracy, max_drop=drop, progress=told)
    ]
    told.stage("quantise dynamically, and to half precision")
    made.append(write_dynamic(network, dynamic, calibration, accuracy=accuracy, max_drop=drop))
    made.append(write_half(network, half, calibration, accuracy=accuracy, max_drop=drop))
    told.stage("time the variants")
    accuracies: dict[str, float] = {
        one.kind: accuracy(Path(one.path)) for one in made if isinstance(one, QuantizedFile)
    }
    accuracies[FLOAT] = accuracy(network)
    return compare_variants(
        network,
        made,
        calibration[:1],
        max_drop=drop,
        measure=partial(measure_files, max_seconds=_SECONDS, progress=told),
        interval=ratio_interval,
        accuracies=accuracies,
    )


def _accuracy(material: Material, data: DataSource) -> Callable[[Path], float]:
    """Measures a file on the validation split, in onnxruntime."""
    stream = ((one_tensor(x, "smaller numbers").numpy(), y) for x, y in batches(data.val, _BATCH))
    parts = [(material.inputs(material.held(x)).file, y.numpy()) for x, y in stream]

    def accuracy(path: Path) -> float:
        model = ort.session(path)
        right = [(ort.run_one(model, inputs).argmax(axis=1) == labels) for inputs, labels in parts]
        return float(np.concatenate(right).mean())

    return accuracy
