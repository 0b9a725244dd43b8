"""The readers of a network: its linear layers and convolutions, whose weights a linear solve can choose anew."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from edgeprune.graph import binding
from edgeprune.graph.call import Call
from edgeprune.graph.ops.contraction import is_transposed
from edgeprune.graph.ops.registry import Kind, kind_of


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Where a convolution looks: one number a spatial dim each; `before` and `after` is what is padded."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    stuffing: tuple[int, ...]

    @property
    def is_transposed(self) -> bool:
        """Whether zeros are put between the positions of what is read."""
        return any(step > 1 for step in self.stuffing)


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A call with a weight of its own: its input, the names of its weight and bias, and how it goes over positions.

    A linear layer has no `window`. `has_free_mean` tells that what follows takes the mean of every output channel out,
    as batch norm does.
    """

    node: fx.Node
    source: fx.Node
    weight: str
    bias: str | None
    added: fx.Node | None
    groups: int = 1
    window: Window | None = None
    transposed: bool = False
    has_free_mean: bool = False

    @property
    def is_centred(self) -> bool:
        """Whether the mean of the outputs is free: of the bias, or of what follows."""
        return self.bias is not None or self.has_free_mean

    def matrix(self, weight: Tensor) -> Tensor:
        """A weight as `(groups, inputs of a group times kernel offsets, outputs of a group)`."""
        if self.window is None:
            return weight.t().unsqueeze(0)
        kernel = self.window.kernel
        if self.transposed:  # (in, out / groups, *kernel): the window runs backwards
            flipped = weight.flip(tuple(range(2, weight.dim())))
            per_group = flipped.reshape(self.groups, -1, weight.shape[1], *kernel)
            return per_group.movedim(2, -1).reshape(self.groups, -1, weight.shape[1])
        per_group = weight.reshape(self.groups, -1, weight.shape[1], *kernel)
        return per_group.movedim(1, -1).reshape(self.groups, -1, per_group.shape[1])

    def weight_of(self, matrix: Tensor, like: Tensor) -> Tensor:
        """The weight whose `matrix` this is, in the shape of `like`."""
        if self.window is None:
            return matrix[0].t()
        kernel = self.window.kernel
        if self.transposed:
            n_in = like.shape[0] // self.groups
            whole = matrix.reshape(self.groups, n_in, *kernel, -1).movedim(-1, 2).reshape(like.shape)
            return whole.flip(tuple(range(2, like.dim())))
        per_group = matrix.reshape(self.groups, like.shape[1], *kernel, -1).movedim(-1, 1)
        return per_group.reshape(like.shape)


def readers_of(module: fx.GraphModule) -> dict[str, Reader]:
    """The readers of a network by the name of their weight, in the order of the graph.

    A weight that several calls read, or that is computed, has none: it cannot be chosen for one of them.
    """
    tensors = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    uses = Counter(
        tensors[str(node.target)].data_ptr()
        for node in module.graph.find_nodes(op="get_attr")
        if str(node.target) in tensors
        for _ in node.users
    )
    own = {name for name, tensor in tensors.items() if uses[tensor.data_ptr()] == 1}
    found = (_reader(node, own) for node in module.graph.nodes if node.op == "call_function")
    return {reader.weight: reader for reader in found if reader is not None}


def _reader(node: fx.Node, own: set[str]) -> Reader | None:
    kind = kind_of(node.target)
    if kind not in (Kind.LINEAR, Kind.CONVOLUTION):
        return None
    call = binding.bind(node, lambda value: value)
    source, weight, bias = call["input"], call["weight"], call.get("bias")
    if not isinstance(source, fx.Node) or not _is_own(weight, own) or (_is_read(bias) and not _is_own(bias, own)):
        return None
    rank, n_in = len(binding.shape_of(weight.meta["val"])), len(binding.shape_of(source.meta["val"]))
    name = str(bias.target) if _is_read(bias) else None
    reader = Reader(node, source, str(weight.target), name, bias, has_free_mean=_is_normalised(node, bias))
    if kind is Kind.LINEAR:
        return reader if rank == 2 else None
    return _convolution(reader, call) if n_in == rank else None


def _is_read(node: fx.Node | None) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def _is_own(node: fx.Node | None, own: set[str]) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr" and str(node.target) in own


def _is_normalised(node: fx.Node, bias: fx.Node | None) -> bool:
    """Whether batch norm alone reads what the node gives."""
    return bias is None and all(user.target is torch.ops.aten.batch_norm.default for user in node.users)


def _convolution(reader: Reader, call: Call) -> Reader | None:
    shape = binding.shape_of(call["weight"].meta["val"])
    kernel = shape[2:]
    n_dims = len(kernel)
    stride, dilation = (_per_dim(call.get(name, 1), n_dims) for name in ("stride", "dilation"))
    reach = tuple(step * (size - 1) for step, size in zip(dilation, kernel, strict=True))
    transposed, groups = is_transposed(call), int(call.get("groups", 1))
    ones = (1,) * n_dims
    if transposed:
        padding, extra = (_per_dim(call.get(name, 0), n_dims) for name in ("padding", "output_padding"))
        before = tuple(whole - cut for whole, cut in zip(reach, padding, strict=True))
        after = tuple(low + more for low, more in zip(before, extra, strict=True))
        window = Window(kernel, ones, dilation, before, after, stride)
    else:
        before, after = _padded(call.get("padding", 0), reach)
        window = Window(kernel, stride, dilation, before, after, ones)
    return Reader(
        reader.node, reader.source, reader.weight, reader.bias, reader.added, groups, window, transposed,
        reader.has_free_mean,
    )  # fmt: skip


def _padded(padding: int | str | Sequence[int], reach: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if padding == "same":
        before = tuple(total // 2 for total in reach)
        return before, tuple(total - low for total, low in zip(reach, before, strict=True))
    sizes = _per_dim(0 if isinstance(padding, str) else padding, len(reach))
    return sizes, sizes


def _per_dim(value: int | Sequence[int], n_dims: int) -> tuple[int, ...]:
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return tuple(itertools.islice(itertools.cycle(numbers), n_dims)) if len(numbers) == 1 else numbers
