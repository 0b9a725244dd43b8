"""One budget for input features and channels: what matters least for what it saves goes while the rest is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from edgeprune.cost.limits import MACS, PARAMETERS, Aim, Limit
from edgeprune.cost.models import macs_model, params_model
from edgeprune.cost.widths import Alignment
from edgeprune.errors import BudgetError, InputError
from edgeprune.graph.groups import ChannelGraph, ChannelGroup
from edgeprune.importance import counted_once, protected
from edgeprune.methods.base import Subject
from edgeprune.methods.masks import Masked
from edgeprune.methods.schedules import SCHEDULES
from edgeprune.optim import ChannelGroups
from edgeprune.optim.channels import UnitGroups

_AVERAGED = 0.01  # weight of the present step in a running mean
_UPDATES = 100


@dataclass(frozen=True, slots=True, eq=False)
class _Units:
    """All units that may go, side by side, `(n,)` each.

    `group` numbers the group of each and `label` is its label; `factor` is what its price is multiplied with, and
    `n_features` how many input features it is.
    """

    group: np.ndarray
    label: np.ndarray
    factor: np.ndarray
    n_features: np.ndarray

    @classmethod
    def of(cls, graph: ChannelGraph) -> _Units:
        """Those of every group of a graph."""
        sizes = [group.n_units for group in graph.groups]
        _, features = graph.features()
        return cls(
            np.repeat(np.arange(len(sizes)), sizes),
            _joined([group.units for group in graph.groups]),
            _joined(graph.price_factors()),
            _joined(features),
        )

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """One value a unit, by group."""
        return np.split(values, np.flatnonzero(np.diff(self.group)) + 1)


class SharedBudget(Masked):
    """Every k steps those input features and channels go that matter least for what they save, until costs are met.

    What a unit matters is the running mean of its squared first-order effect on the loss, (sum of w times gradient over
    the weights that read it)^2: of a feature as of a channel, each counted once (Molchanov et al., CVPR 2019, with one
    gate a unit; Induced Feature Selection by Structured Pruning, with features and channels for one budget). Its price
    is what it costs at the present widths, times what is said of a feature. One unit of every dim stays. Channels whose
    removal changes the statistics of a normalisation do too, as zeros are no removal there; where whoever trains says
    what the network may cost, and cuts and finetunes afterwards, they go with the others.

    Options: keep_macs and keep_params, at least one of them; input_features (`off`: channels alone), feature_price,
    align, prune_schedule, prune_every (default: a hundredth of the training).

    Raises:
        InputError: no budget is stated, or the network has nothing that can go.
        BudgetError: a budget is less than what has to stay.
    """

    name = "shared-budget"
    groups: UnitGroups

    def __init__(self, subject: Subject) -> None:
        options, graph = subject.options, subject.graph
        assert graph is not None
        self.whole = graph
        self.aim = subject.aim or _asked(graph, options)
        self.graph = replace(graph, groups=_free(graph, options["input_features"], exact=subject.aim is None))
        if not self.graph.groups:
            raise InputError(
                f"method {self.name}: expected a network with channels or input features that can be removed, got none"
            )
        super().__init__(subject, ChannelGroups(self.graph))
        numbers = [int(block.split(" ")[0]) for block in self.groups.blocks]
        self.graph = replace(self.graph, groups=tuple(self.graph.groups[number] for number in numbers))
        self.once = _bound(counted_once(self.graph, self.params), self.params)
        self.units = _Units.of(self.graph)
        self.steps = [self.aim.alignment.step(group) for group in self.graph.groups]
        self.schedule = SCHEDULES[options["prune_schedule"]]
        self.every = int(options.get("prune_every", max(1, subject.n_steps // _UPDATES)))
        self.effects = {block: torch.zeros_like(own, dtype=torch.float32) for block, own in self.inside.items()}
        if subject.aim is None:
            self._check_reachable()

    @property
    def n_features(self) -> int | None:
        """How many features the network reads now; None where none can go."""
        fixed, sizes = self.whole.features()
        if not self.units.n_features.any():
            return None
        return fixed + int(sum(size.sum() for size in sizes)) - int(self.units.n_features[~self._inside()].sum())

    def kept(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Also the running means."""
        return {**super().kept(), "effects": self.effects}

    def _choose(self, scale: float) -> None:
        totals = self.once.totals([_effect(param, scale) for param in self.params.values()])
        for block, total in zip(self.once.blocks, totals, strict=True):
            average = self.effects[self.blocks[int(block.split(" ")[0])]]
            average.lerp_(total.square().to(average.dtype).nan_to_num_(0.0, 0.0, 0.0), _AVERAGED)
        if (self.step + 1) % self.every and self.done < 1:
            return
        for block, own in zip(self.blocks, self.units.split(self._staying()), strict=True):
            self.inside[block] = torch.from_numpy(own).to(self.inside[block].device)

    def _inside(self) -> np.ndarray:
        return _joined([own.cpu().numpy() for own in self.inside.values()])

    def _staying(self) -> np.ndarray:
        """Bool `(n,)`: which units stay so that no cost is over what it may be now."""
        inside, done = self._inside(), self.schedule(self.done)
        keep = self._labels(inside)
        if self.aim.is_held(keep, done):
            return inside
        scores = _joined([average.cpu().double().numpy() for average in self.effects.values()])
        prices = self.aim.prices(keep, done)[self.units.label]
        worth = scores / np.where(prices > 0, prices * self.units.factor, 1.0)
        last = _joined(protected(self.graph, self.units.split(np.where(inside, worth, -1.0))))
        order = np.flatnonzero(inside & ~last & (prices > 0))
        order = order[np.argsort(worth[order], kind="stable")]
        least, most = 1, len(order)  # how many of them go
        while least < most:
            middle = (least + most) // 2
            if self.aim.is_held(self._labels(self._without(inside, order, middle)), done):
                most = middle
            else:
                least = middle + 1
        return self._without(inside, order, most)

    def _without(self, inside: np.ndarray, order: np.ndarray, count: int) -> np.ndarray:
        """Without the first `count` units of an order, but for those that a width needs to stay aligned."""
        stays = inside.copy()
        stays[order[:count]] = False
        for number in np.flatnonzero(np.array(self.steps) > 1):
            mine = self.units.group == number
            step, width = self.steps[number], int(stays[mine].sum())
            lacking = min(-width % step, int(inside[mine].sum()) - width)
            if lacking:
                gone = order[:count][mine[order[:count]]]
                stays[gone[len(gone) - lacking :]] = True
        return stays

    def _labels(self, stays: np.ndarray) -> np.ndarray:
        """Bool `(n_labels,)`, from which of the units stay."""
        keep = np.ones(len(self.graph.analysis.solver.canonical), dtype=bool)
        keep[self.units.label[~stays]] = False
        return keep

    def _check_reachable(self) -> None:
        everything = np.ones(len(self.units.label))
        last = _joined(protected(self.graph, self.units.split(everything)))
        keep = self._labels(self._without(everything > 0, np.flatnonzero(~last), len(everything)))
        for limit in self.aim.limits:
            least = limit.model.left(keep) / limit.model.total
            if least > limit.share:
                raise BudgetError(
                    f"method {self.name}: expected to keep at least {least:.4g} of {limit.what}, which is what has to "
                    f"stay, got {limit.share:g}"
                )


