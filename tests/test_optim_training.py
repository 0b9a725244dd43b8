"""Sparse training of real networks: coupled channels, the digits, and optimizers chosen by name."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edgeprune
from edgeprune.data import batches, normalize, open_data
from edgeprune.errors import InputError
from edgeprune.graph.groups import ChannelGraph
from edgeprune.optim import OPTIMIZERS, RDA, RMDA, XRDA, ChannelGroups, InputColumn, ProxSGD, make

pytestmark = pytest.mark.usefixtures("one_thread")


class Residual(nn.Module):
    """A stem and two blocks that add to it: the 12 channels of all three are the same units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.inner = nn.Conv2d(12, 8, 3, padding=1)
        self.outer = nn.Conv2d(8, 12, 3, padding=1)
        self.other = nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        x = F.relu(x + self.other(x))
        return self.head(x.mean((2, 3)))


# Tensor and dim of everything that makes a channel of the residual stage, and of everything that reads it.
MAKERS = [("stem.weight", 0), ("outer.weight", 0), ("other.weight", 0)]
READERS = [("inner.weight", 1), ("other.weight", 1), ("head.weight", 1)]


@pytest.fixture(scope="module")
def graph() -> ChannelGraph:
    torch.manual_seed(0)
    return edgeprune.analyze(edgeprune.capture(Residual(), (torch.randn(2, 3, 6, 6),)))


def dead(net: nn.Module, slots: list[tuple[str, int]]) -> list[set[int]]:
    """For each slot the channels whose weights are all zero."""
    params, found = dict(net.named_parameters()), []
    for name, dim in slots:
        rows = params[name].detach().movedim(dim, 0).flatten(1)
        found.append({int(i) for i in torch.nonzero((rows == 0).all(1))})
    return found


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Learn a fixed random function of the inputs' means, by one step a batch with a falling lr."""
    generator = torch.Generator().manual_seed(5)
    mixing = torch.randn(3, 4, generator=generator)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x = torch.randn(16, 3, 6, 6, generator=generator) + torch.randn(16, 3, 1, 1, generator=generator)
        optimizer.zero_grad()
        (net(x) - x.mean((2, 3)) @ mixing).square().mean().backward()
        optimizer.step()
        schedule.step()


def sparse(kind: str, net: nn.Module, grouper: ChannelGroups) -> torch.optim.Optimizer:
    named = list(net.named_parameters())
    if kind == "xrda":
        return XRDA(named, lr=0.5, lam=2e-3, structure=grouper)
    if kind == "rda":
        return RDA(named, lr=1.0, lam=1e-2 if grouper.outgoing else 3e-2, structure=grouper, head_start=25.0)
    if kind == "rmda":
        return RMDA(named, lr=0.2, lam=2e-2 if grouper.outgoing else 3e-2, structure=grouper, release=40)
    return ProxSGD(named, lr=0.02, lam=1.5e-2, structure=grouper)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("outgoing", [True, False])
@pytest.mark.parametrize("kind", ["rda", "rmda", "prox-sgd"])
def test_coupled_units_vanish_together(graph: ChannelGraph, kind: str, outgoing: bool) -> None:
    torch.manual_seed(1)
    net = Residual()
    train(net, sparse(kind, net, ChannelGroups(graph, outgoing)), 150)
    stem, outer, other = dead(net, MAKERS)
    assert 0 < len(stem) < 12
    assert stem == other
    assert stem <= outer  # all of whose weights vanish where the inner channels do
    params = dict(net.named_parameters())
    for name in ("norm.weight", "norm.bias", "stem.bias", "outer.bias"):
        assert {int(i) for i in torch.nonzero(params[name] == 0)} == stem, name
    if outgoing:
        assert all(stem <= columns for columns in dead(net, READERS))


@pytest.mark.parametrize("outgoing", [True, False])
def test_coupled_units_share_xrdas_threshold(graph: ChannelGraph, outgoing: bool) -> None:
    torch.manual_seed(1)
    net = Residual()
    train(net, sparse("xrda", net, ChannelGroups(graph, outgoing)), 150)
    stage = set.intersection(*dead(net, MAKERS))
    assert 0 < len(stage) < 12
    assert (net.norm.weight != 0).all() and (net.stem.bias != 0).all()  # 1-D parameters are never thresholded


