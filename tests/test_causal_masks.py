"""Masks of nn.Transformer's encoders and decoders, of which PyTorch asks by their values whether they are causal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import transformer

import edgeprune
from tests.nets import Net, cut_randomly, masked, randomized, relative_error, run

STEPS = 6
FREE = {"inputs_0": {0: None, 1: (2, 16)}}
square = nn.Transformer.generate_square_subsequent_mask


def upper(size: int) -> Tensor:
    """The causal mask as True where it hides."""
    return torch.ones(size, size, dtype=torch.bool).triu(1)


def near(size: int) -> Tensor:
    """A mask that is not the causal one: no step sees one further than two away."""
    return upper(size) | upper(size).mT.triu(-9).tril(-2)


def encoder(masks: Any, **parts: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    return Net(
        lambda m, x, *given: m.head(m.body(m.first(x), *masks(m, x, *given))),
        first=nn.Linear(5, 8), head=nn.Linear(8, 3), body=nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
        **parts,
    )  # fmt: skip


def decoder(mask: Callable[[int], Tensor]) -> nn.Module:
    return Net(
        lambda m, x: m.head(m.body(m.first(x), m.other(x), tgt_mask=mask(x.shape[1]))),
        first=nn.Linear(5, 8), other=nn.Linear(5, 8), head=nn.Linear(8, 3),
        body=nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 12, batch_first=True), 1),
    )  # fmt: skip


def whole() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.body(m.first(x), m.other(x), tgt_mask=square(x.shape[1]))),
        first=nn.Linear(5, 8), other=nn.Linear(5, 8), head=nn.Linear(8, 3),
        body=nn.Transformer(8, 2, 1, 1, 12, batch_first=True),
    )  # fmt: skip


def inputs(batch: int, steps: int = STEPS) -> Tensor:
    return torch.randn(batch, steps, 5, generator=torch.Generator().manual_seed(batch))


NETS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "buffer": (lambda: encoder(lambda m, x: [m.mask], mask=square(STEPS)), None),
    "bool buffer": (lambda: encoder(lambda m, x: [m.mask], mask=near(STEPS)), None),
    "made in forward": (lambda: encoder(lambda m, x: [square(x.shape[1])]), FREE),
    "decoder, bool": (lambda: decoder(upper), FREE),
    "transformer": (whole, FREE),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_masks_of_the_network(name: str, tmp_path: Path) -> None:
    build, dynamic = NETS[name]
    net = randomized(build()).eval()
    if name == "buffer":
        net.mask.copy_(square(STEPS))
    detect = transformer._detect_is_causal_mask
    program = edgeprune.capture(net, inputs(2), dynamic=dynamic)
    assert transformer._detect_is_causal_mask is detect
    graph = edgeprune.analyze(program)
    assert {"first", "body.layers.0.self_attn", "body.layers.0.linear1"} <= {
        g.name for g in graph.groups
    } or name == "transformer"
    cut = cut_randomly(program, graph)
    sizes = [(1, STEPS), (5, STEPS)] + ([(3, 9)] if dynamic else [])
    for size in sizes:
        x = inputs(*size)
        assert relative_error(run(net, [x]), run(program.module(), [x])) <= 1e-5
        assert relative_error(run(masked(program, cut.plan), [x]), run(cut.slim.module(), [x])) <= 1e-5
    if name in ("buffer", "made in forward", "decoder, bool"):
        edgeprune.export_onnx(cut.slim, tmp_path / "slim.onnx", simplify=False)
        check_file(tmp_path / "slim.onnx", cut.slim, [[inputs(*size)] for size in sizes])


def check_file(path: Path, slim: edgeprune.Program, samples: Any) -> None:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for given in samples:
        names = [value.name for value in session.get_inputs()]
        [got] = session.run(None, dict(zip(names, [x.numpy() for x in given], strict=True)))
        np.testing.assert_allclose(got, run(slim.module(), given)[0].numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mask", [square, upper], ids=["float", "bool"])
def test_a_mask_that_is_given_is_the_one_that_is_used(mask: Callable[[int], Tensor]) -> None:
    net = randomized(encoder(lambda m, x, given: [given])).eval()
    program = edgeprune.capture(net, (inputs(2), mask(STEPS)), dynamic={"inputs_1": ()})
    cut = cut_randomly(program, edgeprune.analyze(program))
    hidden = near(STEPS)
    other = hidden if mask is upper else torch.zeros(STEPS, STEPS).masked_fill(hidden, -torch.inf)
    for batch, mask_now in [(1, mask(STEPS)), (5, other)]:
        given = [inputs(batch), mask_now]
        assert relative_error(run(net, given), run(program.module(), given)) <= 1e-5
        assert relative_error(run(masked(program, cut.plan), given), run(cut.slim.module(), given)) <= 1e-5


@pytest.mark.parametrize("mask", [square, upper])
def test_what_pytorch_finds_out_is_a_hint(mask: Callable[[int], Tensor]) -> None:
    """What rests on it: with the answer No the very same comes out."""
    net = randomized(encoder(lambda m, x: [mask(x.shape[1])])).eval()
    net.body.layers[0].norm_first = True
    x = inputs(3).requires_grad_()  # with gradients PyTorch takes the layers apart
    with pytest.MonkeyPatch.context() as patch:
        found = net(x)
        patch.setattr(transformer, "_detect_is_causal_mask", lambda *_: False)
        torch.testing.assert_close(net(x), found)
