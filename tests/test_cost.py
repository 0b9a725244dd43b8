"""MACs by hand, by node, and as the cost model predicts them for a cut."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

import edgeprune
from edgeprune.cost.macs import count_parameters, macs, macs_by_node
from edgeprune.cost.models import macs_model
from edgeprune.pruning.planner import make_plan
from tests.cases import CASES, IMAGE
from tests.nets import Shared, captured, mlp, random_keep, residual


def test_macs_of_linear_layers() -> None:
    program = captured(mlp(), (8,))
    assert macs_by_node(program) == {"linear": 8 * 12, "linear_1": 12 * 10, "linear_2": 10 * 3}
    assert macs(program) == 96 + 120 + 30


def test_macs_of_convolutions() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1, stride=2))
    program = captured(net, IMAGE)
    assert list(macs_by_node(program).values()) == [64 * 3 * 8 * 9, 36 * 8 * 9, 9 * 8 * 4]


def test_parameters_are_counted_once_when_tied() -> None:
    assert count_parameters(captured(Shared(), (5,))) == (5 * 6 + 6) + 6 * 6 + 6 + 6 + (6 * 3 + 3)


EXACTLY = ("mlp", "cnn", "residual", "depthwise", "depth multiplier", "concatenation", "squeeze-excite", "transposed",
           "whole groups", "offset in groups", "attention", "fused attention", "chunk", "cnn input channels", "conv1d",
           "flatten to linear", "einsum", "transformer layer", "image mlp inputs")  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", EXACTLY)
def test_the_model_predicts_the_slim_program(name: str) -> None:
    case = CASES[name]
    program = captured(case.build(), *case.shapes)
    graph = edgeprune.analyze(program, inputs=case.label_inputs)
    model = macs_model(graph)
    full = np.array([group.n_units for group in graph.groups], dtype=float)
    assert model.total == macs(program) == pytest.approx(model.cost(full))
    keep = random_keep(graph, 0.6, seed=1)
    counts = np.array([float(keep[group.units].sum()) for group in graph.groups])
    slim = edgeprune.cut(program, make_plan(program, graph, keep), graph)
    assert model.cost(counts) == pytest.approx(macs(slim))


def test_savings_are_differences() -> None:
    program = captured(residual(), IMAGE)
    graph = edgeprune.analyze(program)
    model = macs_model(graph)
    counts = np.array([group.n_units for group in graph.groups], dtype=float)
    for number in range(len(graph.groups)):
        fewer = counts - 2 * (np.arange(len(counts)) == number)
        assert model.saving(counts, number, 2) == pytest.approx(model.cost(counts) - model.cost(fewer))
