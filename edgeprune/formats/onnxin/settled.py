"""Inputs that are settings rather than data, such as a sampling rate: with the numbers that are stated, constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.formats.onnxin.network import argument_names
from edgeprune.formats.onnxin.nodes import Graph, Input
from edgeprune.lines import shown
from edgeprune.records import InputInfo


def with_settled(graph: Graph, named: Sequence[InputInfo]) -> Graph:
    """The graph without the inputs whose numbers are stated, which are constants of it.

    Raises:
        InputError: no such input, numbers that do not fill it or that its type has not, or no input that is left.
    """
    stated = {info.name: info.numbers for info in named if info.numbers}
    given = dict(zip(argument_names(graph), graph.inputs, strict=True))
    unknown = [name for name in stated if name not in given]
    if unknown:
        raise InputError(f"--input: expected one of {', '.join(given)}, got {', '.join(unknown)}")
    settled = {given[name].name: _filled(given[name], numbers) for name, numbers in stated.items()}
    left = tuple(one for one in graph.inputs if one.name not in settled)
    if not left:
        raise InputError("--input: expected an input that stays one, got numbers for all of them")
    return replace(graph, inputs=left, constants={**graph.constants, **settled}, settled=settled)


def _filled(given: Input, numbers: Sequence[float]) -> Tensor:
    """The input as it is in the file: the batch, if it has one, where it is there."""
    shape = list(given.sizes)
    if shape:
        shape.insert(given.batch_dim, shape.pop(0))
    known = torch.Size(size for size in shape if size is not None).numel()
    sizes = [size if size is not None else len(numbers) // max(known, 1) for size in shape]
    tensor = torch.tensor(numbers, dtype=torch.float64).to(given.dtype)
    where = f"input {shown(given.name)}"
    if shape.count(None) > 1 or torch.Size(sizes).numel() != len(numbers):
        told = ", ".join("*" if size is None else str(size) for size in given.sizes)
        raise InputError(f"{where}: expected numbers for a shape of ({told}), got {len(numbers)}")
    other = [number for number, own in zip(numbers, tensor.tolist(), strict=True) if own != number]
    if other and not given.dtype.is_floating_point:
        raise InputError(f"{where}: expected numbers of type {str(given.dtype).removeprefix('torch.')}, got {other[0]}")
    return tensor.reshape(torch.Size(sizes))


def told_of(graph: Graph) -> list[str]:
    """What is told of a graph with such inputs."""
    return [
        f"{name} is {', '.join(f'{number:g}' for number in tensor.flatten().tolist())} for good: what is exported has "
        "no such input"
        for name, tensor in graph.settled.items()
    ]
