"""Inputs and outputs whose batch is not their first size, such as a recurrent state `(layers, batch, size)`.

A program has the batch first in every input: theirs are turned on the way in, and such outputs on the way out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx
from torch import Tensor


def batch_dims(inputs: Sequence[onnx.ValueInfoProto], outputs: Iterable[onnx.ValueInfoProto]) -> dict[str, int]:
    """The dims that hold the batch where that is not the first, by the name of an input or an output.

    The batch is the first size of the first input, a number or a name, which one other dim has then. Outputs are
    looked at where an input has it elsewhere.
    """
    batch = next(iter(_sizes(inputs[0])), None)
    if batch is None:
        return {}
    found = {value.name: dim for value in inputs if (dim := _place(_sizes(value), batch))}
    return {**found, **{value.name: dim for value in outputs if found and (dim := _place(_sizes(value), batch))}}


def _sizes(value: onnx.ValueInfoProto) -> list[int | str | None]:
    return [dim.dim_value or dim.dim_param or None for dim in value.type.tensor_type.shape.dim]


def _place(sizes: Sequence[int | str | None], batch: int | str) -> int:
    places = [dim for dim, size in enumerate(sizes) if size == batch]
    return places[0] if len(places) == 1 else 0


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
