"""`compress --gate`: trains the gate after the widths, and writes and checks the file in which it picks one of them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.commands.gate import gate_macs, gate_ms, mac_shares
from edgeprune.commands.preparing import Job
from edgeprune.commands.widths import width_name
from edgeprune.cost.macs import macs
from edgeprune.errors import BudgetError, EdgepruneError, InputError, came_from_outside
from edgeprune.export.gated import GATE
from edgeprune.export.onnx import export_onnx
from edgeprune.graph.capture import Program
from edgeprune.journal.journal import fingerprint
from edgeprune.lines import one_line
from edgeprune.progress import Progress
from edgeprune.results import FrontPoint, GateFigures, SharedWeights
from edgeprune.search.candidate import Found
from edgeprune.tasks.budget import drop_of, is_within
from edgeprune.training import Judge
from edgeprune.units import GateLimit, parse_gate
from edgeprune.widths.gate import Pooled, gate_program
from edgeprune.widths.gatefile import GatedWidth, checked_gated, write_gated
from edgeprune.widths.gating import Learnt, learnt_gate


def with_gate(  # noqa: PLR0913 - the job, its networks, what was written and measured of them, and who is told
    job: Job, found: Found, shared: SharedWeights, front: Sequence[FrontPoint], folder: Path, told: Progress
) -> SharedWeights:
    """The widths with their gate; where that fails they are none the worse, and what is returned says why.

    Args:
        shared: what was written of the widths.
        front: as for `written_gate`.
        folder: as for `written_gate`.
    """
    try:
        return replace(shared, gate=written_gate(job, found, front, folder, told))
    except EdgepruneError as error:
        if came_from_outside(error):
            raise
        (folder / GATE).unlink(missing_ok=True)
        return replace(shared, no_gate=one_line(str(error)))


def written_gate(job: Job, found: Found, front: Sequence[FrontPoint], folder: Path, told: Progress) -> GateFigures:
    """Train the gate of the widths that were found, and write its file beside theirs.

    Args:
        front: what was measured of each width.
        folder: that of the widths' files.

    Raises:
        BudgetError: the mean time cannot be reached, or more is lost than the user allows.
        ParityError: the file answers otherwise than PyTorch on a sample of the validation split.
    """
    assert job.request.gate is not None
    assert job.request.widths is not None
    limit = parse_gate(job.request.gate)
    programs = [candidate.program for candidate in found.networks]
    pooled = Pooled.of(programs[-1])
    picking = gate_macs(pooled, programs)
    shares = mac_shares(programs, picking)
    costs = _times(job, pooled, programs, front) if limit.is_latency else shares
    learnt = _learnt(job, found, pooled, costs, limit, told)
    _check_drop(job, found, learnt)
    gate = learnt.gate(pooled)
    path = folder / GATE
    names = [width_name(share) for share in job.request.widths]
    widths = [
        GatedWidth(name, folder / f"{name}.onnx", macs(program)) for name, program in zip(names, programs, strict=True)
    ]
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as scratch:
        alone = Path(scratch) / GATE
        export_onnx(gate_program(gate, programs[-1]), alone)
        write_gated(path, widths, alone, picking)
    told.stage("check the gate in onnxruntime")
    assert job.data is not None
    assert job.model.info.normalization is not None
    parity = checked_gated(path, programs, gate, job.data.val, job.model.info.normalization, told)
    return GateFigures(
        file=f"{folder.name}/{GATE}",
        asked=limit.share,
        of="latency" if limit.is_latency else "MACs",
        cost=learnt.cost,
        picked=learnt.picked,
        macs=picking,
        macs_ratio=float(np.dot(learnt.picked, shares)),
        value=learnt.value,
        size_bytes=path.stat().st_size,
        parity=parity,
    )


def _check_drop(job: Job, found: Found, learnt: Learnt) -> None:
    """Raise BudgetError where the gate loses more than the user states; a drop that is assumed does not bind it."""
    metric, dense, asked = job.step.metric, found.dense.val_value, job.request.max_drop
    if asked is None or dense is None:
        return
    most, lost = drop_of(asked, metric).limit(metric, dense), metric.drop(dense, learnt.value)
    if not is_within(lost, most):
        unit = f" {metric.unit}" if metric.unit else ""
        raise BudgetError(
            f"it loses {metric.number(lost)}{unit} on the validation split at a mean of {learnt.cost:.3f}, --max-drop "
            f"allows {metric.number(most)}; allow more, or a larger share by --gate"
        )


def _times(job: Job, pooled: Pooled, programs: Sequence[Program], front: Sequence[FrontPoint]) -> list[float]:
    """What a sample takes at each width, with the gate, as a share of the widest network's time."""
    assert job.gauge is not None
    own = gate_ms(pooled, programs, job.gauge)
    return [(point.p50_ms + own) / front[0].p50_ms for point in front]


def _learnt(  # noqa: PLR0913 - the job, its networks, what they cost and who is told
    job: Job, found: Found, pooled: Pooled, costs: Sequence[float], limit: GateLimit, told: Progress
) -> Learnt:
    """What the gate learns, kept in the journal: a run that is stopped afterwards goes on with it."""
    assert job.data is not None
    assert job.task is not None
    assert job.model.info.normalization is not None
    data, task = job.data, job.task
    reference = found.dense.program.frozen_module() if task.by_reference else None
    judge = Judge(task, job.model.info.normalization, reference)
    programs = [candidate.program for candidate in found.networks]

    def work() -> dict[str, Any]:
        splits = data.train, data.val
        return learnt_gate(programs, pooled, costs, limit.share, judge=judge, splits=splits, progress=told).as_plain

    asked = fingerprint(programs[0].state_dict, list(costs), str(limit))
    plain = job.journal.kept("gate", asked, work)
    try:
        return Learnt.from_plain(plain)
    except (TypeError, KeyError, ValueError) as error:
        raise InputError(
            "the results so far: expected what a gate has learnt, got something else; --force starts afresh"
        ) from error
