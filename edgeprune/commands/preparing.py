"""From a request to a job: reads and checks all that was asked for, and fills the gaps with what is assumed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgeprune.commands.budgets import KEEP_LAYER, LAYER_RATIO, check_share, criterion_is_open, decide
from edgeprune.commands.examples import check_runs
from edgeprune.commands.featurerules import counted_along
from edgeprune.commands.finetuning import check_recipe, finetuning, trained_epochs
from edgeprune.commands.gauges import DenseFile, dense_file, device_of, gauge_of
from edgeprune.commands.int8run import asked_int8, assumed_int8, check_quantizes
from edgeprune.commands.opening import Assume, Opened, open_all
from edgeprune.commands.resolve import Threads, next_run
from edgeprune.commands.scripted import Scripted
from edgeprune.commands.unfinished import SUFFIX, check_alike, check_place, identity, place_of, shared_identity
from edgeprune.commands.variants import Int8
from edgeprune.commands.widths import widths_of
from edgeprune.cost.device import Device
from edgeprune.errors import InputError
from edgeprune.files import real_path
from edgeprune.graph.capture import Program
from edgeprune.graph.state import state_buffers
from edgeprune.journal.kept import KeptProber, KeptTrainer
from edgeprune.journal.shared import Results, results_of
from edgeprune.measure.chance import better_normalization, check_above_chance
from edgeprune.processes import check_options_alone
from edgeprune.progress import Progress
from edgeprune.pruning.held import held_layers
from edgeprune.pruning.plan import PruningPlan, read_plan
from edgeprune.records import DataSource, Model
from edgeprune.requests import CompressRequest
from edgeprune.search.candidate import Budgets, Gauge, Manner
from edgeprune.search.checks import check
from edgeprune.search.criterion import CHOICES, OpenCriterion
from edgeprune.search.cutter import Cutter
from edgeprune.search.datatrainer import DataTrainer
from edgeprune.search.descent import Descent
from edgeprune.search.pareto import Front
from edgeprune.search.predictor import Predicted
from edgeprune.search.probing import Prober
from edgeprune.search.replay import Replay
from edgeprune.search.schedules import schedule_of
from edgeprune.search.sensitivity import Sensitivity
from edgeprune.search.shrink import Shrink
from edgeprune.search.step import Step
from edgeprune.search.strategy import Strategy
from edgeprune.search.structure import Structure
from edgeprune.settings import TrainSettings
from edgeprune.tasks.classification import Classification
from edgeprune.tasks.task import Task
from edgeprune.training import Judge, Team, float_type, threads_set
from edgeprune.training.dropout import drawn_apart

_LEAST = 0.2  # of the cost: the smallest of several networks, where nothing is said


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A compress request with every gap filled in: the `strategy` that searches by `step`, within the `budgets`.

    What the search comes to is kept in the `journal` while that is held. Several processes of a `team` each have such a
    job, and do it together.

    `dense` is the file of the network as it was. `device` is the one that is planned with, `gauge` measures a network
    as a file, `int8` says how that is asked for; None where nothing asks for it.
    """

    request: CompressRequest
    model: Model
    data: DataSource | None
    task: Task | None
    step: Step
    strategy: Strategy
    budgets: Budgets
    device: Device | None
    gauge: Gauge | None
    dense: DenseFile
    out: Path
    threads: Threads
    assumed: tuple[str, ...]
    journal: Results
    team: Team
    int8: Int8 | None = None


