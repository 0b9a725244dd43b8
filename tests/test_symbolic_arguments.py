"""Arguments that are symbolic, or count from the end of a free size: a cut keeps them so, at every size.

Batches that are folded into channels, as in the modulated convolution of StyleGAN2 and in CondConv, and free lengths.
"""

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
from edgeprune.errors import InputError
from tests.cases import IMAGE, TOKENS, conv
from tests.nets import Cut, Net, cut_randomly, masked, n_units, parameter, randomized, relative_error, run, sample


def cut_at_every_size(net: nn.Module, *shapes: tuple[int, ...], inputs: bool = False, **options: Any) -> Cut:
    """A random cut of what was captured at the first shape, compared with the masked network at batches of 1 and 5."""
    program = edgeprune.capture(randomized(net).double(), sample(shapes[:1], 2), **options)
    cut = cut_randomly(program, edgeprune.analyze(program, inputs=inputs))
    for batch, shape in [(1, shapes[0]), (5, shapes[-1])]:
        x = sample((shape,), batch)
        want = run(masked(program, cut.plan), x)
        assert relative_error(want, run(cut.slim.module(), x)) <= 1e-10
        assert relative_error(run(program.module(), x), want) > 1e-3
    return cut


# -- the batch in the groups of a convolution --------------------------------------------------------------------------


def styled(m: Any, h: Tensor) -> Tensor:
    """Each sample's kernels, `(batch, 12, 8, 3, 3)`, scaled by its style and to a length of one."""
    kernels = m.w * m.style(h.mean((2, 3)))[:, None, :, None, None]
    return kernels * (kernels.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()


def modulated(m: Any, h: Tensor) -> Tensor:
    b, c, *size = h.shape
    y = F.conv2d(h.reshape(1, b * c, *size), styled(m, h).view(b * 12, c, 3, 3), padding=1, groups=b)
    return y.view(b, 12, *size)


def modulated_transposed(m: Any, h: Tensor) -> Tensor:
    b, c, *size = h.shape
    kernels = styled(m, h).transpose(1, 2).reshape(b * c, 12, 3, 3)
    return F.conv_transpose2d(h.reshape(1, b * c, *size), kernels, padding=1, groups=b).view(b, 12, *size)


def modulated_in_groups(m: Any, h: Tensor) -> Tensor:
    b, c, *size = h.shape
    kernels = (m.w * m.style(h.mean((2, 3)))[:, :, None, None, None]).view(b * 12, 2, 3, 3)
    return F.conv2d(h.reshape(1, b * c, *size), kernels, padding=1, groups=b * 4).view(b, 12, *size)


def depthwise(m: Any, h: Tensor) -> Tensor:
    b, c, *size = h.shape
    kernels = m.style(h.mean((2, 3))).view(b * c, 1, 3, 3)
    return F.conv2d(h.reshape(1, b * c, *size), kernels, padding=1, groups=b * c).view(h.shape)


def experts(m: Any, h: Tensor) -> Tensor:
    """CondConv: each sample's kernels are a mixture of three."""
    b, c, *size = h.shape
    kernels = (m.style(h.mean((2, 3))).softmax(1) @ m.w.view(3, -1)).view(b * 12, c, 3, 3)
    return F.conv2d(h.reshape(1, b * c, *size), kernels, padding=1, groups=b).view(b, 12, *size)


def net(middle: Any, after: int = 12, **parts: Any) -> nn.Module:
    return Net(lambda m, x: m.head(middle(m, m.first(x)).relu()), first=conv(3, 8), head=conv(after, 3, 1), **parts)


def stylegan() -> nn.Module:
    return net(modulated, style=nn.Linear(8, 8), w=parameter(1, 12, 8, 3, 3))


FOLDED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "modulated": (stylegan, 20),
    "transposed": (lambda: net(modulated_transposed, style=nn.Linear(8, 8), w=parameter(1, 12, 8, 3, 3)), 20),
    "several groups": (lambda: net(modulated_in_groups, style=nn.Linear(8, 12), w=parameter(1, 12, 2, 3, 3)), 4),
    "depthwise": (lambda: net(depthwise, 8, style=nn.Linear(8, 72)), 8),
    "experts": (lambda: net(experts, style=nn.Linear(8, 3), w=parameter(3, 12, 8, 3, 3)), 20),
}


@pytest.mark.parametrize("name", FOLDED)
def test_the_batch_is_folded_into_the_groups(name: str) -> None:
    build, units = FOLDED[name]
    assert n_units(cut_at_every_size(build(), IMAGE).graph) == units


def test_groups_of_the_batch_are_refused_by_onnx_and_written_with_a_fixed_batch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"conv2d\S* \(at .*its number of groups is the batch; .*dynamic_batch=False"):
        edgeprune.export_onnx(edgeprune.capture(stylegan(), torch.randn(2, *IMAGE)), tmp_path / "free.onnx")
    x = torch.randn(3, *IMAGE)
    program = edgeprune.capture(randomized(stylegan()), x, dynamic_batch=False)
    graph = edgeprune.analyze(program)
    slim = edgeprune.cut(program, edgeprune.plan(program, graph, keep_macs=0.6, align=1), graph)
    edgeprune.export_onnx(slim, tmp_path / "fixed.onnx", simplify=False)
    session = onnxruntime.InferenceSession(tmp_path / "fixed.onnx", providers=["CPUExecutionProvider"])
    [got] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, slim.module()(x).detach().numpy(), atol=1e-4, rtol=1e-4)


