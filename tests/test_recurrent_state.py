"""A state that is an input and an output: its units go from both, and the slim network is right over many steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import InputError, PlanError, ProofError
from edgeprune.graph.capture import Program
from edgeprune.pruning.compose import compose
from edgeprune.pruning.plan import PruningPlan
from tests.nets import Net

WIDTH, N_STEPS = 16, 6


def gates(m: Any, x: Tensor, h: Tensor) -> Any:
    """A GRU's step written out."""
    a, b = m.i(x), m.r(h)
    reset, update = (a[:, :16] + b[:, :16]).sigmoid(), (a[:, 16:32] + b[:, 16:32]).sigmoid()
    h = (1 - update) * (a[:, 32:] + reset * b[:, 32:]).tanh() + update * h
    return {"y": m.o(h), "h_out": h}


def two_layers(m: Any, x: Tensor, h: Tensor, c: Tensor) -> Any:
    h, c = m.cell(x, (h, c))
    return m.o(h), h, c


def causal(m: Any, x: Tensor, past: Tensor) -> Any:
    """A convolution over time that keeps its last frames."""
    h = torch.cat([past, m.a(x).relu()], 2)
    return m.o(m.b(h).relu()), h[:, :, -2:]


NETS: dict[str, Any] = {
    "gates": (
        lambda: Net(gates, i=nn.Linear(6, 48), r=nn.Linear(WIDTH, 48), o=nn.Linear(WIDTH, 3)),
        ((2, 6), (2, WIDTH)),
        {"inputs_1": "h_out"},
    ),
    "elman": (  # a removed unit gives 0.5, and must not come in again
        lambda: Net(
            lambda m, x, h: two(m, (m.i(x) + m.r(h)).sigmoid()),
            i=nn.Linear(6, WIDTH), r=nn.Linear(WIDTH, WIDTH), o=nn.Linear(WIDTH, 3),
        ),
        ((2, 6), (2, WIDTH)),
        {"inputs_1": "output_1"},
    ),
    "lstm cell": (
        lambda: Net(two_layers, cell=nn.LSTMCell(6, WIDTH), o=nn.Linear(WIDTH, 3)),
        ((2, 6), (2, WIDTH), (2, WIDTH)),
        {"inputs_1": "output_1", "inputs_2": "output_2"},
    ),
    "causal convolution": (
        lambda: Net(causal, a=nn.Conv1d(4, WIDTH, 1), b=nn.Conv1d(WIDTH, 8, 3), o=nn.Conv1d(8, 2, 1)),
        ((2, 4, 5), (2, WIDTH, 2)),
        {"inputs_1": "output_1"},
    ),
}  # fmt: skip


def two(m: Any, h: Tensor) -> Any:
    return m.o(h), h


def captured(name: str) -> Program:
    torch.manual_seed(0)
    build, shapes, _ = NETS[name]
    return edgeprune.capture(build(), tuple(torch.randn(shape) for shape in shapes))


def cut(name: str) -> tuple[Program, PruningPlan, Program]:
    program = captured(name)
    graph = edgeprune.analyze(program, state=NETS[name][2])
    plan = edgeprune.plan(program, graph, keep_macs=0.5, align=1, criterion="random")
    return program, plan, edgeprune.cut(program, plan)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NETS)
def test_the_slim_network_takes_and_gives_a_narrower_state(name: str, tmp_path: Path) -> None:
    program, plan, slim = cut(name)
    assert edgeprune.prove(program, slim, plan) <= 1e-5
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert set(plan.inputs) == set(NETS[name][2])
    for kept in plan.inputs.values():
        assert len(kept.keep) < kept.size == WIDTH and kept.dim == 1
    edgeprune.export_onnx(slim, tmp_path / "slim.onnx")
    graph = onnx.load(tmp_path / "slim.onnx").graph
    sizes = {v.name: [dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)}
    for comes, goes in plan.state.items():
        assert sizes[comes] == sizes[goes] and sizes[comes][1] == len(plan.inputs[comes].keep)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NETS)