def prepare(request: CompressRequest, told: Progress, team: Team | None = None) -> Job:
    """Read and check everything that was asked for, then say what is assumed.

    Args:
        team: the processes that do the job together; those that `torchrun` started where it is not given.
    """
    assumed: list[str] = []
    assume = assumed.append
    team = team or Team(TrainSettings())
    check_share(request)
    check_options_alone({"--gate": request.gate, "--int8": request.int8})
    out = team.by_main(lambda: _place(request, told, assume))
    plan = read_plan(Path(request.plan)) if request.plan else None
    scripted = Scripted.of(request)
    told.stage("load")
    opened = open_all(request, plan, assume)
    check_runs(opened.model)
    assumed += scripted.told_inputs(opened.model.info)
    assumed += _drawn_apart(opened.dense, team)
    with threads_set(opened.threads.training):
        figure = scripted.figure(request, opened.dense.frozen_module(), told, assume)
    metric = figure.metric if figure else opened.task.metric if opened.task else None
    decision = decide(request, metric, opened.data is not None)
    assumed += decision.assumed
    journal = _journal(request, opened, out, team)
    samples = _trainer(request, opened, journal, team, told, assume)
    trainer = scripted.trainer(request, figure, samples, told, assume)
    device = device_of(request, decision.budgets.max_latency, opened, journal, team, told, assume)
    gauge = gauge_of(request, decision.budgets, device, opened, journal, team, told)
    kept = None if trainer is None else KeptTrainer(trainer, journal)
    prober = None if samples is None else KeptProber(samples, journal)
    cutter = Cutter(opened.dense, _manner(decision.manner, opened, device, assume), samples, team)
    budgets = decision.budgets.counted(cutter.dense.n_features)
    held_layers(cutter.graph, decision.manner.leave, decision.manner.layer_ratios, (KEEP_LAYER, LAYER_RATIO))
    assumed += counted_along(request, budgets, cutter.graph, opened.data)
    check(cutter, budgets, plan)
    _check_answers(request, opened, assume)
    int8 = _int8(request, opened, samples, journal, told, assume)
    plain = _plain_strategy(request, budgets, plan, samples)
    strategy = widths_of(request, opened.dense, samples, journal, gauge) or _strategy(request, plain, prober, journal)
    criterion = _criterion(request, cutter, prober, told, assume)
    file = dense_file(request, opened, team, told)  # the last check, as it takes the longest
    for text in assumed:
        told.say(f"assumed: {text}")
    return Job(
        request=request,
        model=opened.model,
        data=opened.data,
        task=opened.task,
        step=Step(cutter, kept, told, gauge, _structure(request, cutter, prober, told), criterion),
        strategy=strategy,
        budgets=budgets,
        device=device,
        gauge=gauge,
        dense=file,
        out=out,
        threads=opened.threads,
        assumed=tuple(assumed),
        journal=journal,
        team=team,
        int8=int8,
    )


def _drawn_apart(dense: Program, team: Team) -> list[str]:
    """What several processes cannot do as one would; nothing where there is one."""
    names = drawn_apart(dense.frozen_module().graph) if team.share.n_ranks > 1 else ()
    return [f"random numbers of {', '.join(names)} that each process draws for itself"] if names else []


def _journal(request: CompressRequest, opened: Opened, out: Path, team: Team) -> Results:
    """Where the search keeps its results; InputError where the processes of the team were given different things."""
    asked = identity(request, opened.model, opened.data, opened.threads.training)
    check_alike(team, asked)
    return results_of(team, place_of(out), shared_identity(team, asked), request.resume)


def _structure(request: CompressRequest, cutter: Cutter, prober: Prober | None, told: Progress) -> Structure | None:
    """What lets more go than channels, where that is asked for."""
    depth, lowrank = bool(request.depth), bool(request.lowrank)
    return Structure(cutter, prober, told, depth=depth, lowrank=lowrank) if prober and (depth or lowrank) else None


def _criterion(
    request: CompressRequest, cutter: Cutter, prober: Prober | None, told: Progress, assume: Assume
) -> OpenCriterion | None:
    """What finds out the criterion of each cut, where that is open."""
    if prober is None or not criterion_is_open(request, has_data=True):
        return None
    if not cutter.manner.reconstruct:
        assume(f"--criterion {cutter.manner.criterion}")
        return None
    assume(f"--criterion {' or '.join(CHOICES)} (in each cut of channels the one that loses less untrained)")
    return OpenCriterion(cutter, prober, told)


def _manner(manner: Manner, opened: Opened, device: Device | None, assume: Assume) -> Manner:
    """What was decided, with what the model and its data say."""
    if manner.reconstruct and opened.data is not None and state_buffers(opened.dense):
        assume("--no-reconstruct (the network keeps a state from run to run)")
        manner = replace(manner, reconstruct=False)
    return replace(manner, rules=opened.rules, device=device, vocabularies=opened.vocabularies)


