"""`--prune-schedule`: how a search comes down to its cost, what is trained on the way, and the command on digits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from torch import nn

from edgeprune import catalog
from edgeprune.cli.app import main
from edgeprune.methods.schedules import LEFT
from edgeprune.pruner.asked import asked
from edgeprune.records import Reconstruction
from edgeprune.search.candidate import Budgets
from edgeprune.search.pareto import Front
from edgeprune.search.schedules import OneCycle, OneShot, Stepwise, schedule_of
from edgeprune.search.shrink import Shrink
from edgeprune.search.trainer import Round
from edgeprune.tasks.budget import MaxDrop
from tests.fakes import WIDTH, FakeTrainer, Net, searched, width
from tests.test_strategies import size_of

FINE = 1  # a width is any number of units


@dataclass
class Watching(FakeTrainer):
    """Notes how wide each network was that it trained, and which part of a finetuning that was."""

    seen: list[tuple[int, Round]] = field(default_factory=list)

    def finetune(self, module: nn.Module, training: Round) -> bool:
        assert isinstance(module, Net)
        self.seen.append((module.width, training))
        return super().finetune(module, training)


def good(_: Net) -> float:
    return 0.99


def followed(name: str, budgets: Budgets, judge: Callable[[Net], float] = good, epochs: int = 4, **given: Any) -> Any:
    trainer = Watching(judge)
    search = searched(Shrink(schedule_of(name, epochs)), trainer, budgets, align=FINE, **given)
    [best] = search().networks
    return search, trainer, best


def test_one_shot_is_one_cut_and_one_finetuning() -> None:
    search, trainer, best = followed("one-shot", Budgets(keep_macs=0.2))
    assert [w for w, _ in trainer.seen] == [width(best)] == [int(0.2 * WIDTH)]
    assert search.step.effort.spent == 1 and search.accepted == [True]


def test_iterative_rounds_take_a_fifth_each_and_rewind() -> None:
    search, trainer, best = followed("iterative", Budgets(keep_macs=0.25))
    n_rounds = math.ceil(math.log(0.25) / math.log(0.8))
    ideal = [WIDTH * 0.25 ** (k / n_rounds) for k in range(1, n_rounds + 1)]
    assert [w for w, _ in trainer.seen] == [int(w + 1e-9) for w in ideal]
    assert all(training.rewinds and training.part == (0, 1) for _, training in trainer.seen)
    assert search.step.effort.spent == n_rounds and width(best) == WIDTH // 4


def test_one_cycle_is_one_finetuning_cut_along_its_curve() -> None:
    search, trainer, best = followed("one-cycle", Budgets(keep_macs=0.25), epochs=4)
    curve = [(1 + math.exp(-8)) / (1 + math.exp(6 - 14 * t)) for t in (0.25, 0.5, 0.75, 1.0)]
    assert [w for w, _ in trainer.seen] == [int(WIDTH * (1 - 0.75 * done) + 1e-9) for done in curve]
    assert [training.part for _, training in trainer.seen] == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)]
    assert search.step.effort.spent == pytest.approx(1) and width(best) == WIDTH // 4


@pytest.mark.parametrize(("epochs", "n_cuts"), [(2, 2), (7, 7), (10, 10), (60, 10)])
def test_one_cycle_has_no_more_cuts_than_epochs_and_no_more_than_ten(epochs: int, n_cuts: int) -> None:
    _, trainer, _ = followed("one-cycle", Budgets(keep_macs=0.5), epochs=epochs)
    assert len(trainer.seen) == n_cuts and trainer.seen[-1][1].part[1] == 1


def test_a_cycle_trains_on_where_nothing_is_to_be_cut() -> None:
    trainer = Watching(good)
    search = searched(Shrink(OneCycle(10)), trainer, Budgets(keep_macs=0.75), align=8)
    search()
    assert [w for w, _ in trainer.seen] == [WIDTH - 8] * 10  # eight units go before the first epoch, which is all


def test_rounds_that_have_nothing_to_cut_are_left_out() -> None:
    trainer = Watching(good)
    search = searched(Shrink(schedule_of("iterative", 4)), trainer, Budgets(keep_macs=0.25), align=8)
    search()
    assert [w for w, _ in trainer.seen] == [24, 16, 8]  # of seven rounds


@pytest.mark.parametrize("name", catalog.names("cut-schedule"))
def test_every_schedule_lands_on_a_measured_size(name: str) -> None:
    trainer = Watching(good)
    search = searched(Shrink(schedule_of(name, 4)), trainer, Budgets(max_bytes=1200), size_of, align=FINE)
    [best] = search().networks
    assert 0.85 * 1200 <= size_of(best.program).size_bytes <= 1200
    assert len(trainer.seen) >= {"one-shot": 1, "one-cycle": 4, "iterative": 2}[name]


@pytest.mark.parametrize("name", catalog.names("cut-schedule"))
def test_a_drop_is_judged_at_the_end_and_what_missed_it_is_trained_longer(name: str) -> None:
    values = iter([0.99, *[0.5] * {"one-shot": 1, "one-cycle": 4, "iterative": 4}[name], 0.985])
    _, trainer, best = followed(name, Budgets(keep_macs=0.5, max_drop=MaxDrop(1.0)), lambda _: next(values))
    assert best.val_value == 0.985 and trainer.rounds[-1] == 1 and trainer.seen[-1][1].part == (0, 1)


@dataclass
class Harming(Watching):
    """What it has trained is worse, until the last part of a finetuning."""

    def finetune(self, module: nn.Module, training: Round) -> bool:
        super().finetune(module, training)
        cast(Any, module).harmed = training.is_underway
        return True


def test_a_cycle_that_is_underway_is_not_undone() -> None:
    trainer = Harming(lambda net: 0.4 if getattr(net, "harmed", False) else 0.98)
    search = searched(Shrink(OneCycle(4)), trainer, Budgets(keep_macs=0.5), align=FINE)
    [best] = search().networks
    assert best.val_value == 0.98 and search.said == []
    assert [record.val_value for record in search.step.records] == [0.4, 0.4, 0.4, 0.98]


def test_a_front_goes_by_a_schedule_from_one_network_to_the_next() -> None:
    trainer = Watching(good)
    found = searched(Front(2, 0.25, OneShot()), trainer, Budgets(), align=FINE)()
    assert [width(network) for network in found.networks] == [16, 8] == [w for w, _ in trainer.seen]
    stepwise = Watching(good)
    searched(Front(2, 0.25, Stepwise()), stepwise, Budgets(), align=FINE)()
    assert len(stepwise.seen) > 2


def test_pruner_and_command_share_their_curves() -> None:
    choices = {
        "keep_macs": 0.25, "keep_latency": None, "max_size": None, "max_ram": None,
        "input_features": "off", "vocabularies": None,
        "unknown_ids": None, "steps": 4, "schedule": "one-cycle", "criterion": "l2", "device": None, "align": None,
        "leave": (), "layer_ratios": None, "appliable": False, "attention": "heads", "seed": 0, "threads": 1,
    }  # fmt: skip
    own = asked(choices)
    assert [own.share_after(k, 0.25) for k in (1, 2, 3)] == [LEFT["one-cycle"](0.25, k / 4) for k in (1, 2, 3)]
    assert own.share_after(4, 0.25) == 0.25


# -- the command, on the digits


MODELS = Path(__file__).parents[1] / "models"
CASES = [
    ("one-shot", "--keep-macs", "0.4"),
    ("one-cycle", "--max-size", "90kB"),
    pytest.param("iterative", "--keep-macs", "0.4", marks=pytest.mark.slow),
]


def test_a_step_that_only_trains_tells_of_no_cut(tmp_path: Path) -> None:
    out, model = tmp_path / "run", MODELS / "digits_mlp.pt"
    asked = "--prune-schedule one-cycle --keep-macs 0.7 --align 16 --finetune-epochs 6 --threads 1"
    assert main(f"compress {model} --data digits {asked} --out {out}".split()) == 0
    steps = json.loads((out / "run.json").read_text())["steps"]
    shares = [1.0, *(step["macs_ratio"] for step in steps)]
    cut = [after < before for before, after in pairwise(shares)]
    assert [step["reconstruction"] is not None for step in steps] == cut and 0 < sum(cut) < len(steps) == 6
    assert [step["criterion"] is not None for step in steps] == cut


def test_what_is_trained_once_more_took_over_once() -> None:
    search, _, _ = followed("one-shot", Budgets(keep_macs=0.4))
    taken = Reconstruction(512, 0.5, 0.1, 0.4, 0.2, 1.5, ())
    tried = replace(search.step.dense, reconstruction=taken)
    for _ in range(2):
        search.step.record(tried, accepted=True)
    assert [record.reconstruction.seconds for record in search.step.records[-2:]] == [1.5, 0.0]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "budget", "value"), CASES)
def test_the_command_meets_its_budget_by_each_schedule(tmp_path: Path, name: str, budget: str, value: str) -> None:
    out, model = tmp_path / "run", MODELS / "digits_mlp.pt"
    arguments = f"compress {model} --data digits --prune-schedule {name} --finetune-epochs 3 --threads 1 --out"
    assert main([*arguments.split(), str(out), budget, value]) == 0
    run = json.loads((out / "run.json").read_text())
    assert run["asked"]["prune_schedule"] == name
    share = run["slim"]["macs"] / run["dense"]["macs"]
    assert share <= 0.4 if budget == "--keep-macs" else run["slim"]["onnx_bytes"] <= 90_000
    assert len(run["steps"]) >= {"one-shot": 1, "one-cycle": 3, "iterative": 4}[name]
    assert run["accuracy"]["slim"] > 0.9 and run["proof_error"] < 1e-5