def _asked(graph: ChannelGraph, options: Mapping[str, object]) -> Aim:
    """The budgets that the options state."""
    models = {"keep_macs": (MACS, macs_model), "keep_params": (PARAMETERS, params_model)}
    limits = tuple(
        Limit(what, model(graph), float(str(options[name])))
        for name, (what, model) in models.items()
        if name in options
    )
    if not limits:
        raise InputError("method shared-budget: expected keep_macs or keep_params, got neither")
    return Aim(limits, alignment=Alignment(int(str(options["align"]))))


def _free(graph: ChannelGraph, features: object, exact: bool) -> tuple[ChannelGroup, ...]:
    """The groups whose units may go; `exact` leaves out those whose removal changes a normalisation's statistics."""
    free = (group for group in graph.groups if group.given is None and (group.exact or not exact))
    return tuple(group for group in free if features == "auto" or not group.is_input)


def _bound(graph: ChannelGraph, params: Mapping[str, torch.nn.Parameter]) -> UnitGroups:
    structure = ChannelGroups(graph)
    return structure.bind(list(params), list(params.values()))


def _joined(values: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(values) if values else np.zeros(0)


def _effect(param: torch.nn.Parameter, scale: float) -> Tensor:
    if param.grad is None:
        return torch.zeros_like(param)
    return param.detach() * param.grad / scale
