"""The criterion that nobody named: found out in each cut by what it loses before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from fakes import Told
from torch import Tensor, nn

from edgeprune.commands.compress import compress
from edgeprune.commands.preparing import prepare
from edgeprune.errors import BudgetError
from edgeprune.graph.capture import capture
from edgeprune.progress import Silent
from edgeprune.reconstruction.reconstruct import reconstructed
from edgeprune.report import formats as fmt
from edgeprune.requests import CompressRequest
from edgeprune.results import RunRecord, StepRecord
from edgeprune.search import cutter
from edgeprune.search.candidate import Found
from edgeprune.search.criterion import OpenCriterion
from edgeprune.search.landing import Shares
from edgeprune.search.step import Step

N_FEATURES, N_HIDDEN = 12, 16


def network(size: Tensor, read: Tensor) -> nn.Sequential:
    """Hidden units that take features with weights of one size, and are read with weights of another."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(N_FEATURES, N_HIDDEN), nn.Tanh(), nn.Linear(N_HIDDEN, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(N_HIDDEN, N_FEATURES) * size[:, None])
        net[0].bias.zero_()
        net[2].weight.copy_(torch.randn(3, N_HIDDEN) * read)
        net[2].bias.zero_()
    return net.eval()


def misleads_l2() -> nn.Sequential:
    """Half of the units are large, and nothing reads them."""
    return network(torch.tensor([5.0] * 8 + [0.3] * 8), torch.tensor([1e-3] * 8 + [3.0] * 8))


def misleads_taylor() -> nn.Sequential:
    """Half of the units come in pairs that tell much and take it back: each matters, all of them together do not."""
    net = network(torch.tensor([1.0] * 8 + [0.05] * 8), torch.tensor([1.0] * 8 + [6.0] * 8))
    with torch.no_grad():
        net[0].weight[4:8] = net[0].weight[:4]
        net[2].weight[:, 4:8] = -net[2].weight[:, :4]
    return net


def request_of(place: Path, net: nn.Sequential, **asked: Any) -> CompressRequest:
    """To compress a network that gives its targets but for some noise, without training."""
    torch.manual_seed(1)
    x = torch.randn(600, N_FEATURES)
    with torch.no_grad():
        y = net(x) + 0.3 * torch.randn(600, 3)
    np.savez(place / "data.npz", x=x.numpy(), y=y.numpy())
    torch.export.save(capture(net, x[:2]), place / "net.pt2")
    return CompressRequest(
        str(place / "net.pt2"),
        data=f"npz:{place / 'data.npz'}",
        out=str(place / "run"),
        task="regression",
        **{"keep_macs": 0.5, "align": 1, "threads": 1, "finetune_epochs": 0, "input_features": "off", **asked},
    )


def searched(place: Path, net: nn.Sequential, told: Told | None = None, **asked: Any) -> Found:
    """What a search for it comes to."""
    request = request_of(place, net, **asked)
    job = prepare(request, told or Silent())
    found = job.strategy.search(job.step, job.budgets)
    assert sum(text.startswith("--criterion ") for text in job.assumed) == (request.criterion is None), "said once"
    return found


@pytest.mark.parametrize(
    ("make", "better", "other"), [(misleads_l2, "taylor", "l2"), (misleads_taylor, "l2", "taylor")]
)
def test_a_cut_goes_by_the_criterion_that_loses_less(tmp_path: Path, make: Any, better: str, other: str) -> None:
    net, told = make(), Told()
    found = searched(tmp_path, net, told)
    assert {step.criterion for step in found.steps} == {better}
    said = [line for line in told.lines if line.startswith("channels go by ")]
    assert len(said) == len(found.steps) >= 1
    for line in said:
        assert line.startswith(f"channels go by {better}: untrained the loss of such a cut is ") and line.endswith(
            other
        )
    same, worse = searched(tmp_path, net, criterion=better), searched(tmp_path, net, criterion=other)
    assert found.networks[-1].plan == same.networks[-1].plan
    values = [cast(float, one.networks[-1].val_value) for one in (found, same, worse)]
    assert values[0] == pytest.approx(values[1], rel=1e-6) and values[0] < values[2]
    assert same.steps[-1].criterion is None, "it was not found out"


