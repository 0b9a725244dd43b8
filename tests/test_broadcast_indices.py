"""Indices and masks that are repeated along the channels of their partner: they are cut with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from tests.nets import Cut, Net, cut_randomly, masked, n_units, randomized, relative_error, run

STEPS = 6


def inputs_of(batch: int, kind: str) -> tuple[Tensor, ...]:
    """Steps of 5 features with lengths, a mask, or nothing else."""
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, STEPS, 5, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, STEPS + 1, (batch,), generator=generator)
    seen = (torch.arange(STEPS)[None] < lengths[:, None]).long()
    return {"lengths": (x, lengths), "mask": (x, seen), "float mask": (x, seen.double()), "": (x,)}[kind]


def cut(net: nn.Module, kind: str, units: int) -> Cut:
    """A random cut that is right at batches of 1 and 5; `units` of the network can go."""
    program = edgeprune.capture(randomized(net).double(), inputs_of(2, kind))
    graph = edgeprune.analyze(program)
    assert n_units(graph) == units, [(lock.name, lock.reason) for lock in graph.locked]
    found = cut_randomly(program, graph)
    for batch in (1, 5):
        given = inputs_of(batch, kind)
        want = run(masked(program, found.plan), given)
        assert relative_error(want, run(found.slim.module(), given)) <= 1e-10
        assert relative_error(run(program.module(), given), want) > 1e-3
    return found


def steps(
    middle: Callable[..., Tensor], first: Callable[[], nn.Module] = lambda: nn.Linear(5, 8), **parts: Any
) -> nn.Module:
    return Net(lambda m, x, *rest: m.head(middle(m, m.first(x), *rest)), first=first(), head=nn.Linear(8, 3), **parts)


def last(repeat: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    """The outputs at the last step of each length."""
    return steps(lambda m, h, n: h.cumsum(1).gather(1, repeat((n - 1).view(-1, 1, 1), h)).squeeze(1))


LAST: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "expand": lambda at, h: at.expand(-1, 1, h.size(2)),
    "expand with the batch": lambda at, h: at.expand(h.size(0), 1, h.size(2)),
    "expand_as": lambda at, h: at.expand_as(h[:, :1]),
    "repeat": lambda at, h: at.repeat(1, 1, h.size(2)),
    "tile": lambda at, h: at.tile(h.size(2)),
    "repeat of two dims": lambda at, h: at.squeeze(1).repeat(1, h.size(2)).unsqueeze(1),
}


@pytest.mark.parametrize("name", LAST)
def test_the_last_step_by_lengths(name: str, tmp_path: Path) -> None:
    found = cut(last(LAST[name]), "lengths", 8)
    if name in ("expand", "repeat"):
        check_file(found.slim, "lengths", tmp_path / "slim.onnx")


def test_the_last_step_of_a_recurrent_layer() -> None:
    def forward(m: Any, x: Tensor, n: Tensor) -> Tensor:
        h, _ = m.first(x)
        return m.head(h.gather(1, (n - 1).view(-1, 1, 1).expand(-1, 1, h.size(2))).squeeze(1))

    cut(Net(forward, first=nn.GRU(5, 8, batch_first=True), head=nn.Linear(8, 3)), "lengths", 8)


def check_file(slim: edgeprune.Program, kind: str, path: Path) -> None:
    edgeprune.export_onnx(slim, path, simplify=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    for batch in (1, 5):
        given = inputs_of(batch, kind)
        [got] = session.run(None, {name: x.numpy() for name, x in zip(names, given, strict=True)})
        np.testing.assert_allclose(got, run(slim.module(), given)[0].numpy(), atol=1e-6, rtol=1e-6)


def pooled(repeat: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    """The mean over the steps that a mask shows, as sentence transformers take it."""

    def middle(m: Any, h: Tensor, mask: Tensor) -> Tensor:
        weights = repeat(mask.unsqueeze(-1), h).to(h.dtype)
        return (h * weights).sum(1) / weights.sum(1).clamp(min=1e-9)

    return steps(middle)


POOLED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "expand": lambda mask, h: mask.expand(h.size()),
    "broadcast_to": lambda mask, h: mask.broadcast_to(h.shape),
    "repeat": lambda mask, h: mask.repeat(1, 1, h.size(2)),
}


@pytest.mark.parametrize("kind", ["mask", "float mask"])
@pytest.mark.parametrize("name", POOLED)
def test_a_mask_over_the_channels(name: str, kind: str) -> None:
    cut(pooled(POOLED[name]), kind, 8)


def messages(aggregate: Callable[[Tensor, Tensor, Tensor], Tensor]) -> nn.Module:
    """A graph network: what each of 7 edges brings is gathered at its end."""
    ends = torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]])

    def middle(m: Any, h: Tensor) -> Tensor:
        return aggregate(torch.zeros_like(h), m.ends[1][None, :, None], h.relu()[:, m.ends[0]])

    return steps(middle, ends=ends)


MESSAGES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "expand": lambda h, to, m: h.scatter_add(1, to.expand(m.shape[0], -1, m.shape[2]), m),
    "expand_as": lambda h, to, m: h.scatter_add(1, to.expand_as(m), m),
    "repeat": lambda h, to, m: h.scatter_add(1, to.repeat(m.shape[0], 1, m.shape[2]), m),
    "gather": lambda h, to, m: m.gather(1, to.expand(m.shape[0], -1, 8)),
    "added": lambda h, to, m: m + to.expand(1, -1, 8),
    "masked": lambda h, to, m: m.masked_fill((to > 3).expand(1, -1, 8), 0.5),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_constant_indices_are_sliced(name: str) -> None:
    cut(messages(MESSAGES[name]), "", 8)


@pytest.mark.parametrize("name", ["expand", "repeat"])
def test_constant_indices_are_written(name: str, tmp_path: Path) -> None:
    check_file(cut(messages(MESSAGES[name]), "", 8).slim, "", tmp_path / "slim.onnx")


def kept_tokens(m: Any, h: Tensor) -> Tensor:
    """The three tokens with the highest scores, as EViT keeps them."""
    chosen = m.score(h).squeeze(-1).topk(3, 1)[1]
    return h.gather(1, chosen.unsqueeze(-1).repeat(1, 1, h.shape[2]))


def test_tokens_that_the_network_chooses() -> None:
    cut(steps(kept_tokens, score=nn.Linear(8, 1)), "", 8)
