"""Importance against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.errors import InputError
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph
from edgeprune.importance import score
from tests.cases import CASES
from tests.nets import captured


@pytest.fixture
def two_layers() -> tuple[Program, ChannelGraph]:
    """Hidden unit 0 has weights (3, 4 | bias 0 | out 0), unit 1 has (1, 0 | bias 2 | out 2)."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
        net[0].bias.copy_(torch.tensor([0.0, 2.0]))
        net[2].weight.copy_(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
        net[2].bias.zero_()
    program = edgeprune.capture(net, torch.randn(2, 2))
    return program, edgeprune.analyze(program)


def test_l1(two_layers: tuple[Program, ChannelGraph]) -> None:
    (scores,) = score(*two_layers, "l1")
    np.testing.assert_allclose(scores, np.array([7.0, 5.0]) / 6.0)


def test_l2(two_layers: tuple[Program, ChannelGraph]) -> None:
    (scores,) = score(*two_layers, "l2")
    np.testing.assert_allclose(scores, np.array([5.0, 3.0]) / 4.0)


def test_taylor(two_layers: tuple[Program, ChannelGraph]) -> None:
    x, y = torch.tensor([[1.0, 1.0]]), torch.tensor([0])
    # hidden = (7, 3); logits = (6, 0); d loss / d logits = (p - 1, p') with p = 1 / (1 + e^-6)
    wrong = 1 - 1 / (1 + np.exp(-6.0))
    to_hidden = np.array([0.0, -2.0 * wrong])  # through the output weights (0, 0) and (2, 0)
    first = np.array([7.0, 1.0]) * to_hidden  # sum of g w over the incoming weights: x = 1
    bias = np.array([0.0, 2.0]) * to_hidden
    second = np.array([0.0, 3.0 * 2.0 * -wrong])  # g of the output weight is d logit times hidden
    (scores,) = score(*two_layers, "taylor", batches=[(x, y), (x, y)])
    np.testing.assert_allclose(scores, first**2 + bias**2 + second**2, rtol=1e-3, atol=1e-12)


def test_taylor_leaves_the_program_alone(two_layers: tuple[Program, ChannelGraph]) -> None:
    score(*two_layers, "taylor", batches=[(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))])
    assert all(parameter.grad is None for parameter in two_layers[0].parameters())


def test_random_depends_on_the_seed_alone(two_layers: tuple[Program, ChannelGraph]) -> None:
    same, again, other = (score(*two_layers, "random", seed=seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(same, again) and not np.array_equal(same, other)
    assert ((same >= 0) & (same < 1)).all()


def test_taylor_needs_batches(two_layers: tuple[Program, ChannelGraph]) -> None:
    with pytest.raises(InputError, match="taylor needs real batches: expected at least one, got none"):
        score(*two_layers, "taylor")


def test_an_unknown_criterion_is_refused(two_layers: tuple[Program, ChannelGraph]) -> None:
    with pytest.raises(InputError, match="criterion: expected one of l1, l2, taylor, random, got 'l3'"):
        score(*two_layers, "l3")


@pytest.mark.parametrize("name", ["depth multiplier", "attention", "cnn input channels", "constant mask"])
def test_every_unit_has_a_score(name: str) -> None:
    program = captured(CASES[name].build(), *CASES[name].shapes)
    graph = edgeprune.analyze(program, inputs=CASES[name].label_inputs)
    for group, scores in zip(graph.groups, score(program, graph, "l2"), strict=True):
        assert scores.shape == (group.n_units,)
        assert (scores > 0).all()
        np.testing.assert_allclose(scores.mean(), 1.0)
