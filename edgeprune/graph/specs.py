"""Inputs that a caller gives for a program, as tensors of its types with their shapes checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.utils._pytree import tree_leaves, tree_unflatten

from edgeprune.errors import InputError
from edgeprune.graph.sizes import size_hint


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input tensor of a program: `shape` has None where a size is free; dim 0 is the batch.

    `example` is the shape that it was captured with.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    example: tuple[int, ...]

    @property
    def batched(self) -> bool:
        """Whether the first dim is free."""
        return bool(self.shape) and self.shape[0] is None


def input_specs(program: ExportedProgram) -> tuple[InputSpec, ...]:
    """The input tensors of a program, in order."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    return tuple(
        InputSpec(
            spec.arg.name,
            tuple(int(size) if isinstance(size, int) else None for size in values[spec.arg.name].shape),
            values[spec.arg.name].dtype,
            tuple(size_hint(size) for size in values[spec.arg.name].shape),
        )
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument)
    )


def file_inputs(program: ExportedProgram) -> list[str]:
    """The names that inputs have in a file: `input` for a single one, else their own."""
    specs = input_specs(program)
    return ["input"] if len(specs) == 1 else [spec.name for spec in specs]


def output_names(program: ExportedProgram) -> list[str]:
    """`logits` for a single output, the keys of a dict (not an input's name), else `output_0, output_1, ...`.

    What is no tensor has none, as no file can give it.
    """
    given = [spec.arg for spec in program.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    if len(given) == 1:
        return ["logits"]
    tree = tree_unflatten(list(range(len(given))), program.call_spec.out_spec)
    names = [f"output_{index}" for index in range(len(given))]
    if isinstance(tree, Mapping) and list(tree.values()) == list(range(len(given))):
        inputs = file_inputs(program)
        names = [f"output_{key}" if str(key) in inputs else str(key) for key in tree]
    return [name for name, arg in zip(names, given, strict=True) if isinstance(arg, TensorArgument)]


def fitted(specs: Sequence[InputSpec], inputs: Any, what: str) -> tuple[Tensor, ...]:
    """The caller's inputs as tensors of the program's types.

    Args:
        specs: the inputs of the program.
        inputs: array or tensor `(n, ...)` for a program with one input, a sequence of them (lists and dicts among them
            count as their tensors), or a dict by the inputs' names.
        what: they are for, which begins every message.

    Raises:
        InputError: another number of them, a name, shape or type that is not the program's, or batches that differ.
    """
    values = _in_order(specs, inputs, what)
    if len(values) != len(specs):
        names = ", ".join(spec.name for spec in specs)
        raise InputError(f"{what}: expected {_arrays(len(specs))} ({names}), got {len(values)}")
    tensors = tuple(_fitted(value, spec, what) for value, spec in zip(values, specs, strict=True))
    rows = {spec.name: len(tensor) for tensor, spec in zip(tensors, specs, strict=True) if spec.batched}
    if len(set(rows.values())) > 1:
        got = ", ".join(f"{count} of {name}" for name, count in rows.items())
        raise InputError(f"{what}: expected as many rows of each input, got {got}")
    return tensors


def _arrays(count: int) -> str:
    return "1 array" if count == 1 else f"{count} arrays"


def _in_order(specs: Sequence[InputSpec], inputs: Any, what: str) -> list[Any]:
    if isinstance(inputs, (np.ndarray, Tensor)):
        return [inputs]
    names = [spec.name for spec in specs]
    if isinstance(inputs, Mapping) and any(name in names for name in inputs):
        if set(inputs) != set(names):
            raise InputError(f"{what}: expected {', '.join(names)}, got {', '.join(map(str, inputs))}")
        return [inputs[name] for name in names]
    return [leaf for leaf in tree_leaves(inputs) if not isinstance(leaf, int | float | str | None)]


def _fitted(value: Any, spec: InputSpec, what: str) -> Tensor:
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what}: {spec.name}: expected an array or tensor, got {type(value).__name__}") from error
    fits = tensor.dim() == len(spec.shape) and all(
        want in (None, got) for want, got in zip(spec.shape, tensor.shape, strict=True)
    )
    if not fits or 0 in tensor.shape:
        want = "(" + ", ".join("*" if size is None else str(size) for size in spec.shape) + ")"
        raise InputError(f"{what}: {spec.name}: expected {want}, got {tuple(tensor.shape)}")
    if not torch.can_cast(tensor.dtype, spec.dtype):
        raise InputError(f"{what}: {spec.name}: expected {_name(spec.dtype)}, got {_name(tensor.dtype)}")
    return tensor.to(spec.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