def test_each_cut_has_its_own_and_the_report_counts_them(tmp_path: Path) -> None:
    told = Told()
    found = searched(tmp_path, misleads_l2(), told, keep_macs=0.4, finetune_epochs=1, max_drop=1e9)
    cuts = [line for line in told.lines if line.startswith("channels go by ")]
    assert len(found.steps) > 1 and len(cuts) == len(found.steps)
    assert all(step.criterion in line.split(": ")[0] for step, line in zip(found.steps, cuts, strict=True))


@pytest.mark.parametrize("asked", [{"reconstruct": False}, {"criterion": "l1"}])
def test_where_it_is_named_or_nothing_takes_over_none_is_looked_for(tmp_path: Path, asked: dict[str, Any]) -> None:
    found = searched(tmp_path, misleads_taylor(), **asked)
    assert {step.criterion for step in found.steps} == {None}


def test_the_report_counts_the_cuts_of_each(make_run: Callable[..., RunRecord]) -> None:
    def told(*criteria: str | None, accepted: bool = True) -> str | None:
        steps = [StepRecord(k, 0.5, None, 1.0, accepted, criterion=one) for k, one in enumerate(criteria)]
        return fmt.criteria(make_run(steps=tuple(steps)))

    assert told(None, None) is None
    assert told("l2") == "l2 in 1 cut: what lost less untrained"
    assert told("l2", "taylor", "taylor") == "taylor in 2 cuts, l2 in 1: what lost less untrained"
    assert told("l2", accepted=False) is None


def test_of_several_networks_each_has_the_cuts_that_made_it(tmp_path: Path) -> None:
    request = request_of(tmp_path, misleads_l2(), pareto=2, keep_macs=0.25)
    _, run = compress(request)
    assert [step.macs_ratio for step in run.steps] == [0.6875, 0.5, 0.3125, 0.25]
    assert [point.macs_ratio for point in run.front] == [0.5, 0.25]
    steps = [replace(step, criterion=one) for step, one in zip(run.steps, ("taylor", "l2", "l2", "l2"), strict=True)]
    run = replace(run, steps=tuple(steps))
    assert fmt.criteria(run) == (
        "pareto/1: taylor in 1 cut, l2 in 1; pareto/2: l2 in 2 cuts: what lost less untrained, each network on from "
        "the one before"
    )
    for number, n_cuts in enumerate((2, 4)):
        front = tuple(replace(point, chosen=place == number) for place, point in enumerate(run.front))
        assert str(fmt.reconstruction(replace(run, front=front))).startswith(f"after the last of {n_cuts} cuts the ")


class CutterOf:
    """A cutter whose cuts by each criterion lose what they are said to."""

    def __init__(self, losses: dict[str, float]) -> None:
        self.losses, self.n_cuts = losses, 0
        self.manner = SimpleNamespace(criterion="taylor", max_finetunings=1)
        self.dense, self.measures_cuts = None, False

    def score_by(self, criterion: str) -> None:
        self.manner.criterion = criterion

    def planned(self, *_: Any) -> float:
        self.n_cuts += 1
        return self.losses[self.manner.criterion]

    def tried(self, loss: float, _: Any) -> tuple[Any, bool]:
        return SimpleNamespace(own_module=lambda: loss), True


class Losses:
    """A prober that is handed the loss."""

    def probed(self, module: Any, settled: bool) -> float:
        return float(module)


