"""Batches that PyTorch cannot prove to be free: taken where the program is seen to be right at others, else refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import CaptureError
from edgeprune.graph.sizes import free_ranges


class Both(nn.Module):
    """Both inputs in one pass, and how `parts` of it are apart."""

    def __init__(self, parts: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.parts, self.a, self.c = parts, nn.Linear(12, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of each pair."""
        first, second = self.parts(self.c(self.a(torch.cat([x, y])).relu()), x)
        return (first - second).pow(2).sum(1)


HALVES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, ...]]] = {
    "chunk": lambda z, x: z.chunk(2),
    "split": lambda z, x: z.split(x.shape[0]),
    "split in two": lambda z, x: z.split(z.shape[0] // 2),
    "tensor_split": lambda z, x: z.tensor_split(2),
    "slices": lambda z, x: (z[: x.shape[0]], z[x.shape[0] :]),
}


def pair(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 12), torch.randn(n, 12)


@pytest.mark.parametrize("example", [1, 4])
@pytest.mark.parametrize("parts", HALVES.values(), ids=HALVES)
@torch.no_grad()
def test_halves_of_a_batch_are_halves_at_every_batch(
    parts: Callable[[Tensor, Tensor], tuple[Tensor, ...]], example: int, tmp_path: Path
) -> None:
    model = Both(parts).eval()
    program = edgeprune.capture(model, pair(example))
    assert [dims[0] for dims in free_ranges(program)] == [(1, None)] * 2
    graph = edgeprune.analyze(program)
    plan = edgeprune.plan(program, graph, keep_macs=0.5, align=1)
    slim = edgeprune.cut(program, plan, graph)
    assert [group.name for group in graph.groups] == ["a", "c"]
    assert edgeprune.prove(program, slim, plan) < 1e-5
    for n in (1, 2, 3, 8):
        x, y = pair(n)
        torch.testing.assert_close(program.module()(x, y), model(x, y))
        assert slim.module()(x, y).shape == (n,)
    if example == 4 and parts is HALVES["chunk"]:
        edgeprune.export_onnx(slim, tmp_path / "slim.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "slim.onnx", providers=["CPUExecutionProvider"])
        x, y = pair(3)
        got = session.run(None, {"x": x.numpy(), "y": y.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(got), slim.module()(x, y), rtol=1e-4, atol=1e-4)


class InPairs(nn.Module):
    """Rows two by two: only even batches run."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Of neighbours."""
        return self.a(x).view(-1, 2, 8).sum(1)


def test_a_length_is_a_number_to_the_tracer() -> None:
    with pytest.raises(CaptureError, match=r"x\.shape\[0\], as len\(x\) is a number"):
        edgeprune.capture(Both(lambda z, x: z.split(len(x))), pair(4))


def test_a_batch_that_is_none_is_refused_in_plain_words() -> None:
    with pytest.raises(CaptureError, match="at a batch of 3 it fails: .*shape") as caught:
        edgeprune.capture(InPairs(), torch.randn(4, 12))
    assert "dynamic_batch=False" in str(caught.value) and "TORCH_LOGS" not in str(caught.value)
