"""What networks are given is theirs: one tensor stands for several inputs, and nobody's numbers are overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.data.inputs import fed
from edgeprune.data.namedarrays import NamedPart, from_named
from edgeprune.graph.capture import reexport
from edgeprune.graph.decisions import Recording
from edgeprune.graph.owninputs import spared, written_inputs
from edgeprune.importance import BY_DATA, score
from edgeprune.settings import TrainSettings
from edgeprune.training import fit


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


class Writes(nn.Module):
    """Normalises in place, as many a preprocessing line does; `way` says how, "apart" is the same in a new tensor."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.drop, self.relu = way, nn.Dropout(0.5), nn.ReLU(inplace=True)
        self.a, self.b = nn.Linear(12, 32), nn.Linear(32, 3)
        self.register_buffer("mean", 3 + torch.rand(12))

    def forward(self, x: Tensor) -> Tensor:
        """Of what is left of `x`."""
        if self.way == "apart":
            x = x - self.mean
        elif self.way == "whole":
            x -= self.mean
        elif self.way == "handed on":
            x = self.drop(x)
            x -= self.mean
        elif self.way == "a view":
            x[:, 2:6] *= 0.1
        else:
            x = self.relu(x.view(-1, 3, 4).transpose(1, 2)).flatten(1)
        out: Tensor = self.b(self.a(x).relu())
        return out


class WithAnother(Writes):
    """The same with an input beside it."""

    def forward(self, x: Tensor, x2: Tensor) -> Tensor:  # type: ignore[override]
        """Of both."""
        return super().forward(x) + x2


SPLITS = ("train", "val", "test")
WAYS = ["whole", "handed on", "a view", "a view's ReLU"]


def rows(n: int = 64) -> Tensor:
    return 3 + torch.randn(n, 12, generator=torch.Generator().manual_seed(n))


def cut_of(program: Any, **options: Any) -> tuple[Any, Any, Any]:
    graph = edgeprune.analyze(program, **options)
    plan = edgeprune.plan(program, graph, keep_macs=0.5, align=1)
    return graph, plan, edgeprune.cut(program, plan, graph)


@pytest.mark.parametrize("inputs", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_network_that_writes_to_its_input_is_proved_and_leaves_the_users_numbers(way: str, inputs: bool) -> None:
    model, x = Writes(way).eval(), rows()
    program = edgeprune.capture(model, x)
    assert written_inputs(program.module().graph)
    _, plan, slim = cut_of(program, inputs=inputs)
    assert edgeprune.prove(program, slim, plan) < 1e-5
    assert edgeprune.prove(program, slim, plan, inputs=x) < 1e-5
    if not inputs:
        assert edgeprune.reconstruct(program, slim, plan, [x])
        slim.apply_to(model)
    assert torch.equal(x, rows())
    y = rows()
    slim.module()(y)  # is as the user's own network was
    assert not torch.equal(y, rows())


def test_what_is_solved_on_data_is_solved_on_those_of_the_user() -> None:
    found = {}
    for way in ("whole", "apart"):
        program, x = edgeprune.capture(Writes(way), rows()), rows(256)
        graph, plan, slim = cut_of(program)
        better = edgeprune.reconstruct(program, slim, plan, [x]).module()
        scores = [score(program, graph, name, batches=[(x, torch.arange(256) % 3)] * 2) for name in BY_DATA]
        found[way] = [better(rows(8)), *(torch.from_numpy(one) for each in scores for one in each)]
        assert torch.equal(x, rows(256))
    torch.testing.assert_close(found["whole"], found["apart"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("is_graph", [False, True])
def test_every_epoch_sees_the_data_as_they_are(is_graph: bool) -> None:
    weights = {}
    for way in ("whole", "apart"):
        held = rows(120).numpy()
        parts = {name: NamedPart({"x": held, "x2": held[:, :1]}, (held[:, 0] > 3).astype(np.int64)) for name in SPLITS}
        data = from_named("named", parts)
        module: nn.Module = WithAnother(way)
        module = edgeprune.capture(module, (rows(), rows()[:, :1])).own_module() if is_graph else module
        fit(module, data, data.normalization, TrainSettings(epochs=2, threads=1))
        weights[way] = module.get_parameter("a.weight").detach()
        assert torch.equal(torch.from_numpy(held), rows(120))
    torch.testing.assert_close(weights["whole"], weights["apart"])


def test_what_only_reads_its_inputs_gets_no_copies() -> None:
    x = rows()
    reads, writes = (edgeprune.capture(Writes(way), x).own_module() for way in ("apart", "whole"))
    assert spared(reads, (x,))[0] is x and spared(Recording(reads), (x,))[0] is x
    for network in (writes, Recording(writes), Writes("apart"), lambda given: given):
        [own] = spared(network, (x,))
        assert torch.equal(own, x) and own is not x
    assert fed(reads, x).shape == (64, 3)


def test_a_copy_takes_the_gradient_along() -> None:
    x = rows().requires_grad_()
    [grad] = torch.autograd.grad(fed(edgeprune.capture(Writes("whole"), rows()).own_module(), x).sum(), x)
    assert bool(grad.any())


@pytest.mark.parametrize("way", WAYS)
def test_the_file_of_a_network_that_writes_to_its_input(way: str, tmp_path: Path) -> None:
    program = edgeprune.capture(Writes(way), rows())
    _, _, slim = cut_of(program)
    x = rows()
    assert edgeprune.export_onnx(slim, tmp_path / "slim.onnx", inputs=x).parity < 1e-5
    assert torch.equal(x, rows())
