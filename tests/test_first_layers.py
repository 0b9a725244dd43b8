"""Inputs that are pruned through unusual first layers, and padding: each on a tiny network, and in real files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edgeprune
from edgeprune.errors import PlanError
from edgeprune.export.contracts import write_contracts
from edgeprune.graph.capture import Program
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.slim_inputs import gathered_inputs, slim_contract
from edgeprune.records import InputFeatures, ModelInfo, Normalization
from tests.cases_inputs import CASES, shuffled
from tests.nets import Net, captured, cut_randomly, macs_of, parameter, relative_error, run, sample
from tests.test_ops import check


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    check(CASES[name])


def layers(function: Callable[..., Tensor], n: int, **parts: object) -> nn.Module:
    """`function` on the input, a linear layer on what it gives, another one behind."""
    return Net(lambda m, x: m.b(m.a(function(m, x)).tanh()), a=nn.Linear(n, 8), b=nn.Linear(8, 3), **parts)


def rows(m: nn.Module, x: Tensor) -> Tensor:
    """The rows of the input are what a layer reads: each as a whole."""
    return m.rows(x.transpose(1, 2)).flatten(1)  # type: ignore[no-any-return, operator]


# What the slim contract takes of each: rows (dim 1), columns (dim 2) or single elements.
CHAINS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int | None]] = {
    "rolled": (lambda: layers(lambda m, x: x.roll(3, 1), 8), (8,), 1),
    "shuffled": (lambda: layers(lambda m, x: shuffled(x), 6), (6,), 1),
    "a part that is read as it is": (
        lambda: Net(lambda m, x: m.b(m.a(x[:, :4]).tanh() + x[:, 4:].softmax(1)), a=nn.Linear(4, 4), b=nn.Linear(4, 3)),
        (8,), 1),
    "rows behind a transpose": (lambda: layers(rows, 12, rows=nn.Linear(4, 2)), (4, 6), 1),
    "the batch in the middle": (
        lambda: Net(lambda m, x: m.a(x.transpose(0, 1)).mean(0), a=nn.Linear(6, 3)), (4, 6), 2),
    "own numbers for each element": (
        lambda: layers(lambda m, x: ((x - m.mean) / m.std).flip(1).flatten(1), 24, mean=torch.randn(4, 1),
                       std=torch.rand(4, 6) + 0.5), (4, 6), None),
    "own numbers for each row": (
        lambda: layers(lambda m, x: m.rows(((x - m.mean) * 2).mT).flatten(1), 12, mean=torch.randn(4, 1),
                       rows=nn.Linear(4, 2)), (4, 6), 1),
    "zeros between two maps": (
        lambda: layers(lambda m, x: (F.pad(x + 1, (1, 1, 0, 2)) * 3 - 1).flatten(1), 48, s=parameter(1)), (4, 6), None),
    "a channel of padding, scaled": (
        lambda: Net(lambda m, x: m.c(F.pad(x.exp(), (1, 1, 1, 1)) + 0.5).mean((2, 3)), c=nn.Conv2d(3, 4, 3)),
        (3, 4, 4), 1),
    "reflected twice": (
        lambda: layers(lambda m, x: F.pad(F.pad(x, (2, 1), mode="reflect"), (1, 1), value=2.0).flatten(1), 44), (4, 6),
        None),
    "hard swish": (lambda: layers(lambda m, x: F.hardswish(x), 8), (8,), 1),
}  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", CHAINS)
def test_the_slim_contract_follows_what_stands_before_the_gather(name: str) -> None:
    build, shape, dim = CHAINS[name]
    program = captured(build(), shape)
    cut = cut_randomly(program, edgeprune.analyze(program, inputs=True))
    [(found, features)] = gathered_inputs(cut.slim).items()
    [(planned, kept)] = cut.plan.inputs.items()
    assert (found, features.dim) == (planned, dim)
    assert features == kept
    (x,) = sample((shape,), 5)
    small = (x.flatten(1) if dim is None else x).index_select(dim or 1, torch.tensor(kept.keep))
    assert relative_error(run(cut.slim.module(), (x,)), run(slim_contract(cut.slim).module(), (small,))) < 1e-12


def test_a_slice_that_begins_behind_all_that_is_kept() -> None:
    """The network reads columns from the fourth on; of one that is kept, the slice itself would leave none."""
    program = captured(layers(lambda m, x: x[:, 4:], 4), (8,))
    graph = edgeprune.analyze(program, inputs=True)
    plan = edgeprune.plan(program, graph, keep_macs=None, n_features=1)
    slim = edgeprune.cut(program, plan, graph)
    assert gathered_inputs(slim) == plan.inputs
    (x,) = sample(((8,),), 5)
    (k,) = plan.inputs["inputs_0"].keep
    assert relative_error(run(slim.module(), (x,)), run(slim_contract(slim).module(), (x[:, k : k + 1],))) < 1e-12


def test_what_no_layer_reads_is_nothing_to_cut() -> None:
    program = captured(layers(lambda m, x: x[:, :5], 5), (8,))
    graph = edgeprune.analyze(program, inputs=True)
    plan = edgeprune.plan(program, graph, keep_macs=None)
    assert plan.inputs == {}
    assert gathered_inputs(edgeprune.cut(program, plan, graph)) == {}
    fewer = edgeprune.plan(program, graph, keep_macs=None, n_features=3)
    assert len(fewer.inputs["inputs_0"].keep) == 3
    assert PruningPlan.from_json(fewer.to_json()) == fewer


def test_features_that_are_locked_cannot_be_planned_away() -> None:
    program = captured(layers(lambda m, x: x * m.all_of_them(x), 8, all_of_them=nn.Softmax(1)), (8,))
    graph = edgeprune.analyze(program, inputs=True)
    plan = edgeprune.plan(program, graph, keep_macs=0.6, align=1)
    wrong = PruningPlan(plan.source_sha256, plan.tensors, {"inputs_0": InputFeatures(8, (0, 1, 2), 1)}, plan.groups)
    with pytest.raises(PlanError, match="removes features of input 'inputs_0' that are locked"):
        edgeprune.cut(program, wrong, graph)


def test_a_budget_takes_features_that_are_channels_too() -> None:
    program = captured(CASES["depthwise first"].build(), (3, 8, 8))
    graph = edgeprune.analyze(program, inputs=True)
    plan = edgeprune.plan(program, graph, keep_macs=0.7, align=1, n_features=2)
    assert len(plan.inputs["inputs_0"].keep) == 2  # as asked for, where the budget is met with them
    plan = edgeprune.plan(program, graph, keep_macs=0.6, align=1, n_features=2)
    assert len(plan.inputs["inputs_0"].keep) == 1
    assert macs_of(edgeprune.cut(program, plan, graph)) <= 0.6 * macs_of(program)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "first", [nn.LayerNorm(10), nn.RMSNorm(10), nn.GroupNorm(5, 10)], ids=lambda m: type(m).__name__
)
def test_all_contracts_of_a_table_behind_a_norm(first: nn.Module, tmp_path: Path) -> None:
    program = captured(nn.Sequential(first, nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)), (10,), dtype=torch.float32)
    slim = smaller(program)
    mean, std = tuple(0.1 * k for k in range(10)), tuple(1.0 + 0.1 * k for k in range(10))
    info = ModelInfo((10,), normalization=Normalization(mean, std), feature_names=tuple("abcdefghij"))
    raw = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    write_contracts(slim, info, tmp_path, raw)
    normalised = ((raw - np.array(mean)) / np.array(std)).astype(np.float32)
    [want] = run(slim.module(), (torch.from_numpy(normalised),))
    for given, path in ((normalised, ["full.onnx"]), (raw, ["preprocess.onnx", "slim.onnx"])):
        for name in path:
            session = onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
            given = session.run(None, {session.get_inputs()[0].name: given})[0]
        np.testing.assert_allclose(given, want.numpy(), rtol=1e-4, atol=1e-5)


def smaller(program: Program) -> Program:
    graph = edgeprune.analyze(program, inputs=True)
    plan = edgeprune.plan(program, graph, keep_macs=0.6, align=1, n_features=6)
    slim = edgeprune.cut(program, plan, graph)
    assert edgeprune.prove(program, slim, plan) < 1e-5
    assert 0 < len(plan.inputs["input"].keep if "input" in plan.inputs else plan.inputs["inputs_0"].keep) <= 6
    return slim