@pytest.mark.parametrize(
    ("losses", "criterion"),
    [
        ({"taylor": 1.0, "l2": 0.5}, "l2"),
        ({"taylor": 0.5, "l2": 0.5}, "taylor"),  # the first
        ({"taylor": float("nan"), "l2": 9.0}, "l2"),
        ({"taylor": float("inf"), "l2": float("nan")}, "taylor"),
    ],
)
def test_a_loss_that_is_no_number_is_the_largest(losses: dict[str, float], criterion: str) -> None:
    cutter = CutterOf(losses)
    found_out = OpenCriterion(cast(Any, cutter), cast(Any, Losses()), Silent())
    first, second = (cast(Any, SimpleNamespace(program=object())) for _ in range(2))
    assert found_out.settle(first, Shares(macs=0.5)) == criterion == cutter.manner.criterion
    assert found_out.settle(first, Shares(macs=0.3)) == criterion and cutter.n_cuts == 2, "once for a candidate"
    assert found_out.settle(second, Shares(macs=0.3)) == criterion and cutter.n_cuts == 4


class NoChannels(CutterOf):
    """A cutter that cannot do it by channels: by those of the second criterion."""

    def planned(self, *_: Any) -> float:
        if self.manner.criterion == "l2":
            raise BudgetError("expected fewer")
        return super().planned()


class Blocks:
    """Whole blocks go."""

    def trial(self, best: Any, shares: Shares) -> str:
        return "without a block"


def test_what_is_compared_is_told_as_what_it_is() -> None:
    for structure, measures, kind in (
        (None, False, "such a cut"),
        (None, True, "a cut of as much to greedy widths"),
        (Blocks(), False, "a cut of as much by channels alone"),
    ):
        cutter, told = CutterOf({"taylor": 1.0, "l2": 0.5}), Told()
        cutter.measures_cuts, cutter.trial = measures, lambda best, shares: "cut"  # type: ignore[attr-defined]
        found_out = OpenCriterion(cast(Any, cutter), cast(Any, Losses()), told)
        step = Step(cast(Any, cutter), None, told, structure=cast(Any, structure), criterion=found_out)
        step.trial(cast(Any, SimpleNamespace(program=object())), Shares(macs=0.5))
        assert told.lines[-1] == f"channels go by l2: untrained the loss of {kind} is 0.5, 1 by taylor"


def test_blocks_go_where_channels_alone_cannot_be_compared() -> None:
    cutter, told = NoChannels({"taylor": 1.0}), Told()
    found_out = OpenCriterion(cast(Any, cutter), cast(Any, Losses()), told)
    step = Step(cast(Any, cutter), None, told, structure=cast(Any, Blocks()), criterion=found_out)
    best = cast(Any, SimpleNamespace(program=object()))
    assert step.trial(best, Shares(macs=0.1)) == step.trial(best, Shares(macs=0.1)) == "without a block"
    assert cutter.manner.criterion == "taylor"
    said = [line for line in told.lines if line.startswith("channels go by")]
    assert said == ["channels go by taylor where they alone cannot do it: no such cuts are compared"]
    with pytest.raises(BudgetError):
        Step(cast(Any, cutter), None, told, criterion=found_out).trial(best, Shares(macs=0.1))


def test_a_predictor_measures_its_widths_beside_the_greedy_ones_that_were_compared(tmp_path: Path) -> None:
    told = Told()
    found = searched(tmp_path, misleads_l2(), told, allocation="predictor")
    assert {step.criterion for step in found.steps} == {"taylor"}
    said = [line for line in told.lines if line.startswith("channels go by ")]
    assert said and all("the loss of a cut of as much to greedy widths is" in line for line in said)
    assert sum(line.startswith("predictor: ") for line in told.lines) == 1 + len(said), "once for each cut"


def test_the_cut_that_is_made_is_not_solved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[object] = []
    monkeypatch.setattr(cutter, "reconstructed", lambda *given, **how: solved.append(0) or reconstructed(*given, **how))
    told = Told()
    searched(tmp_path, misleads_l2(), told)
    n_cuts = sum(line.startswith("channels go by ") for line in told.lines)
    assert len(solved) == 2 * n_cuts > 0