# -- free lengths and sizes --------------------------------------------------------------------------------------------

LENGTH = {"inputs_0": (0, 1)}
UP_TO_12 = {"inputs_0": {0: None, 1: (1, 12)}}


def writes_the_last(m: Any, h: Tensor) -> Tensor:
    h = h.clone()
    h[:, -1] = h[:, 0] * 2
    return h


def tokens(middle: Any, **parts: Any) -> nn.Module:
    return Net(
        lambda m, x: m.head(middle(m, m.first(x).relu().cumsum(1))),
        first=nn.Linear(5, 8),
        head=nn.Linear(8, 4),
        **parts,
    )


@pytest.mark.parametrize(
    "middle",
    [
        lambda m, h: h[:, -1],
        lambda m, h: h[:, h.shape[1] - 1],
        lambda m, h: h.select(1, h.shape[1] // 2),
        lambda m, h: h[:, torch.arange(h.shape[1] - 1, -1, -1)].cumsum(1),
        writes_the_last,
    ],
    ids=["-1", "length - 1", "half", "arange", "write"],
)
@pytest.mark.parametrize("inputs", [False, True])
def test_an_index_is_symbolic_or_counts_from_a_free_end(middle: Any, inputs: bool) -> None:
    cut = cut_at_every_size(tokens(middle), TOKENS, (9, 5), inputs=inputs, dynamic=LENGTH)
    assert n_units(cut.graph) == 8 + (5 if inputs else 0)


@pytest.mark.parametrize(
    "rows", [lambda m, n: m.table[torch.arange(n)], lambda m, n: m.table.index_select(0, torch.arange(n))]
)
def test_rows_that_no_example_reaches_stay(rows: Any) -> None:
    net = tokens(lambda m, h: h + rows(m, h.shape[1]), table=parameter(12, 8))
    cut = cut_at_every_size(net, TOKENS, (12, 5), dynamic=UP_TO_12)
    assert n_units(cut.graph) == 8 and cut.slim.state_dict["table"].shape[0] == 12


@pytest.mark.parametrize("dims", [1, 2])
def test_a_norm_over_free_sizes(dims: int) -> None:
    net = Net(
        lambda m, x: m.head(F.layer_norm(h := m.first(x), h.shape[dims:]).relu()), first=conv(3, 8), head=conv(8, 3)
    )
    assert n_units(cut_at_every_size(net, IMAGE, (3, 10, 12), dynamic_size=True).graph) == 8


# -- positions along a dim that channels and the batch share -----------------------------------------------------------


def along_the_batch(take: Callable[[Tensor], Tensor]) -> nn.Module:
    return net(lambda m, h: take(h.reshape(-1, *h.shape[2:])).view(h.shape), 8)


PICKED: dict[str, Callable[[Tensor], Tensor]] = {
    "slice": lambda h: torch.cat([h[:1], h[1:]]),
    "narrow": lambda h: torch.cat([h.narrow(0, 0, 3), h.narrow(0, 3, h.shape[0] - 3)]),
    "select": lambda h: h + h[-3],
    "chunk": lambda h: torch.cat(torch.split(h, [h.shape[0] // 2, h.shape[0] // 2])),
    "index": lambda h: h + h[torch.tensor([-1])],
}


@pytest.mark.parametrize("name", PICKED)
def test_positions_along_the_batch_stay(name: str) -> None:
    program = edgeprune.capture(along_the_batch(PICKED[name]), torch.randn(2, *IMAGE))
    graph = edgeprune.analyze(program)
    assert not graph.groups
    assert any("of free size" in lock.reason or "of free length" in lock.reason for lock in graph.locked)


@pytest.mark.parametrize(
    "move",
    [
        lambda h: h.roll(2, 0),
        lambda h: h + h[3],
        lambda h: h + h[torch.tensor([5])],
        lambda h: h + h.index_select(0, torch.tensor([2])),
    ],
    ids=["roll", "select", "index", "index_select"],
)
def test_what_counts_from_the_start_of_the_batch_leaves_channels(move: Callable[[Tensor], Tensor]) -> None:
    assert n_units(cut_at_every_size(along_the_batch(move), IMAGE).graph) >= 7


def test_features_that_lie_along_the_batch_stay() -> None:
    net = Net(
        lambda m, x: m.head(m.first(x.reshape(-1, 1)).relu().view(-1, 48)), first=nn.Linear(1, 8), head=nn.Linear(48, 3)
    )
    program = edgeprune.capture(net, torch.randn(2, 6))
    assert not [group for group in edgeprune.analyze(program, inputs=True).groups if "input" in group.name]
