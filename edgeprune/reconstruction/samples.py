"""What both networks are run on: a few samples, in pieces that can be held out one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from edgeprune.errors import InputError
from edgeprune.graph.sizes import arguments
from edgeprune.graph.specs import InputSpec, fitted, input_specs

_PIECE = 16  # samples that are run at once at most
_LEAST = 8  # pieces at least, where there are as many samples
_HELD_OUT = 4  # one piece of so many is held out, and one of fewer too
_WHAT = "reconstruct"

Piece = list[Any]  # the leaves of a network's inputs


def pieces(program: ExportedProgram, batches: Iterable[Any], n_samples: int) -> tuple[list[Piece], int]:
    """The first samples in pieces, and how many they are.

    Args:
        program: whose inputs they are.
        batches: of its inputs, as `prove` takes them.

    Raises:
        InputError: there are none, they are not the program's inputs, or not finite.
    """
    specs = input_specs(program)
    taken, count = _taken(specs, batches, n_samples)
    if all(spec.batched for spec in specs):
        size = max(1, min(_PIECE, count // _LEAST))
        taken = [part for tensors in taken for part in zip(*(t.split(size) for t in tensors), strict=True)]
    return [tree_leaves(arguments(program, tensors)) for tensors in taken], count


def period(n_pieces: int) -> int:
    """One piece of so many is held out, of those that there are."""
    return min(_HELD_OUT, n_pieces)


def is_held_out(number: int, every: int) -> bool:
    """Whether this piece is, where one of `every` so many is."""
    return number % every == every - 1


def _taken(specs: Sequence[InputSpec], batches: Iterable[Any], n_samples: int) -> tuple[list[tuple[Tensor, ...]], int]:
    """The first batches as tensors, no more samples than asked for where they can be told apart, and how many."""
    taken: list[tuple[Tensor, ...]] = []
    count = 0
    for batch in batches:
        tensors = fitted(specs, batch, _WHAT)
        if all(spec.batched for spec in specs):
            tensors = tuple(tensor[: n_samples - count] for tensor in tensors)
        _check_finite(tensors, len(taken))
        taken.append(tensors)
        count += next((len(tensor) for tensor, spec in zip(tensors, specs, strict=True) if spec.batched), 1)
        if count >= n_samples:
            return taken, count
    if not taken:
        raise InputError(f"{_WHAT}: expected at least one batch, got none")
    return taken, count


def _check_finite(tensors: tuple[Tensor, ...], number: int) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise InputError(f"{_WHAT}: expected finite inputs, got NaN or infinity in batch {number}")
