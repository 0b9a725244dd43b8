"""What a reader sees and gives, row by row: one a sample and position, at positions that are drawn."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeprune.reconstruction.readers import Reader, Window


def drawn(n_all: int, n_wanted: int, seed: int) -> Tensor:
    """Which of `n_all` rows are looked at, ascending `(n,)`: all where there are no more than wanted."""
    if n_all <= n_wanted:
        return torch.arange(n_all)
    return torch.randperm(n_all, generator=torch.Generator().manual_seed(seed))[:n_wanted].sort().values


def n_rows(y: Tensor, reader: Reader) -> int:
    """How many rows a reader's output has."""
    return y.numel() // max(1, y.shape[-1 if reader.window is None else 1])


def outputs_at(y: Tensor, reader: Reader, index: Tensor) -> Tensor:
    """Rows of a reader's output `(n, n_outputs)`."""
    channels = y.movedim(-1 if reader.window is None else 1, -1)
    return channels.reshape(-1, channels.shape[-1])[index]


def inputs_at(x: Tensor, reader: Reader, index: Tensor) -> Tensor:
    """What each of these rows of the output is computed from, `(n, groups, inputs of a group times kernel offsets)`."""
    if reader.window is None:
        return x.reshape(-1, x.shape[-1])[index].unsqueeze(1)
    window = reader.window
    x = _padded(_stuffed(x, window), window)
    sizes = x.shape[2:]
    counts = [
        (size - step * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, step in zip(sizes, window.kernel, window.stride, window.dilation, strict=True)
    ]
    per_sample = math.prod(counts)
    sample, position = index // per_sample, index % per_sample
    places = _corner(position, counts, sizes, window)[:, None] + _offsets(sizes, window)[None]
    found = x.flatten(2).movedim(1, -1)[sample[:, None], places]  # (n, offsets, channels)
    grouped = found.reshape(*found.shape[:2], reader.groups, -1)
    return grouped.permute(0, 2, 3, 1).flatten(2)


def _stuffed(x: Tensor, window: Window) -> Tensor:
    """What a transposed convolution reads, with zeros between the positions, as a plain one then does."""
    if not window.is_transposed:
        return x
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], window.stuffing, strict=True)]
    wide = x.new_zeros(*x.shape[:2], *sizes)
    every = [slice(None), slice(None), *(slice(None, None, step) for step in window.stuffing)]
    wide[tuple(every)] = x
    return wide


def _padded(x: Tensor, window: Window) -> Tensor:
    """Padded by zeros; cut where a transposed convolution takes more away than its kernel reaches."""
    pairs = list(zip(window.before, window.after, strict=True))
    return F.pad(x, [size for pair in reversed(pairs) for size in pair])


def _strides(sizes: torch.Size) -> list[int]:
    return [math.prod(sizes[dim + 1 :]) for dim in range(len(sizes))]


def _corner(position: Tensor, counts: list[int], sizes: torch.Size, window: Window) -> Tensor:
    """The flat place of the first element of the window at each output position."""
    places = torch.zeros_like(position)
    for dim, step in enumerate(_strides(sizes)):
        along = position // math.prod(counts[dim + 1 :]) % counts[dim]
        places += along * window.stride[dim] * step
    return places


def _offsets(sizes: torch.Size, window: Window) -> Tensor:
    """How far each element of the window is from the first, flat `(offsets,)`."""
    found = torch.zeros(1, dtype=torch.int64)
    for dim, step in enumerate(_strides(sizes)):
        own = torch.arange(window.kernel[dim]) * window.dilation[dim] * step
        found = (found[:, None] + own[None]).flatten()
    return found


def inputs_of(x: Tensor) -> Tensor:
    """All that a convolution reads, position by position `(n, channels)`."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])
