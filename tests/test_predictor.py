"""Predictors order networks they have not seen; choices of widths stay within budgets; a search by them is no worse."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.cost.layers import layer_shapes
from edgeprune.data import open_data
from edgeprune.errors import BudgetError, OutOfReachError
from edgeprune.graph.capture import Program
from edgeprune.predictors import boosted, gcn
from edgeprune.predictors.base import Predictor, Wiring, log_rises
from edgeprune.predictors.boosted import Boosted
from edgeprune.predictors.choice import choose, tau
from edgeprune.predictors.gcn import GraphNetwork
from edgeprune.predictors.ridge import Ridge
from edgeprune.search import evolution, guided, predictor
from edgeprune.search.candidate import Budgets, Manner, Measured
from edgeprune.search.cutter import Cutter
from edgeprune.search.datatrainer import DataTrainer
from edgeprune.search.descent import Descent
from edgeprune.search.evolution import evolved
from edgeprune.search.groupgraph import GroupGraph
from edgeprune.search.guided import Guided, Scorer
from edgeprune.search.landing import Shares
from edgeprune.search.pareto import Front
from edgeprune.search.predictor import Predicted, survey
from edgeprune.search.shrink import Shrink
from edgeprune.search.step import Step
from edgeprune.settings import FeatureRules, TrainSettings
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.tasks.match import Match
from tests.cases import IMAGE
from tests.fakes import Told
from tests.nets import captured, n_parameters, residual
from tests.test_device import staircase_device

N_GROUPS = 5
CHAIN = np.eye(N_GROUPS, k=1, dtype=bool) | np.eye(N_GROUPS, k=-1, dtype=bool)
WIRING = Wiring(np.linspace(0, 1, N_GROUPS)[:, None], CHAIN)


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares of groups in a chain, and a loss that counts each by itself and with the next one."""
    share = np.random.default_rng(seed).uniform(0.1, 1, (n, N_GROUPS))
    alone = (1 - share) ** 2 @ np.array([3.0, 0.3, 1.0, 0.5, 2.0])
    return np.stack([share, np.log(share)], 2), np.exp(alone + 2 * ((1 - share[:, 1:]) * (1 - share[:, :-1])).sum(1))


