"""The run folder of a Pruner: what `compress` writes, without the accuracies that nothing measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune.commands.runfolder import model_facts, write_network, write_record
from edgeprune.cost.macs import count_parameters, macs
from edgeprune.cost.widths import told as told_widths
from edgeprune.files import staged_folder
from edgeprune.formats.digests import digest
from edgeprune.graph.capture import Program
from edgeprune.inspection.features import kept_fields
from edgeprune.inspection.table import explained, locked_rows, widths
from edgeprune.inspection.tokens import cut_vocabularies
from edgeprune.lines import shown
from edgeprune.measure.peaks import device_peaks
from edgeprune.progress import Progress
from edgeprune.pruner.asked import Asked
from edgeprune.pruner.measuring import Measurements, info_of, measured
from edgeprune.pruner.network import Network, analyzed
from edgeprune.records import ModelInfo
from edgeprune.results import NetworkFigures, RunRecord, StepRecord
from edgeprune.versions import versions


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What is told of a run beside its networks: the class, what was asked, the steps, how long it took."""

    name: str
    asked: Asked
    steps: tuple[StepRecord, ...]
    seconds: float
    progress: Progress


def save_run(folder: Path, force: bool, dense: Program, network: Network, told: Told) -> None:
    """Measure both networks and write the folder, whole or not at all."""
    assert network.plan is not None
    info = info_of(dense)
    with staged_folder(folder, force) as staged:
        found = measured(told.asked, dense, network.program, told.progress)
        write_network(staged, network.program, network.plan, info)
        write_record(staged, _record(dense, network, info, found, told))


def _record(dense: Program, network: Network, info: ModelInfo, found: Measurements, told: Told) -> RunRecord:
    plan = network.plan
    assert plan is not None
    graph = analyzed(Network(dense), replace(told.asked.manner, vocabularies={}))
    cut = {name: kept for name, kept in plan.inputs.items() if name not in plan.state}
    return RunRecord(
        command=_call(told.asked.given),
        versions=versions(),
        asked=dict(told.asked.given),
        assumed=told_widths(plan.aligned),
        model=model_facts(info, told.name, None, digest(dense)),
        data=None,
        dense=_figures(dense, found.dense_bytes),
        slim=_figures(network.program, found.slim_bytes),
        accuracy=None,
        latency=found.latency,
        proof_error=network.proof_error,
        proof_exact=plan.exact,
        onnx_parity=found.parity,
        widths=widths(dense, network.program),
        **kept_fields(graph, network.program, cut),
        steps=told.steps,
        locked=tuple(
            {"name": row.name, "reason": explained(row), "layers": list(row.layers)} for row in locked_rows(graph)
        ),
        seconds=told.seconds,
        vocabularies=cut_vocabularies(dense, network.program, plan.vocabularies),
    )


def _call(given: Mapping[str, Any]) -> str:
    """The call that asked for it, e.g. `edgeprune.Pruner(model, example_inputs, keep_macs=0.5)`."""
    said = (f"{k}={shown(v) if k == 'vocabularies' else repr(v)}" for k, v in given.items())  # some may be thousands
    return ", ".join(("edgeprune.Pruner(model, example_inputs", *said)) + ")"


def _figures(program: Program, onnx_bytes: int) -> NetworkFigures:
    """What a network costs; the loop's own measure of quality is not told."""
    peaks = device_peaks(program)
    return NetworkFigures(
        macs=macs(program),
        params=count_parameters(program),
        onnx_bytes=onnx_bytes,
        peak_bytes=peaks.peak.n_bytes,
        peak_int8_bytes=peaks.peak_int8.n_bytes,
    )
