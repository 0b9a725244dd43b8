"""How a batch's inputs are held, moved, normalised and fed to a network: the one place that knows.

A network with one input takes a tensor `(batch, ...)`. Named inputs are held as a dict of such tensors, by the names
that the inputs have in the program, or in the module's forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_unflatten

from edgeprune.errors import InputError
from edgeprune.graph.owninputs import spared
from edgeprune.records import Normalization

Inputs = Tensor | Mapping[str, Tensor]
Arrays = np.ndarray | dict[str, np.ndarray]
FloatTypes = torch.dtype | Mapping[str, torch.dtype]  # of all inputs of floats, or of each by its name


def prepared(raw: Inputs, normalization: Normalization, device: torch.device, dtype: FloatTypes) -> Inputs:
    """Raw inputs as a network takes them: on its device, floats in its type and normalised.

    Whole numbers and truth values among named inputs stay what they are.
    """
    if isinstance(raw, Tensor):
        return normalize(raw.to(device, _type_of(raw, dtype)), normalization)
    return {name: _prepared(x, normalization.of(name), device, _type_of(x, dtype, name)) for name, x in raw.items()}


def _type_of(x: Tensor, types: FloatTypes, name: str = "") -> torch.dtype:
    """The type that one input is to have; its own where nobody states it."""
    return types if isinstance(types, torch.dtype) else types.get(name, x.dtype)


def _prepared(x: Tensor, normalization: Normalization | None, device: torch.device, dtype: torch.dtype) -> Tensor:
    if not x.is_floating_point():
        return x.to(device)
    x = x.to(device, dtype)
    return x if normalization is None else normalize(x, normalization)


def normalize(x: Tensor, normalization: Normalization) -> Tensor:
    """`(x - mean) / std` with mean and std along their dim of the batch `x` `(batch, ...)`; one value serves all.

    Of single numbers `(batch,)` there is one mean and std.

    Raises:
        InputError: neither 1 nor as many values as that dim has indices.
    """
    width = size_along(normalization.dim, tuple(x.shape[1:]))
    for name, values in (("mean", normalization.mean), ("std", normalization.std)):
        if len(values) not in (1, width):
            raise InputError(
                f"normalisation: expected 1 or {width} values of {name} for inputs {tuple(x.shape[1:])}, "
                f"got {len(values)}"
            )
    mean, std = (
        torch.tensor(values, dtype=x.dtype, device=x.device).reshape(
            spread_shape(len(values), normalization.dim, x.dim())
        )
        for values in (normalization.mean, normalization.std)
    )
    return (x - mean) / std


def size_along(dim: int, shape: Sequence[int | None]) -> int:
    """How many values a normalisation along `dim` has for inputs of this shape, without the batch; 1 where none fit."""
    size = shape[dim - 1] if dim <= len(shape) else None
    return 1 if size is None else size


def spread_shape(count: int, dim: int, n_dims: int) -> tuple[int, ...]:
    """The shape that lets `count` values along `dim` meet a batch of `n_dims` dims, e.g. 6 along 2 of 3 `(1, 1, 6)`."""
    return (1,) * (n_dims - 1) + (count,) if count == 1 else (1,) * dim + (count,) + (1,) * (n_dims - dim - 1)


def fed(module: nn.Module, inputs: Inputs) -> Any:
    """What a network gives out for inputs as it takes them, which stay as they are; named ones go in by name."""
    if isinstance(inputs, Tensor) or isinstance(module, fx.GraphModule):
        return module(*spared(module, arguments_of(module, inputs)))
    [own] = spared(module, [dict(inputs)])
    return module(**own)


def arguments_of(graph: nn.Module, inputs: Inputs) -> tuple[Any, ...]:
    """Inputs as the positional arguments of an exported graph; what is no tensor is as it was captured with."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    assert isinstance(graph, fx.GraphModule)
    places = graph.graph.find_nodes(op="placeholder")
    leaves = [inputs[node.name] if node.name in inputs else node.meta.get("val") for node in places]
    codegen: Any = graph.graph._codegen
    args: tuple[Any, ...] = tree_unflatten(leaves, codegen.pytree_info.in_spec)[0]
    return args


def changed(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Each input, changed."""
    return change(inputs) if isinstance(inputs, Tensor) else {name: change(x) for name, x in inputs.items()}


def one_tensor(inputs: Inputs, what: str) -> Tensor:
    """The one input without a name; raises InputError for named ones, which `what` does not take."""
    if isinstance(inputs, Tensor):
        return inputs
    raise InputError(f"{what}: expected data with one input x, got inputs by name ({', '.join(inputs)})")


def first_of(inputs: Inputs) -> Tensor:
    """One of the inputs, which tells the size of the batch and the device."""
    return inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))


def stacked(samples: Sequence[Any]) -> Inputs:
    """The inputs of samples as those of a batch: float32, or named tensors of their own types.

    Raises:
        InputError: shapes that differ from sample to sample.
    """
    if not isinstance(samples[0], Mapping):
        return torch.stack([torch.as_tensor(one, dtype=torch.float32) for one in samples])
    return {name: _stacked(name, [sample[name] for sample in samples]) for name in samples[0]}


def _stacked(name: str, tensors: Sequence[Tensor]) -> Tensor:
    shapes = sorted({tuple(x.shape) for x in tensors})
    if len(shapes) > 1:
        raise InputError(f"input {name}: expected one shape for all samples, got {shapes[0]} and {shapes[1]}")
    return torch.stack(list(tensors))


def joined(parts: Sequence[Inputs]) -> Inputs:
    """The inputs of several batches, one after the other."""
    named = [part for part in parts if not isinstance(part, Tensor)]
    if not named:
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    return {name: torch.cat([part[name] for part in named]) for name in named[0]}


def as_arrays(inputs: Inputs) -> Arrays:
    """The same in numpy.

    Raises:
        InputError: they are bfloat16, which neither numpy nor onnxruntime takes.
    """
    tensors = [inputs] if isinstance(inputs, Tensor) else list(inputs.values())
    if any(tensor.dtype is torch.bfloat16 for tensor in tensors):
        raise InputError("inputs: expected a type that numpy has, got bfloat16: convert the network with model.float()")
    return inputs.numpy() if isinstance(inputs, Tensor) else {name: x.numpy() for name, x in inputs.items()}
