"""The knapsack finds the best widths of all, within every budget; losses are measured and lead a search."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Subset

import edgeprune
from edgeprune.cost.layers import layer_shapes
from edgeprune.cost.limits import Limit
from edgeprune.cost.macs import macs
from edgeprune.cost.models import bytes_model, latency_model, macs_model
from edgeprune.cost.widths import Alignment
from edgeprune.data import open_data
from edgeprune.errors import BudgetError
from edgeprune.pruning.choosing import Chooser
from edgeprune.pruning.knapsack import Curve, _rises, allot
from edgeprune.search.candidate import Budgets, Manner
from edgeprune.search.cutter import Cutter
from edgeprune.search.landing import Shares
from edgeprune.search.sensitivity import Sensitivity
from edgeprune.search.shrink import Shrink
from edgeprune.search.step import Step
from edgeprune.settings import FeatureRules
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.training import Judge
from tests.cases import IMAGE
from tests.fakes import Told
from tests.nets import captured, residual
from tests.test_device import staircase_device


def chain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
        nn.Conv2d(12, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1),
    )  # fmt: skip


CURVES = {0: Curve((2, 4, 8), (0.5, 0.2, 0.0)), 1: Curve((3, 6, 12), (0.9, 0.1, 0.0)), 2: Curve((2, 8), (0.3, 0.0))}


def test_a_curve_never_falls_with_fewer_units_and_is_steeper_where_nothing_was_measured() -> None:
    curve = Curve((4, 8, 16), (0.2, 0.3, -0.1))
    np.testing.assert_allclose(curve.at(np.array([16, 12, 8, 4])), [0.0, 0.15, 0.3, 0.3])
    rising = Curve((4, 8), (0.4, 0.0)).at(np.array([8, 4, 2]))
    np.testing.assert_allclose(rising, [0.0, 0.4, 0.4 + 4 * 0.1 * 2])


@pytest.mark.sampled(2)
@pytest.mark.parametrize("keep_macs", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("keep_bytes", [None, 0.6])
def test_no_other_widths_lose_less(keep_macs: float, keep_bytes: float | None) -> None:
    """Beside every choice of widths there is."""
    program = captured(chain(), IMAGE)
    graph = edgeprune.analyze(program)
    plan = edgeprune.plan(program, graph, keep_macs, align=1, keep_bytes=keep_bytes, losses=CURVES)
    limits = [(macs_model(graph), keep_macs), (bytes_model(program, graph), keep_bytes or 1.0)]

    def loss(counts: tuple[int, ...]) -> float:
        return sum(float(CURVES[g].at(np.array(count))) for g, count in enumerate(counts))

    def fits(counts: tuple[int, ...]) -> bool:
        return all(model.cost(np.array(counts)) <= share * model.total for model, share in limits)

    best = min(loss(c) for c in itertools.product(*(range(1, g.n_units + 1) for g in graph.groups)) if fits(c))
    got = tuple(group.after for group in plan.groups)
    assert fits(got)
    assert loss(got) == pytest.approx(best, abs=1e-4)
    assert macs(edgeprune.cut(program, plan)) <= keep_macs * macs(program)


def test_milliseconds_go_by_the_stairs_of_the_device() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 96, 3), nn.ReLU(), nn.Conv2d(96, 5, 1))
    program = captured(model, IMAGE)
    graph = edgeprune.analyze(program)
    device = staircase_device(list(layer_shapes(graph).values()))
    curves = {0: Curve((16, 64), (0.1, 0.0)), 1: Curve((16, 96), (1.0, 0.0))}
    plan = edgeprune.plan(program, graph, None, device=device, keep_latency=0.6, losses=curves)
    widths = [group.after for group in plan.groups]
    time = latency_model(graph, device)
    assert all(width % 16 == 0 for width in widths)
    assert widths[0] / 64 < widths[1] / 96  # the cheaper loss
    assert time.cost(np.array(widths)) <= 0.6 * time.total


def three() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


@dataclass
class Minding:
    """Loses a point for each unit of one layer that goes, and nothing for others."""

    layer: str
    seen: list[tuple[int, ...]] = field(default_factory=list)

    def probed(self, module: nn.Module, settled: bool) -> float:
        widths = {name.removesuffix(".weight"): len(p) for name, p in module.named_parameters() if p.dim() == 2}
        self.seen.append((widths["0"], widths["2"]))
        return float(32 - widths[self.layer])


@pytest.mark.parametrize(("minded", "other"), [("0", 1), ("2", 0)])
def test_what_loses_nothing_goes_first(minded: str, other: int) -> None:
    program, told = captured(three(), (6,)), Told()
    prober = Minding(minded)
    step = Step(Cutter(program, Manner(align=4), None), None, told)
    strategy = Sensitivity(Shrink(), prober)
    [best] = strategy.search(step, Budgets(keep_macs=0.5)).networks
    assert best.plan is not None
    widths = [group.after for group in best.plan.groups]
    assert widths[1 - other] == 32 and widths[other] < 16
    assert best.macs <= 0.5 * step.dense.macs
    singles = [(24, 32), (16, 32), (8, 32), (4, 32), (32, 24), (32, 16), (32, 8), (32, 4)]
    assert prober.seen == [(32, 32), *singles]
    assert "8 cuts measured in" in told.lines[0]
    assert strategy.name == "shrink by sensitivity"


def test_what_is_held_is_not_measured() -> None:
    prober = Minding("2")
    cutter = Cutter(captured(three(), (6,)), Manner(align=8, leave=("2",)), None)
    [best] = Sensitivity(Shrink(), prober).search(Step(cutter, None, Told()), Budgets(keep_macs=0.6)).networks
    assert best.plan is not None and best.plan.groups[1].after == 32
    assert {second for _, second in prober.seen} == {32}


def test_losses_of_the_dense_network_lead_further_cuts() -> None:
    cutter = Cutter(captured(three(), (6,)), Manner(align=1), None)
    cutter.allot({("0", 0): Curve((4, 16, 32), (9.0, 0.0, 0.0)), ("2", 0): Curve((4, 32), (5.0, 0.0))})
    once = cutter.pruned(cutter.dense, Shares(macs=0.7))
    twice = cutter.pruned(once, Shares(macs=0.7))
    assert once.plan is not None and twice.plan is not None
    assert [group.after for group in once.plan.groups][1] == 32
    assert [group.after for group in twice.plan.groups][0] >= 16


def test_a_loss_is_taken_on_a_share_of_the_validation_split() -> None:
    data = open_data("digits")
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    judge = Judge(CLASSIFICATION, data.normalization)
    assert judge.loss(module, data.val, 10_000) == pytest.approx(judge.outcomes(module, data.val)[1], rel=1e-5)
    few = judge.loss(module, data.val, 2)
    pair = Subset(data.val, [0, len(data.val) - 1])  # type: ignore[arg-type]
    assert few == pytest.approx(judge.outcomes(module, pair)[1], rel=1e-5)


def test_a_group_without_a_measured_loss_stays_whole_and_others_coupled_are_one() -> None:
    program = captured(residual(), IMAGE)
    graph = edgeprune.analyze(program)
    curves = {g: Curve((1, group.n_units), (1.0, 0.0)) for g, group in enumerate(graph.groups) if g}
    plan = edgeprune.plan(program, graph, 0.7, align=1, losses=curves)
    assert plan.groups[0].after == plan.groups[0].before
    assert edgeprune.prove(program, edgeprune.cut(program, plan), plan) <= 1e-10


def priced(*prices: float) -> tuple[Chooser, int]:
    """Each unit as important as its number, and which group is that of the six inputs."""
    graph = edgeprune.analyze(captured(three(), (6,)), inputs=True, rules=FeatureRules(prices=prices))
    [inputs] = [g for g, group in enumerate(graph.groups) if group.is_input]
    return Chooser(graph, [np.arange(1.0, 1 + group.n_units) for group in graph.groups], Alignment(1)), inputs


def test_dear_inputs_go_where_channels_go_otherwise() -> None:
    kept = []
    for prices in ((), (1, 1, 1, 9, 9, 9), (9,) * 6):
        chooser, inputs = priced(*prices)
        curves = {
            g: Curve((1, group.n_units), (1.0 * group.n_units / 6, 0.0)) for g, group in enumerate(chooser.graph.groups)
        }
        limit = Limit("the MACs", macs_model(chooser.graph), 0.8)
        allot(chooser, [limit], curves, range(3))
        assert limit.model.cost(chooser.counts) <= limit.most
        kept.append((int(chooser.counts[inputs]), int(chooser.counts.sum() - chooser.counts[inputs])))
    assert [features for features, _ in kept] == sorted((features for features, _ in kept), reverse=True)
    assert kept[0][0] > kept[2][0] and kept[0][1] < kept[2][1]


def test_what_goes_counts_by_its_price_one_after_the_other() -> None:
    chooser, inputs = priced(1, 2, 4, 8, 16, 32)
    rises = _rises(chooser, inputs, Curve((0, 6), (6.0, 0.0)))  # each that goes loses 1 more
    np.testing.assert_allclose(rises[::-1], np.cumsum([0, *(1 / np.array([1, 2, 4, 8, 16, 32]))]))
    [hidden, *_] = {0, 1, 2} - {inputs}
    np.testing.assert_allclose(_rises(chooser, hidden, Curve((0, 32), (32.0, 0.0))), np.arange(32, -1, -1))


def test_without_a_solution_the_budget_that_binds_is_named() -> None:
    program = captured(chain(), IMAGE)
    graph = edgeprune.analyze(program)
    with pytest.raises(BudgetError, match=r"0.0001 of the bytes cannot be met: .* groups at their least width"):
        edgeprune.plan(program, graph, 0.9, align=1, keep_bytes=0.0001, losses=CURVES)
