"""Complex numbers inside a network: Fourier layers and rotary positions, whose channels only pass; other new rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edgeprune
from edgeprune.errors import CaptureError, InputError
from edgeprune.formats.load import load
from edgeprune.formats.save import save_program
from edgeprune.records import ModelInfo
from tests.cases import IMAGE, TOKENS, conv
from tests.nets import (
    Case,
    Cut,
    Net,
    captured,
    cut_randomly,
    distance,
    n_units,
    parameter,
    randomized,
    relative_error,
    run,
    sample,
)


def images(middle: Any, after: int = 8, **parts: Any) -> Callable[[], nn.Module]:
    return lambda: Net(
        lambda m, x: m.head(middle(m, m.first(x))),
        first=conv(3, 8),
        head=conv(after, 3, 1),
        **{k: p() for k, p in parts.items()},
    )


def tokens(middle: Any, **parts: Any) -> Callable[[], nn.Module]:
    return lambda: Net(
        lambda m, x: m.head(middle(m, m.first(x))),
        first=nn.Linear(5, 8),
        head=nn.Linear(8, 4),
        **{k: p() for k, p in parts.items()},
    )


def global_filter(m: Any, x: Tensor) -> Tensor:
    """GFNet: each channel's spectrum times a learned filter."""
    y = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(m.w)
    return x + torch.fft.irfft2(y, s=(8, 8), norm="ortho")


def fourier_operator(m: Any, x: Tensor) -> Tensor:
    """FNO: the lowest frequencies are mixed over the channels, the others are left out."""
    spectrum = torch.fft.rfft2(x)
    out = torch.zeros(x.shape[0], 12, 8, 5, dtype=spectrum.dtype)
    out[:, :, :4, :3] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :4, :3], torch.view_as_complex(m.w))
    return F.gelu(torch.fft.irfft2(out, s=(8, 8)) + m.skip(x))


def rotated(m: Any, x: Tensor) -> Tensor:
    """Pairs of channels turned by their position, as in llama's own code."""
    pairs = torch.view_as_complex(x.unflatten(-1, (4, 2)))
    return torch.view_as_real(pairs * m.turn).flatten(2)


def turns() -> Tensor:
    return torch.polar(torch.ones(6, 4), torch.arange(6)[:, None] / 10 ** torch.arange(4.0)).to(torch.complex128)


def image(middle: Any, units: int, after: int = 8, **parts: Any) -> Case:
    return Case(images(middle, after, **parts), (IMAGE,), units)


def token(middle: Any, units: int = 8, **parts: Any) -> Case:
    return Case(tokens(middle, **parts), (TOKENS,), units)


CASES: dict[str, Case] = {
    "global filter": image(global_filter, 8, w=lambda: parameter(8, 8, 5, 2)),
    "mixed spectrum": image(fourier_operator, 20, 12, w=lambda: parameter(8, 12, 4, 3, 2), skip=lambda: conv(8, 12, 1)),
    "there and back": image(lambda m, x: torch.fft.ifft2(torch.fft.fft2(x)).real, 8),
    "one dim": token(lambda m, x: torch.fft.irfft(torch.fft.rfft(x, dim=1), n=6, dim=1)),
    "spectrum": image(lambda m, x: torch.fft.rfftn(x, dim=(2, 3)).abs(), 8),
    "phase": token(lambda m, x: torch.fft.fft(x, dim=1).angle()),
    "shifted": image(lambda m, x: torch.fft.fftshift(torch.fft.fft2(x), dim=(2, 3)).imag, 8),
    "over the channels": token(lambda m, x: torch.fft.fft(x, dim=2).real, 0),
    "conjugate": token(lambda m, x: (torch.fft.fft(x, dim=1).conj() * torch.fft.fft(x, dim=1)).real),
    "complex": token(lambda m, x: torch.view_as_real(torch.complex(x, x.relu())).sum(-1)),
    "polar": token(lambda m, x: torch.polar(x, x.relu()).real),
    "rotary": token(rotated, 4, turn=turns),
    "bucketize": token(lambda m, x: x * torch.bucketize(x, m.b), b=lambda: torch.tensor([-0.5, 0.0, 0.7])),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    case = CASES[name]
    program = of_doubles(case)
    graph = edgeprune.analyze(program)
    locked = [(lock.name, lock.dim, lock.reason) for lock in graph.locked]
    assert n_units(graph) == case.units, (locked, [(g.name, g.n_units) for g in graph.groups])
    if graph.groups:
        check(cut_randomly(program, graph), case.shapes)


def of_doubles(case: Case) -> edgeprune.Program:
    return edgeprune.capture(
        randomized(case.build()).double(), sample(case.shapes, 2)
    )  # `.to` makes complex buffers real


def check(cut: Cut, shapes: tuple[tuple[int, ...], ...]) -> None:
    """Slim is masked dense at batches of 1 and 5."""
    assert cut.error <= 1e-10
    for batch in (1, 5):
        slim_error, masked_difference = distance(cut, shapes, batch)
        assert slim_error <= 1e-10 and masked_difference > 1e-3


# -- aggregations ------------------------------------------------------------------------------------------------------

REDUCTIONS = ("sum", "mean", "amax", "amin", "prod")


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_messages_are_reduced(reduce: str, include_self: bool) -> None:
    """scatter_reduce and index_reduce of graph networks."""
    ends = torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]])

    def middle(m: Any, x: Tensor) -> Tensor:
        messages, to = x[:, m.ends[0]], m.ends[1]
        into = x.tanh() if include_self else torch.zeros_like(x)
        spread = to[None, :, None].expand_as(messages)
        y = into.scatter_reduce(1, spread, messages, reduce, include_self=include_self)
        return y if reduce == "sum" else y + into.index_reduce(1, to, messages, reduce, include_self=include_self)

    program = captured(tokens(middle, ends=lambda: ends)(), TOKENS)
    graph = edgeprune.analyze(program)
    assert n_units(graph) == 8
    check(cut_randomly(program, graph), (TOKENS,))


