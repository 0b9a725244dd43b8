"""From a request to a job: reads and checks all that was asked for, and fills the gaps with what is assumed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgeprune.commands.resolve import model_and_data, next_run, notes_of, own_device, threads_for
from edgeprune.cost.device import Device, read_device
from edgeprune.cost.models import known_share
from edgeprune.errors import InputError
from edgeprune.files import check_new
from edgeprune.formats.normalizing import with_normalization
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import analyze
from edgeprune.graph.inputs import feature_grids
from edgeprune.measure.candidates import OnnxGauge
from edgeprune.measure.chance import better_normalization, check_above_chance
from edgeprune.measure.profiling import Timing, is_here
from edgeprune.progress import Progress
from edgeprune.pruning.feature_rules import feature_rules, named_groups
from edgeprune.pruning.plan import PruningPlan, read_plan
from edgeprune.records import DataSource, FeatureRules, Model
from edgeprune.requests import CompressRequest
from edgeprune.search.candidate import ASSUMED_DROP, Budgets, Trainer
from edgeprune.search.shrink import Search
from edgeprune.settings import TrainSettings
from edgeprune.tasks.classification import check_logits
from edgeprune.training import float_type
from edgeprune.units import parse_latency, parse_size

_ASSUMED_KEEP = 0.5
_FINETUNE_STEPS = 1500  # optimizer steps of one finetuning where no epochs are given
_FINETUNE = TrainSettings(lr=1e-3)  # for a model that does not say how it was trained
_SETTLED = 2 / 3  # of the epochs: at a high learning rate a good epoch is luck on the validation split
MOST_POINTS = 20  # of a front
_KNOWN = 0.5  # of the MACs: what a device's profile must at least cover


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A compress request with every gap filled in."""

    request: CompressRequest
    model: Model
    data: DataSource | None
    trainer: Trainer | None
    search: Search
    plan: PruningPlan | None
    out: Path
    threads: int | None
    assumed: tuple[str, ...]


def prepare(request: CompressRequest, told: Progress) -> Job:
    """Read and check everything that was asked for, then say what is assumed."""
    assumed: list[str] = []
    assume = assumed.append
    if request.keep_macs is not None and not 0 < request.keep_macs <= 1:
        raise InputError(f"--keep-macs: expected a share in (0, 1], got {request.keep_macs}")
    out = Path(request.out) if request.out else next_run(Path(request.model).stem)
    if request.out is None:
        assume(f"--out {out}")
    check_new(out, request.force, "folder")
    _check_keeps_model(Path(request.model), out)
    plan = read_plan(Path(request.plan)) if request.plan else None
    told.stage("load")
    model, data = model_and_data(request, request.seed)
    if data is not None:
        check_logits(model.program, data)
    if data is not None and request.data is None:
        assume(f"--data {model.info.data} (the data that the model was trained on)")
    assumed += notes_of(model, data)
    is_assumed = request.normalize is None and model.info.normalization is None
    model = with_normalization(model, data, request.normalize, assume)
    rules = _rules(request, model, data)
    model = replace(model, info=replace(model.info, feature_groups=named_groups(rules) or model.info.feature_groups))
    budgets = replace(_budgets(request, data is not None, assume), rules=rules)
    trainer = _trainer(request, model, data, assume) if data else None
    threads = request.threads or threads_for(model.program)
    dense = Program.adopt(model.program)
    budgets = replace(budgets, device=_device(request, budgets, dense, assume, told))
    measured = budgets.is_measured or request.pareto is not None
    gauge = _gauge(request, budgets, dense, model, told) if measured else None
    search = Search(dense, budgets, trainer, told, gauge)
    search.check(plan)
    _check_classes(request, model, data, assume if is_assumed else None)
    for text in assumed:
        told.say(f"assumed: {text}")
    return Job(request, model, data, trainer, search, plan, out, threads, tuple(assumed))


def _check_classes(request: CompressRequest, model: Model, data: DataSource | None, assume: Any | None) -> None:
    """Raise InputError where the network does not tell the classes apart; tell what would do better than an assumption.

    `assume` is None where the normalisation is not assumed.
    """
    if data is None:
        return
    if not request.allow_chance:
        check_above_chance(model, data)
    hint = better_normalization(model, data) if assume is not None else None
    if assume is not None and hint is not None:
        assume(hint)


def _check_keeps_model(model: Path, out: Path) -> None:
    """Raise InputError where replacing the folder `out` would delete the model that is read."""
    if out.resolve() in model.resolve().parents:
        raise InputError(f"{out}: expected an output folder that does not hold the model, got the one of {model}")


