"""Every rule on a tiny network: the units that it finds, and slim = masked dense."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.graph.ops.registry import operator
from tests.cases import ACTIVATIONS, CASES, IMAGE, between, conv
from tests.nets import Case, captured, cut_randomly, distance, n_units


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    case = CASES[name]
    check(case)


def check(case: Case) -> None:
    program = captured(case.build(), *case.shapes)
    graph = edgeprune.analyze(program, inputs=case.label_inputs)
    locked = [(lock.name, lock.dim, lock.reason) for lock in graph.locked]
    assert n_units(graph) == case.units, (locked, [(g.name, g.n_units) for g in graph.groups])
    if not graph.groups:
        return
    cut = cut_randomly(program, graph)
    slim_error, masked_difference = distance(cut, case.shapes)
    assert cut.error <= 1e-10
    assert slim_error <= 1e-10
    assert masked_difference > 1e-3
    assert all(group.exact for group in graph.groups) is case.exact


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.__name__)
def test_activation(activation: type[nn.Module]) -> None:
    check(Case(lambda: between(lambda m, x: m.second(m.act(x)), act=activation(), second=conv(8, 8)), (IMAGE,), 16))


def test_glu_and_threshold() -> None:
    check(Case(lambda: between(lambda m, x: m.act(x), after=4, act=nn.GLU(1)), (IMAGE,), 4))
    check(Case(lambda: between(lambda m, x: m.act(x), act=nn.Threshold(0.1, 0.4)), (IMAGE,), 8))


@pytest.mark.parametrize("name", ["cnn", "residual", "attention", "layer norm", "squeeze-excite"])
def test_float32(name: str) -> None:
    case = CASES[name]
    program = captured(case.build(), *case.shapes, dtype=torch.float32)
    cut = cut_randomly(program, edgeprune.analyze(program))
    assert cut.error <= 1e-5
    assert distance(cut, case.shapes)[0] <= 1e-5


def test_an_operator_has_one_rule() -> None:
    with pytest.raises(ValueError, match="conv2d has two rules"):
        operator("conv2d")(lambda analysis, call: None)
