"""Tiny networks whose inputs can be pruned through unusual first layers, and padding and shuffles of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tests.cases import IMAGE, between, conv
from tests.nets import Case, Net

TABLE = (10,)
GRID = (4, 6)
_MODES = ("reflect", "replicate", "circular")


def on_image(first: Callable[[], nn.Module], units: int, after: int = 8, **options: Any) -> Case:
    """`first` on an image of three channels, ReLU, the mean over positions, a linear layer."""
    make = lambda: Net(lambda m, x: m.head(m.f(x).relu().mean((2, 3))), f=first(), head=nn.Linear(after, 5))  # noqa: E731
    return Case(make, (IMAGE,), units, label_inputs=True, **options)


def on_table(first: Callable[[], nn.Module], units: int, **options: Any) -> Case:
    """`first` on ten columns, then two linear layers with 16 units between them."""
    make = lambda: nn.Sequential(first(), nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 5))  # noqa: E731
    return Case(make, (TABLE,), units, label_inputs=True, **options)


def over_both(m: Any, x: Tensor) -> Tensor:
    """A layer over the columns, one over the rows, and the mean over what the first one gives."""
    return m.head(m.rows(m.columns(x).transpose(1, 2)).mean(1))


def padded(amounts: tuple[int, ...], after: int, **options: Any) -> Callable[[], nn.Module]:
    return lambda: Net(lambda m, x: m.head(F.pad(x, amounts, **options).flatten(1)), head=nn.Linear(after, 5))


def transposed_then_padded() -> nn.Module:
    """Of the twelve channels of the first layer rows are made, which the padding repeats: they stay."""
    return Net(
        lambda m, x: m.head(m.b(m.a(x).transpose(1, 2)).mean((2, 3))),
        a=nn.Conv2d(3, 12, 1),
        b=nn.Conv2d(8, 12, 3, padding=1, padding_mode="reflect"),
        head=nn.Linear(12, 5),
    )


def shuffled(x: Tensor, groups: int = 3) -> Tensor:
    return x.reshape(-1, groups, x.shape[1] // groups).transpose(1, 2).reshape(-1, x.shape[1])


CASES: dict[str, Case] = {
    **{
        f"first convolution, padding {mode}": on_image(
            lambda mode=mode: nn.Conv2d(3, 8, 3, padding=1, padding_mode=mode), 3 + 8  # type: ignore[misc]
        )
        for mode in _MODES
    },
    "padding around an input, then a convolution": Case(
        lambda: Net(lambda m, x: m.head(m.f(F.pad(x, (1, 1, 2, 0))).relu().mean((2, 3))), f=nn.Conv2d(3, 8, 3),
                    head=nn.Linear(8, 5)), (IMAGE,), 11, label_inputs=True),
    "zeros around an input, flattened": Case(padded((1, 1, 1, 1), 300), (IMAGE,), 192, label_inputs=True),
    "ones around a cropped input, flattened": Case(
        padded((1, 1, -2, 1), 3 * 7 * 10, value=1.0), (IMAGE,), 3 * 6 * 8, label_inputs=True),
    "reflected around an input, flattened": Case(
        padded((2, 1, 1, 1), 330, mode="reflect"), (IMAGE,), 192, label_inputs=True),
    "columns repeated all round": Case(padded((3, 2), 44, mode="circular"), (GRID,), 24, label_inputs=True),
    "padding reflect after a transpose": Case(transposed_then_padded, (IMAGE,), 12),
    "channels cropped by a padding": Case(
        lambda: between(lambda m, x: F.pad(x, (0, 0, 0, 0, -2, -1)).relu(), after=5), (IMAGE,), 8),
    "channels shifted by a padding": Case(
        lambda: between(lambda m, x: F.pad(x, (0, 0, 0, 0, -2, 2)).relu()), (IMAGE,), 8),
    "channel shuffle of (n, c)": Case(
        lambda: Net(lambda m, x: m.b(shuffled(m.a(x).relu())), a=nn.Linear(6, 12), b=nn.Linear(12, 3)), ((6,),), 12),
    "shuffled columns": Case(
        lambda: Net(lambda m, x: m.b(m.a(shuffled(x)).relu()), a=nn.Linear(6, 12), b=nn.Linear(12, 3)), ((6,),), 18,
        label_inputs=True),
    "depthwise first, two outputs each": on_image(lambda: nn.Conv2d(3, 6, 1, groups=3), 3, after=6),
    "depthwise first": on_image(lambda: nn.Conv2d(3, 3, 3, padding=1, groups=3), 3, after=3),
    "grouped first": Case(
        lambda: Net(lambda m, x: m.head(m.f(x).relu().mean((2, 3))), f=nn.Conv2d(6, 8, 3, groups=2),
                    head=nn.Linear(8, 5)), ((6, 5, 5),), 7, label_inputs=True),
    "layer norm first": on_table(lambda: nn.LayerNorm(10), 26, exact=False),
    "layer norm without weights first": on_table(lambda: nn.LayerNorm(10, elementwise_affine=False), 26, exact=False),
    "RMS norm first": on_table(lambda: nn.RMSNorm(10), 26, exact=False),
    "group norm first, one group": on_table(lambda: nn.GroupNorm(1, 10), 26, exact=False),
    "group norm first, five groups": on_table(lambda: nn.GroupNorm(5, 10), 21),
    "batch norm first": on_table(lambda: nn.BatchNorm1d(10), 26),
    "group norm first on an image": on_image(lambda: nn.Sequential(nn.GroupNorm(1, 3), conv(3, 8)), 11, exact=False),
    "linear layers over both dims of an input": Case(
        lambda: Net(over_both, columns=nn.Linear(6, 6), rows=nn.Linear(4, 4), head=nn.Linear(4, 5)), (GRID,), 6 + 4,
        label_inputs=True),
    "chunks of an input": Case(
        lambda: Net(lambda m, x: m.a(x.chunk(2, 1)[0]).tanh() + m.b(x.chunk(2, 1)[1]), a=nn.Linear(5, 4),
                    b=nn.Linear(5, 4)), (TABLE,), 10, label_inputs=True),
    "units along another dim than the bias": Case(
        lambda: Net(over_both, columns=nn.Linear(6, 6), rows=nn.Linear(4, 4), head=nn.Linear(4, 5)), (GRID,), 4),
    "units along another dim than batch norm": Case(
        lambda: Net(lambda m, x: m.head(m.norm(m.a(x)).mean(2)), a=nn.Linear(6, 8), norm=nn.BatchNorm1d(4),
                    head=nn.Linear(4, 5)), (GRID,), 0),
}  # fmt: skip
