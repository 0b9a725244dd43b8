"""What came of a compress run: the network that was found, exported, run in onnxruntime and held to its budgets."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprune.commands.answers import Pair, Told, told_of
from edgeprune.commands.examples import PARITY_SAMPLES, example_feed, real_inputs
from edgeprune.commands.onnxfile import write_onnx
from edgeprune.commands.preparing import Job
from edgeprune.commands.resolve import with_names_of, written_info
from edgeprune.commands.runfolder import model_facts
from edgeprune.commands.widths import width_name
from edgeprune.cost.macs import count_parameters
from edgeprune.cost.widths import told as told_widths
from edgeprune.errors import BudgetError
from edgeprune.export.gated import WIDTHS
from edgeprune.graph.tokens import kept_vocabularies
from edgeprune.inspection.features import kept_fields
from edgeprune.inspection.table import explained, locked_rows, widths
from edgeprune.inspection.tokens import cut_vocabularies
from edgeprune.measure.candidates import is_held, timed
from edgeprune.measure.peaks import check_peak, device_peaks
from edgeprune.progress import Progress
from edgeprune.records import MetricComparison, ModelInfo
from edgeprune.requests import CompressRequest
from edgeprune.results import (
    AccuracyComparison,
    FrontPoint,
    LatencyComparison,
    NetworkFigures,
    RunRecord,
    SplitLayer,
)
from edgeprune.search.candidate import Candidate, Found, Measured
from edgeprune.search.features import told_features
from edgeprune.tasks.classification import Classification, is_accuracy
from edgeprune.tasks.intervals import compare_accuracy
from edgeprune.tasks.task import Outcomes
from edgeprune.training import Judge
from edgeprune.versions import versions

if TYPE_CHECKING:
    from edgeprune.report.answers import Answers

_UNTOLD = ("command", "resume")  # of what was asked: a run that was stopped is told as one that was not


def measured(job: Job, found: Found, best: Candidate, told: Progress) -> tuple[RunRecord, Answers | None]:
    """Everything that is reported, measured on the network that was found, and what the report draws of its answers.

    Raises:
        BudgetError: its file misses a budget, by what was measured.
        ParityError: a file disagrees with PyTorch.
    """
    told.stage("measure in onnxruntime")
    sizes, parity, latency = _onnx_figures(job, best, told)
    _check_measured(job, best, sizes[1], latency)
    dense, plan = found.dense, best.plan
    assert plan is not None
    comparison, shown = _compared(job, dense, best, told)
    metric = job.step.metric
    wanted = job.budgets.counted(dense.n_features).n_features
    record = RunRecord(
        command=job.request.command,
        versions=versions(),
        asked=_asked(job.request),
        assumed=(*job.assumed, *told_widths(plan.aligned), *told_features(wanted, found.graph, best)),
        model=model_facts(with_names_of(job.model.info, job.data), job.model.name, job.request.model, job.model.sha256),
        data=_data_facts(job),
        dense=_figures(dense, sizes[0], comparison.dense if comparison else None),
        slim=_figures(best, sizes[1], comparison.slim if comparison else None),
        accuracy=comparison if isinstance(comparison, AccuracyComparison) else None,
        latency=latency,
        proof_error=best.proof_error,
        proof_exact=plan.exact,
        onnx_parity=parity,
        widths=widths(dense.program, best.program),
        **kept_fields(found.graph, best.program, plan.inputs),
        steps=found.steps,
        selection=found.selection,
        locked=tuple(
            {"name": row.name, "reason": explained(row), "layers": list(row.layers)} for row in locked_rows(found.graph)
        ),
        metric=metric,
        comparison=comparison if isinstance(comparison, MetricComparison) else None,
        change=shown.change,
        changed=shown.changed,
        vocabularies=cut_vocabularies(dense.program, best.program, plan.vocabularies),
        blocks=tuple(block.name for block in plan.blocks),
        splits=tuple(SplitLayer(split.weight.removesuffix(".weight"), split.rank) for split in plan.splits),
    )
    return record, shown.answers


def helped(job: Job, found: Found, best: Candidate, told: Progress) -> None:
    """What the other processes do of `measured` and `front_points`, in the same order: their share of the test split.

    The main process alone measures files, meanwhile they wait.
    """
    _tested(job, found.dense, best)
    if job.request.pareto is not None or job.request.widths is not None:
        for candidate in found.networks:
            _gauged(job, candidate)


def _tested(job: Job, dense: Candidate, best: Candidate) -> tuple[Pair, list[Outcomes]] | None:
    """Both networks and what each makes of the test split; None where that is not judged by."""
    if job.data is None or job.task is None or job.request.evaluate is not None:
        return None
    assert job.model.info.normalization is not None
    pair = Pair(dense.program.frozen_module(), best.program.frozen_module(), job.model.info.normalization)
    judge = Judge(job.task, pair.normalization, pair.dense if job.task.by_reference else None)
    return pair, [judge.outcomes(module, job.data.test, team=job.team)[0] for module in (pair.dense, pair.slim)]


def _compared(
    job: Job, dense: Candidate, best: Candidate, told: Progress
) -> tuple[AccuracyComparison | MetricComparison | None, Told]:
    """Both networks on the test split, by accuracy or by the metric of another task.

    None without data, or where a figure of the user's is judged by: it is that of their own samples.
    """
    tested = _tested(job, dense, best)
    if tested is None:
        return None, Told()
    assert job.data is not None
    assert job.task is not None
    pair, outcomes = tested
    if is_accuracy(job.task):
        return compare_accuracy(*map(np.asarray, outcomes)), Told()
    if isinstance(job.task, Classification):
        return job.task.compare(*outcomes), Told()
    told.stage("look at single samples")
    return job.task.compare(*outcomes), told_of(job.task, job.data, pair, outcomes)


def _figures(candidate: Candidate, onnx_bytes: int, test_value: float | None) -> NetworkFigures:
    peaks = device_peaks(candidate.program)
    return NetworkFigures(
        macs=candidate.macs,
        params=count_parameters(candidate.program),
        onnx_bytes=onnx_bytes,
        val_value=candidate.val_value,
        test_value=test_value,
        peak_bytes=peaks.peak.n_bytes,
        peak_int8_bytes=peaks.peak_int8.n_bytes,
    )


def _onnx_figures(job: Job, best: Candidate, told: Progress) -> tuple[tuple[int, int], float, LatencyComparison]:
    """Sizes of both networks as ONNX, the parity of the slim one, and the latency of both."""
    inputs = real_inputs(job.model, job.data, PARITY_SAMPLES)
    one = example_feed(job.model, inputs, kept_vocabularies(best.program))
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        slim = Path(folder) / "slim.onnx"
        exported = write_onnx(best.program, _info(job), slim, inputs=inputs, task=job.task)
        limit, threads = job.budgets.max_latency, job.threads.runtime
        latency = timed((job.dense.path, slim), one, limit, job.device, threads=threads, progress=told)
    return (job.dense.n_bytes, exported.size_bytes), exported.parity, latency


def _check_measured(job: Job, best: Candidate, slim_bytes: int, latency: LatencyComparison) -> None:
    """Raise BudgetError where the final file misses a budget, by what was measured."""
    budgets = job.budgets
    if not is_held(latency, budgets.max_latency, job.device):
        raise BudgetError(
            f"--max-latency {budgets.max_latency}: got {latency.slim_p50_ms:.3g} ms, {latency.ratio:.3f} of the dense "
            f"network's {latency.dense_p50_ms:.3g} ms; on a quiet machine, or with a little more allowed, try again"
        )
    if budgets.max_bytes is not None and slim_bytes > budgets.max_bytes:
        raise BudgetError(f"--max-size: expected at most {budgets.max_bytes:,} bytes of ONNX, got {slim_bytes:,}")
    check_peak(best.program, budgets.max_ram, "--max-ram")


def _data_facts(job: Job) -> dict[str, Any] | None:
    data, task = job.data, job.task
    if data is None or task is None:
        return None
    facts = {"name": data.name, **{name: len(getattr(data, name)) for name in ("train", "val", "test")}}
    if isinstance(task, Classification):
        return {**facts, "classes": len(data.classes)}
    return {**facts, **({"classes": len(data.classes)} if data.classes else {}), "task": task.name}


def _asked(request: CompressRequest) -> dict[str, Any]:
    """The options as they were given; what was left out is left out."""
    return {name: value for name, value in asdict(request).items() if value is not None and name not in _UNTOLD}


def front_points(job: Job, found: Found, best: Candidate, best_bytes: int, told: Progress) -> tuple[FrontPoint, ...]:
    """Every network of the front, measured beside the dense one, and the file that `export` writes of it.

    That of the best one is written, and checked, before: it has so many bytes.
    """
    widths, points = job.request.widths, []
    for number, candidate in enumerate(found.networks, 1):
        told.stage(f"measure network {number} of {len(found.networks)}")
        measured = _gauged(job, candidate)
        points.append(
            FrontPoint(
                folder=f"pareto/{number}" if widths is None else f"{WIDTHS}/{width_name(widths[number - 1])}",
                macs_ratio=candidate.macs / found.dense.macs,
                val_value=candidate.val_value,
                p50_ms=measured.ms,
                latency_ratio=measured.ms / measured.dense_ms,
                size_bytes=best_bytes if candidate is best else _file_bytes(job, candidate),
                chosen=candidate is best,
            )
        )
    return tuple(points)


def _gauged(job: Job, candidate: Candidate) -> Measured:
    assert job.gauge is not None
    return job.gauge(candidate.program, True)


def _file_bytes(job: Job, candidate: Candidate) -> int:
    """The bytes of a network's file, checked beside PyTorch."""
    inputs = real_inputs(job.model, job.data, PARITY_SAMPLES)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        path = Path(folder) / "slim.onnx"
        return write_onnx(candidate.program, _info(job), path, inputs=inputs, task=job.task).size_bytes


def _info(job: Job) -> ModelInfo:
    return written_info(job.request, job.model, job.data)
