"""Plans whose cuts a class's own forward takes, and refusals that name what to leave alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edgeprune
from edgeprune.errors import ApplyError, InputError
from edgeprune.pruning.own_forward import even_step
from tests.nets import Net, randomized


class Halves(nn.Module):
    """A block as YOLO has it: one half goes on, the other one through a bottleneck as well; all are joined."""

    def __init__(self, width: int, by_width: bool = False) -> None:
        super().__init__()
        self.c, self.by_width = width, by_width
        self.first = nn.Conv2d(width, 2 * width, 1)
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(3 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        kept, passed = y.split((self.c, self.c), 1) if self.by_width else y.chunk(2, 1)
        return self.last(torch.cat([kept, passed, passed + self.inner(passed).relu()], 1))


class Mixing(nn.Module):
    """An attention whose output is viewed as its input is: both are of one width."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = torch.softmax(q @ k.transpose(-2, -1), -1) @ v
        return self.proj(y.transpose(1, 2).reshape(b, n, c))


def image(middle: nn.Module) -> nn.Module:
    return Net(
        lambda m, x: m.head(m.middle(m.stem(x).relu()).relu().mean((2, 3))),
        stem=nn.Conv2d(3, 16, 3, padding=1),
        middle=middle,
        head=nn.Linear(16, 5),
    )


def shuffle() -> nn.Module:
    mixed = nn.Sequential(nn.Conv2d(16, 16, 1, groups=4), nn.ChannelShuffle(4))
    return nn.Sequential(*mixed, nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 1))


def flat() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.conv(m.stem(x).relu()).relu().view(-1, 16 * 8 * 8)),
        stem=nn.Conv2d(3, 16, 3, padding=1),
        conv=nn.Conv2d(16, 16, 3, padding=1),
        head=nn.Linear(16 * 64, 5),
    )


def tokens() -> nn.Module:
    return Net(
        lambda m, x: m.head(m.up(m.down(m.mixing(m.stem(x)).relu()).relu())),
        stem=nn.Linear(6, 16),
        mixing=Mixing(),
        down=nn.Linear(16, 32),
        up=nn.Linear(32, 16),
        head=nn.Linear(16, 5),
    )


IMAGE, SEQUENCE = (2, 3, 8, 8), (2, 7, 6)
NETS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "halves": (lambda: image(Halves(16)), IMAGE),
    "halves by their width": (lambda: image(Halves(16, by_width=True)), IMAGE),
    "shuffle": (lambda: image(shuffle()), IMAGE),
    "a view with numbers": (flat, IMAGE),
    "attention": (tokens, SEQUENCE),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "align"), [*((name, 1) for name in NETS), ("halves", 8)])
def test_an_appliable_cut_goes_back_into_its_class(name: str, align: int) -> None:
    build, shape = NETS[name]
    net = randomized(build())
    program = edgeprune.capture(net, torch.randn(shape))
    plan = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.75, align=align, appliable=True)
    slim = edgeprune.cut(program, plan)
    edgeprune.prove(program, slim, plan)
    applied = slim.apply_to(net)
    assert applied.tensors and applied.error < 1e-5
    x = torch.randn(3, *shape[1:])
    torch.testing.assert_close(net.eval()(x), slim.module()(x))


class Separator(nn.Module):
    """A mask for each of two speakers; the 16 is the encoder's width, written once more."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.encode, self.body = nn.Conv1d(8, 16, 3, padding=1), nn.Conv1d(16, 64, 1)
        self.mask, self.decode, self.written = nn.Conv1d(64, 32, 1), nn.Conv1d(16, 1, 1), written

    def forward(self, x: Tensor) -> Tensor:
        e = self.encode(x).relu()
        mask = self.mask(self.body(e).relu()).sigmoid()
        if self.written:
            mask = mask.view(x.shape[0], 2, 16, -1)
        else:
            mask = mask.view(x.shape[0], 2, e.shape[1], -1)
        return self.decode((e.unsqueeze(1) * mask).flatten(0, 1)).view(x.shape[0], 2, -1)


def plan_of(net: nn.Module, x: Tensor, keep_macs: float, **options: Any) -> tuple[Any, Any]:
    program = edgeprune.capture(net, x)
    graph = edgeprune.analyze(program)
    plan = edgeprune.plan(program, graph, keep_macs=keep_macs, align=1, **options)
    return {group.name: (group.before, group.after) for group in plan.groups}, edgeprune.cut(program, plan)


def test_a_width_that_stands_in_the_line_stays_whole() -> None:
    net, x = randomized(Separator(written=True)), torch.randn(2, 8, 20)
    widths, slim = plan_of(net, x, 0.5, appliable=True)
    assert widths["encode"] == (16, 16) and widths["body"][1] < 32
    assert slim.apply_to(net).error < 1e-5


def test_a_width_that_the_forward_computes_is_cut() -> None:
    net, x = randomized(Separator(written=False)), torch.randn(2, 8, 20)
    widths, slim = plan_of(net, x, 0.5, appliable=True)
    assert widths["encode"][1] < 16
    assert slim.apply_to(net).error < 1e-5


class Attending(nn.Module):
    """Attention in a forward of many layers: what leaves it has the shape of the stream, whatever heads there are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.qkv, self.out = nn.Linear(8, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.wide, self.narrow, self.head = nn.Linear(16, 64), nn.Linear(64, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 4).unbind(2)
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
        x = x + self.out(y.reshape(*x.shape))
        return self.head((x + self.narrow(self.wide(x).relu())).mean(1))


def test_a_shape_that_the_same_forward_made_is_one_that_a_view_may_be_given() -> None:
    net, x = randomized(Attending()), torch.randn(2, 6, 8)
    widths, slim = plan_of(net, x, 0.8, appliable=True)
    assert widths["first"] == (16, 16) and widths["wide"][1] < 64
    assert slim.apply_to(net).error < 1e-5


def test_a_refusal_names_the_layer_before_the_line_that_fails() -> None:
    net, x = randomized(Attending()), torch.randn(2, 6, 8)
    _, slim = plan_of(net, x, 0.8, leave=["wide", "qkv"])
    with pytest.raises(ApplyError, match=r"leave 'first'.* alone, plan\(\.\.\., leave=\['first'"):
        slim.apply_to(net)


RATES = torch.linspace(0.5, 1.5, 16)


class Attached(nn.Module):
    """A forward that reads what no module holds as a parameter or a buffer; `wide` beside it can be cut."""

    def __init__(self, registered: bool = False) -> None:
        super().__init__()
        self.first, self.wide, self.head = nn.Linear(8, 16), nn.Linear(16, 64), nn.Linear(64, 3)
        self.numbers, self.layers = RATES.tolist(), [nn.Linear(16, 16)]
        if registered:
            self.register_buffer("place", RATES.clone(), persistent=False)
        else:
            self.place = RATES.clone()

    def scaled(self, h: Tensor) -> Tensor:
        return h + self.place

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(self.scaled(self.first(x).relu())).relu())