def _budgets(request: CompressRequest, has_data: bool, assume: Any) -> Budgets:
    keep_macs, max_drop = request.keep_macs, request.max_drop
    max_latency = parse_latency(request.max_latency) if request.max_latency is not None else None
    max_bytes = parse_size(request.max_size) if request.max_size is not None else None
    if max_drop is not None and not has_data:
        raise InputError("--max-drop: expected data to measure the accuracy on, got none; give --data")
    costs = (keep_macs, max_latency, max_bytes, request.pareto)
    if max_drop is None and request.plan is None and all(budget is None for budget in costs):
        if has_data:
            max_drop = ASSUMED_DROP
            assume(f"--max-drop {max_drop:g}")
        else:
            keep_macs = _ASSUMED_KEEP
            assume(f"--keep-macs {keep_macs:g} (there are no data to measure a drop on)")
    if request.pareto is not None:
        _check_front(request)
        if max_drop is None and has_data:
            assume(f"--max-drop {ASSUMED_DROP:g} (of the networks, the smallest within it is taken)")
        max_drop = None  # it chooses among the networks, and holds up none of them
    criterion = request.criterion or ("taylor" if has_data else "l2")
    if request.criterion is None:
        assume(f"--criterion {criterion}")
    features = request.input_features
    if request.module is not None and features == "auto":
        features = "off"
        assume("--input-features off (what a part takes comes from the rest of the network)")
    elif features == "auto" and not has_data and request.plan is None:
        features = "off"
        assume("--input-features off (without data nothing tells what the inputs hold)")
    return Budgets(
        keep_macs=keep_macs,
        max_drop=max_drop,
        **_feature_budget(features),
        criterion=criterion,
        align=request.align,
        seed=request.seed,
        attention=request.attention,
        appliable=request.appliable,
        leave=request.leave,
        max_latency=max_latency,
        max_bytes=max_bytes,
        max_finetunings=request.max_finetunings,
    )


def _check_front(request: CompressRequest) -> None:
    """Raise InputError for options that do not go with several networks."""
    assert request.pareto is not None
    if not 2 <= request.pareto <= MOST_POINTS:
        raise InputError(f"--pareto: expected 2 to {MOST_POINTS} networks, got {request.pareto}")
    for option, got in (
        ("--plan", request.plan),
        ("--max-latency", request.max_latency),
        ("--max-size", request.max_size),
    ):
        if got is not None:
            raise InputError(f"--pareto: expected no {option}, got {got}; the networks go down to --keep-macs")


def _device(request: CompressRequest, budgets: Budgets, dense: Program, assume: Any, told: Progress) -> Device | None:
    """The profile that is planned with: the one given, or this machine's where a latency is asked for."""
    if request.device is not None:
        device = read_device(request.device)
        known = known_share(analyze(dense, attention=request.attention), device)
        if known < _KNOWN:
            raise InputError(
                f"{request.device}: expected measurements of this network's layers, got those of {known:.0%} of its "
                f"MACs; make it with: edgeprune profile {request.model}"
            )
        return device
    if budgets.max_latency is None:
        return None
    assume("--device this machine")
    return own_device(dense, Timing(threads=request.threads or 1), told)


def _gauge(request: CompressRequest, budgets: Budgets, dense: Program, model: Model, told: Progress) -> OnnxGauge:
    device, threads = budgets.device, request.threads or 1
    foreign = device if device is not None and not is_here(device) else None
    if foreign is not None and budgets.max_latency is not None:
        told.say(f"--max-latency is judged by what {request.device} foretells: it is of another device than this one")
    example = torch.zeros(1, *model.info.input_shape, dtype=float_type(dense)).numpy()
    told.stage("export the dense network to measure it")
    return OnnxGauge(dense, example, threads, told, foreign)


def _rules(request: CompressRequest, model: Model, data: DataSource | None) -> FeatureRules | None:
    """Which input features always stay, and which only go together; None where nothing was said of it."""
    if request.always_keep is None and request.feature_groups is None:
        return None
    for option, got in (("--plan", request.plan), ("--module", request.module)):
        if got is not None:
            raise InputError(f"--always-keep and --feature-groups: expected a choice of features, got {option} {got}")
    if request.input_features == "off":
        raise InputError(
            "--always-keep and --feature-groups: expected --input-features auto, a count or a ratio, got off"
        )
    grids = list(feature_grids(analyze(model.program, inputs=True).analysis).values())
    if len(grids) != 1:
        raise InputError(
            "--always-keep and --feature-groups: expected a network with one input whose features can be removed, "
            f"got {len(grids) or 'none'}"
        )
    names = model.info.feature_names or (data.feature_names if data else ())
    fitting = names if len(names) == len(grids[0]) else ()
    return feature_rules(request.always_keep, request.feature_groups, fitting, len(grids[0]))


def _trainer(request: CompressRequest, model: Model, data: DataSource, assume: Any) -> Trainer:
    settings = replace((model.info.training or _FINETUNE).recipe(), seed=request.seed)
    epochs = request.finetune_epochs
    if epochs is None:
        per_epoch = max(1, -(-len(data.train) // settings.batch_size))  # type: ignore[arg-type]
        epochs = min(60, max(2, round(_FINETUNE_STEPS / per_epoch)))
        assume(f"--finetune-epochs {epochs}")
    threads = request.threads or threads_for(model.program)
    settings = replace(settings, epochs=epochs, threads=threads, best_from=_SETTLED)
    assert model.info.normalization is not None
    return Trainer(data, model.info.normalization, settings, request.distill, float_type(model.program))


def _feature_budget(text: str) -> dict[str, Any]:
    """The budget's fields for `auto`, `off`, a count such as "20" or a ratio such as "0.5"."""
    fields = {"n_features": None, "feature_ratio": None, "prune_features": text == "auto"}
    if text in ("auto", "off"):
        return fields
    if text.isdecimal() and int(text) >= 1:
        return {**fields, "n_features": int(text)}
    try:
        ratio = float(text)
    except ValueError:
        ratio = math.nan
    if text.isdecimal() or not 0 < ratio <= 1:
        raise InputError(f"--input-features: expected auto, off, a count from 1 or a ratio in (0, 1], got {text!r}")
    return {**fields, "feature_ratio": ratio}
