"""Random networks of 5 to 25 layers: residuals, branches, tied weights, several inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.nets import Net, randomized
from tests.random_layers import LAYERS, Shape, divisors, width

LARGEST = 1e3  # a value beyond is no network's: what follows would be rounding
MOST_NUMBERS = 600  # of a value, for one sample
_TRIES = 6


@dataclass(frozen=True)
class Step:
    """A layer, what it is called, and the numbers of the values that it reads."""

    name: str
    layer: nn.Module
    reads: tuple[int, ...]


class RandomNetwork(nn.Module):
    """Runs its steps one after the other; each may give several values."""

    def __init__(self, shapes: tuple[Shape, ...], steps: list[Step], outputs: list[int]) -> None:
        super().__init__()
        self.shapes, self.outputs = shapes, outputs
        self.names, self.reads = [s.name for s in steps], [s.reads for s in steps]
        self.steps = nn.ModuleList([s.layer for s in steps])

    def forward(self, *inputs: Tensor) -> Any:
        values = list(inputs)
        for layer, reads in zip(self.steps, self.reads, strict=True):
            values.extend(_each(layer(*(values[k] for k in reads))))
        found = tuple(values[k] for k in self.outputs)
        return found[0] if len(found) == 1 else found

    def __repr__(self) -> str:
        steps = " ".join(f"{name}{list(reads)}" for name, reads in zip(self.names, self.reads, strict=True))
        return f"inputs {list(self.shapes)}: {steps} -> {self.outputs}"


def _each(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


@dataclass
class _Growing:
    """A network in the making, with what it gives on an example batch."""

    draw: Random
    n_inputs: int
    values: list[Tensor]
    steps: list[Step] = field(default_factory=list)

    def shape(self, value: int) -> Shape:
        return tuple(self.values[value].shape[1:])

    def unread(self) -> list[int]:
        read = {k for step in self.steps for k in step.reads}
        return [k for k in range(len(self.values)) if k not in read]

    def pick(self) -> int:
        """A value to go on from: mostly one that nothing reads yet, and a late one."""
        unread = self.unread()
        if unread and self.draw.random() < 0.8:
            return self.draw.choice(unread[-3:])
        return self.draw.randrange(len(self.values))

    def add(self, name: str, layer: nn.Module | None, *reads: int, fresh: bool = True) -> bool:
        """Take a layer in, if there is one and what it gives can be gone on with."""
        if layer is None:
            return False
        layer.double().eval()
        if fresh:
            randomized(layer, self.draw.randrange(1000))
        with torch.no_grad():
            given = _each(layer(*(self.values[k] for k in reads)))
        if not all(_is_sound(value) for value in given):
            return False
        self.steps.append(Step(name, layer, reads))
        self.values.extend(given)
        return True


def _is_sound(value: Tensor) -> bool:
    """Finite, not all the same, neither too large nor too many numbers."""
    if value.dim() < 2 or not 1 <= value[0].numel() <= MOST_NUMBERS or value.dim() > 4:
        return False
    return bool(value.isfinite().all()) and float(value.abs().max()) < LARGEST and float(value.std()) > 1e-3


def random_network(draw: Random, n_layers: int) -> RandomNetwork:
    """A network with random weights in float64: `n_layers`, and the heads; the same numbers with fewer begin alike."""
    shapes = tuple(_input_shape(draw) for _ in range(draw.choice((1, 1, 1, 2, 3))))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    growing = _Growing(draw, len(inputs), inputs)
    for _ in range(2 * n_layers):
        if len(growing.steps) < n_layers:
            _grow(growing)
    return RandomNetwork(shapes, growing.steps, _outputs(growing)).double().eval()


def _input_shape(draw: Random) -> Shape:
    kind = draw.choice(("table", "sequence", "image"))
    if kind == "table":
        return (draw.randint(4, 10),)
    if kind == "sequence":
        return (draw.randint(3, 6), draw.randint(3, 8))
    return (draw.randint(2, 6), draw.randint(4, 6), draw.randint(4, 6))


def _grow(growing: _Growing) -> None:
    draw = growing.draw
    if len(growing.values) > 1 and draw.random() < 0.3:
        _join(growing, growing.pick(), draw.randrange(len(growing.values)))
    elif draw.random() < 0.08:
        _tie(growing, growing.pick())
    else:
        names = [name for name, (weight, _) in LAYERS.items() for _ in range(weight)]
        for _ in range(_TRIES):
            name, value = draw.choice(names), growing.pick()
            if growing.add(name, LAYERS[name][1](draw, growing.shape(value)), value):
                return


def _join(growing: _Growing, one: int, other: int) -> None:
    """Two values become one: sums, products and concatenations where they fit, else one steers the other."""
    draw, a, b = growing.draw, growing.shape(one), growing.shape(other)
    unlike = [d for d, (n, m) in enumerate(zip(a, b, strict=False), 1) if n != m]
    if a == b and draw.random() < 0.7:
        name = draw.choice(("add", "mul", "sub", "maximum"))
        growing.add(name, Net(lambda m, x, y: getattr(torch, name)(x, y)), one, other)
    elif len(a) == len(b) and len(unlike) < 2 and draw.random() < 0.7:
        dim = unlike[0] if unlike else draw.randint(1, len(a))
        growing.add("cat", Net(lambda m, x, y: torch.cat([x, y], dim)), one, other)
    elif len(a) == len(b) == 2 and draw.random() < 0.7:
        growing.add(*_attended(draw, a, b), one, other)
    elif len(a) == len(b) and a[:-1] == b[:-1]:
        growing.add("project", Net(lambda m, x, y: x + m.proj(y), proj=nn.Linear(b[-1], a[-1])), one, other)
    else:
        growing.add("steer", _steered(draw, a, b), one, other)


def _attended(draw: Random, a: Shape, b: Shape) -> tuple[str, nn.Module]:
    """Tokens of one value look at those of the other."""
    if draw.random() < 0.5:
        heads = draw.choice(divisors(a[1]))
        mha = nn.MultiheadAttention(a[1], heads, kdim=b[1], vdim=b[1], batch_first=True)
        return "cross attention", Net(lambda m, x, y: m.mha(x, y, y)[0], mha=mha)
    n = width(draw)
    q, k = nn.Linear(a[1], n), nn.Linear(b[1], n)
    return "matmul", Net(lambda m, x, y: (m.q(x) @ m.k(y).mT).softmax(-1) @ y, q=q, k=k)


def _steered(draw: Random, a: Shape, b: Shape) -> nn.Module:
    """One value scaled or shifted along a dim by what a layer makes of the other."""
    dim = draw.randint(1, len(a))
    steer = nn.Linear(int(torch.Size(b).numel()), a[dim - 1])
    sizes = [a[dim - 1] if d == dim else 1 for d in range(1, len(a) + 1)]
    if draw.random() < 0.5:
        return Net(lambda m, x, y: x * m.steer(y.flatten(1)).sigmoid().reshape(-1, *sizes), steer=steer)
    return Net(lambda m, x, y: x + m.steer(y.flatten(1)).reshape(-1, *sizes), steer=steer)


def _tie(growing: _Growing, value: int) -> None:
    """A layer that is there already, once more: as it is, with another bias, or transposed."""
    n = growing.shape(value)[-1]
    known = [m for step in growing.steps for m in step.layer.modules() if type(m) is nn.Linear]
    same, turned = ([m for m in known if n == size(m)] for size in (_columns, _rows))
    draw = growing.draw
    if same and draw.random() < 0.6:
        layer = draw.choice(same)
        if draw.random() < 0.5:
            growing.add("again", Net(lambda m, x: m.tied(x), tied=layer), value, fresh=False)
            return
        own = nn.Linear(n, layer.out_features)
        randomized(own, draw.randrange(1000))
        own.weight = layer.weight
        growing.add("tied", Net(lambda m, x: m.tied(x), tied=own), value, fresh=False)
    elif turned:
        layer = draw.choice(turned)
        growing.add("turned", Net(lambda m, x: F.linear(x, m.tied.weight.t()), tied=layer), value, fresh=False)


def _columns(layer: nn.Linear) -> int:
    return layer.in_features


def _rows(layer: nn.Linear) -> int:
    return layer.out_features


def _outputs(growing: _Growing) -> list[int]:
    """One to three values that the network gives; nothing that it computes is left out of them."""
    draw, n_wanted = growing.draw, growing.draw.choice((1, 1, 2, 3))
    outputs: list[int] = []
    for value in growing.unread():
        if len(outputs) < n_wanted and draw.random() < 0.05:
            outputs.append(value)  # as it is
            continue
        head = _head(growing, value)
        partners = [k for k in outputs if growing.shape(k) == growing.shape(head)]
        if len(outputs) < n_wanted or not partners:
            outputs.append(head)
            continue
        partner = draw.choice(partners)
        growing.add("add", Net(lambda m, x, y: x + y), partner, head)
        outputs[outputs.index(partner)] = len(growing.values) - 1
    return outputs


def _head(growing: _Growing, value: int) -> int:
    """One layer or two over all that a value holds, or over the means of its channels.

    The first head has two: without any unit that can go a network shows nothing.
    """
    draw, shape = growing.draw, growing.shape(value)
    places = tuple(range(2, len(shape) + 1))
    is_later = any(step.name == "head" for step in growing.steps)
    is_pooled = bool(places) and draw.random() < 0.5
    n = shape[0] if is_pooled else int(torch.Size(shape).numel())
    layers = (
        nn.Linear(n, 3)
        if is_later and draw.random() < 0.5
        else nn.Sequential(nn.Linear(n, 6), nn.ReLU(), nn.Linear(6, 3))
    )
    head = Net(lambda m, x: m.head(x.mean(places) if is_pooled else x.flatten(1)), head=layers)
    return len(growing.values) - 1 if growing.add("head", head, value) else value
