"""Smaller numbers for `edgeprune export --int8`: the files, and which one to ship."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgeprune.commands.int8tuning import finetuning
from edgeprune.data import batches
from edgeprune.data.inputs import as_arrays
from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.export.answers import Answering, structure_of
from edgeprune.export.conversions import write_dynamic, write_half
from edgeprune.export.feeds import arrays_of, in_pytorch, n_rows, rows
from edgeprune.export.finetuned import KIND as FINETUNED
from edgeprune.export.finetuned import write_finetuned
from edgeprune.export.judging import QuantizedFile
from edgeprune.export.quantize import write_int8
from edgeprune.export.state import check_stateless
from edgeprune.export.target import CALIBRATION, Inputs, Material
from edgeprune.export.variants import FLOAT, compare_variants
from edgeprune.journal.shared import Results
from edgeprune.measure.chance import check_above_chance
from edgeprune.measure.latency import measure_files, ratio_interval
from edgeprune.progress import Progress
from edgeprune.records import DataSource, Int8For, Model
from edgeprune.results import LeftOut, VariantTable
from edgeprune.tasks.budget import drop_of
from edgeprune.tasks.classification import Classification, check_logits
from edgeprune.tasks.task import Outcomes, Task, joined, mean_share

_KINDS = ("int8", "int8-finetuned", "dynamic", "fp16")
_BATCH = 256
_FEW = 4  # samples that tell whether the outputs fit
_SECONDS = 12.0  # of timing the variants


def variant_files(name: str) -> list[str]:
    """The files beside that of the float network of this name."""
    return [f"{name}.{kind}.onnx" for kind in _KINDS]


@dataclass(frozen=True, slots=True, eq=False)
class Int8:
    """How int8 is asked for: what it may lose, where it is to run, and how long it is finetuned if it loses more.

    `allow_chance` takes a network that is no better than guessing; its finetuning is kept in a `journal` where there is
    one.
    """

    max_drop: float | str | None
    runs_on: Int8For | None
    finetune_epochs: int
    allow_chance: bool
    journal: Results | None = None

    @property
    def reduces(self) -> bool:
        """Whether weights have 7 bits, which are right on any CPU."""
        return self.runs_on in (None, "any")


def check_int8(asked: Int8, model: Model, data: DataSource | None, task: Task | None) -> None:
    """Raise InputError where smaller numbers have nothing to be calibrated on or to be judged by, or lose a state."""
    if data is None or task is None:
        raise InputError("--int8: expected data to calibrate on, got none; give --data")
    drop_of(asked.max_drop, task.metric)
    if isinstance(task, Classification):
        check_logits(model.program, data, "without --int8 it can be exported")
    check_stateless(model.program, "--int8")


def write_variants(asked: Int8, material: Material, told: Progress) -> VariantTable:
    """int8, dynamic and half-precision files of the float one, timed beside it, and which one to ship.

    Raises:
        InputError: outputs or targets that do not fit the task, or a network that is no better than guessing.
    """
    data, task, network = material.data, material.task, material.network
    raw = material.raw("train", CALIBRATION)
    assert data is not None and task is not None and raw is not None  # else it was refused before
    metric = task.metric
    calibration = material.inputs(raw).file
    if not asked.allow_chance:
        check_above_chance(material.model, data, task)
    outcomes = _outcomes(material, data, task, told)

    def judge(path: Path) -> float:
        return task.value(outcomes(path))

    value = judge(network)
    drop = drop_of(asked.max_drop, metric).limit(metric, value)
    int8, finetuned, dynamic, half = (material.folder / name for name in variant_files(material.name))
    judged: dict[str, Any] = {"value": judge, "metric": metric, "max_drop": drop}
    integers = {**judged, "reduce_range": asked.reduces}
    told.stage("quantise to int8")
    made: list[QuantizedFile | LeftOut] = [write_int8(network, int8, calibration, **integers, progress=told)]
    if asked.finetune_epochs:
        how = finetuning(material, data, task, asked.finetune_epochs, outcomes, told, asked.journal)
        made.append(write_finetuned(network, finetuned, calibration, how, **integers, progress=told))
    told.stage("quantise dynamically, and to half precision")
    made.append(write_dynamic(network, dynamic, calibration, **integers))
    made.append(write_half(network, half, calibration, **judged))
    told.stage("time the variants")
    values: dict[str, float] = {one.kind: judge(Path(one.path)) for one in made if isinstance(one, QuantizedFile)}
    table = compare_variants(
        network,
        made,
        rows(calibration, slice(1)),
        max_drop=drop,
        measure=partial(measure_files, max_seconds=_SECONDS, progress=told),
        interval=ratio_interval,
        values={FLOAT: value, **values},
        metric=metric,
        int8_for=asked.runs_on or "any",
    )
    return replace(table, notes=(*table.notes, *_won_back(made)))


def _won_back(made: Sequence[QuantizedFile | LeftOut]) -> list[str]:
    """What finetuning came to."""
    return [f"{one.kind}: {one.note}" for one in made if isinstance(one, QuantizedFile) and one.kind == FINETUNED]


def agreement(material: Material) -> float | None:
    """The share of the answers on the test split that the network's file gives as PyTorch does.

    None where nobody knows what answers are, or they are no decisions, and for a file that takes more than the
    network's inputs: a state, say. Of a classification the check of the file has looked at each.
    """
    task, raw = material.task, material.raw("test", None)
    if task is None or raw is None or isinstance(task, Classification):
        return None
    network = _answers(material.network, structure_of(material.model.program))
    if not _is_fit(task, material, network):
        return None
    module = in_pytorch(material.model.program)
    shares = []
    for start in range(0, n_rows(raw), _BATCH):
        inputs = material.inputs(rows(raw, slice(start, start + _BATCH)))
        shares.append((task.agrees(module(inputs.full), network(inputs.file)), n_rows(inputs.full)))
    return mean_share(shares)


def _is_fit(task: Task, material: Material, network: Answering) -> bool:
    """Whether inputs and outputs are what the network and the task take: to be exported they need not be."""
    assert material.data is not None
    few = material.samples(_FEW).file
    if len(network.session.get_inputs()) != len(arrays_of(few)):
        return False
    try:
        task.check(network(few), material.data)
    except InputError:
        return False
    return True


def _outcomes(material: Material, data: DataSource, task: Task, told: Progress) -> Callable[[Path], Outcomes]:
    """What the metric of the task is made of, for each sample of the validation split, of a file in onnxruntime.

    A task that goes by a reference goes by the dense network, where that is at hand, else by the float file.
    """
    answers = partial(_answers, structure=structure_of(material.model.program))
    reference = _reference(material, answers, told) if task.by_reference else None
    task.check(answers(material.network)(material.samples(_FEW).file), data)
    parts = []
    for x, raw in batches(data.val, _BATCH):
        inputs = material.inputs(material.held(as_arrays(x)))
        parts.append((inputs.file, task.targets(raw) if reference is None else reference(inputs)))

    def outcomes(path: Path) -> Outcomes:
        network = answers(path)
        return joined([task.outcomes(network(inputs), targets) for inputs, targets in parts])

    return outcomes


def _answers(path: Path, structure: Any) -> Answering:
    return Answering(ort.session(path), structure)


def _reference(material: Material, answers: Callable[[Path], Answering], told: Progress) -> Callable[[Inputs], Any]:
    """What is to be answered for inputs."""
    if material.dense is None:
        told.say(
            f"assumed: the answers to meet are those of {material.network.name}, as the dense network is not at hand; "
            "--dense names it"
        )
        network = answers(material.network)
        return lambda inputs: network(inputs.file)
    dense = in_pytorch(material.dense.program)
    return lambda inputs: dense(inputs.full)
