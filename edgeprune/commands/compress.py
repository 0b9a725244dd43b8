"""`edgeprune compress`: a model becomes a smaller one within its budgets, proved, measured and reported."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from edgeprune.commands.examples import PARITY_SAMPLES, real_inputs
from edgeprune.commands.gatefile import with_gate
from edgeprune.commands.int8run import material_of, write_int8_files
from edgeprune.commands.outcome import front_points, helped, measured
from edgeprune.commands.preparing import Job, prepare
from edgeprune.commands.resolve import written_info
from edgeprune.commands.runfolder import write_network, write_record
from edgeprune.commands.unfinished import done_before
from edgeprune.commands.widths import shared_widths
from edgeprune.data.ranks import check_same
from edgeprune.export.gated import WIDTHS
from edgeprune.files import staged_folder
from edgeprune.graph.inputs import feature_grids
from edgeprune.journal.journal import fingerprint
from edgeprune.progress import Progress, Silent
from edgeprune.records import DataSource, ModelInfo
from edgeprune.requests import CompressRequest
from edgeprune.results import RunRecord
from edgeprune.search.candidate import Candidate, Found
from edgeprune.search.crop import find_crop
from edgeprune.search.pareto import Choice, chosen
from edgeprune.search.windows import first_windows, unneeded_patches, unread
from edgeprune.settings import TrainSettings
from edgeprune.tasks.budget import drop_of
from edgeprune.tasks.classification import Classification
from edgeprune.training import Team, threads_set
from edgeprune.usercode import running_user_code


@running_user_code()
def compress(request: CompressRequest, progress: Progress | None = None) -> tuple[Path, RunRecord]:
    """Prune a model to its budgets, finetune, prove, measure, and write the run folder; returns it and the record.

    What the search comes to is kept beside the folder until that is written: `resume` goes on with it, also where what
    was found fails a check. Processes that `torchrun` started together all call this with the same request: they search
    together, by the same plan, and the main one alone measures files, writes and speaks.

    Raises:
        InputError: the model, the data, an option or the output place is wrong; nothing is written.
        BudgetError: a budget cannot be met; says what stood in the way; no folder is written.
        ProofError, ParityError, TrainingError: a check failed; no folder is written.
    """
    told, start = progress or Silent(), time.perf_counter()
    team = Team(TrainSettings())
    with team.together():
        result = team.by_main(lambda: done_before(request, told)) or _compressed(request, told, team, start)
    team.disband()
    return result


def _compressed(request: CompressRequest, told: Progress, team: Team, start: float) -> tuple[Path, RunRecord]:
    """The run folder and its record, where it has not been done before."""
    job = prepare(request, told, team)
    with job.journal.held(told), _folder(job) as folder, threads_set(job.threads.training):
        found = job.strategy.search(job.step, job.budgets)
        choice = _chosen(job, found, told)
        best = choice.network
        check_same(team, lambda: _digests(found, best), "the networks of")
        job.journal.found()
        if not team.is_main:
            helped(job, found, best, told)
        record = team.by_main(lambda: _written(job, found, choice, folder, told, start))
    return job.out, record


def _digests(found: Found, best: Candidate) -> dict[str, str]:
    """What was found, by the digests of the weights; each was cut by a plan that all have."""
    return {
        f"network {number}": fingerprint(candidate.program.state_dict)
        for number, candidate in enumerate((best, *found.networks))
    }


def _folder(job: Job) -> AbstractContextManager[Path]:
    """Where the run is written until it takes its place; the main process alone has one."""
    if not job.team.is_main:
        return nullcontext(job.out)
    return staged_folder(job.out, job.request.force or job.journal.replaces)


def _written(  # noqa: PLR0913 - what was found for what, where it goes, who is told and since when
    job: Job, found: Found, choice: Choice, folder: Path, told: Progress, start: float
) -> RunRecord:
    """Measure what was found, and write it and what was measured into the folder."""
    request, best = job.request, choice.network
    record, answers = measured(job, found, best, told)
    if choice.missed is not None:
        record = replace(record, assumed=(*record.assumed, choice.missed))
    if request.pareto is not None or request.widths is not None:
        record = replace(record, front=front_points(job, found, best, record.slim.onnx_bytes, told))
    record = replace(record, advice=_advice(job, found, told))
    info = written_info(request, job.model, job.data)
    _write(folder, best, info)
    for point, candidate in zip(record.front, found.networks, strict=False):
        (folder / point.folder).mkdir(parents=True)
        _write(folder / point.folder, candidate, info)
    if request.widths is not None:
        inputs = real_inputs(job.model, job.data, PARITY_SAMPLES)
        model = replace(job.model, info=info)
        shared = shared_widths(request.widths, found, folder, model, inputs, job.task)
        if request.gate is not None:
            shared = with_gate(job, found, shared, record.front, folder / WIDTHS, told)
        record = replace(record, shared=shared)
    if job.int8 is not None:
        model = replace(job.model, program=best.program, info=info)
        material = material_of(model, folder, job.data, job.task, job.model)
        record = replace(record, variants=write_int8_files(job.int8, material, found.dense.val_value, told))
    record = replace(record, seconds=time.perf_counter() - start + job.journal.earlier)
    write_record(folder, record, answers)
    return record


def _chosen(job: Job, found: Found, told: Progress) -> Choice:
    """The network of the run, whose drop a search for one has judged already; of several it is judged here."""
    metric, asked = job.step.metric, job.request.max_drop
    if job.request.pareto is None and job.request.widths is None:
        return Choice(found.networks[-1])
    choice = chosen(found, metric, drop_of(asked, metric), stated=asked is not None)
    if choice.missed is not None:
        told.say(choice.missed)
    return choice


def _write(folder: Path, candidate: Candidate, info: ModelInfo) -> None:
    assert candidate.plan is not None
    write_network(folder, candidate.program, candidate.plan, info)


def _advice(job: Job, found: Found, told: Progress) -> tuple[str, ...]:
    """What could be done beside: what of images can be left out whose pixels cannot go one by one."""
    is_image = job.budgets.prune_features and len(job.model.info.input_shape) == 3
    by_pixel = any(grid.dim != 1 for grid in feature_grids(found.graph.analysis).values())
    # Images of whole numbers, which are read by name, have no mean image that the network takes.
    if by_pixel or not is_image or not isinstance(job.task, Classification) or job.data is None or job.data.inputs:
        return ()
    told.stage("look for what of the images never matters")
    return _of_images(found.dense, job.data, job.model.info)


def _of_images(dense: Candidate, data: DataSource, info: ModelInfo) -> tuple[str, ...]:
    """The border, the rows and columns, and the patches that never matter, where there are any."""
    assert info.normalization is not None
    module = dense.program.frozen_module()
    crop, windows = find_crop(module, data, info.normalization), first_windows(module)
    texts = [None if crop is None else str(crop)]
    if windows is not None:
        texts += [unread(windows), unneeded_patches(module, windows, data, info.normalization)]
    return tuple(text for text in texts if text is not None)