def test_norms_run_over_every_slot(graph: ChannelGraph) -> None:
    net = Residual()
    names, weights = zip(*net.named_parameters(), strict=True)
    plain = [weight.detach() for weight in weights]
    grouper = ChannelGroups(graph)
    assert all(grouper.covers(name, weight) for name, weight in zip(names, plain, strict=True) if name != "head.bias")
    groups = ChannelGroups(graph).bind(names, plain)
    place = next(i for i, parts in enumerate(groups.parts) if len(parts[0].index) == 12)
    by_name = dict(zip(names, plain, strict=True))
    vectors = ["norm.weight", "norm.bias", "stem.bias", "outer.bias", "other.bias"]
    expected = torch.zeros(12)
    for name, dim in [*MAKERS, *READERS, *((name, 0) for name in vectors)]:
        expected += by_name[name].movedim(dim, 0).reshape(12, -1).square().sum(1)
    assert torch.allclose(groups.norms(plain, 2)[place], expected.sqrt(), rtol=1e-5)
    sizes = 3 * 9 + 8 * 9 + 12 + 8 * 9 + 12 + 4 + len(vectors)
    assert torch.equal(groups.sizes[place], torch.full((12,), float(sizes), dtype=torch.float64))


def test_channel_groups_span_param_groups(graph: ChannelGraph) -> None:
    """Two param groups that differ in weight decay are seen as one; others must agree."""
    torch.manual_seed(1)
    nets = [Residual(), Residual()]
    nets[1].load_state_dict(nets[0].state_dict())
    grouper = ChannelGroups(graph)
    for net, split in zip(nets, (False, True), strict=True):
        named = list(net.named_parameters())
        parts = [named[:4], named[4:]] if split else [named]
        train(net, ProxSGD([{"params": part} for part in parts], lr=0.02, lam=8e-3, structure=grouper), 30)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    named = list(nets[0].named_parameters())
    uneven = ProxSGD([{"params": named[:4]}, {"params": named[4:], "lam": 1.0}], structure=grouper)
    before = [param.detach().clone() for param in nets[0].parameters()]
    with pytest.raises(InputError, match="lam: expected one value in all param groups that share a channel grouper"):
        uneven.step()
    assert all(torch.equal(param, old) for param, old in zip(nets[0].parameters(), before, strict=True))


def test_channel_groups_resume(graph: ChannelGraph) -> None:
    torch.manual_seed(1)
    net = Residual()
    optimizer = sparse("xrda", net, ChannelGroups(graph))
    train(net, optimizer, 10)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(net)
    again = sparse("xrda", twin, ChannelGroups(graph))
    again.load_state_dict(torch.load(file, weights_only=True))
    for one, two in ((net, optimizer), (twin, again)):
        train(one, two, 10)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    with pytest.raises(InputError, match="expected structure channel-group 20 without outgoing"):
        sparse("xrda", net, ChannelGroups(graph, outgoing=False)).load_state_dict(optimizer.state_dict())


def test_channel_groups_need_names_and_sizes(graph: ChannelGraph) -> None:
    net = Residual()
    for param in net.parameters():
        param.grad = torch.ones_like(param)
    with pytest.raises(InputError, match="expected named parameters"):
        ProxSGD(net.parameters(), structure=ChannelGroups(graph)).step()
    prefixed = [(f"module.{name}", param) for name, param in net.named_parameters()]
    with pytest.raises(InputError, match="expected parameters of the channel graph, got only others, e.g. module.stem"):
        ProxSGD(prefixed, structure=ChannelGroups(graph)).step()
    assert all((param.grad == 1).all() for param in net.parameters())
    net.stem = nn.Conv2d(3, 10, 3)
    net.stem.weight.grad = torch.ones_like(net.stem.weight)
    with pytest.raises(
        InputError, match=r"stem.weight: expected 12 channels along dim 0, got the shape \(10, 3, 3, 3\)"
    ):
        ProxSGD(net.named_parameters(), structure=ChannelGroups(graph)).step()


def test_input_features_have_their_columns() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = edgeprune.analyze(edgeprune.capture(net, (torch.randn(2, 6),)), inputs=True)
    results = []
    for structure in (ChannelGroups(graph, outgoing=False), InputColumn()):
        twin = copy.deepcopy(net)
        first = [("0.weight", twin[0].weight)]
        optimizer = ProxSGD(
            first, lr=0.05, lam=3e-3 if isinstance(structure, InputColumn) else 0.03, structure=structure
        )
        for _ in range(60):
            optimizer.zero_grad()
            x = torch.randn(32, 6)
            (twin(x) - 3 * x[:, :2]).square().mean().backward()
            optimizer.step()
        results.append({int(i) for i in torch.nonzero((twin[0].weight == 0).all(0))})
    assert results[0] and results[0].isdisjoint({0, 1})


