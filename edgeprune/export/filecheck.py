"""What a target's file is checked on, and how near to PyTorch it has to come, whatever runs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from edgeprune.export.feeds import arrays_of
from edgeprune.export.parity import PARITY_TOLERANCE, Reference, Sample, error_on
from edgeprune.export.target import Material
from edgeprune.graph.drawn import drawn_tensors
from edgeprune.graph.specs import batches_of, batches_of_one_size, fitted, input_specs

HALF_TOLERANCE = 1e-2
_N_DRAWN = 7
_SMALLEST = 1e-3  # of an output, below which an error is no longer seen against it
_WHAT = "inputs to check the export on"


def samples_of_network(material: Material, batch: int | None) -> list[Sample]:
    """What PyTorch gives on what the network's ONNX file takes: raw values where preprocessing is folded into it.

    Args:
        material: real samples where there are data.
        batch: the size of every batch; None takes several sizes.
    """
    program = material.program
    specs, reference = input_specs(program), Reference(program, material.answering)

    def batched(tensors: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, ...]]:
        return batches_of(tensors, specs) if batch is None else batches_of_one_size(tensors, specs, batch)

    if material.real is None and not material.folds:
        return reference.first(batched(tensors) for tensors in drawn_tensors(program, _N_DRAWN))
    inputs = material.real or material.samples(_N_DRAWN)
    samples = reference.samples(batched(fitted(specs, arrays_of(inputs.program), _WHAT)))
    if not material.folds:
        return samples
    # The batches take the same rows of both, whatever these hold.
    raw = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays_of(inputs.file)]
    return [
        replace(sample, inputs=tuple(tensor.numpy() for tensor in tensors))
        for sample, tensors in zip(samples, batched(raw), strict=True)
    ]


def error_of(
    samples: Sequence[Sample], got: Sequence[Sequence[np.ndarray]], what: str, tolerance: float = PARITY_TOLERANCE
) -> float:
    """The largest absolute error of any output over all samples.

    Unlike `parity.error_on` an output is compared at its own size where that is below 1: a runtime that nobody here
    has built may be wrong in ways in which small outputs differ little.

    Args:
        samples: what PyTorch gave.
        got: what the runtime gave on the same.
        what: the file, for the message.
        tolerance: the error that is allowed, as a share of an output's largest value.

    Raises:
        ParityError: an error is larger, or a decision of the task changed that was clear.
    """
    worst = 0.0
    for sample, outputs in zip(samples, got, strict=True):
        where = f"{what}{sample.where}"
        if len(outputs) != len(sample.outputs):
            error_on(sample, outputs, where)
        for place, output in enumerate(outputs):
            one = _single(sample, place)
            worst = max(worst, error_on(one, [output], where, tolerance * _size(one.outputs[0])))
    return worst


def _single(sample: Sample, place: int) -> Sample:
    """A sample with one of its outputs."""

    def exact() -> tuple[np.ndarray, ...] | None:
        outputs = sample.exact()
        return None if outputs is None else (outputs[place],)

    return Sample(
        sample.inputs,
        (sample.outputs[place],),
        sample.types[place : place + 1],
        sample.choices[place : place + 1],
        exact,
        sample.task if len(sample.outputs) == 1 else None,
    )


def _size(output: np.ndarray) -> float:
    """What an error counts against, at most 1: beyond that `parity` does it."""
    if output.dtype.kind != "f" or not output.size:
        return 1.0
    finite = np.abs(output[np.isfinite(output)], dtype=np.float64)
    return float(np.clip(finite.max(initial=0.0), _SMALLEST, 1.0))
