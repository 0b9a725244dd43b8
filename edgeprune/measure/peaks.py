"""The peak of the activations of what a device runs, which takes no more of an input than was kept of it."""

from __future__ import annotations

from typing import NamedTuple

from torch.export import ExportedProgram

from edgeprune.cost.activations import peak_activations, peak_int8_activations
from edgeprune.pruning.slim_inputs import on_device
from edgeprune.results import PeakActivations


class Peaks(NamedTuple):
    """In the types that the network computes in, and with one byte for each float; of one sample."""

    peak: PeakActivations
    peak_int8: PeakActivations


def device_peak(program: ExportedProgram) -> PeakActivations:
    """The peak of what a device runs of a program, in the types that it computes in."""
    return peak_activations(on_device(program))


def device_peaks(program: ExportedProgram) -> Peaks:
    """Both peaks of what a device runs of a program."""
    running = on_device(program)
    return Peaks(peak_activations(running), peak_int8_activations(running))
