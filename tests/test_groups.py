"""Channel groups: what goes together, what is locked and why."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edgeprune
from edgeprune.graph import lines
from edgeprune.graph.groups import ChannelGraph, LockedUnits
from edgeprune.graph.lines import source_line
from tests.cases import CASES, IMAGE, TOKENS, between, conv
from tests.nets import Net, captured, cnn, image_mlp, mlp, n_units, residual


def graph_of(module: nn.Module, *shapes: tuple[int, ...], **options: Any) -> ChannelGraph:
    return edgeprune.analyze(captured(module, *shapes), **options)


def lock_of(graph: ChannelGraph, name: str, dim: int = 0) -> LockedUnits:
    (lock,) = [lock for lock in graph.locked if lock.name == name and lock.dim == dim]
    return lock


def slots_of(graph: ChannelGraph, name: str) -> set[tuple[str, int | None]]:
    (group,) = [group for group in graph.groups if group.name == name]
    return {(slot.name, slot.dim) for slot in group.slots}


def test_a_convolution_goes_with_its_norm_and_its_reader() -> None:
    graph = graph_of(cnn(), IMAGE)
    assert [(group.name, group.n_units, group.exact) for group in graph.groups] == [("0", 8, True), ("4", 12, True)]
    norm = {("1.weight", 0), ("1.bias", 0), ("1.running_mean", 0), ("1.running_var", 0)}
    assert slots_of(graph, "0") == {("0.weight", 0), ("0.bias", 0), ("4.weight", 1)} | norm


def test_a_residual_ties_its_producers() -> None:
    graph = graph_of(residual(), IMAGE)
    assert {("stem.weight", 0), ("b.weight", 0), ("down.weight", 1), ("c.weight", 1)} <= slots_of(graph, "stem")
    assert {("down.weight", 0), ("c.weight", 0), ("head.weight", 1)} <= slots_of(graph, "down")


def test_a_depth_multiplier_spans_several_channels() -> None:
    graph = graph_of(CASES["depth multiplier"].build(), IMAGE)
    (group,) = graph.groups
    (slot,) = [slot for slot in group.slots if slot.name == "dw.weight" and slot.dim == 0]
    assert slot.unit.tolist() == np.repeat(np.arange(8), 2).tolist()
    assert group.indices_per_unit == 1


def test_groups_of_an_embedding_are_its_columns() -> None:
    (group,) = graph_of(CASES["embedding"].build(), (6,)).groups
    assert (group.name, group.n_units) == ("table", 8)


def test_input_features_are_units_only_where_asked_for() -> None:
    assert not any(group.is_input for group in graph_of(image_mlp(), (1, 4, 4)).groups)
    inputs = [group for group in graph_of(image_mlp(), (1, 4, 4), inputs=True).groups if group.is_input]
    assert [(group.name, group.n_units) for group in inputs] == [("input input", 16)]
    (slot,) = [slot for slot in inputs[0].slots if slot.kind == "input"]
    assert slot.dim is None and slot.unit.tolist() == list(range(16))


def test_a_convolution_ties_the_pixels_of_an_input_channel() -> None:
    (group,) = [group for group in graph_of(cnn(), IMAGE, inputs=True).groups if group.is_input]
    (slot,) = [slot for slot in group.slots if slot.kind == "input"]
    assert slot.unit.tolist() == np.repeat(np.arange(3), 64).tolist()


@pytest.mark.parametrize(("attention", "units", "width"), [("heads", 4, 3), ("head-dim", 3, 4)])
def test_attention_loses_whole_heads_or_the_same_channels_of_each(attention: str, units: int, width: int) -> None:
    graph = graph_of(CASES["attention"].build(), TOKENS, attention=attention)
    groups = {group.name: group for group in graph.groups}
    assert groups["q"].n_units == units
    (slot,) = [slot for slot in groups["q"].slots if slot.name == "q.weight" and slot.dim == 0]
    assert np.bincount(slot.unit).tolist() == [width] * units
    head = slot.unit.reshape(4, 3)
    assert (head == (np.arange(4)[:, None] if attention == "heads" else np.arange(3))).all()


def test_tied_weights_are_one_tensor() -> None:
    graph = graph_of(CASES["tied"].build(), (8,))
    assert graph.groups == ()
    assert "output" in lock_of(graph, "head.weight").reason
    assert {lock.name for lock in graph.locked} >= {"a.weight", "head.weight"}


def test_shared_layers_keep_their_coupling() -> None:
    twice = Net(lambda m, x: m.head(m.a(m.a(x).relu()).relu()), a=nn.Linear(6, 6), head=nn.Linear(6, 2))
    entry = Net(lambda m, x: m.inner(m.first(x)), first=nn.Linear(4, 6), inner=twice)
    graph = graph_of(entry, (4,))
    assert n_units(graph) == 6
    assert {("inner.a.weight", 0), ("inner.a.weight", 1), ("first.weight", 0)} <= slots_of(graph, graph.groups[0].name)


# -- locks ------------------------------------------------------------------------------------------------------------


def softmaxed(m: Any, x: Tensor) -> Tensor:
    return m.second(x.softmax(1))


def computed_select(m: Any, x: Tensor) -> Tensor:
    return x.index_select(1, (x.mean((0, 2, 3)) > 0).long())


LOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "unknown operator": (
        lambda: between(lambda m, x: torch.histc(x.flatten(), 8).view(1, 8, 1, 1) * x), IMAGE, "has no rule"),
    "softmax over channels": (lambda: between(softmaxed, second=conv(8, 8)), IMAGE, "softmax normalises over this dim"),
    "maximum over channels": (lambda: between(lambda m, x: x * x.amax(1, keepdim=True)), IMAGE, "depends on all units"),
    "computed select": (lambda: between(computed_select), IMAGE, "computed"),
    "mean that does not read zero": (
        lambda: between(lambda m, x: x.sigmoid().mean(1, keepdim=True), after=1), IMAGE, "do not read zero"),
    "constant added before a mean": (
        lambda: between(lambda m, x: (x + torch.full((8, 1, 1), 0.5, dtype=x.dtype)).mean(1, keepdim=True), after=1),
        IMAGE, "do not read zero"),
    "zero-padded shortcut": (
        lambda: between(lambda m, x: F.pad(x, (0, 0, 0, 0, 2, 2)) + m.b(x), after=12, b=conv(8, 12)), IMAGE, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", LOCKS)
def test_what_cannot_be_followed_is_locked_with_the_reason(name: str) -> None:
    build, shape, message = LOCKS[name]
    graph = graph_of(build(), shape)
    prunable = {slot.name for group in graph.groups for slot in group.slots if slot.dim == 0}
    if name == "zero-padded shortcut":  # the four added channels have nothing to be united with
        lock = lock_of(graph, "b.weight")
        assert lock.indices.tolist() == [0, 1, 10, 11]
    else:
        assert "first.weight" not in prunable
        assert message in lock_of(graph, "first.weight").reason


class MaxOverChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        return x.amax(dim=1)


def test_a_lock_names_the_operator_and_the_source_line() -> None:
    graph = graph_of(MaxOverChannels(), IMAGE)
    lock = lock_of(graph, "first.weight")
    text, start = inspect.getsourcelines(MaxOverChannels)
    line = start + next(i for i, row in enumerate(text) if "amax" in row)
    assert lock.reason == "amax depends on all units of this dim"
    assert lock.node == "amax"
    assert lock.where == f"{__file__}:{line}"
    assert lock.indices.tolist() == list(range(8))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/home/me/nets.py", "/home/me/nets.py:7"),
        ("/home/me/torch/net.py", "/home/me/torch/net.py:7"),
        ("/home/me/edgeprune/net.py", "/home/me/edgeprune/net.py:7"),
        (lines.__file__, ""),
        ("/elsewhere/edgeprune/formats/onnxin/network.py", ""),
        (r"C:\py\Lib\site-packages\torch\nn\functional.py", ""),
        ("torch/fx/passes/runtime_assert.py", ""),
        ("<string>", ""),
    ],
)
def test_no_line_of_pytorch_or_edgeprune_is_given_as_the_users(path: str, line: str) -> None:
    node = torch.fx.Graph().placeholder("x")
    node.meta["stack_trace"] = f'File "{path}", line 7, in forward\n    x'
    assert source_line(node) == line
    node.meta["stack_trace"] = f'File "/home/me/own.py", line 3, in forward\n    x\n{node.meta["stack_trace"]}'
    assert source_line(node) == (line or "/home/me/own.py:3")


def test_the_output_is_locked() -> None:
    assert lock_of(graph_of(mlp(), (8,)), "4.weight").reason == "output is the model's output"


def test_a_unit_that_is_all_there_is_of_a_tensor_is_locked() -> None:
    """A table that only adds along the dim it is one unit of must not be cut to nothing."""
    net = Net(lambda m, x: m.head((m.t @ m.first(x).unsqueeze(-1)).squeeze(-1).relu()), first=nn.Linear(5, 8),
              t=nn.Parameter(torch.ones(1, 8)), head=nn.Linear(1, 2))  # fmt: skip
    graph = graph_of(net, (5,))
    for group in graph.groups:
        for slot in group.slots:
            assert (slot.unit != slot.unit[0]).any()


def test_analysis_does_not_change_the_program() -> None:
    program = captured(CASES["constant mask"].build(), IMAGE)
    before = {name: tensor.clone() for name, tensor in {**program.state_dict, **program.constants}.items()}
    edgeprune.analyze(program)
    assert all(torch.equal(before[n], t) for n, t in {**program.state_dict, **program.constants}.items())
