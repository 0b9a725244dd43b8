"""Groupers: which weights form a group and so vanish together.

A grouper knows no tensors. `bind` gives it the weights that are being trained; the `Groups` that come back measure
every group and spread one number a group over its weights. The interface is the same where a group lies within one
tensor (element, kernel, output channel, input column) and where it runs over several (`ChannelGroups`), so every
optimizer takes every grouper. A *block* is a set of groups that are compared with each other: those of one tensor, or
the units of one channel group.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from edgeprune.errors import InputError


class Groups(Protocol):
    """The groups of given weights."""

    @property
    def blocks(self) -> Sequence[str]:
        """A name for each block; unique among those with the same owner."""

    @property
    def owners(self) -> Sequence[int]:
        """For each block the position of the weight in whose state its numbers are kept."""

    @property
    def sizes(self) -> Sequence[float | Tensor]:
        """For each block how many weights a group has: a number, or a tensor shaped as `norms` shapes it."""

    def norms(self, weights: Sequence[Tensor], order: int) -> list[Tensor]:
        """For each block the l1 (`order` 1) or l2 (`order` 2) norms of its groups, a float tensor of any one shape."""

    def spread_sum(self, values: Sequence[Tensor]) -> list[Tensor | None]:
        """For each weight a tensor that broadcasts to it: the sum of the values of the groups an element is in.

        None for a weight in no group. `values` are shaped as `norms` shapes them.
        """

    def spread_product(self, values: Sequence[Tensor]) -> list[Tensor | None]:
        """As `spread_sum`, with the product."""


@runtime_checkable
class Grouper(Protocol):
    """Which weights form a group."""

    @property
    def name(self) -> str:
        """What a state dict and a report call it; two groupers of one name group alike."""

    @property
    def across(self) -> bool:
        """Whether a group runs over several tensors, which then have to be seen together."""

    def covers(self, name: str | None, weight: Tensor) -> bool:
        """Whether any group has a part in this parameter; the others are never thresholded."""

    def bind(self, names: Sequence[str | None], weights: Sequence[Tensor]) -> Groups:
        """The groups of these weights, all of them covered."""


@dataclass(frozen=True, slots=True, eq=False)
class TensorGroups:
    """Groups within each tensor: one for every index of the dims that are not summed over."""

    dims: tuple[tuple[int, ...], ...]
    sizes: tuple[float, ...]

    @property
    def blocks(self) -> Sequence[str]:
        """One block a weight; it needs no name."""
        return [""] * len(self.dims)

    @property
    def owners(self) -> Sequence[int]:
        """Every weight keeps its own."""
        return range(len(self.dims))

    def norms(self, weights: Sequence[Tensor], order: int) -> list[Tensor]:
        """Shaped as the weight, with size 1 in the dims that a group spans."""
        return [_norm(weight, order, dims) for weight, dims in zip(weights, self.dims, strict=True)]

    def spread_sum(self, values: Sequence[Tensor]) -> list[Tensor | None]:
        """The values themselves: each element is in one group."""
        return list(values)

    def spread_product(self, values: Sequence[Tensor]) -> list[Tensor | None]:
        """The values themselves: each element is in one group."""
        return list(values)


def _norm(weight: Tensor, order: int, dims: tuple[int, ...]) -> Tensor:
    if not dims:
        return weight.abs()
    if order == 1:
        return weight.abs().sum(dims, keepdim=True)
    return weight.square().sum(dims, keepdim=True).sqrt_()


class _WithinTensors:
    """What the groupers within tensors share. Parameters of less than two dims are in no group."""

    across = False

    def covers(self, name: str | None, weight: Tensor) -> bool:
        """Every weight of two dims or more."""
        return weight.dim() > 1

    def bind(self, names: Sequence[str | None], weights: Sequence[Tensor]) -> Groups:
        """The groups of these weights."""
        dims = tuple(self.spanned(name, weight) for name, weight in zip(names, weights, strict=True))
        sizes = [_product(weight, spanned) for weight, spanned in zip(weights, dims, strict=True)]
        return TensorGroups(dims, tuple(sizes))

    def spanned(self, name: str | None, weight: Tensor) -> tuple[int, ...]:
        """The dims that one group spans."""
        raise NotImplementedError


def _product(weight: Tensor, dims: tuple[int, ...]) -> float:
    size = 1
    for dim in dims:
        size *= weight.shape[dim]
    return float(size)


@dataclass(frozen=True, slots=True)
class Element(_WithinTensors):
    """Every weight is a group: unstructured sparsity."""

    name = "element"

    def spanned(self, name: str | None, weight: Tensor) -> tuple[int, ...]:
        """None: a group is one element."""
        return ()


@dataclass(frozen=True, slots=True)
class Kernel(_WithinTensors):
    """Every kernel of a convolution `(out, in, *kernel)` is a group; of a linear layer every weight."""

    name = "kernel"

    def spanned(self, name: str | None, weight: Tensor) -> tuple[int, ...]:
        """What comes behind the two channel dims."""
        return tuple(range(2, weight.dim()))


@dataclass(frozen=True, slots=True)
class OutputChannel(_WithinTensors):
    """Everything that makes one output channel (a row of a linear layer) is a group.

    A tensor does not tell that it belongs to a transposed convolution, whose weight is `(in, out, *kernel)`: dim 0 is
    taken for the output unless the weight's name is in `transposed` (see `transposed_weights`), which needs named
    parameters. In a grouped transposed convolution dim 1 counts the channels within a convolution group, which then
    vanish at the same offset of every group.
    """

    transposed: frozenset[str] = frozenset()
    name = "channel"

    def spanned(self, name: str | None, weight: Tensor) -> tuple[int, ...]:
        """All but the output dim."""
        return _all_but(weight, 1 if name in self.transposed else 0)


@dataclass(frozen=True, slots=True)
class InputColumn(_WithinTensors):
    """Everything that reads one input feature of a linear layer, or one input channel of a convolution, is a group.

    Of a grouped convolution dim 1 counts the channels within a convolution group, so a group is the same offset in all
    of them. Where that dim has size 1 (depthwise, one colour channel) there is nothing to choose from and the weight is
    left alone. Names in `transposed` have their input in dim 0.
    """

    transposed: frozenset[str] = frozenset()
    name = "input-column"

    def covers(self, name: str | None, weight: Tensor) -> bool:
        """Every weight with several inputs."""
        return weight.dim() > 1 and weight.shape[self._dim(name)] > 1

    def spanned(self, name: str | None, weight: Tensor) -> tuple[int, ...]:
        """All but the input dim."""
        return _all_but(weight, self._dim(name))

    def _dim(self, name: str | None) -> int:
        return 0 if name in self.transposed else 1


def _all_but(weight: Tensor, dim: int) -> tuple[int, ...]:
    return tuple(other for other in range(weight.dim()) if other != dim)


def transposed_weights(module: nn.Module) -> frozenset[str]:
    """The names of the weights of transposed convolutions, for the groupers' `transposed`."""
    layers = (name for name, layer in module.named_modules() if isinstance(layer, _ConvTransposeNd))
    return frozenset(f"{name}.weight" if name else "weight" for name in layers)


_NAMED: dict[str, Grouper] = {g.name: g for g in (Element(), Kernel(), OutputChannel(), InputColumn())}


def grouper(structure: str | Grouper, allowed: Collection[str] = tuple(_NAMED)) -> Grouper:
    """The grouper of a name, or the grouper itself.

    Raises:
        InputError: neither one of the names in `allowed` nor a grouper.
    """
    if isinstance(structure, str) and structure in allowed:
        return _NAMED[structure]
    if isinstance(structure, str) or not isinstance(structure, Grouper):
        raise InputError(f"structure: expected {', '.join(allowed)} or a grouper, got {structure!r}")
    return structure