@pytest.mark.parametrize(
    ("predictor", "least"), [(GraphNetwork(WIRING), 0.93), (Ridge(), 0.85), (Boosted(), 0.65)], ids=lambda o: str(o)[:8]
)
def test_a_predictor_orders_what_it_has_not_seen(predictor: Predictor, least: float) -> None:
    x, losses = drawn(120, seed=0)
    unseen, truth = drawn(100, seed=1)
    state = torch.get_rng_state()
    answers = [predictor.fitted(x, log_rises(losses), 7)(unseen) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(*answers)
    assert tau(answers[0], truth) > least


@dataclass
class Knowing:
    """Sees only one group, or none."""

    name: str
    group: int | None

    def fitted(self, x: np.ndarray, y: np.ndarray, seed: int) -> Callable[[np.ndarray], np.ndarray]:
        group = self.group
        return lambda more: np.zeros(len(more)) if group is None else -more[:, group, 0]


def test_the_one_that_orders_best_what_was_left_out_is_taken() -> None:
    x, losses = drawn(60, seed=2)
    chosen = choose((Knowing("blind", None), Knowing("first", 0), Knowing("second", 1)), x, losses, 0)
    assert chosen.name == "first" and chosen.taus["blind"] == 0
    assert chosen.taus["first"] == pytest.approx(tau(-x[:, 0, 0], losses)) and chosen.taus["first"] > 0.3


def test_losses_of_any_scale_are_learned_alike_and_what_is_no_number_is_the_worst() -> None:
    losses = np.array([-3.0, 7.0, np.nan, np.inf, 0.5, 2.0])
    found = log_rises(losses)
    assert np.isfinite(found).all() and found[2] == found[3] == found.max() and found[0] == found.min()
    np.testing.assert_array_equal(np.argsort(found[[0, 1, 4, 5]]), [0, 2, 3, 1])
    np.testing.assert_allclose(np.diff(log_rises(1e-6 * losses + 40)[[0, 1, 4]]), np.diff(found[[0, 1, 4]]), rtol=1e-5)
    for alike in ([2.0, 2.0, 2.0], [np.nan, np.nan], [1.0, 1.0, 1.0, 1.0, 9.0]):
        assert np.isfinite(log_rises(np.array(alike))).all()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is trained and evolved: a search is no worse for it, but for its luck."""
    monkeypatch.setattr(gcn, "_STEPS", 5)
    monkeypatch.setattr(boosted, "_TREES", 5)
    monkeypatch.setattr(evolution, "_GENERATIONS", 6)
    monkeypatch.setattr(guided, "RIVALS", 3)
    monkeypatch.setattr(predictor, "FEWEST", 10)


def step_of(program: Program, told: Told | None = None, **manner: object) -> Step:
    return Step(Cutter(program, Manner(**manner), None), None, told or Told())  # type: ignore[arg-type]


def chain() -> Program:
    torch.manual_seed(0)
    return captured(
        nn.Sequential(
            nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 96, 3), nn.ReLU(), nn.Conv2d(96, 64, 3), nn.ReLU(),
            nn.Conv2d(64, 5, 1),
        ),
        IMAGE,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shares", "least"),
    [(Shares(macs=0.5, size=0.6), 40), (Shares(macs=0.5, latency=0.55, size=0.6), 3)],
    ids=["any width", "stairs"],
)
def test_all_widths_that_are_drawn_or_evolved_are_within_every_budget_and_aligned(shares: Shares, least: int) -> None:
    program = chain()
    device = None
    if shares.latency is not None:
        device = staircase_device([*layer_shapes(edgeprune.analyze(program)).values()])
    found = survey(step_of(program, align=4, device=device), shares)
    rng, limits = np.random.default_rng(0), found.space.limits
    counts = found.space.sampled(60, rng)
    grown = evolved(found.space, lambda own: own[:, 0].astype(float), counts, rng)
    for some in (counts, grown):
        assert len(np.unique(some, axis=0)) == len(some) > least
        assert (some % 4 == 0).all()
        costs = np.array([[limit.model.cost(own) / limit.most for own in some] for limit in limits])
        np.testing.assert_allclose(costs, [limit.model.costs(some) / limit.most for limit in limits], rtol=1e-12)
        assert costs.max() <= 1 and costs.max(0).min() > 0.8  # they use up what they may
    assert grown[0, 0] <= counts[:, 0].min()
    wider = limits[0].model.costs(found.space.sampled(60, rng, most=2.0))
    assert 1.3 * limits[0].most < wider.max() <= 2 * limits[0].most


def test_the_graph_says_who_shares_a_layer_and_what_is_lost() -> None:
    found = survey(step_of(captured(residual(), IMAGE), align=1), Shares(macs=0.6))
    groups = GroupGraph.of(found.chooser, found.space.free)
    assert len(groups.keys) >= 2 and groups.wiring.adjacent.any()
    np.testing.assert_array_equal(groups.wiring.adjacent, groups.wiring.adjacent.T)
    assert not groups.wiring.adjacent.diagonal().any()
    whole = np.array([[len(lost) - 1 for lost in groups.lost]])
    assert groups.lost_in_all(whole) == 0 and (groups.lost_in_all(whole - 1) > 0).all()
    assert np.isfinite(groups.features(np.ones_like(whole))).all()


def four() -> Program:
    torch.manual_seed(0)
    sizes = (6, 24, 32, 24, 16, 3)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return captured(nn.Sequential(*layers[:-1]), (6,))


@dataclass
class Minding:
    """Loses what the widths of its layers say, or whatever `loss` makes of them."""

    loss: Callable[[tuple[int, ...]], float]
    seen: list[tuple[int, ...]] = field(default_factory=list)

    def probed(self, module: nn.Module, settled: bool) -> float:
        self.seen.append(tuple(len(p) for p in module.parameters() if p.dim() == 2)[:-1])
        return self.loss(self.seen[-1])


def minding(widths: tuple[int, ...]) -> float:
    """The second layer matters, and beside it the fourth where the second is wide."""
    return (32 - widths[1]) * 0.1 + (16 - widths[3]) * 0.02 * widths[1] / 32


@pytest.mark.usefixtures("hasty")
def test_a_search_finds_widths_that_lose_less_than_the_greedy_ones() -> None:
    told, prober = Told(), Minding(minding)
    step = step_of(four(), told, align=4)
    strategy = Predicted(Shrink(), prober, n_samples=30)
    [best] = strategy.search(step, Budgets(keep_macs=0.5)).networks
    assert best.plan is not None and best.macs <= 0.5 * step.dense.macs
    got = minding(tuple(group.after for group in best.plan.groups))
    greedy = edgeprune.plan(step.cutter.dense.program, step.cutter.graph, 0.5, align=4)
    assert got < minding(tuple(group.after for group in greedy.groups))
    assert got <= min(minding(widths) for widths in prober.seen)
    assert "up to 30 cuts are measured, for 600 s at most" in told.lines[0]
    assert "30 cuts measured in" in told.lines[1]
    assert "Kendall's tau on choices left out is gcn 0." in told.lines[2] and "is taken" in told.lines[2]
    assert f"the best has a loss of {got:.4f}" in told.lines[3]
    assert strategy.name == "shrink by a predictor"
    assert step.cutter.allots


@pytest.mark.usefixtures("hasty")
def test_the_same_seed_gives_the_same_widths() -> None:
    found = []
    for _ in range(2):
        prober = Minding(minding)
        strategy = Predicted(Shrink(), prober, n_samples=10)
        [best] = strategy.search(step_of(four(), align=4, seed=3), Budgets(keep_macs=0.6)).networks
        assert best.plan is not None
        found.append((tuple(group.after for group in best.plan.groups), prober.seen))
    assert found[0] == found[1]


def test_a_loss_that_is_no_number_is_the_worst_there_is_and_greedy_widths_stay_where_none_are_better() -> None:
    for loss, is_greedy in ((lambda widths: float("nan"), True), (lambda widths: float(widths[0]), False)):
        step = step_of(four(), align=4)
        step.cutter.allocate_by(Guided(Scorer(step, Minding(loss), 0.0 if is_greedy else 60.0), None, 0))
        [best] = Shrink().search(step, Budgets(keep_macs=0.6)).networks
        assert best.plan is not None
        assert ([g.after for g in best.plan.groups] == greedy_widths(four(), 0.6, align=4)) == is_greedy


def greedy_widths(program: Program, share: float, **how: int) -> list[int]:
    graph = edgeprune.analyze(program)
    return [group.after for group in edgeprune.plan(program, graph, share, **how).groups]  # type: ignore[arg-type]


def test_with_one_group_the_greedy_choice_is_taken_and_that_is_said() -> None:
    torch.manual_seed(0)
    program = captured(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4)), (6,))
    told, prober = Told(), Minding(lambda widths: 1.0)
    [best] = Predicted(Shrink(), prober).search(step_of(program, told, align=4), Budgets(keep_macs=0.5)).networks
    assert best.plan is not None and [g.after for g in best.plan.groups] == greedy_widths(program, 0.5, align=4)
    assert told.lines[0] == "predictor: too few choices of widths to learn from (1): all are measured"
    assert "no other widths than the greedy ones use up the budgets" in told.lines[1]
    assert prober.seen == []


def test_few_choices_are_all_measured() -> None:
    torch.manual_seed(0)
    program = captured(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), (6,))
    told, prober = Told(), Minding(lambda widths: float(widths[0]))
    [best] = Predicted(Shrink(), prober).search(step_of(program, told, align=2), Budgets(keep_macs=0.5)).networks
    assert "too few choices of widths to learn from" in told.lines[0]
    assert best.plan is not None and best.plan.groups[0].after == min(first for first, _ in prober.seen)
    assert 2 < len(set(prober.seen)) == len(prober.seen) < 20


def test_where_the_time_is_over_it_is_said_and_nothing_is_learned_of_too_little() -> None:
    told, clock = Told(), iter(range(0, 10_000, 30))
    step, prober = step_of(four(), told, align=4), Minding(minding)
    strategy = Predicted(Shrink(), prober, n_samples=40, seconds=100)
    scorer = Scorer(step, prober, 100, lambda: next(clock))
    assert strategy._learned(step, Budgets(keep_macs=0.5), scorer) is None
    assert len(prober.seen) == 4
    assert "4 cuts measured in" in told.lines[1] and "the time for it is over" in told.lines[1]
    assert "too few to learn from; a faster machine may come to other widths" in told.lines[1]
    step.cutter.allocate_by(Guided(scorer, None, 0))
    [best] = Shrink().search(step, Budgets(keep_macs=0.5)).networks
    assert best.macs <= 0.5 * step.dense.macs and len(prober.seen) == 8


@pytest.mark.usefixtures("hasty")
def test_smaller_networks_go_by_what_was_learned_of_the_dense_one() -> None:
    """A front of three is cut one from the other; without stated costs the choices reach far down."""
    told, prober = Told(), Minding(minding)
    front = Predicted(Front(3, 0.4), prober, n_samples=10, reach=0.4)
    networks = front.search(step_of(four(), told, align=4), Budgets()).networks
    assert [round(n.macs / networks[0].macs, 1) for n in networks] == [1.0, 0.7, 0.5]
    assert len(prober.seen) <= 10 + 3 * 4
    widths = [[group.after for group in network.plan.groups] for network in networks if network.plan is not None]
    assert all(last >= own for a, b in itertools.pairwise(widths) for last, own in zip(a, b, strict=True))
    assert sum("choices of widths that were measured the best" in line for line in told.lines) == 3
    assert Predicted(Descent(), prober).name == "descent by a predictor"


@pytest.mark.usefixtures("hasty")
def test_a_budget_that_is_measured_is_met() -> None:
    """A file is a kilobyte larger than its weights."""

    def gauge(program: Program, surely: bool) -> Measured:
        sizes = [4 * n_parameters(one) + 1000 for one in (program, dense)]
        return Measured(1.0, 1.0, *sizes)

    dense, prober = four(), Minding(minding)
    step = Step(Cutter(dense, Manner(align=2), None), None, Told(), gauge)
    most = (4 * n_parameters(dense) + 1000) // 2
    [best] = Predicted(Shrink(), prober, n_samples=10).search(step, Budgets(max_bytes=most)).networks
    assert 0.8 * most < 4 * n_parameters(best.program) + 1000 <= most
    assert best.plan is not None and best.plan.groups[1].after > 22  # what matters stays


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("learns", [False, True])
def test_a_budget_below_what_can_be_planned_is_met_where_what_is_measured_is_within(learns: bool) -> None:
    """A file is smaller than its weights, by as much as half of the least that they can take."""

    def weights(program: Program) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())

    def gauge(program: Program, surely: bool) -> Measured:
        return Measured(1.0, 1.0, weights(program) - saved, weights(dense) - saved)

    dense, step = four(), step_of(four(), align=2)
    with pytest.raises(OutOfReachError) as told:
        step.cutter.planned(step.dense, Shares(size=1e-4))
    least = round(told.value.times * 1e-4 * weights(dense))
    saved = least // 2
    most = int(1.02 * (least - saved))
    assert most / (weights(dense) - saved) < least / weights(dense)
    step = Step(Cutter(dense, Manner(align=2), None), None, Told(), gauge)
    search = Predicted(Shrink(), Minding(minding), n_samples=10) if learns else Shrink()
    [best] = search.search(step, Budgets(max_bytes=most)).networks
    assert weights(best.program) - saved <= most


def test_a_budget_that_no_widths_meet_is_refused() -> None:
    with pytest.raises(BudgetError, match="0.0001 of the MACs cannot be met"):
        Predicted(Shrink(), Minding(minding)).search(step_of(four(), align=4), Budgets(keep_macs=0.0001))


@pytest.mark.usefixtures("hasty")
def test_coarse_widths_give_way_and_held_layers_keep_theirs() -> None:
    told = Told()
    step = step_of(four(), told, align=16, layer_ratios={"4": 0.5})
    found = Predicted(Shrink(), Minding(minding), n_samples=10).search(step, Budgets(keep_macs=0.2))
    [best] = found.networks
    assert best.plan is not None and best.plan.groups[2].after == 12
    assert best.macs <= 0.2 * step.dense.macs and best.plan.aligned is not None


def test_features_with_prices_stay_as_the_greedy_choice_has_them() -> None:
    """Others compete with the channels."""
    program = four()
    rules = [FeatureRules(prices=prices) for prices in ((), (1, 1, 1, 1, 1, 9))]
    spaces = []
    for rule in rules:
        step = step_of(program, align=4, features=True, compete=True, rules=rule)
        spaces.append((step.cutter.graph.groups, survey(step, Shares(macs=0.4)).space))
    free = [[groups[g].is_input for g in space.free] for groups, space in spaces]
    assert [(sum(own), len(own)) for own in free] == [(1, 5), (0, 4)]


class Two(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 16), nn.Linear(7, 16)
        self.middle, self.out = nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        both = torch.cat([self.left(a).relu(), self.right(b).relu()], 1)
        return self.out(self.middle(both).relu())


@pytest.mark.usefixtures("hasty")
def test_several_inputs() -> None:
    torch.manual_seed(0)
    step = step_of(captured(Two(), (5,), (7,)), align=2)
    prober = Minding(lambda widths: float(16 - widths[0]))
    [best] = Predicted(Shrink(), prober, n_samples=10).search(step, Budgets(keep_macs=0.5)).networks
    assert best.plan is not None and best.plan.groups[0].after >= 14


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("task", [CLASSIFICATION, Match()], ids=lambda task: task.name)
def test_a_trained_network_loses_no_more_than_by_the_greedy_choice(task: object) -> None:
    """The digits' MLP, reconstructed, by labels and by what the dense network answers."""
    model = edgeprune.load_model(Path(__file__).parent.parent / "models" / "digits_mlp.pt")
    data = open_data("digits")
    assert model.info.normalization is not None
    dense, told = Program.adopt(model.program), Told()
    samples = DataTrainer(
        data,
        model.info.normalization,
        TrainSettings(epochs=0),
        task,
        dense.frozen_module(),  # type: ignore[arg-type]
    )
    losses = []
    for strategy in (Shrink(), Predicted(Shrink(), samples, n_samples=10)):
        cutter = Cutter(dense, Manner(criterion="taylor", align=4, reconstruct=True), samples)
        [best] = strategy.search(Step(cutter, None, told), Budgets(keep_macs=0.3)).networks
        assert best.plan is not None and best.macs <= 0.3 * cutter.dense.macs
        losses.append(samples.probed(cutter.tried(best.plan, n_samples=128)[0].own_module(), True))
    assert losses[1] <= losses[0]
