"""From a compress request to its budgets: what was asked for, checked, and what is assumed where nothing was said."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from edgeprune.catalog import names
from edgeprune.commands.widths import check_widths
from edgeprune.errors import InputError
from edgeprune.pruning.held import parse_ratios
from edgeprune.records import Metric
from edgeprune.requests import CompressRequest
from edgeprune.search.candidate import Budgets, Manner
from edgeprune.search.criterion import CHOICES
from edgeprune.settings import ALLOCATIONS
from edgeprune.tasks.budget import drop_of
from edgeprune.units import parse_latency, parse_size

_ASSUMED_KEEP = 0.5
KEEP_LAYER, LAYER_RATIO = "--keep-layer", "--layer-ratio"
MOST_POINTS = 20  # of a front
_SCHEDULE, _COSTS = "--prune-schedule", "--keep-macs, --max-latency, --max-size, --max-ram or --pareto"
_LEAST_CYCLE = 2  # epochs


@dataclass(frozen=True, slots=True)
class Decision:
    """What a search is to meet and how it goes about it; `assumed` says what of it nobody asked for."""

    budgets: Budgets
    manner: Manner
    assumed: tuple[str, ...]


def decide(request: CompressRequest, metric: Metric | None, has_data: bool | None = None) -> Decision:
    """The budgets of a request. It reads nothing else: no file, no network.

    Args:
        metric: what drops count in; None where nothing is judged.
        has_data: whether there are samples; where it is not said, they are what is judged on.

    Raises:
        InputError: an option is out of range, or does not go with another, with the metric or without data.
    """
    check_share(request)
    has_data = metric is not None if has_data is None else has_data
    check_widths(request, has_data)
    _check_allocation(request, has_data)
    limits, of_costs = _costs(request, metric)
    criterion, of_criterion = _criterion(request, has_data)
    features, of_features = _features(request, has_data)
    budgets = replace(limits, **_feature_budget(features))
    _check_schedule(request, budgets, has_data)
    _check_structure(request, has_data)
    _check_features(request, has_data)
    manner = Manner(
        criterion=criterion,
        named=request.criterion is not None,
        align=request.align,
        seed=request.seed,
        attention=request.attention,
        features=budgets.features,
        compete=budgets.features_compete,
        appliable=request.appliable,
        leave=request.leave,
        layer_ratios=_layer_ratios(request),
        max_finetunings=request.max_finetunings,
        reconstruct=request.reconstruct and request.widths is None,  # what is left reads the wider one's weights
    )
    return Decision(budgets, manner, (*of_costs, *of_criterion, *of_features))


def _check_allocation(request: CompressRequest, has_data: bool) -> None:
    """Raise InputError for an allocation that is none, that nothing can be measured for, or beside a plan."""
    if request.allocation not in ALLOCATIONS:
        raise InputError(f"--allocation: expected one of {', '.join(ALLOCATIONS)}, got {request.allocation}")
    if request.allocation == ALLOCATIONS[0]:
        return
    if request.plan is not None:
        raise InputError(f"--allocation {request.allocation}: expected a choice of channels, got --plan {request.plan}")
    if not has_data:
        raise InputError(
            f"--allocation {request.allocation}: expected data to measure losses on, got none; give --data"
        )


def _check_schedule(request: CompressRequest, budgets: Budgets, has_data: bool) -> None:
    """Raise InputError for a schedule that is none, that has no cost to come down to, or nothing to go on with."""
    name = request.prune_schedule
    if name is None:
        return
    if name not in names("cut-schedule"):
        raise InputError(f"{_SCHEDULE}: expected one of {', '.join(names('cut-schedule'))}, got {name}")
    option = f"{_SCHEDULE} {name}"
    if request.plan is not None:
        raise InputError(f"{option}: expected a choice of channels, got --plan {request.plan}, which is one cut")
    if not budgets.has_costs and request.pareto is None:
        got = "a drop alone, which says when to stop but not where" if budgets.max_drop is not None else "none"
        raise InputError(f"{option}: expected a cost to come down to, {_COSTS}, got {got}")
    if name == "one-cycle":
        _check_cycle(request, option, has_data)


def _check_cycle(request: CompressRequest, option: str, has_data: bool) -> None:
    """Raise InputError where no training goes on over several cuts."""
    if request.finetune is not None:
        got = f"--finetune {request.finetune}, which trains anew after each cut"
        raise InputError(f"{option}: expected one training that goes on over all cuts, got {got}; iterative does so")
    if not has_data:
        raise InputError(f"{option}: expected data to train on while it cuts, got none; give --data")
    if request.finetune_epochs is not None and request.finetune_epochs < _LEAST_CYCLE:
        raise InputError(
            f"{option}: expected --finetune-epochs of at least {_LEAST_CYCLE}, one after each cut, got "
            f"{request.finetune_epochs}"
        )


def _check_structure(request: CompressRequest, has_data: bool) -> None:
    """Raise InputError where nothing says what blocks and ranks are worth, or they could not go."""
    asked = (("--depth", request.depth, "blocks", "runs all of its blocks"),
             ("--lowrank", request.lowrank, "layers", "runs its layers whole"))  # fmt: skip
    for option, _, what, runs in (one for one in asked if one[1]):
        if request.plan is not None:
            raise InputError(f"{option}: expected a choice of {what}, got --plan {request.plan}")
        if request.appliable:
            raise InputError(f"{option}: expected no --keep-equal-chunks, as a class of yours {runs}")
        if not has_data:
            raise InputError(f"{option}: expected data to judge {what} on, got none; give --data")


def _check_features(request: CompressRequest, has_data: bool) -> None:
    """Raise InputError where features are to be learnt, but nothing is finetuned here."""
    if not request.distill_features:
        return
    option = "--distill features: expected"
    if not has_data:
        raise InputError(f"{option} data to finetune on, got none; give --data")
    if request.finetune is not None:
        raise InputError(f"{option} finetuning by the data, got --finetune {request.finetune}, which has its own loss")
    if request.finetune_epochs == 0:
        raise InputError(f"{option} epochs to finetune, got --finetune-epochs 0")


def _layer_ratios(request: CompressRequest) -> dict[str, float]:
    """The shares of their units that layers keep."""
    if request.layer_ratios and request.plan is not None:
        raise InputError(f"{LAYER_RATIO}: expected a choice of channels, got --plan {request.plan}")
    return parse_ratios(request.layer_ratios, LAYER_RATIO)


def check_share(request: CompressRequest) -> None:
    """Raise InputError where the MACs to keep are no share."""
    if request.keep_macs is not None and not 0 < request.keep_macs <= 1:
        raise InputError(f"--keep-macs: expected a share in (0, 1], got {request.keep_macs}")


def _costs(request: CompressRequest, metric: Metric | None) -> tuple[Budgets, tuple[str, ...]]:
    """What the network may cost and lose."""
    if request.max_drop is not None and metric is None:
        raise InputError("--max-drop: expected data to measure the drop on, got none; give --data")
    stated = _stated(request, metric)
    if request.pareto is not None or request.widths is not None:
        return _of_front(request, stated, metric)
    if stated.has_costs or stated.max_drop is not None or request.plan is not None:
        return stated, ()
    if metric is not None:
        drop = drop_of(request.max_drop, metric)
        return replace(stated, max_drop=drop), (f"--max-drop {drop}",)
    said = f"--keep-macs {_ASSUMED_KEEP:g} (there are no data to measure a drop on)"
    return replace(stated, keep_macs=_ASSUMED_KEEP), (said,)


def _stated(request: CompressRequest, metric: Metric | None) -> Budgets:
    return Budgets(
        keep_macs=request.keep_macs,
        max_drop=None if metric is None or request.max_drop is None else drop_of(request.max_drop, metric),
        max_latency=parse_latency(request.max_latency) if request.max_latency is not None else None,
        max_bytes=parse_size(request.max_size) if request.max_size is not None else None,
        max_ram=parse_size(request.max_ram, "--max-ram") if request.max_ram is not None else None,
    )


def _of_front(request: CompressRequest, stated: Budgets, metric: Metric | None) -> tuple[Budgets, tuple[str, ...]]:
    """A drop chooses among the networks of a front, and holds up none of them."""
    if request.pareto is not None:
        _check_front(request)
    if metric is None or stated.max_drop is not None:
        return replace(stated, max_drop=None), ()
    return stated, (
        f"--max-drop {drop_of(request.max_drop, metric)} (of the networks, the smallest within it is taken)",
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
        ("--max-ram", request.max_ram),
    ):
        if got is not None:
            raise InputError(f"--pareto: expected no {option}, got {got}; the networks go down to --keep-macs")


def criterion_is_open(request: CompressRequest, has_data: bool) -> bool:
    """Whether the search finds out by which criterion units go: cuts can be judged untrained, once they took over."""
    chooses = request.plan is None and request.widths is None
    return request.criterion is None and has_data and request.reconstruct and chooses


def _criterion(request: CompressRequest, has_data: bool) -> tuple[str, tuple[str, ...]]:
    if request.criterion is not None:
        return request.criterion, ()
    criterion = CHOICES[0] if has_data else "l2"
    return criterion, () if criterion_is_open(request, has_data) else (f"--criterion {criterion}",)


def _features(request: CompressRequest, has_data: bool) -> tuple[str, tuple[str, ...]]:
    """What is asked of the input features; none go by themselves where nothing tells what they hold."""
    if request.input_features != "auto":
        return request.input_features, ()
    if request.widths is not None:
        return "off", ()
    if request.module is not None:
        return "off", ("--input-features off (what a part takes comes from the rest of the network)",)
    if not has_data and request.plan is None:
        return "off", ("--input-features off (without data nothing tells what the inputs hold)",)
    return "auto", ()


def _feature_budget(text: str) -> dict[str, Any]:
    """The budget's fields for `auto`, `off`, a count such as "20" or a ratio such as "0.5"."""
    if text in ("auto", "off"):
        return {"prune_features": text == "auto"}
    if text.isdecimal() and int(text) >= 1:
        return {"n_features": int(text)}
    try:
        ratio = float(text)
    except ValueError:
        ratio = math.nan
    if text.isdecimal() or not 0 < ratio <= 1:
        raise InputError(f"--input-features: expected auto, off, a count from 1 or a ratio in (0, 1], got {text!r}")
    return {"feature_ratio": ratio}
