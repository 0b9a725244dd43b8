"""What a network is run on to be measured and checked: real inputs where there are data, else what it accepts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from edgeprune.data import first_samples, prepared
from edgeprune.data.inputs import Arrays, as_arrays
from edgeprune.errors import InputError
from edgeprune.export.onnx import export_onnx
from edgeprune.export.ort import Feed
from edgeprune.graph.capture import Program
from edgeprune.graph.drawn import drawn_tensors, first_accepted
from edgeprune.graph.specs import file_inputs, input_specs
from edgeprune.graph.tokens import only_kept
from edgeprune.records import DataSource, Model, Vocabulary
from edgeprune.training import float_type, one_float_type, weight_type

PARITY_SAMPLES = 256  # real ones that the file of a network is checked on


def real_inputs(model: Model, data: DataSource | None, count: int) -> Arrays | None:
    """The first normalised test inputs `(count, ...)`, by name where they have such; None where there are no data."""
    if data is None:
        return None
    assert model.info.normalization is not None
    raw = first_samples(data.test, count)
    return as_arrays(prepared(raw, model.info.normalization, torch.device("cpu"), float_type(model.program)))


def example_feed(model: Model, real: Arrays | None = None, kept: Mapping[str, Vocabulary] | None = None) -> Feed:
    """One sample for an ONNX file of the network: the first real one, else zeros or drawn numbers.

    Of vocabularies that are cut only ids that are `kept` are drawn.
    """
    if isinstance(real, np.ndarray):
        return real[:1]
    specs = input_specs(model.program)
    if real is not None:
        rows = [real[spec.name][:1] for spec in specs]
    elif len(specs) == 1 and specs[0].dtype.is_floating_point:
        return as_arrays(torch.zeros(1, *model.info.input_shape, dtype=one_float_type(model.program)))
    else:
        rows = _drawn_rows(model.program, kept or {})
    return rows[0] if len(rows) == 1 else dict(zip(file_inputs(model.program), rows, strict=True))


def check_runs(model: Model) -> None:
    """Refuse at once a network whose file onnxruntime could not load: it has few kernels for other types than float32.

    Raises:
        InputError: the network is of another type, and its file cannot be loaded or run.
    """
    dtype = weight_type(model.program)
    if dtype is torch.float32:
        return
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        try:
            export_onnx(model.program, Path(folder) / "dense.onnx")
        except InputError as error:
            name = str(dtype).removeprefix("torch.")
            raise InputError(f"{model.name} is of {name}; convert it with model.float(): {error}") from error


def _drawn_rows(program: ExportedProgram, kept: Mapping[str, Vocabulary]) -> list[np.ndarray]:
    """One row of each input, which the network accepts."""
    drawn = first_accepted(Program.adopt(program).frozen_module(), drawn_tensors(program, 1))
    specs = input_specs(program)
    return [
        (only_kept(x, kept[spec.name]) if spec.name in kept else x).numpy()
        for spec, x in zip(specs, drawn, strict=True)
    ]
