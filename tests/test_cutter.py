"""What a search cuts, and what it refuses before it begins, on a real network of two layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeprune import capture
from edgeprune.data import Share
from edgeprune.errors import BudgetError, InputError, PlanError
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph
from edgeprune.progress import Silent
from edgeprune.records import ACCURACY, Evaluation, Metric
from edgeprune.results import FeatureCount
from edgeprune.search.candidate import Budgets, Manner
from edgeprune.search.checks import check
from edgeprune.search.cutter import Cutter
from edgeprune.search.landing import Shares
from edgeprune.search.replay import Replay
from edgeprune.search.shrink import Shrink
from edgeprune.search.step import Step
from edgeprune.search.trainer import Round
from edgeprune.tasks.budget import MaxDrop
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.tasks.task import Task
from tests.fakes import Told

N_FEATURES = 12


@dataclass
class Nudging:
    """Adds a little to every weight, and finds each network as good as the last."""

    trains: bool = True
    selects: bool = True
    metric: Metric = ACCURACY

    def finetune(self, module: nn.Module, training: Round) -> bool:
        with torch.no_grad():
            for param in module.parameters():
                param += 1
        return True

    def select(self, module: nn.Module, graph: ChannelGraph, n_features: int, units: int) -> tuple[FeatureCount, ...]:
        with torch.no_grad():
            next(param for param in module.parameters() if param.dim() == 2)[:, n_features:] = 0
        return (FeatureCount(n_features, 0.9),)

    def evaluation(self, module: nn.Module) -> Evaluation:
        return Evaluation((), 0.9, 0.0)

    def standard_error(self, dense: Evaluation, slim: Evaluation) -> float:
        return 0.0

    @property
    def task(self) -> Task:
        return CLASSIFICATION

    def score_batches(self, share: Share = Share()) -> Iterable[tuple[Tensor, Any]]:  # noqa: B008 - it has no state
        return ()

    def some_inputs(self) -> Tensor:
        return torch.linspace(-1, 1, 4 * N_FEATURES).reshape(4, N_FEATURES)


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(N_FEATURES, 32), nn.ReLU(), nn.Linear(32, 3))


def captured(module: nn.Module) -> Program:
    return capture(module, torch.randn(2, N_FEATURES))


@pytest.fixture(scope="module")
def net() -> Program:
    return captured(layers())


WITH_FEATURES = Manner(align=4, features=True)


def test_it_cuts_and_proves_and_trains_on(net: Program) -> None:
    """Features first, while it trains; then channels; the plan leads from the dense network to the slim one."""
    step = Step(Cutter(net, WITH_FEATURES, Nudging()), Nudging(), Silent())
    found = Shrink().search(step, Budgets(keep_macs=0.5, n_features=6))
    [best] = found.networks
    assert (best.n_features, best.val_value, found.selection) == (6, 0.9, (FeatureCount(6, 0.9),))
    assert 0 < best.proof_error < 1e-5
    assert best.macs <= 0.5 * found.dense.macs
    assert best.plan is not None
    assert best.plan.source_sha256 == step.cutter.made_by(best.plan).plan.source_sha256  # type: ignore[union-attr]
    [replayed] = Replay(best.plan).search(Step(Cutter(net, WITH_FEATURES, None), None, Silent()), Budgets()).networks
    assert (replayed.macs, replayed.n_features) == (best.macs, 6)
    [bias] = [tensor for name, tensor in best.program.state_dict.items() if name == "2.bias"]
    [before] = [tensor for name, tensor in net.state_dict.items() if name == "2.bias"]
    torch.testing.assert_close(bias, before + 1)  # trained once, after the one cut of channels
    torch.testing.assert_close(replayed.program.state_dict["2.bias"], before)  # the dense network stays as it was


def test_features_stay_unless_they_are_asked_for_or_compete(net: Program) -> None:
    stay, compete = (Cutter(net, Manner(align=1, features=True, compete=how), None) for how in (False, True))
    assert stay.pruned(stay.dense, Shares(macs=0.2)).n_features == N_FEATURES
    assert (compete.pruned(compete.dense, Shares(macs=0.2)).n_features or 0) < N_FEATURES
    assert stay.pruned(stay.dense, Shares(), n_features=5).n_features == 5


def test_dead_units_are_found() -> None:
    module = layers()
    with torch.no_grad():
        module[0].weight[8:] = 0
        module[0].bias[8:] = 0
    dense = captured(module)
    slim = Cutter(dense, Manner(), None).without_dead()
    assert slim is not None
    assert slim.macs == 8 * (N_FEATURES + 3)
    assert Cutter(dense, Manner(leave=("0",)), None).without_dead() is None


def test_a_held_share_is_of_the_dense_network_however_many_cuts_there_are(net: Program) -> None:
    cutter = Cutter(net, Manner(align=1, features=True, layer_ratios={"0": 0.55}), None)
    once = cutter.pruned(cutter.dense, Shares(), n_features=8)
    twice = cutter.pruned(once, Shares(macs=0.8), n_features=5)
    assert [group.after for one in (once, twice) if one.plan for group in one.plan.groups if group.name == "0"] == [
        18,
        18,
    ]
    assert twice.n_features == 5  # and 17.6 of 32 units


def test_an_alignment_that_gives_way_is_told_once(net: Program) -> None:
    told = Told()
    step = Step(Cutter(net, Manner(align=8), None), None, told)
    [best] = Shrink().search(step, Budgets(keep_macs=0.1)).networks
    assert best.plan is not None and best.plan.aligned == 2
    step.pruned(step.dense, Shares(macs=0.1))
    assert told.lines == ["widths are multiples of 2: the budgets cannot be met by coarser ones"]


def test_costs_are_shares_of_the_dense_network_s(net: Program) -> None:
    cutter = Cutter(net, Manner(align=1), None)
    half = cutter.pruned(cutter.dense, Shares(macs=0.5))
    assert cutter.costs.toward(half, Shares(macs=0.25, size=0.5)).macs == pytest.approx(0.5)
    assert cutter.costs.toward(half, Shares(macs=0.25), least=0.7) == Shares(macs=0.7)
    assert cutter.costs.is_over(half, Shares(macs=0.49)) and not cutter.costs.is_over(half, Shares(macs=0.5))
    assert cutter.costs.is_over(half, Shares(size=0.4)) and not cutter.costs.is_over(half, Shares(size=0.6))
    assert not cutter.costs.is_over(half, Shares())


def test_what_no_search_can_reach_is_refused_at_once(net: Program) -> None:
    cutter = Cutter(net, WITH_FEATURES, None)
    check(cutter, Budgets(keep_macs=0.5, n_features=12))
    with pytest.raises(InputError, match="expected 1 to 12 .* got 13"):
        check(cutter, Budgets(n_features=13))
    with pytest.raises(BudgetError, match="of the MACs cannot be met"):
        check(cutter, Budgets(keep_macs=0.001))
    with pytest.raises(InputError, match="no input feature that can be removed"):
        check(Cutter(net, Manner(), None), Budgets(feature_ratio=0.5))
    plan = cutter.pruned(cutter.dense, Shares(macs=0.5)).plan
    assert plan is not None
    check(cutter, Budgets(), plan)
    other = layers()
    with torch.no_grad():
        other[0].weight += 1
    with pytest.raises(PlanError):
        check(Cutter(captured(other), WITH_FEATURES, None), Budgets(), plan)


def test_a_network_that_gives_the_same_whatever_comes_in_is_refused() -> None:
    module = layers()
    with torch.no_grad():
        module[2].weight.zero_()
    with pytest.raises(InputError, match="the same outputs whatever comes in"):
        check(Cutter(captured(module), Manner(), None), Budgets(max_drop=MaxDrop(1.0)))


def test_a_layer_that_is_left_keeps_units_that_are_zero() -> None:
    module = layers()
    with torch.no_grad():
        module[0].weight[:5], module[0].bias[:5], module[2].weight[:, :5] = 0.0, 0.0, 0.0
    program = captured(module)
    for leave, after in (((), 27), (("0",), 32)):
        cutter = Cutter(program, Manner(features=True, leave=leave), None)
        slim = cutter.without_zeros(cutter.dense, program.own_module())
        assert slim.plan is not None
        assert {group.name: group.after for group in slim.plan.groups}["0"] == after
