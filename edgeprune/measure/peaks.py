"""The peak of the activations of what a device runs, which takes no more of an input than was kept of it."""

from __future__ import annotations

from typing import NamedTuple

from torch.export import ExportedProgram

from edgeprune.cost.activations import in_words, peak_activations, peak_int8_activations
from edgeprune.errors import BudgetError
from edgeprune.pruning.slim_inputs import on_device
from edgeprune.results import PeakActivations


class Peaks(NamedTuple):
    """In the types that the network computes in, and with one byte for each float; of one sample."""

    peak: PeakActivations
    peak_int8: PeakActivations


def device_peak(program: ExportedProgram) -> PeakActivations:
    """The peak of what a device runs of a program, in the types that it computes in."""
    return peak_activations(on_device(program))


def check_peak(program: ExportedProgram, most: int | None, option: str) -> None:
    """Raise BudgetError where what a device runs of a program takes more than an option allows; None allows any."""
    peak = None if most is None else device_peak(program)
    if peak is not None and most is not None and peak.n_bytes > most:
        raise BudgetError(f"{option}: expected at most {most:,} bytes of activations, got {in_words(peak)}")


def device_peaks(program: ExportedProgram) -> Peaks:
    """Both peaks of what a device runs of a program."""
    running = on_device(program)
    return Peaks(peak_activations(running), peak_int8_activations(running))
