"""Cuts one after the other: together they are one cut of the dense network, whatever its layers leave to choose."""

from __future__ import annotations

from random import Random
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import ProofError
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph
from edgeprune.pruning.compose import compose
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.planner import make_plan
from edgeprune.pruning.precedents import left_by
from edgeprune.records import Vocabulary
from edgeprune.search.candidate import Manner
from edgeprune.search.cutter import Cutter
from edgeprune.search.landing import Shares
from tests.random_checks import _batch, _error, _run, layers_of
from tests.random_networks import random_network
from tests.test_widths import Residual


def some_of_each(program: Program, graph: ChannelGraph, draw: Random) -> PruningPlan:
    """A plan that keeps at least one unit of each group."""
    keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
    for group in graph.groups:
        keep[draw.sample(list(group.units), draw.randint(0, len(group.units) - 1))] = False
    return make_plan(program, graph, keep)


# Networks in which the number of units decides along which dim something may go, and a cut turns that round: reshaped
# channels, gates, attention, features of several inputs.
@pytest.mark.parametrize("seed", [56, 63, 77, 123, 126, 189, 192, 256, 287])
def test_two_cuts_of_a_random_network_are_one(seed: int) -> None:
    network, draw = random_network(Random(seed), layers_of(seed)), Random(-seed - 1)
    asked = {"inputs": draw.random() < 0.5, "attention": draw.choice(("heads", "head-dim"))}
    dense = edgeprune.capture(network, _batch(network, 2))
    graph = edgeprune.analyze(dense, **asked)  # type: ignore[arg-type]
    first = some_of_each(dense, graph, draw)
    slim = edgeprune.cut(dense, first, graph)
    second = some_of_each(slim, edgeprune.analyze(slim, **asked, precedents=left_by(graph, first)), draw)  # type: ignore[arg-type]
    twice, once = edgeprune.cut(slim, second), edgeprune.cut(dense, compose(first, second))
    x = _batch(network, 3)
    assert _error(_run(twice.module(), x), _run(once.module(), x)) < 1e-12


@pytest.mark.parametrize("seed", [56, 63, 77, 123, 256, 287])
def test_a_slim_network_is_cut_anew(seed: int) -> None:
    """With nothing known of the cut before: its gather may be along another dim than the new one."""
    network, draw = random_network(Random(seed), layers_of(seed)), Random(-seed - 1)
    asked = {"inputs": draw.random() < 0.5, "attention": draw.choice(("heads", "head-dim"))}
    dense = edgeprune.capture(network, _batch(network, 2))
    slim = edgeprune.cut(dense, some_of_each(dense, edgeprune.analyze(dense, **asked), draw))  # type: ignore[arg-type]
    graph = edgeprune.analyze(slim, **asked)  # type: ignore[arg-type]
    plan = some_of_each(slim, graph, draw)
    twice = edgeprune.cut(slim, plan, graph)
    try:
        assert edgeprune.prove(slim, twice, plan) < 1e-9
    except ProofError as error:
        assert str(error).startswith("no proof: ")  # it gives the same for whatever comes in


def test_features_and_ids_go_after_dead_units() -> None:
    """The plan of what is dead folds constants first: what it slices is another network than the dense one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].weight[2], net[0].bias[2] = 0, 0
    cutter = Cutter(edgeprune.capture(net, torch.randn(2, 12)), Manner(features=True), None)
    alive = cutter.without_dead()
    assert alive is not None
    found = cutter.pruned(alive, Shares(macs=0.5), n_features=6)
    assert (alive.n_features, found.n_features) == (12, 6)
    assert found.plan is not None and found.plan.folded
    x = torch.randn(3, 12)
    torch.testing.assert_close(cutter.cut_by(found.plan).module()(x), found.program.module()(x), rtol=0, atol=1e-6)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(20, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return cast(Tensor, self.head(torch.relu(self.hidden(self.table(ids).mean(1)))))


def test_rows_go_after_dead_units() -> None:
    torch.manual_seed(0)
    net = Tokens()
    with torch.no_grad():
        net.hidden.weight[2], net.hidden.bias[2] = 0, 0
    vocabularies = {"ids": Vocabulary(20, tuple(range(0, 20, 2)), None)}
    program = edgeprune.capture(net, torch.randint(0, 20, (2, 5)))
    cutter = Cutter(program, Manner(vocabularies=vocabularies), None)
    alive = cutter.without_dead()
    assert alive is not None
    found = cutter.pruned(cutter.without_cut_ids(alive), Shares(macs=0.7))
    assert tuple(found.program.state_dict["table.weight"].shape)[0] == 10


def test_groups_that_go_whole_go_whole_in_every_step() -> None:
    """Of 4 groups of 4 channels groups go first; of 2 groups of 4 there are more channels than groups."""
    torch.manual_seed(0)
    example = torch.randn(2, 3, 8, 8)
    pruner = edgeprune.Pruner(Residual().eval(), example, keep_macs=0.4, steps=3, align=1)
    dense = pruner.program
    for module in pruner:
        assert isinstance(module, nn.Module)
    assert pruner.plan is not None
    whole = edgeprune.cut(dense, PruningPlan.from_json(pruner.plan.to_json()))
    torch.testing.assert_close(whole.module()(example), pruner.program.module()(example), rtol=0, atol=1e-6)
