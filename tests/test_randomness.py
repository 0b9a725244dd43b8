"""Networks that draw random numbers in eval mode: cut where the draws of a unit are its own, and proved or told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edgeprune
from edgeprune.errors import ApplyError, ParityError, ProofError
from edgeprune.graph.randomness import drawing, share_draws
from edgeprune.pruning.surgery import cut

WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "Monte-Carlo dropout": lambda h: F.dropout(h, 0.5, training=True),
    "dropout of channels": lambda h: F.dropout1d(h[..., None], 0.5, training=True)[..., 0],
    "alpha dropout": lambda h: F.alpha_dropout(h, 0.5, training=True),
    "rrelu": lambda h: F.rrelu(h - 0.1, training=True),
    "randn_like": lambda h: h + torch.randn_like(h),
    "rand_like": lambda h: h * torch.rand_like(h),
    "of a mean and a spread": lambda h: torch.normal(h, h.exp()),
    "in place": lambda h: h + torch.empty_like(h).normal_(),
    "whole and picked of": lambda h: h + torch.randn(h.shape),
    "a number for each unit": lambda h: h * torch.rand(h.shape[1]),
    "a number for each row": lambda h: h * torch.rand(h.shape[0], 1),
    "bernoulli": lambda h: torch.bernoulli(h.sigmoid()),
}


class Net(nn.Module):
    """A hidden layer with chance in it."""

    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.a, self.b = way, nn.Linear(12, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Other outputs each time."""
        out: Tensor = self.b(self.way(self.a(x).relu()))
        return out


def cut_of(way: Callable[[Tensor], Tensor], model: nn.Module | None = None) -> tuple[Any, Any, Any]:
    program = edgeprune.capture(model or Net(way), torch.randn(4, 12))
    graph = edgeprune.analyze(program)
    plan = edgeprune.plan(program, graph, keep_macs=0.6, align=1)
    return program, plan, edgeprune.cut(program, plan, graph)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_network_that_draws_for_each_unit_is_cut_and_proved(way: Callable[[Tensor], Tensor]) -> None:
    program, plan, slim = cut_of(way)
    assert edgeprune.prove(program, slim, plan) < 1e-5
    assert edgeprune.prove(program, slim, plan, inputs=torch.randn(5, 12)) < 1e-5
    x = torch.randn(3, 12)
    assert not torch.equal(slim.module()(x), slim.module()(x))  # what is handed out draws as before


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_wrong_cut_of_such_a_network_is_found(way: Callable[[Tensor], Tensor]) -> None:
    program, plan, slim = cut_of(way)
    wrong = slim.with_tensors({"b.weight": nn.Parameter(slim.state_dict["b.weight"].detach().flip(1))})
    with pytest.raises(ProofError, match="is not the masked dense network"):
        edgeprune.prove(program, wrong, plan)


def test_dropout_that_stays_on_keeps_its_share() -> None:
    _, _, slim = cut_of(WAYS["Monte-Carlo dropout"])
    [node] = drawing(slim.graph)
    assert node.args[1:] == (0.5, True)
    _, _, slim = cut_of(lambda h: F.dropout(h, 0.5, training=False))
    assert not drawing(slim.graph)


def test_units_have_draws_of_their_own_once_cut() -> None:
    _, _, slim = cut_of(WAYS["randn_like"])
    module = slim.frozen_module()
    noise = torch.stack([module(torch.zeros(64, 12)) for _ in range(8)])
    wanted = slim.state_dict["b.weight"].square().sum(1)  # of independent normal numbers
    torch.testing.assert_close(noise.flatten(0, 1).var(0), wanted, rtol=0.3, atol=0)


def test_an_index_that_is_drawn_locks() -> None:
    graph = edgeprune.analyze(edgeprune.capture(Net(lambda h: h[:, torch.randperm(32)]), torch.randn(4, 12)))
    assert not graph.groups


class Sampled(nn.Module):
    """Attention that drops in eval mode: its draws are no element's own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.qkv, self.b = nn.Linear(12, 32), nn.Linear(32, 3 * 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Over tokens."""
        q, k, v = self.qkv(self.a(x).relu()).chunk(3, -1)
        out: Tensor = self.b(F.scaled_dot_product_attention(q, k, v, dropout_p=0.1))
        return out


def test_draws_of_the_same_shape_are_the_same() -> None:
    program = edgeprune.capture(Sampled(), torch.randn(4, 5, 12))
    graph = edgeprune.analyze(program)
    [a] = [group for group in graph.groups if group.name == "a"]
    plan = edgeprune.plan(program, graph, keep_macs=0.8, align=1, leave=[g.name for g in graph.groups if g is not a])
    assert edgeprune.prove(program, cut(program, plan, graph), plan) < 1e-5


def test_what_draws_otherwise_is_no_pair() -> None:
    two = [edgeprune.capture(Net(WAYS[name]), torch.randn(4, 12)).own_module() for name in ("rand_like", "randn_like")]
    with pytest.raises(ProofError, match=r"draws random numbers as it runs \(rand_like at .*test_randomness.py:\d+\)"):
        share_draws(*two)


def test_a_class_that_draws_is_sliced_where_both_draw_alike() -> None:
    for name in ("Monte-Carlo dropout", "randn_like"):
        model = Net(WAYS[name])
        _, _, slim = cut_of(WAYS[name], model)
        assert slim.apply_to(model).error < 1e-5
    model = Net(WAYS["whole and picked of"])
    _, _, slim = cut_of(WAYS["whole and picked of"], model)
    with pytest.raises(ApplyError, match="draws random numbers as it runs"):
        slim.apply_to(model)


def test_a_file_of_what_draws_is_refused_in_plain_words(tmp_path: Path) -> None:
    _, _, slim = cut_of(WAYS["randn_like"])
    with pytest.raises(ParityError, match=r"draws random numbers as it runs \(randn_like at .*no export"):
        edgeprune.export_onnx(slim, tmp_path / "slim.onnx")
