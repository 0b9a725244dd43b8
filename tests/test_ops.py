"""Every rule on a tiny network: the units that it finds, and slim = masked dense."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.cost import layers
from edgeprune.graph import dependence, marks
from edgeprune.graph.ops.registry import Kind, kind_of, operator, operators
from edgeprune.importance import activation
from edgeprune.pruning import folding, gathers, slim_inputs
from edgeprune.pruning.planner import make_plan
from tests.cases import ACTIVATIONS, CASES, IMAGE, between, conv
from tests.nets import Case, Net, captured, cut_randomly, distance, n_units


@pytest.mark.sampled(3)
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


@pytest.mark.sampled(3)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.__name__)
def test_activation(activation: type[nn.Module]) -> None:
    check(Case(lambda: between(lambda m, x: m.second(m.act(x)), act=activation(), second=conv(8, 8)), (IMAGE,), 16))


def test_glu_and_threshold() -> None:
    check(Case(lambda: between(lambda m, x: m.act(x), after=4, act=nn.GLU(1)), (IMAGE,), 4))
    check(Case(lambda: between(lambda m, x: m.act(x), act=nn.Threshold(0.1, 0.4)), (IMAGE,), 8))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["cnn", "residual", "attention", "layer norm", "squeeze-excite"])
def test_float32(name: str) -> None:
    case = CASES[name]
    program = captured(case.build(), *case.shapes, dtype=torch.float32)
    cut = cut_randomly(program, edgeprune.analyze(program))
    assert cut.error <= 1e-5
    assert distance(cut, case.shapes)[0] <= 1e-5


def test_an_operator_has_one_rule() -> None:
    with pytest.raises(ValueError, match="conv2d has two rules"):
        operator("conv2d", kind=Kind.CONVOLUTION)(lambda analysis, call: None)


READERS = (dependence, marks, folding, gathers, slim_inputs, activation)
PRODUCTS = {"multiply"}  # of pointwise operators these alone can make nothing of something


def argument_names() -> set[str]:
    """The names of the arguments of all operators in the table, some of which are called as an operator is."""
    packets = [getattr(torch.ops.aten, name, None) for name in operators()]
    overloads = [
        getattr(packet, overload) for packet in packets if packet is not None for overload in packet.overloads()
    ]
    return {argument.name for overload in overloads for argument in overload._schema.arguments}


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_no_reader_has_a_table_of_its_own(reader: ModuleType) -> None:
    """What an operator does is asked of the one table."""
    tree = ast.parse(inspect.getsource(reader))
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not (strings & operators().keys()) - argument_names() - PRODUCTS


@pytest.mark.parametrize("name", layers.POINTWISE)
def test_what_is_timed_without_weights_is_known_as_such(name: str) -> None:
    packet = getattr(torch.ops.aten, name)
    kinds = {kind_of(getattr(packet, overload)) for overload in packet.overloads()}
    assert kinds & {Kind.POINTWISE, Kind.NORMALISATION}


def test_a_layer_is_described_by_its_kind() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))
    shapes = layers.layer_shapes(edgeprune.analyze(captured(net, (3, 8, 8))))
    assert [shape.kind for shape in shapes.values()] == ["convolution", "linear"]  # of transposed ones the MACs count


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_a_mean_of_a_part_of_which_nothing_is_left_is_zero(dtype: torch.dtype | None) -> None:
    """As the masked network's is; PyTorch's mean of nothing is NaN."""

    def forward(m: Net, x: torch.Tensor) -> torch.Tensor:
        one, other = m.first(x).chunk(2, 1)
        return m.head(torch.cat([part.mean((1, 2, 3), dtype=dtype)[:, None] for part in (one, other)], 1).to(x.dtype))

    program = edgeprune.capture(Net(forward, first=conv(3, 8), head=nn.Linear(2, 3)), torch.randn(2, *IMAGE))
    graph = edgeprune.analyze(program)
    keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
    labels = graph.labels("tensor", "first.weight", 0)
    assert labels is not None
    keep[labels[4:]] = False
    plan = make_plan(program, graph, keep)
    assert edgeprune.prove(program, edgeprune.cut(program, plan), plan) <= 1e-5