def test_many_steps_are_those_of_the_dense_network_without_the_units(name: str) -> None:
    program, plan, slim = cut(name)
    dense, small = program.module().double(), slim.module().double()
    for tensor_name, tensor in dense.named_parameters():
        for dim, kept in plan.tensors.get(tensor_name, {}).items():
            gone = torch.tensor([i for i in range(tensor.shape[dim]) if i not in kept])
            tensor.data.index_fill_(dim, gone, 0)
    shapes, keeps = NETS[name][1], [torch.tensor(plan.inputs[key].keep) for key in NETS[name][2]]
    wide = [torch.zeros(shape, dtype=torch.float64) for shape in shapes[1:]]
    narrow = [state.index_select(1, keep) for state, keep in zip(wide, keeps, strict=True)]
    for _ in range(N_STEPS):
        x = torch.randn(shapes[0], dtype=torch.float64)
        with torch.no_grad():
            want, *wide = list(torch.utils._pytree.tree_leaves(dense(x, *wide)))
            got, *narrow = list(torch.utils._pytree.tree_leaves(small(x, *narrow)))
        assert float((want - got).abs().max()) <= 1e-12
        kept_of = [state.index_select(1, keep) for state, keep in zip(wide, keeps, strict=True)]
        assert all(float((a - b).abs().max()) <= 1e-12 for a, b in zip(kept_of, narrow, strict=True))
        wide = [
            torch.zeros_like(s).index_copy(1, keep, kept) for s, keep, kept in zip(wide, keeps, kept_of, strict=True)
        ]


def test_a_state_that_nobody_names_is_locked() -> None:
    graph = edgeprune.analyze(captured("elman"))
    assert not graph.groups


def test_input_features_and_a_state_go_together() -> None:
    program = captured("gates")
    graph = edgeprune.analyze(program, inputs=True, state={"inputs_1": "h_out"})
    plan = edgeprune.plan(program, graph, keep_macs=0.5, align=1, criterion="random", n_features=3)
    slim = edgeprune.cut(program, plan)
    assert edgeprune.prove(program, slim, plan) <= 1e-5
    assert len(plan.inputs["inputs_0"].keep) == 3 and len(plan.inputs["inputs_1"].keep) < WIDTH


def test_a_wrong_step_is_found() -> None:
    program, plan, slim = cut("gates")
    with torch.no_grad():
        slim.state_dict["r.weight"][0, 0] += 0.1
    with pytest.raises(ProofError, match="not the masked dense network in output"):
        edgeprune.prove(program, slim, plan)


def test_a_plan_for_another_state_is_refused() -> None:
    program, plan, _ = cut("gates")
    other = PruningPlan.from_json(plan.to_json().replace('"size": 16', '"size": 17'))
    with pytest.raises(PlanError, match="the plan cuts dim 1 of state 'inputs_1' to .* of 17 units"):
        edgeprune.cut(program, other)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"h": "h_out"}, r"expected the name of an input \(inputs_0, inputs_1\), got 'h'"),
        ({"inputs_1": "h"}, r"'inputs_1': expected the name of an output \(y, h_out\), got 'h'"),
        ({"inputs_0": "h_out"}, "'inputs_0': expected 'h_out' of its shape"),
    ],
)
def test_pairs_that_are_none_are_refused(state: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        edgeprune.analyze(captured("gates"), state=state)


def test_two_cuts_are_one() -> None:
    program, first, slim = cut("gates")
    graph = edgeprune.analyze(slim, state=first.state)
    second = edgeprune.plan(slim, graph, keep_macs=0.6, align=1, criterion="random", seed=1)
    both = compose(first, second)
    again = edgeprune.cut(slim, second)
    assert edgeprune.prove(slim, again, second) <= 1e-5
    assert edgeprune.prove(program, edgeprune.cut(program, both), both) <= 1e-5
    assert len(both.inputs["inputs_1"].keep) < len(first.inputs["inputs_1"].keep)
