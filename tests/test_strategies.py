"""The strategies of the search decide what is tried next, what is accepted and when it ends; see `fakes.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from torch import nn

from edgeprune.errors import BudgetError
from edgeprune.pruning.plan import PruningPlan
from edgeprune.records import ACCURACY, Metric
from edgeprune.results import FeatureCount
from edgeprune.search.candidate import Budgets, Manner, Measured
from edgeprune.search.cutter import Cutter
from edgeprune.search.descent import Descent
from edgeprune.search.pareto import Front, chosen
from edgeprune.search.replay import Replay
from edgeprune.search.shrink import Shrink
from edgeprune.search.step import Step
from edgeprune.search.strategy import Strategy
from edgeprune.search.trainer import Round
from edgeprune.tasks.budget import MaxDrop
from tests.fakes import WIDTH, FakeCutter, FakeTrainer, Net, Plan, Searched, Told, falls_below, says, searched, width

# -- shrink: the costs are stated


def test_shrink_takes_as_many_steps_as_a_cost_needs() -> None:
    search = searched(Shrink(), says(0.99), Budgets(keep_macs=0.4))
    found = search()
    [best] = found.networks
    assert best.macs <= 0.4 * found.dense.macs
    assert search.ratios == sorted(search.ratios, reverse=True) and len(search.ratios) == 2
    assert search.accepted == [True] * 2
    assert search.trainer.rounds == [0, 0]
    assert search.step.effort.spent == 2
    assert search.said == []
    assert found.steps == tuple(search.step.records)


def test_shrink_looks_at_the_drop_only_where_the_cost_is_reached() -> None:
    search = searched(Shrink(), says(0.99, 0.4, 0.985), Budgets(keep_macs=0.4, max_drop=MaxDrop(1.0)))
    search()
    assert search.accepted == [True] * 2
    assert search.trainer.rounds == [0, 0]


def test_shrink_finetunes_the_last_network_ever_longer_and_takes_the_best() -> None:
    search = searched(Shrink(), says(0.99, 0.9, 0.9, 0.95, 0.985), Budgets(keep_macs=0.4, max_drop=MaxDrop(1.0)))
    [best] = search().networks
    assert best.val_value == 0.985
    assert search.trainer.rounds == [0, 0, 1, 2]
    assert search.step.effort.spent == search.trainer.units == 2 + 2 + 4


@pytest.mark.parametrize(
    ("manner", "allots", "told"),
    [
        ({"layer_ratios": {"hidden": 0.5}}, False, "--layer-ratio leaves out"),
        ({}, True, "--allocation leaves out"),
        ({"named": True, "criterion": "l2"}, False, "--criterion leaves out"),
        ({"appliable": True}, True, "--keep-equal-chunks and --allocation leave out"),
    ],
)
def test_what_leaves_out_the_training_for_one_budget_is_said_once(
    manner: dict[str, Any], allots: bool, told: str
) -> None:
    search = searched(Shrink(), says(0.99), Budgets(keep_macs=0.4, prune_features=True), **manner)
    search.step.cutter.allots = allots  # type: ignore[misc]
    search()
    [line] = search.said
    assert line.startswith("input features and channels go cut by cut: ") and told in line
    without = searched(Shrink(), says(0.99), Budgets(keep_macs=0.4), **manner)
    without()
    assert without.said == []


@dataclass
class Changing(FakeTrainer):
    """Its training changes the network: the judge tells by `trained`."""

    def finetune(self, module: nn.Module, training: Round) -> bool:
        cast(Any, module).trained = True
        return not super().finetune(module, training)


def is_trained(net: Net) -> bool:
    return getattr(net, "trained", False)


def test_a_finetuning_that_does_harm_is_undone_and_said() -> None:
    trainer = Changing(lambda net: 0.99 if net.width == WIDTH else 0.45 if is_trained(net) else 0.76)
    search = searched(Shrink(), trainer, Budgets(keep_macs=0.4))
    [best] = search().networks
    assert best.val_value == 0.76 and not is_trained(cast(Any, best.program))
    told = "finetuning took the accuracy from 76.0 % to 45.0 %: the weights of before are kept"
    assert search.said == [f"{told}; more data, or more --finetune-epochs, may help"] * 2


def test_a_finetuning_that_is_worse_by_no_more_than_chance_is_kept() -> None:
    trainer = Changing(lambda net: 0.99 if net.width == WIDTH else 0.97 if is_trained(net) else 0.979)
    search = searched(Shrink(), trainer, Budgets(keep_macs=0.4))
    [best] = search().networks
    assert best.val_value == 0.97 and is_trained(cast(Any, best.program)) and search.said == []


def test_without_training_statistics_that_do_harm_are_left() -> None:
    trainer = Changing(lambda net: 0.99 if net.width == WIDTH else 0.45 if is_trained(net) else 0.76, trains=False)
    search = searched(Shrink(), trainer, Budgets(keep_macs=0.5))
    [best] = search().networks
    assert best.val_value == 0.76
    told = "estimating batch norm's statistics again took the accuracy from 76.0 % to 45.0 %"
    assert search.said == [f"{told}: the weights of before are kept"] * 2


def test_a_finetuning_that_helps_is_kept_and_one_as_good_as_dense_asks_nothing_more() -> None:
    looked: list[bool] = []

    def judge(net: Net) -> float:
        looked.append(is_trained(net))
        return 0.99 if is_trained(net) or net.width == WIDTH else 0.5

    search = searched(Shrink(), Changing(judge), Budgets(keep_macs=0.5))
    [best] = search().networks
    assert best.val_value == 0.99 and is_trained(cast(Any, best.program))
    assert looked == [False, True, True] and search.said == []


def test_budgets_that_miss_each_other_are_refused() -> None:
    search = searched(Shrink(), falls_below(20), Budgets(keep_macs=0.25, max_drop=MaxDrop(1.0)))
    with pytest.raises(BudgetError, match=r"got 49.00 at [0-9.]+% of the MACs; within it were [0-9.]+% of the MACs"):
        search()
    assert search.trainer.rounds[-4:] == [0, 1, 2, 3]
    assert search.accepted[-1] is False
    assert [line for line in search.said if "more than 10 finetunings" in line] == search.said


def size_of(net: Any, surely: bool = True) -> Measured:
    """A header of 100 bytes, and four for each number."""
    return Measured(1.0, 1.0, 100 + 4 * net.macs, 100 + 4 * Net().macs)


def test_shrink_lands_on_a_size_that_is_measured() -> None:
    measured: list[bool] = []

    def gauge(net: Any, surely: bool) -> Measured:
        measured.append(surely)
        return size_of(net)

    search = searched(Shrink(), says(0.99), Budgets(max_bytes=1200), gauge, align=1)
    [best] = search().networks
    assert 0.9 * 1200 <= size_of(best.program).size_bytes <= 1200
    assert measured[0] and measured[-1] and not all(measured)  # trial cuts are measured once, the others surely


def test_a_size_that_is_missed_by_a_little_is_mended_once_more() -> None:
    seen: list[Net] = []

    def gauge(net: Any, surely: bool) -> Measured:
        """The network that is found weighs more than its trial did."""
        seen.append(net)
        measured = size_of(net)
        return replace(measured, size_bytes=measured.size_bytes + 80 * (surely and len(seen) > 1))

    search = searched(Shrink(), says(0.99), Budgets(max_bytes=1200), gauge, align=1)
    [best] = search().networks
    assert size_of(best.program).size_bytes + 80 <= 1200
    assert len({net.width for net in seen[-2:]}) == 2


def test_a_size_that_no_cut_brings_is_refused() -> None:
    search = searched(Shrink(), says(0.99), Budgets(max_bytes=150), size_of, align=1)
    with pytest.raises(BudgetError, match="max-size 150B"):
        search()
    assert search.trainer.rounds == []


# -- descent: the drop is


@pytest.mark.parametrize(
    ("values", "features"),
    [
        ((0.99, 0.99), False),  # all holds
        ((0.99, 0.99, 0.99, 0.975), False),  # misses by chance from the third on
        ((0.99, 0.985, 0.979, 0.98, 0.95, 0.985, 0.9, 0.985, 0.975), True),
    ],
)
def test_a_search_without_a_cost_takes_ten_finetunings_at_most(values: Sequence[float], features: bool) -> None:
    budgets = Budgets(max_drop=MaxDrop(1.0), prune_features=features)
    search = searched(Descent(), says(*values), budgets)
    found = search()
    assert found.networks[0].macs < found.dense.macs
    assert 0 < search.trainer.units <= 10
    assert search.step.effort.spent == search.trainer.units
    assert search.step.effort.affords(1) or "--max-finetunings 10" in search.said[-1]


def test_descent_ends_above_where_the_accuracy_falls() -> None:
    search = searched(Descent(), falls_below(15), Budgets(max_drop=MaxDrop(1.0)), align=1, max_finetunings=30)
    [best] = search().networks
    assert width(best) in (15, 16)
    smallest = min(record.macs_ratio for record in search.step.records if record.accepted)
    assert smallest == best.macs / search.step.dense.macs
    assert search.accepted.count(False) == 3  # a step that lost too much is halved twice


def test_what_loses_far_too_much_is_not_tried_for_long() -> None:
    search = searched(Descent(), says(0.99, 0.5), Budgets(max_drop=MaxDrop(1.0)))
    with pytest.raises(BudgetError, match="no smaller network loses at most 1 accuracy points: .* loses 49.00"):
        search()
    assert search.trainer.rounds == [0, 0, 0]
    assert search.ratios == sorted(set(search.ratios))  # never the same widths twice


def test_widths_that_lost_too_much_are_not_finetuned_again() -> None:
    """Widths are multiples of 16 here, so that a smaller step comes to the same widths."""
    search = searched(Descent(), says(0.99, 0.5), Budgets(max_drop=MaxDrop(1.0)), align=16)
    with pytest.raises(BudgetError):
        search()
    assert len(set(search.ratios)) == len(search.ratios) == search.trainer.units


def test_more_may_be_taken() -> None:
    values = (0.99, 0.985, 0.975)
    few, many = (
        searched(Descent(), says(*values), Budgets(max_drop=MaxDrop(1.0)), align=1, max_finetunings=n) for n in (3, 30)
    )
    [first], [second] = few().networks, many().networks
    assert few.trainer.units <= 3 < many.trainer.units <= 30
    assert second.macs <= first.macs


def test_a_miss_by_chance_is_pruned_on_and_trained_longer_at_the_end() -> None:
    search = searched(Descent(), says(0.99, 0.99, 0.977, 0.977, 0.5, 0.99), Budgets(max_drop=MaxDrop(1.0)), align=1)
    [best] = search().networks
    assert search.trainer.rounds == [0, 0, 0, 0, 1, 1]  # of equal drops the larger network first
    assert search.accepted == [True, False, False, False, True, True]
    assert search.ratios[-2:] == search.ratios[1:3]
    assert search.ratios[-1] == best.macs / search.step.dense.macs


def test_what_is_certain_is_no_chance() -> None:
    sure = FakeTrainer(says(0.99, 0.99, 0.977, 0.977, 0.5), error=0.1)
    search = searched(Descent(), sure, Budgets(max_drop=MaxDrop(1.0)), align=1)
    search()
    assert sure.rounds == [0, 0, 0, 0]
    assert search.accepted == [True, False, False, False]


def test_without_finetuning_the_small_steps_cost_nothing() -> None:
    free = FakeTrainer(says(*[0.99] * 5, 0.5), trains=False)
    search = searched(Descent(), free, Budgets(max_drop=MaxDrop(1.0)), align=1)
    [best] = search().networks
    assert best.macs < 0.4 * search.step.dense.macs
    assert search.step.effort.spent == 0
    assert search.accepted == [True] * 4 + [False] * 3


# -- input features


def test_features_go_down_to_a_count_while_it_trains() -> None:
    budgets = Budgets(keep_macs=0.5, feature_ratio=0.5)
    search = searched(Shrink(), says(0.99), budgets)
    [best] = search().networks
    assert search.budgets.n_features == best.n_features == 6
    assert search.trainer.selections == [6]
    assert search.step.effort.spent == search.trainer.units
    assert search.step.selection == [FeatureCount(6, 1.0)]


def test_features_go_by_half_while_half_of_the_drop_lasts() -> None:
    values = (0.99, 0.986, 0.983, 0.99)  # 6 features hold; 3 lose 0.7 points of 0.5
    search = searched(Descent(), says(*values), Budgets(max_drop=MaxDrop(1.0), prune_features=True))
    found = search()
    assert search.trainer.selections == [6, 3]
    assert [record.n_features for record in search.step.records][:2] == [6, 3]
    assert search.accepted[:2] == [True, False]
    assert found.networks[0].n_features == 6


# -- front


def test_a_front_falls_evenly_and_each_goes_on_from_the_one_before() -> None:
    search = searched(Front(3, least=0.2), says(0.99), Budgets(), align=1)
    found = search()
    shares = [network.macs / found.dense.macs for network in found.networks]
    assert len(shares) == 3
    assert all(0.8 * most <= share <= most for share, most in zip(shares, (0.585, 0.342, 0.2), strict=True))
    assert all(search.accepted)


def test_a_front_has_fewer_networks_where_nothing_smaller_can_be_built() -> None:
    search = searched(Front(4, least=0.1), says(0.99), Budgets(), align=16)
    found = search()
    assert 0 < len(found.networks) < 4
    assert f"{len(found.networks)} networks, not 4: " in search.said[0]
    with pytest.raises(BudgetError):
        searched(Front(4, least=1e-6), says(0.99), Budgets(), align=16)()


@pytest.mark.parametrize(
    ("values", "max_drop", "number"),
    [
        ((0.99, 0.985, 0.98, 0.5), 1.0, 1),  # the smallest within the drop
        ((0.99, 0.985, 0.98, 0.98), 1.0, 2),
        ((0.99, 0.5, 0.6, 0.55), 50.0, 2),
    ],
)
def test_of_a_front_the_smallest_within_the_drop_is_taken(
    values: Sequence[float], max_drop: float, number: int
) -> None:
    fake = FakeTrainer(says(*values), trains=False)
    found = searched(Front(3, least=0.6), fake, Budgets(), align=1)()
    assert [network.val_value for network in found.networks] == list(values[1:])
    for stated in (False, True):
        choice = chosen(found, ACCURACY, MaxDrop(max_drop), stated)
        assert choice.network is found.networks[number] and choice.missed is None


@pytest.mark.parametrize("values", [(0.99, 0.5, 0.6, 0.55), (0.99, 0.6)])
def test_where_no_network_of_a_front_is_within_the_drop_a_stated_one_is_missed(values: Sequence[float]) -> None:
    fake = FakeTrainer(says(*values), trains=False)
    found = searched(Front(3, least=0.6), fake, Budgets(), align=1)()
    found = replace(found, networks=found.networks[: len(values) - 1])
    best = next(network for network in found.networks if network.val_value == 0.6)
    fact = (
        "no network that was found loses at most 1 accuracy points: the best, at "
        f"{best.macs / found.dense.macs:.1%} of the MACs, loses 39.00 on the validation split"
    )
    choice = chosen(found, ACCURACY, MaxDrop(1.0), stated=False)
    assert choice.network is best and choice.missed == f"{fact}; it is taken"
    with pytest.raises(BudgetError) as caught:
        chosen(found, ACCURACY, MaxDrop(1.0), stated=True)
    assert str(caught.value).startswith(f"{fact}; allow a larger --max-drop, ")


def test_without_data_the_smallest_of_a_front_is_taken() -> None:
    step = Step(cast(Cutter, FakeCutter(Manner(align=1))), None, Told())
    found = Front(2, least=0.5).search(step, Budgets())
    assert [network.val_value for network in found.networks] == [None, None]
    assert chosen(found, ACCURACY, MaxDrop(1.0), stated=False).network is found.networks[-1]


# -- replay


def test_a_replay_is_finetuned_and_judged_but_not_searched() -> None:
    plan = cast(PruningPlan, Plan(16, 6))

    def replayed(judge: Callable[[Net], float], **budgets: Any) -> Searched:
        return searched(Replay(plan), judge, Budgets(**budgets))

    search = replayed(says(0.99, 0.97, 0.985), max_drop=MaxDrop(1.0))
    found = search()
    [best] = found.networks
    assert (best.plan, best.macs, best.n_features, best.val_value) == (plan, 144, 6, 0.985)
    assert search.trainer.rounds == [0, 1]
    assert found.steps == ()
    for budgets, message in (
        ({"keep_macs": 0.2}, "expected at most 0.2 of the MACs, got 0.3"),
        ({"n_features": 5}, "expected at most 5 input features, got 6"),
        ({"max_drop": MaxDrop(1.0)}, "cannot be met together: expected a drop of at most 1 points .* got 19.00"),
    ):
        with pytest.raises(BudgetError, match=message):
            replayed(says(0.99, 0.8), **budgets)()


# -- what all of them share


def test_without_a_trainer_the_cost_is_reached_in_one_cut() -> None:
    step = Step(cast(Cutter, FakeCutter(Manner(align=1))), None, Told())
    [best] = Shrink().search(step, Budgets(keep_macs=0.3)).networks
    assert (width(best), best.val_value, len(step.records)) == (9, None, 1)


def test_dead_units_go_first_and_free_of_charge() -> None:
    search = searched(Shrink(), says(0.99), Budgets(keep_macs=0.3), dead=24)
    [best] = search().networks
    assert search.said == ["24 units are dead: they go without a change of the output"]
    assert (search.trainer.rounds, search.accepted) == ([], [True])
    assert (width(best), best.val_value) == (8, 0.99)


def test_strategies_have_names() -> None:
    strategies: list[Strategy] = [Shrink(), Descent(), Front(3, 0.2), Replay(cast(PruningPlan, Plan(16, 6)))]
    assert [strategy.name for strategy in strategies] == ["shrink", "descent", "front", "replay"]


ERROR = Metric("MAE", "mmol", 1.0, higher_is_better=False)


def test_an_error_that_rises_is_a_drop() -> None:
    fake = FakeTrainer(says(40.0, 43.0, 55.0, 41.5), metric=ERROR)
    search = searched(Shrink(), fake, Budgets(keep_macs=0.4, max_drop=MaxDrop(5.0, "%")))  # 2 mmol
    [best] = search().networks
    assert best.val_value == 41.5
    assert search.trainer.rounds == [0, 0, 1] and search.accepted == [True, True]


def test_a_refusal_speaks_of_the_metric() -> None:
    missed = searched(Shrink(), FakeTrainer(says(40.0, 50.0), metric=ERROR), Budgets(0.4, MaxDrop(2.0)))
    with pytest.raises(
        BudgetError, match=r"expected a drop of at most 2 mmol on the validation split, got 10 at 37.5%"
    ):
        missed()
    nothing = searched(Descent(), FakeTrainer(says(40.0, 50.0), metric=ERROR), Budgets(max_drop=MaxDrop(5.0, "%")))
    with pytest.raises(
        BudgetError, match=r"no smaller network loses at most 2 MAE mmol: .* loses 10 on the validation"
    ):
        nothing()