class OfModule(Attached):
    def scaled(self, h: Tensor) -> Tensor:
        return h * RATES


class OfDefault(Attached):
    def scaled(self, h: Tensor, rates: Tensor = RATES.clone()) -> Tensor:  # noqa: B008
        return h * rates


class OfNumbers(Attached):
    def scaled(self, h: Tensor) -> Tensor:
        return h * torch.tensor(self.numbers)


class OfPlainList(Attached):
    def scaled(self, h: Tensor) -> Tensor:
        return self.layers[0](h).relu()


class OfComparison(Attached):
    def scaled(self, h: Tensor) -> Tensor:
        return torch.where(self.place > 1, h, 0.5 * h)


@pytest.mark.parametrize("kind", [Attached, OfModule, OfDefault, OfNumbers, OfPlainList, OfComparison])
def test_a_width_that_a_tensor_outside_of_parameters_and_buffers_has_stays_whole(kind: type[Attached]) -> None:
    net, x = randomized(kind()), torch.randn(2, 8)
    widths, slim = plan_of(net, x, 0.6, appliable=True)
    assert widths["first"] == (16, 16) and widths["wide"][1] < 64
    assert slim.apply_to(net).error < 1e-5
    torch.testing.assert_close(net(x), slim.module()(x))


def test_a_buffer_that_no_file_holds_is_cut() -> None:
    net, x = randomized(Attached(registered=True)), torch.randn(2, 8)
    widths, slim = plan_of(net, x, 0.6, appliable=True)
    assert widths["first"][1] < 16
    assert slim.apply_to(net).error < 1e-5 and net.place.shape == (widths["first"][1],)


def test_a_refusal_advises_a_plan_only_where_it_was_another() -> None:
    net, x = randomized(Attached()), torch.randn(2, 8)
    _, slim = plan_of(net, x, 0.6)
    with pytest.raises(ApplyError, match="leave 'first' alone, .*appliable=True .*, where that was not asked for"):
        slim.apply_to(net)


def test_halves_lose_as_many_channels_but_not_the_same_ones() -> None:
    net = randomized(image(Halves(16)))
    program = edgeprune.capture(net, torch.randn(IMAGE))
    plan = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.4, align=1, appliable=True)
    kept = plan.tensors["middle.first.weight"][0]
    halves = [[k for k in kept if k < 16], [k - 16 for k in kept if k >= 16]]
    assert len(halves[0]) == len(halves[1]) < 16
    assert halves[0] != halves[1]


def test_a_refusal_names_the_layer_to_leave_alone() -> None:
    net = randomized(image(Halves(16)))
    program = edgeprune.capture(net, torch.randn(IMAGE))
    graph = edgeprune.analyze(program)
    uneven = edgeprune.plan(program, graph, keep_macs=0.5, align=1)
    with pytest.raises(ApplyError, match=r"leave 'middle\.first' alone, .*--keep-layer middle\.first.*appliable=True"):
        edgeprune.cut(program, uneven).apply_to(net)
    plan = edgeprune.plan(program, graph, keep_macs=0.8, align=1, leave=["middle.first"])
    assert 0 not in plan.tensors.get("middle.first.weight", {})
    assert edgeprune.cut(program, plan).apply_to(net).tensors


def test_a_layer_that_is_not_there_cannot_be_left_alone() -> None:
    program = edgeprune.capture(randomized(image(Halves(16))), torch.randn(IMAGE))
    with pytest.raises(InputError, match="leave: expected the name of a layer or a group .*, got 'middle.none'"):
        edgeprune.plan(program, edgeprune.analyze(program), leave=["middle.none"])


@pytest.mark.parametrize(("step", "n_units", "expected"), [(8, 32, 16), (8, 16, 8), (1, 6, 2), (3, 8, 6)])
def test_parts_stay_aligned_where_they_are_wide_enough(step: int, n_units: int, expected: int) -> None:
    assert even_step(step, 2, n_units) == expected
