"""The criterion that nobody named: found out by what a cut loses before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from fakes import Told
from torch import Tensor, nn

from edgeprune.commands.preparing import prepare
from edgeprune.errors import BudgetError
from edgeprune.graph.capture import capture
from edgeprune.progress import Silent
from edgeprune.requests import CompressRequest
from edgeprune.search.candidate import Budgets, Found
from edgeprune.search.criterion import BestCriterion, stated_share
from edgeprune.search.step import Step
from edgeprune.units import LatencyLimit

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


def searched(place: Path, net: nn.Sequential, **asked: Any) -> Found:
    """What `compress` comes to without training, of a network that gives its targets but for some noise."""
    torch.manual_seed(1)
    x = torch.randn(600, N_FEATURES)
    with torch.no_grad():
        y = net(x) + 0.3 * torch.randn(600, 3)
    np.savez(place / "data.npz", x=x.numpy(), y=y.numpy())
    torch.export.save(capture(net, x[:2]), place / "net.pt2")
    request = CompressRequest(
        str(place / "net.pt2"),
        data=f"npz:{place / 'data.npz'}",
        out=str(place / "run"),
        task="regression",
        **{"keep_macs": 0.5, "align": 1, "threads": 1, "finetune_epochs": 0, "input_features": "off", **asked},
    )
    job = prepare(request, Silent())
    found = job.strategy.search(job.step, job.budgets)
    told = [*job.assumed, *found.assumed]
    assert sum(text.startswith("--criterion ") for text in told) == (request.criterion is None), "said once"
    return found


@pytest.mark.parametrize(("make", "better"), [(misleads_l2, "taylor"), (misleads_taylor, "l2")])
def test_the_criterion_whose_cut_loses_less_is_taken(tmp_path: Path, make: Any, better: str) -> None:
    net = make()
    found = searched(tmp_path, net)
    [said] = found.assumed
    other = "l2" if better == "taylor" else "taylor"
    assert said.startswith(f"--criterion {better} (untrained, at 50% of the MACs, the loss is ")
    assert said.endswith(f" by {other})")
    same = searched(tmp_path, net, criterion=better)
    assert found.networks[-1].plan == same.networks[-1].plan
    assert found.networks[-1].val_value == pytest.approx(cast(float, same.networks[-1].val_value), rel=1e-6)
    worse = searched(tmp_path, net, criterion=other)
    assert found.steps and cast(float, found.networks[-1].val_value) < cast(float, worse.networks[-1].val_value)


@pytest.mark.parametrize("asked", [{"reconstruct": False}, {"criterion": "l1"}])
def test_where_it_is_named_or_nothing_takes_over_none_is_looked_for(tmp_path: Path, asked: dict[str, Any]) -> None:
    assert searched(tmp_path, misleads_taylor(), **asked).assumed == ()


class Inner:
    """A strategy that only tells by which criterion it was asked to go."""

    name = "inner"

    def search(self, step: Step, budgets: Budgets) -> Found:
        return cast(Found, step.cutter.manner.criterion)


class CutterOf:
    """A cutter that comes down to some share of the MACs, whose cuts by each criterion lose what they are said to."""

    def __init__(self, least: float, losses: dict[str, float]) -> None:
        self.least, self.losses, self.shares = least, losses, list[float]()
        self.manner, self.dense = type("M", (), {"criterion": "taylor"})(), None

    def score_by(self, criterion: str) -> None:
        self.manner.criterion = criterion

    def planned(self, _: Any, shares: Any) -> float:
        if shares.macs < self.least:
            raise BudgetError("groups at their least width")
        self.shares.append(shares.macs)
        return self.losses[self.manner.criterion]

    def tried(self, loss: float) -> tuple[Any, bool]:
        return type("P", (), {"own_module": lambda _: loss})(), True


class StepOf:
    """What a strategy asks of a step, and what it was told to assume."""

    def __init__(self, cutter: CutterOf) -> None:
        self.cutter, self.progress, self.assumed = cutter, Told(), list[str]()
        self.assume = self.assumed.append


class Losses:
    """A prober that is handed the loss."""

    def probed(self, module: Any, settled: bool) -> float:
        return float(module)


@pytest.mark.parametrize(
    ("least", "losses", "budgets", "criterion", "share"),
    [
        (0.1, {"taylor": 1.0, "l2": 0.5}, Budgets(keep_macs=0.2), "l2", 0.2),
        (0.1, {"taylor": 0.5, "l2": 0.5}, Budgets(max_latency=LatencyLimit(ratio=0.4)), "taylor", 0.4),  # the first
        (0.1, {"taylor": float("nan"), "l2": 9.0}, Budgets(), "l2", 0.5),
        (0.1, {"taylor": float("inf"), "l2": float("nan")}, Budgets(max_bytes=1000), "taylor", 0.5),
        (0.7, {"taylor": 1.0, "l2": 0.5}, Budgets(), "l2", 0.8),  # nearer, where half is not to be had
        (0.9, {"taylor": 1.0, "l2": 0.5}, Budgets(), "taylor", None),  # nothing can be told
    ],
)
def test_it_is_compared_at_the_share_that_is_asked_for(
    least: float, losses: dict[str, float], budgets: Budgets, criterion: str, share: float | None
) -> None:
    step = StepOf(CutterOf(least, losses))
    taken = BestCriterion(cast(Any, Inner()), cast(Any, Losses())).search(cast(Any, step), budgets)
    assert taken == criterion
    assert set(step.cutter.shares) == (set() if share is None else {share})
    [said] = step.assumed
    assert said.startswith(f"--criterion {criterion}") and (share is None) == (said == f"--criterion {criterion}")


def test_the_least_share_that_is_stated_counts() -> None:
    assert stated_share(Budgets(keep_macs=0.6, max_latency=LatencyLimit(ratio=0.5))) == 0.5
    assert stated_share(Budgets(keep_macs=0.6, max_latency=LatencyLimit(ms=0.5))) == 0.6
    assert stated_share(Budgets()) is None
