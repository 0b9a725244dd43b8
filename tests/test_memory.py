"""What the planner knows of live activations: the peak of the dense network, of what is cut, and of what is planned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.cost.memory import activation_limits, activation_models, activation_peak
from edgeprune.errors import BudgetError
from edgeprune.measure.peaks import device_peak
from edgeprune.pruning.planner import make_plan
from tests.cases import CASES
from tests.nets import Net, captured, mlp, random_keep, residual

# Written in place or with sizes that the graph works out, or cut so that what was a view is copied.
_OTHERWISE = ("writes into views", "factories", "joined with nothing", "slices")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [name for name in CASES if name not in _OTHERWISE])
def test_the_peak_is_foretold_of_every_kind_of_layer(name: str) -> None:
    case = CASES[name]
    program = captured(case.build(), *case.shapes)
    graph = edgeprune.analyze(program, inputs=case.label_inputs)
    models = activation_models(graph)
    assert activation_peak(graph) == max(model.total for model in models) == device_peak(program).n_bytes
    keep = random_keep(graph, 0.6, 0)
    slim = edgeprune.cut(program, make_plan(program, graph, keep), graph)
    assert max(model.left(keep) for model in models) == pytest.approx(device_peak(slim).n_bytes, rel=1e-9)


def test_of_a_cut_network_what_its_device_is_given_counts() -> None:
    program = captured(mlp(24), (24,), dtype=torch.float32)
    graph = edgeprune.analyze(program, inputs=True)
    plan = edgeprune.plan(program, graph, None, "l2", 1, n_features=10)
    slim = edgeprune.cut(program, plan, graph)
    again = edgeprune.analyze(slim, inputs=True)
    assert activation_peak(again) == device_peak(slim).n_bytes < activation_peak(graph)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
def test_a_share_of_the_peak_is_held_and_used(share: float) -> None:
    program = captured(residual(), (3, 8, 8))
    graph, peak = edgeprune.analyze(program), device_peak(program).n_bytes
    slim = edgeprune.cut(program, edgeprune.plan(program, graph, None, align=1, keep_activations=share), graph)
    assert share - 0.15 < device_peak(slim).n_bytes / peak <= share


def test_nothing_goes_that_is_not_alive_at_the_peak() -> None:
    """A wide layer over a large image, and behind the pooling one that has most of the weights."""
    net = Net(
        lambda m, x: m.head(m.deep(m.pool(m.wide(x).relu())).relu().mean((2, 3))),
        wide=nn.Conv2d(3, 16, 3, padding=1),
        pool=nn.MaxPool2d(4),
        deep=nn.Conv2d(16, 64, 3, padding=1),
        head=nn.Linear(64, 4),
    )
    program = captured(net, (3, 16, 16))
    graph = edgeprune.analyze(program)
    plan = edgeprune.plan(program, graph, None, align=1, keep_activations=0.6)
    assert {group.name.partition(".")[0] for group in plan.groups if group.after < group.before} == {"wide"}


def test_each_moment_over_the_share_is_a_limit_of_its_own() -> None:
    program = captured(residual(), (3, 8, 8))
    graph = edgeprune.analyze(program)
    peak = activation_peak(graph)
    limits = activation_limits(graph, 0.5)
    assert all(limit.most == pytest.approx(peak / 2) and limit.model.total > limit.most for limit in limits)
    assert len(limits) == sum(model.total > peak / 2 for model in activation_models(graph)) > 1
    assert activation_limits(graph, 1.0) == []
    assert all(
        group.after == group.before for group in edgeprune.plan(program, graph, None, keep_activations=1.0).groups
    )


def test_what_cannot_be_planned_names_what_is_alive() -> None:
    net = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    program = captured(net, (64,), dtype=torch.float32)
    message = (
        r"of the live activations cannot be met: expected at most 144, got no lower than 2\d\d bytes; in the way: "
    )
    with pytest.raises(BudgetError, match=message):
        edgeprune.plan(program, edgeprune.analyze(program), None, align=1, keep_activations=0.5)


def test_the_model_of_many_networks_at_once_is_that_of_each() -> None:
    graph = edgeprune.analyze(captured(residual(), (3, 8, 8)))
    counts = np.random.default_rng(0).integers(
        1, [group.n_units + 1 for group in graph.groups], (20, len(graph.groups))
    )
    for model in activation_models(graph):
        np.testing.assert_allclose(model.costs(counts), [model.cost(own) for own in counts])