# --- digits


def learn(name: str, epochs: int, **options: object) -> tuple[float, float]:
    """Test accuracy in %, and the share of weights that are exactly zero, of a small network on the digits."""
    data = open_data("digits")
    x, y = gathered(data.train, data.normalization)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = make(name, net.named_parameters(), **options)  # type: ignore[arg-type]
    per_epoch = len(x) // 64
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * per_epoch)
    for _ in range(epochs):
        for batch in torch.randperm(len(x))[: per_epoch * 64].view(-1, 64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    x, y = gathered(data.test, data.normalization)
    weights = torch.cat([p.detach().flatten() for p in net.parameters() if p.dim() > 1])
    return 100 * float((net(x).argmax(1) == y).double().mean()), float((weights == 0).double().mean())


def gathered(split: object, normalization: object) -> tuple[Tensor, Tensor]:
    x, y = next(iter(batches(split, 10_000)))
    return normalize(x.float(), normalization), y


@pytest.fixture(scope="module")
def dense_accuracy() -> float:
    accuracy, zeros = learn("sgd", 40)
    assert accuracy > 94 and zeros == 0
    return accuracy


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "options", "zeros"),
    [
        ("xrda", {"lam": 2e-4}, 0.9),
        ("xrda", {"lam": 1e-4, "structure": "channel"}, 0.9),
        ("prox-sgd", {"lam": 4e-3, "penalty": "l1"}, 0.9),
        ("rmda", {"lam": 6e-3, "penalty": "l1", "steps": 40 * 16}, 0.8),
    ],
)
def test_digits_are_learnt_with_few_weights(name: str, options: dict, zeros: float, dense_accuracy: float) -> None:
    accuracy, share = learn(name, 40, **options)
    assert share >= zeros
    assert accuracy >= dense_accuracy - 3


# --- by name


def test_every_name_makes_its_optimizer() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    net[0].bias.requires_grad_(False)
    made = {name: make(name, net.named_parameters()) for name in OPTIMIZERS}
    assert {name: type(optimizer).__name__ for name, optimizer in made.items()} == {
        "adamw": "AdamW",
        "sgd": "SGD",
        "xrda": "XRDA",
        "rda": "RDA",
        "rmda": "RMDA",
        "prox-sgd": "ProxSGD",
    }
    for name in ("sgd", "adamw"):
        weights, vectors = made[name].param_groups
        assert [param.dim() for param in weights["params"]] == [2, 2]
        assert [param.dim() for param in vectors["params"]] == [1, 1, 1]
        assert weights["weight_decay"] == OPTIMIZERS[name].weight_decay and vectors["weight_decay"] == 0
    assert made["sgd"].param_groups[0]["nesterov"] and made["sgd"].param_groups[0]["momentum"] == 0.9
    for name in ("xrda", "rda", "rmda", "prox-sgd"):
        (group,) = made[name].param_groups
        assert group["param_names"] == ["0.weight", "1.weight", "1.bias", "2.weight", "2.bias"]
        assert group["weight_decay"] == OPTIMIZERS[name].weight_decay


def test_options_reach_the_optimizer() -> None:
    named = list(nn.Linear(4, 3).named_parameters())
    group = make("xrda", named, lr=0.5, weight_decay=0.0, lam=1e-5, structure="channel").param_groups[0]
    assert (group["lr"], group["weight_decay"], group["lam"], group["structure"].name) == (0.5, 0.0, 1e-5, "channel")
    assert make("rmda", named, steps=100).param_groups[0]["release"] == 25
    assert make("rda", named, steps=100, restarts=1).param_groups[0]["steps"] == 100
    assert make("rmda", named, steps=100, release=7).param_groups[0]["release"] == 7
    only_weights = make("sgd", named[:1])
    assert len(only_weights.param_groups) == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lion", {}, "optimizer: expected one of adamw, sgd, xrda, rda, rmda, prox-sgd, got 'lion'"),
        ("sgd", {"lam": 1e-4}, "optimizer sgd: expected options among .*, got lam"),
        ("xrda", {"penalty": "l1"}, "optimizer xrda: expected options among .*, got penalty"),
        ("xrda", {"lam": -1.0}, "lam"),
    ],
)
def test_what_cannot_be_made(name: str, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(name, nn.Linear(2, 2).named_parameters(), **options)


def test_nothing_to_train() -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(InputError, match="expected parameters to train, got none"):
        make("xrda", frozen.named_parameters())
