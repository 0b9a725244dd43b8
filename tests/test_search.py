"""The search: two cuts composed are one, and what finetuning and the report need of a slim network."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune import analyze, capture, cut, plan, prove
from edgeprune.graph.capture import Program
from edgeprune.inspection.features import feature_weights
from edgeprune.pruning.compose import compose
from edgeprune.pruning.planner import make_plan
from edgeprune.pruning.slim_inputs import gathered


def mlp() -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.4), nn.Linear(32, 16), nn.ReLU(),
        nn.Linear(16, 10),
    )  # fmt: skip
    return capture(net.double(), torch.randn(2, 1, 8, 8, dtype=torch.float64))


def pruned(program: Program, n_features: int, keep_macs: float) -> tuple[Program, object]:
    graph = analyze(program, inputs=True)
    chosen = plan(program, graph, keep_macs, align=4, n_features=n_features)
    return cut(program, chosen, graph), chosen


def test_two_cuts_composed_are_one_cut_of_the_dense_network() -> None:
    dense = mlp()
    once, first = pruned(dense, 40, 0.6)
    twice, second = pruned(once, 20, 0.5)
    composed = compose(first, second)  # type: ignore[arg-type]
    assert prove(dense, cut(dense, composed), composed) <= 1e-10
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(cut(dense, composed).module()(x), twice.module()(x), rtol=0, atol=1e-12)
    [features] = composed.inputs.values()
    assert features == gathered(twice)
    assert (features.size, len(features.keep)) == (64, 20)
    assert composed.source_sha256 == first.source_sha256  # type: ignore[attr-defined]


def test_fewer_units_get_less_dropout() -> None:
    """Han et al. 2015: p shrinks with the square root of the kept share; a dropout on the whole input keeps its p."""
    dense = mlp()
    graph = analyze(dense)
    keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
    hidden = next(group for group in graph.groups if group.n_units == 32)
    keep[hidden.units[:24]] = False
    slim = cut(dense, make_plan(dense, graph, keep), graph)
    rates = [node.args[1] for node in slim.graph.nodes if "dropout" in str(node.target)]
    assert rates == pytest.approx([0.1, 0.4 * math.sqrt(8 / 32)])


def test_feature_weights_are_the_norms_of_the_columns_that_read_them() -> None:
    slim, _ = pruned(mlp(), 12, 0.5)
    features = gathered(slim)
    assert features is not None
    columns = slim.state_dict["2.weight"].norm(dim=0)
    expected = (columns / columns.max()).detach().numpy()
    np.testing.assert_allclose(feature_weights(slim, "input", features), expected, atol=1e-4)
