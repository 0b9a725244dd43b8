"""Channel shuffles stay shuffles where the kept channels are shuffled still, in the program and in the ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.cost.macs import macs
from edgeprune.export.shuffles import with_shuffles_apart
from edgeprune.graph.labels import shuffle_groups

SHUFFLES: dict[str, Callable[[Tensor], Tensor]] = {
    "operator": lambda x: torch.channel_shuffle(x, 2),
    "views": lambda x: x.view(x.shape[0], 2, 8, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
    "unflatten": lambda x: x.unflatten(1, (2, 8)).transpose(1, 2).flatten(1, 2),
}


class Shuffled(nn.Module):
    """A shuffle, halves, and both together again."""

    def __init__(self, shuffle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.shuffle = shuffle

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.shuffle(self.first(x).relu()).chunk(2, 1)
        return self.last(torch.cat([left, self.second(right).relu()], 1))


def captured(shuffle: str) -> edgeprune.Program:
    torch.manual_seed(0)
    return edgeprune.capture(Shuffled(SHUFFLES[shuffle]).eval(), torch.randn(2, 3, 12, 12))


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_what_is_shuffled_still_stays_a_shuffle(tmp_path: Path, shuffle: str) -> None:
    program = captured(shuffle)
    graph = edgeprune.analyze(program)
    plan = edgeprune.plan(program, graph, keep_macs=0.6, appliable=True)
    slim = edgeprune.cut(program, plan, graph)
    assert macs(slim) <= 0.6 * macs(program)
    targets = [str(node.target) for node in slim.graph.nodes]
    assert "aten.channel_shuffle.default" in targets
    assert "aten.index_select.default" not in targets
    assert edgeprune.prove(program, slim, plan) < 1e-6
    edgeprune.export_onnx(slim, tmp_path / "net.onnx")
    assert "Gather" not in {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    x = torch.randn(5, 3, 12, 12)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, slim.module()(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_shuffle_as_views() -> None:
    """As Core ML's converter takes it; the batch stays free."""
    program = captured("operator")
    apart = with_shuffles_apart(program)
    assert "aten.channel_shuffle.default" not in {str(node.target) for node in apart.graph.nodes}
    x = torch.randn(5, 3, 12, 12)
    torch.testing.assert_close(apart.module()(x), program.module()(x), rtol=0, atol=0)


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_any_channel_may_go_all_the_same(shuffle: str) -> None:
    program = captured(shuffle)
    graph = edgeprune.analyze(program)
    plan = edgeprune.plan(program, graph, keep_macs=0.6, align=1)
    assert edgeprune.prove(program, edgeprune.cut(program, plan, graph), plan) < 1e-6


@pytest.mark.parametrize(
    ("order", "groups"),
    [
        ([0, 2, 1, 3], 2),
        ([0, 3, 1, 4, 2, 5], 2),
        ([0, 2, 4, 1, 3, 5], 3),
        ([0, 1, 2, 3], None),
        ([0, 2, 1], None),
        ([0, 3, 1, 2], None),
        ([1, 0, 3, 2], None),
        ([], None),
    ],
)
def test_which_orders_are_shuffles(order: list[int], groups: int | None) -> None:
    assert shuffle_groups(order) == groups
    if groups is not None:
        assert torch.channel_shuffle(torch.arange(len(order)).view(1, -1, 1, 1), groups).flatten().tolist() == order
