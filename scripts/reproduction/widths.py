"""The recipe of one network at several widths: each beside one trained alone, and what a gate picks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from edgeprune.cost.macs import macs
from edgeprune.data import order
from edgeprune.errors import InputError
from edgeprune.graph.single import capture_single
from edgeprune.search.candidate import Budgets, Found, Manner
from edgeprune.search.cutter import Cutter
from edgeprune.search.datatrainer import DataTrainer
from edgeprune.search.step import Step
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.training import Judge, outputs_of, threads_set
from edgeprune.widths.gate import Gate, Pooled, gate_program
from edgeprune.widths.gating import chosen_outcomes, learnt_gate
from edgeprune.widths.strategy import Widths
from edgeprune.widths.task import Sandwich

from .place import Place

_BATCH = 512


def widths(place: Place, shares: Sequence[float], gate: float | None = None, dense: float = 0.5) -> dict[str, float]:
    """Dense for a share of the epochs, then the widths together for the rest; one of them is measured.

    It is the one with as many MACs removed as the run says, in percent; alone where no other share is given.

    Args:
        gate: what is measured in its place, the gate with this mean share of the widest network's MACs.
        dense: the share of the epochs before the cut.
    """
    removed = [round(100 * (1 - share)) for share in shares]
    if gate is None and place.run.at not in removed:
        raise InputError(f"{place.run.name}: at: expected one of {', '.join(map(str, removed))}, got {place.run.at}")
    found = _trained(place, tuple(shares), dense)
    if gate is not None:
        return _gated(place, found, gate)
    network = found.networks[removed.index(place.run.at or 0)]
    accuracies = place.accuracies(network.program.frozen_module())
    return {**accuracies, "macs_share": network.macs / found.dense.macs}


def _trained(place: Place, shares: tuple[float, ...], dense: float) -> Found:
    module, settings = place.build(), place.settings()
    first = max(1, round(dense * settings.epochs))
    place.fit(module, replace(settings, epochs=first), stage="dense")
    program = capture_single(module, place.data.input_shape)
    after = replace(settings.for_finetuning(), epochs=max(1, settings.epochs - first), best_from=1.0)
    after = replace(after, threads=settings.threads, device=settings.device)
    samples = DataTrainer(
        place.data, place.data.normalization, after, CLASSIFICATION, program.frozen_module(), progress=place.progress
    )
    step = Step(Cutter(program, Manner(criterion="taylor"), samples), samples, place.progress)
    with threads_set(settings.threads):
        return Widths(shares, replace(samples, task=Sandwich(CLASSIFICATION))).search(step, Budgets())


def _gated(place: Place, found: Found, budget: float) -> dict[str, float]:
    """The gate on the test split: its accuracy, and the mean MACs with its own."""
    data, programs = place.data, [network.program for network in found.networks]
    pooled = Pooled.of(programs[-1])
    picking = macs(gate_program(Gate.blank(pooled, programs), programs[-1]))
    costs = np.array([network.macs + picking for network in found.networks]) / found.networks[0].macs
    judge, splits = Judge(CLASSIFICATION, data.normalization), (data.train, data.val)
    with threads_set(place.machine.threads):
        learnt = learnt_gate(programs, pooled, costs, budget, judge=judge, splits=splits, progress=place.progress)
        picks = _picks(place, learnt.gate(pooled))
        outcomes = [judge.outcomes(program.frozen_module(), data.test)[0] for program in programs]
    mean = float(costs[picks].mean()) * found.networks[0].macs / found.dense.macs
    test = CLASSIFICATION.value(chosen_outcomes(outcomes, picks))
    return {"val_accuracy": learnt.value, "test_accuracy": test, "macs_share": mean}


def _picks(place: Place, gate: Gate) -> np.ndarray:
    """The width of each test sample."""
    split, normalization = place.data.test, place.data.normalization
    found: list[Tensor] = []
    for _, picks, _ in outputs_of(gate, split, normalization, order(len(split), _BATCH)):  # type: ignore[arg-type]
        found.append(picks)
    return torch.cat(found).numpy()