@pytest.mark.parametrize("name", ["global filter", "there and back"])
def test_fourier_layers_are_written(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    program = captured(case.build(), *case.shapes, dtype=torch.float32)
    slim = cut_randomly(program, edgeprune.analyze(program)).slim
    edgeprune.export_onnx(slim, tmp_path / "slim.onnx", simplify=False)
    session = onnxruntime.InferenceSession(tmp_path / "slim.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        (x,) = sample(case.shapes, batch, torch.float32)
        [got] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(got, run(slim.module(), (x,))[0].numpy(), atol=1e-4, rtol=1e-4)


def test_a_cut_spectrum_trains() -> None:
    """PyTorch has no gradients for writes into parts of complex tensors."""
    slim = cut_randomly(program := of_doubles(CASES["mixed spectrum"]), edgeprune.analyze(program)).slim
    module = slim.module()
    module(*sample((IMAGE,), 3)).square().sum().backward()
    gradients = [weight.grad for name, weight in module.named_parameters() if name in ("w", "first.weight")]
    assert len(gradients) == 2 and all(gradient is not None and bool((gradient != 0).any()) for gradient in gradients)


def test_what_onnx_lacks_for_complex_numbers_is_named(tmp_path: Path) -> None:
    net = Net(
        lambda m, x: torch.view_as_real(torch.view_as_complex(x) * m.turn[None]), turn=turns().to(torch.complex64)
    )
    program = edgeprune.capture(net, torch.randn(2, 6, 4, 2))
    with pytest.raises(InputError, match="ONNX cannot express .* of complex numbers"):
        edgeprune.export_onnx(program, tmp_path / "net.onnx")


def test_complex_buffers_are_kept_in_the_file(tmp_path: Path) -> None:
    program = of_doubles(CASES["rotary"])
    slim = cut_randomly(program, edgeprune.analyze(program)).slim
    assert slim.state_dict["turn"].is_complex() and slim.state_dict["turn"].shape[1] < 4
    save_program(tmp_path / "slim.pt2", slim, ModelInfo(TOKENS))
    x = sample((TOKENS,), 3)
    assert relative_error(run(slim.module(), x), run(load(str(tmp_path / "slim.pt2")).program.module(), x)) == 0


def test_complex_weights_and_inputs_are_refused() -> None:
    net = Net(lambda m, x: (m.w * x).real, w=nn.Parameter(torch.ones(3, dtype=torch.complex64)))
    with pytest.raises(CaptureError, match="tensor 'w': expected real numbers, got complex64"):
        edgeprune.capture(net, torch.ones(2, 3))
    with pytest.raises(CaptureError, match="input 'input': expected real numbers, got complex64"):
        edgeprune.capture(nn.Linear(3, 3), torch.ones(2, 3, dtype=torch.complex64))


@pytest.mark.parametrize("layer", [nn.LazyLinear(4), nn.LazyBatchNorm1d()])
def test_lazy_layers_are_refused_until_they_have_run(layer: nn.Module) -> None:
    net = nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(CaptureError, match="has none yet: run the model once on an example first"):
        edgeprune.capture(net, torch.randn(3, 4))
    net(torch.randn(3, 4))
    assert edgeprune.capture(net, torch.randn(3, 4)).module()(torch.randn(5, 4)).shape == (5, 2)
