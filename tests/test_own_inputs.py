"""What networks are given is theirs: one tensor stands for several inputs, and nobody's numbers are overwritten."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.graph.capture import reexport


class Pair(nn.Module):
    """A branch for each of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Of the difference."""
        out: Tensor = self.c(self.a(x).relu() - self.b(y).relu())
        return out


class Maps(nn.Module):
    """A layer for each of three maps in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 8) for _ in range(3))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Their sum."""
        return torch.stack([layer(x) for layer, x in zip(self.layers, maps, strict=True)]).sum(0)


X, LONG = torch.randn(4, 12), torch.randn(6, 24)
TOKENS = torch.randn(4, 5, 12)
SHARING: dict[str, tuple[Any, Any]] = {
    "one tensor twice": (Pair, (X, X)),
    "a batch of one": (Pair, (X[:1], X[:1])),
    "overlapping columns": (Pair, (LONG[:, :12], LONG[:, 6:18])),
    "overlapping rows": (Pair, (LONG[:4, :12], LONG[2:, :12])),
    "one of them a view of the other": (Pair, (X, X.view(2, 2, 12).view(4, 12))),
    "a list of one tensor": (Maps, ([X, X, X],)),
    "self-attention": (lambda: nn.MultiheadAttention(12, 3, batch_first=True), (TOKENS, TOKENS, TOKENS)),
    "a decoder layer": (lambda: nn.TransformerDecoderLayer(12, 3, 16, batch_first=True), (TOKENS, TOKENS)),
}


@pytest.mark.parametrize("build, args", SHARING.values(), ids=SHARING)
@torch.no_grad()
def test_a_tensor_that_is_given_for_several_inputs_stands_for_each(build: Any, args: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    program = edgeprune.capture(model, args)
    others = torch.utils._pytree.tree_map(lambda leaf: torch.randn(5, *leaf.shape[1:]), args)
    torch.testing.assert_close(program.module()(*others), model(*others))
    if len(torch.utils._pytree.tree_leaves(args)[0]) > 1:
        again = reexport(program.editable_module(), args)
        torch.testing.assert_close(again.module()(*others), model(*others))


@torch.no_grad()
def test_an_input_that_is_a_tensor_of_the_model_is_an_input() -> None:
    model = Pair().eval()
    model.register_buffer("query", torch.randn(4, 12))
    program = edgeprune.capture(model, (X, model.query))
    u, v = torch.randn(3, 12), torch.randn(3, 12)
    torch.testing.assert_close(program.module()(u, v), model(u, v))


def test_a_program_keeps_an_example_of_its_own() -> None:
    x = torch.ones(4, 12)
    program = edgeprune.capture(Pair(), (x, x))
    x.zero_()
    (first, second), _ = program.example_inputs
    assert bool(first.eq(1).all()) and bool(second.eq(1).all())