def _place(request: CompressRequest, told: Progress, assume: Assume) -> Path:
    """The run folder, which is not there yet and can be replaced where it is."""
    out = Path(request.out) if request.out else next_run(Path(request.model).stem, SUFFIX, request.resume)
    if request.out is None:
        assume(f"--out {out}")
    check_place(request, out, told)
    if real_path(out) in real_path(Path(request.model)).parents:
        raise InputError(
            f"{out}: expected an output folder that does not hold the model, got the one of {request.model}"
        )
    return out


def _int8(  # noqa: PLR0913 - what was asked for, of what, how it is trained, what is kept and who is told
    request: CompressRequest,
    opened: Opened,
    samples: DataTrainer | None,
    journal: Results,
    told: Progress,
    assume: Assume,
) -> Int8 | None:
    """How int8 is asked for, where it is; InputError where the network cannot be quantised, or not be judged so."""
    asked = asked_int8(request, samples.settings.epochs if samples else 0)
    if asked is None:
        return None
    check_quantizes(asked, opened.model, opened.data, opened.task, told)
    assert opened.task is not None
    for text in assumed_int8(asked, request, opened.task.metric):
        assume(text)
    return replace(asked, journal=journal)


def _strategy(request: CompressRequest, found: Strategy, prober: Prober | None, journal: Results) -> Strategy:
    """What searches: what was found, held by another where widths go by losses that are measured."""
    if request.allocation == "greedy" or prober is None:
        return found
    if request.allocation == "sensitivity":
        return Sensitivity(found, prober)
    reach = found.least if isinstance(found, Front) else None
    return Predicted(found, prober, reach=reach, clock=journal.clock)


def _plain_strategy(
    request: CompressRequest, budgets: Budgets, plan: PruningPlan | None, samples: DataTrainer | None
) -> Strategy:
    """How the network within the budgets is come by: one is given, several are asked for, its cost is, or its drop."""
    if plan is not None:
        return Replay(plan)
    schedule = schedule_of(request.prune_schedule, samples.settings.epochs if samples else 0)
    if request.pareto is not None:
        return Front(request.pareto, request.keep_macs or _LEAST, schedule)
    return Shrink(schedule) if budgets.has_costs else Descent()


def _check_answers(request: CompressRequest, opened: Opened, assume: Assume) -> None:
    """Raise InputError where the network does not do its task; tell what would do better than a guess."""
    if opened.data is None or opened.task is None:
        return
    if not isinstance(opened.task, Classification):
        assert opened.model.info.normalization is not None
        Judge(opened.task, opened.model.info.normalization).check(opened.dense.frozen_module(), opened.data)
    if not request.allow_chance:
        check_above_chance(opened.model, opened.data, opened.task)
    hint = better_normalization(opened.model, opened.data, opened.task) if opened.is_guess else None
    if hint is not None:
        assume(hint)


def _trainer(  # noqa: PLR0913 - what was asked for, of what, what is kept, who shares and who is told
    request: CompressRequest, opened: Opened, journal: Results, team: Team, told: Progress, assume: Assume
) -> DataTrainer | None:
    """What finetunes and judges by the data, and has the samples that units are scored by; None without data."""
    model, data, task = opened.model, opened.data, opened.task
    check_recipe(request, data)
    if data is None or task is None:
        return None
    settings = replace(finetuning(request, model, data, task, assume), threads=opened.threads.training)
    trained = trained_epochs(model)
    if settings.epochs and request.prune_schedule == "iterative" and trained is None:
        assume("the learning rate is rewound to its start in each round (how the model was trained is not known)")
    normalization = model.info.normalization
    assert normalization is not None
    teacher = opened.dense.frozen_module() if request.distill or task.by_reference else None
    dtype = float_type(model.program)
    return DataTrainer(
        data,
        normalization,
        settings,
        task,
        teacher,
        dtype,
        told,
        trained,
        journal.running,
        team,
        by_features=bool(request.distill_features),
    )
