"""Recurrent layers: every unit by hand count, random cuts, and what follows a cut."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_leaves

import edgeprune
from edgeprune.cost.macs import macs, macs_by_node
from edgeprune.cost.models import macs_model
from edgeprune.errors import PlanError
from edgeprune.formats.load import load
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph
from edgeprune.graph.unstack import STACKS
from edgeprune.inspection.table import inspect_program
from edgeprune.pruning.planner import make_plan
from edgeprune.records import ModelInfo
from tests.cases_recurrent import CASES, SERIES, gru, lstm, over_time
from tests.nets import Cut, Net, captured, cut_randomly, distance, n_units, randomized, run, sample
from tests.test_ops import check


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    check(CASES[name])


@cache
def analysed(name: str, dtype: torch.dtype = torch.float64) -> tuple[Program, ChannelGraph]:
    program = captured(CASES[name].build(), *CASES[name].shapes, dtype=dtype)
    return program, edgeprune.analyze(program)


def deep() -> nn.Module:
    return over_time(lstm(5, 8, 2, bidirectional=True, dropout=0.5), 16)


def recurrent_calls(module: nn.Module) -> list[torch.fx.Node]:
    assert isinstance(module, torch.fx.GraphModule)
    return [node for node in module.graph.nodes if node.target in STACKS]


def keeping(graph: ChannelGraph, counts: dict[str, int]) -> np.ndarray:
    keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
    for group in graph.groups:
        if group.name in counts:
            keep[group.units[counts[group.name] :]] = False
    return keep


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["lstm layers, two directions", "lstm projection, layers, two directions",
                                  "gru layers, two directions", "lstm encoder and decoder", "gru cell"])  # fmt: skip
@settings(max_examples=2, deadline=None, derandomize=True)
@given(data=st.data())
def test_slim_is_masked_dense_for_any_keep_set(name: str, data: st.DataObject) -> None:
    program, graph = analysed(name)
    keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
    for group in graph.groups:  # hidden units are 8, projected ones 3: at least 4 and at most 2 stay
        least, most = (1, 2) if group.n_units == 3 else (4, 8)
        stays = data.draw(st.sets(st.integers(0, group.n_units - 1), min_size=least, max_size=most))
        keep[group.units] = np.isin(np.arange(group.n_units), list(stays))
    plan = make_plan(program, graph, keep)
    slim = edgeprune.cut(program, plan, graph)
    error = edgeprune.prove(program, slim, plan)
    assert distance(Cut(program, graph, plan, slim, error), CASES[name].shapes, batch=3)[0] <= 1e-10


def test_layers_have_widths_of_their_own() -> None:
    program = captured(deep(), SERIES)
    graph = edgeprune.analyze(program)
    plan = make_plan(program, graph, keeping(graph, {"rnn.weight_ih_l0": 3, "rnn.weight_ih_l1": 6}))
    slim = edgeprune.cut(program, plan, graph)
    assert edgeprune.prove(program, slim, plan) <= 1e-10
    shapes = {name: tuple(tensor.shape) for name, tensor in slim.state_dict.items()}
    assert shapes["rnn.weight_ih_l0"] == (12, 5) and shapes["rnn.weight_hh_l0_reverse"] == (12, 3)
    assert shapes["rnn.weight_ih_l1"] == (24, 6) and shapes["rnn.bias_hh_l1"] == (24,)
    assert shapes["head.weight"] == (3, 12)
    assert len(recurrent_calls(slim.module())) == 2
    assert not any("index_select" in str(node.target) for node in slim.graph.nodes)  # initial zeros are made smaller


def test_an_uncut_program_keeps_its_call() -> None:
    program = captured(deep(), SERIES)
    edgeprune.analyze(program)
    assert len(recurrent_calls(program.module())) == 1


@pytest.mark.parametrize("build", [deep, lambda: over_time(gru(5, 8, 3, dropout=0.5), 8)])
def test_slim_program_trains(build: type[nn.Module]) -> None:
    program = captured(build(), SERIES)
    slim = cut_randomly(program, edgeprune.analyze(program)).slim.module()
    (x,) = sample((SERIES,), 4)
    slim.train()
    assert all(node.args[6] is True for node in recurrent_calls(slim))
    assert not torch.equal(slim(x), slim(x))  # dropout between the layers
    before = {name: tensor.detach().clone() for name, tensor in slim.named_parameters()}
    optimizer = torch.optim.SGD(slim.parameters(), lr=0.1)
    slim(x).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in slim.named_parameters())
    slim.eval()
    assert all(node.args[6] is False for node in recurrent_calls(slim))
    assert torch.equal(slim(x), slim(x))


def test_dense_program_follows_train() -> None:
    module = captured(deep(), SERIES).module()
    (x,) = sample((SERIES,), 4)
    assert torch.equal(module(x), module(x))
    module.train()
    assert not torch.equal(module(x), module(x))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["lstm layers, two directions", "gru layers, two directions", "lstm projection",
                                  "rnn", "lstm cell"])  # fmt: skip
def test_onnx(name: str, tmp_path: Path) -> None:
    slim = cut_randomly(*analysed(name, torch.float32)).slim
    exported = edgeprune.export_onnx(slim, tmp_path / "slim.onnx")
    assert exported is not None and (tmp_path / "slim.onnx").exists()


def test_cut_twice() -> None:
    program = captured(deep(), SERIES)
    first = cut_randomly(program, edgeprune.analyze(program), share=0.75).slim
    graph = edgeprune.analyze(first)
    assert [group.n_units for group in graph.groups] == [6, 6]
    second = cut_randomly(first, graph, share=0.5)
    assert second.error <= 1e-10
    assert [group.n_units for group in edgeprune.analyze(second.slim).groups] == [3, 3]


def test_captured_again() -> None:
    program = captured(deep(), SERIES)
    slim = cut_randomly(program, edgeprune.analyze(program)).slim
    again = edgeprune.capture(slim.module(), sample((SERIES,), 2))
    assert n_units(edgeprune.analyze(again)) == n_units(edgeprune.analyze(slim))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_macs(dtype: torch.dtype) -> None:
    program = captured(over_time(lstm(5, 8, 2, bidirectional=True), 16), SERIES, dtype=dtype)
    first, second = 2 * 3 * 32 * (5 + 8), 2 * 3 * 32 * (16 + 8)  # directions x steps x gates x (features + units)
    assert macs_by_node(program) == {"lstm": first + second, "linear": 48}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["lstm layers, two directions", "lstm projection, layers, two directions", "gru",
                                  "lstm cell"])  # fmt: skip
def test_macs_are_foreseen(name: str) -> None:
    program, graph = analysed(name)
    model = macs_model(graph)
    counts = np.array([group.n_units for group in graph.groups])
    assert round(model.cost(counts)) == macs(program)
    cut = cut_randomly(program, graph, share=0.6)
    kept = np.array([group.n_units for group in edgeprune.analyze(cut.slim).groups])
    assert round(model.cost(kept)) == macs(cut.slim)


@pytest.mark.parametrize("name", ["lstm layers, two directions", "gru"])
def test_planned_by_magnitude(name: str) -> None:
    program, graph = analysed(name, torch.float32)
    plan = edgeprune.plan(program, graph, keep_macs=0.5, criterion="l2", align=1)
    slim = edgeprune.cut(program, plan)
    assert edgeprune.prove(program, slim, plan) <= 1e-5
    assert 0.3 < macs(slim) / macs(program) <= 0.5


def test_inspect() -> None:
    rows = inspect_program(captured(deep(), SERIES), "deep").record.groups
    told = [(row.name, row.kind, row.n_units, row.exact) for row in rows if row.kind != "locked"]
    assert told == [
        ("input inputs_0", "features", 5, True),
        ("rnn.weight_ih_l0", "channels", 8, True),
        ("rnn.weight_ih_l1", "channels", 8, True),
    ]
    assert [row.macs_share > 0 for row in rows if row.kind != "locked"] == [True, True, True]


def test_a_projection_as_wide_as_the_hidden_state_is_refused() -> None:
    program = captured(over_time(lstm(5, 8, proj_size=4), 4), SERIES)
    graph = edgeprune.analyze(program)
    plan = make_plan(program, graph, keeping(graph, {"rnn.weight_ih_l0": 4}))
    with pytest.raises(PlanError, match="4 projected and 4 hidden units of lstm"):
        edgeprune.cut(program, plan, graph)
    plan = make_plan(program, graph, keeping(graph, {"rnn.weight_ih_l0": 3}))  # fewer than the projected ones
    slim = edgeprune.cut(program, plan, graph)
    assert edgeprune.prove(program, slim, plan) <= 1e-10


def test_packed_sequences_are_locked() -> None:
    program = captured(CASES["lstm"].build(), *CASES["lstm"].shapes)
    (node,) = [node for node in program.graph.nodes if node.target in STACKS]
    x, states, weights, *options, _ = node.args
    node.target, node.args = torch.ops.aten.lstm.data, (x, x, states, weights, *options)
    reasons = {lock.reason for lock in edgeprune.analyze(program).locked if lock.name == "rnn.weight_hh_l0"}
    assert reasons == {"lstm takes packed sequences"}


def test_given_state_is_locked_with_the_reason() -> None:
    program = captured(CASES["gru, given state"].build(), *CASES["gru, given state"].shapes)
    reasons = [lock.reason for lock in edgeprune.analyze(program).locked if lock.name == "rnn.weight_hh_l0"]
    assert reasons and all("works on units together with a dim that cannot be pruned" in reason for reason in reasons)


def test_time_first_input_has_a_free_length() -> None:
    network = randomized(Net(lambda m, x: m.head(m.rnn(x)[0]), rnn=nn.LSTM(5, 8), head=nn.Linear(8, 3))).double().eval()
    program = edgeprune.capture(network, torch.randn(6, 2, 5, dtype=torch.float64))
    cut = cut_randomly(program, edgeprune.analyze(program))
    assert cut.error <= 1e-10
    longer = torch.randn(11, 2, 5, dtype=torch.float64)
    assert torch.allclose(run(network, (longer,))[0], run(program.module(), (longer,))[0])
    assert run(cut.slim.module(), (longer,))[0].shape == (11, 2, 3)


def test_capture_leaves_the_module_usable() -> None:
    network = randomized(deep()).double().eval()
    (x,) = sample((SERIES,), 3)
    (before,) = run(network, (x,))
    program = edgeprune.capture(network, x)
    assert torch.allclose(run(network, (x,))[0], before)
    assert torch.allclose(run(program.module(), (x,))[0], before)


def test_capture_of_many_steps_is_not_unrolled() -> None:
    """Unrolled, 3,000 steps of two layers and directions take minutes."""
    model = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True, proj_size=3).eval()
    unrolled = dict(torch.ops.aten.lstm.input.py_kernels)
    start = time.perf_counter()
    program = edgeprune.capture(model, torch.randn(2, 3000, 6))
    assert time.perf_counter() - start < 10
    assert torch.ops.aten.lstm.input.py_kernels == unrolled  # as it was for everyone else
    x = torch.randn(3, 3000, 6)
    for expected, got in zip(tree_leaves(model(x)), tree_leaves(program.module()(x)), strict=True):
        assert torch.equal(expected, got)


def test_saves_and_loads(tmp_path: Path) -> None:
    program = captured(deep(), SERIES, dtype=torch.float32)
    slim = cut_randomly(program, edgeprune.analyze(program)).slim
    save_program(tmp_path / "slim.pt2", slim, ModelInfo(SERIES))
    loaded = load(tmp_path / "slim.pt2")
    (x,) = sample((SERIES,), 3, torch.float32)
    assert torch.equal(slim.module()(x), loaded.program.module()(x))
    cut = cut_randomly(Program.adopt(loaded.program), edgeprune.analyze(loaded.program), seed=2)
    assert cut.error <= 1e-5
