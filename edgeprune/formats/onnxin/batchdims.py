"""Inputs and outputs whose batch is not their first size, such as a recurrent state `(layers, batch, size)`.

A program has the batch first in every input: theirs are turned on the way in, and such outputs on the way out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx
from torch import Tensor

_RECURRENT, _PARTS = {"LSTM", "GRU", "RNN"}, {"Slice", "Split", "Identity", "Unsqueeze", "Squeeze", "Gather", "Cast"}
_FIRST_STATE, _PAST_STATES, _SECOND = 5, 7, 1  # among a recurrent layer's inputs; the batch among the state's dims


def batch_dims(graph: onnx.GraphProto, inputs: Sequence[onnx.ValueInfoProto]) -> dict[str, int]:
    """The dims that hold the batch where that is not the first, by the name of an input.

    The batch is the first size of the first input that has a free one, else of the first input. Where several sizes of
    another input are that number, it is the second of what a recurrent layer takes as its state. Of sizes without a
    name those of states alone are taken for it.
    """
    first, states = _first(inputs), _states(graph)
    batch = next(iter(_sizes(first)), None)
    others = [value for value in inputs if value is not first and (batch is not None or value.name in states)]
    return {value.name: dim for value in others if (dim := _place(_sizes(value), batch, value.name in states))}


def _first(inputs: Sequence[onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
    """The input that says what the batch is; numbers that are settings may stand before it."""
    return next((value for value in inputs if not isinstance(next(iter(_sizes(value)), 1), int)), inputs[0])


def _sizes(value: onnx.ValueInfoProto) -> list[int | str | None]:
    return [dim.dim_value or dim.dim_param or None for dim in value.type.tensor_type.shape.dim]


def _place(sizes: Sequence[int | str | None], batch: int | str | None, is_state: bool) -> int:
    places = [dim for dim, size in enumerate(sizes) if size == batch]
    if is_state and (_SECOND in places or _is_of_one_row(sizes)):
        return _SECOND
    return places[0] if len(places) == 1 else 0


def _is_of_one_row(sizes: Sequence[int | str | None]) -> bool:
    """Whether a state is one for a batch of 1, whatever batch the file states elsewhere."""
    return len(sizes) > _SECOND and sizes[_SECOND] == 1


def _states(graph: onnx.GraphProto) -> set[str]:
    """What recurrent layers with the steps first start from, or the parts of it for each are taken of."""
    nodes = list(_nodes(graph))
    makers = {name: node for node in nodes for name in node.output}
    waiting = [
        name
        for node in nodes
        if node.op_type in _RECURRENT and not any(a.name == "layout" and a.i for a in node.attribute)
        for name in node.input[_FIRST_STATE:_PAST_STATES]
    ]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        if name in makers:
            waiting += _sources(makers[name], name)
    return found


def _sources(maker: onnx.NodeProto, name: str) -> list[str]:
    """What a value is a part of: an If's, what each of its graphs gives."""
    if maker.op_type == "If":
        place = list(maker.output).index(name)
        return [attribute.g.output[place].name for attribute in maker.attribute if place < len(attribute.g.output)]
    return list(maker.input[:1]) if maker.op_type in _PARTS else []


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Those of a graph and of the graphs in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g)


def grown_outputs(before: Any, after: Any, names: Sequence[str]) -> dict[str, int]:
    """The dims of outputs, not the first, that alone are larger at another batch: all that a network gave, twice."""
    one, other = ([given[name] for name in names] if isinstance(given, dict) else [given] for given in (before, after))
    found = {}
    for name, a, b in zip(names, one, other, strict=True):
        dims = [dim for dim, (have, was) in enumerate(zip(b.shape, a.shape, strict=True)) if have != was]
        if len(dims) == 1 and dims[0]:
            found[name] = dims[0]
    return found


def as_in_file(x: Tensor, dim: int) -> Tensor:
    """A tensor with the batch first as the file has it."""
    return x.movedim(0, dim) if dim else x


def batch_first(x: Tensor, dim: int) -> Tensor:
    """A tensor of the file with its batch first."""
    return x.movedim(dim, 0) if dim else x


def notes(dims: Mapping[str, int], inputs: Iterable[str]) -> list[str]:
    """What is told of a file with such inputs."""
    turned = [f"{name} (dim {dims[name]})" for name in inputs if name in dims]
    if not turned:
        return []
    given = [name for name in dims if name not in set(inputs)]
    also = f", and so is that of the output {', '.join(given)}" if given else ""
    return [f"the batch of {', '.join(turned)} in the file is the first size here and in what is exported{also}"]
