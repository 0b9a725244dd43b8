"""The inputs of a loaded program beside what its file, and the user, say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from edgeprune.errors import InputError
from edgeprune.graph.capture import Program
from edgeprune.graph.openbatch import with_dynamic_batch
from edgeprune.graph.sizes import input_values
from edgeprune.graph.specs import InputSpec, input_specs
from edgeprune.records import InputInfo, ModelInfo


def checked_inputs(
    program: Program, info: ModelInfo, asked: tuple[int, ...] | None, named: Sequence[InputInfo] = ()
) -> tuple[Program, ModelInfo]:
    """The program with a dynamic batch, and its info with the input's shape, () where it has several inputs.

    Raises:
        InputError: what was asked for does not agree with both, or an input without a dynamic batch.
    """
    specs = input_specs(program)
    _check_named(specs, [info for info in named if not info.numbers])
    if len(specs) > 1:
        return program, _several(specs, info, asked)
    return _single(program, info, asked)


def check_none_settled(named: Sequence[InputInfo]) -> None:
    """Raise InputError where an input is to be a constant, of a network that is no ONNX file."""
    settled = [info.name for info in named if info.numbers]
    if settled:
        raise InputError(
            f"--input {settled[0]}=...:constant: expected an .onnx file, of which alone inputs become constants, got a "
            "network of PyTorch's; write the number into its forward"
        )


def with_data_inputs(asked: Sequence[InputInfo], of_data: Sequence[InputInfo]) -> tuple[InputInfo, ...]:
    """The inputs that are asked for, or those of the data; those that are to be constants come beside either."""
    return tuple(asked) if any(not info.numbers for info in asked) else (*asked, *of_data)


def _check_named(specs: Sequence[InputSpec], named: Sequence[InputInfo]) -> None:
    """Raise InputError where inputs are stated that the program does not have, or other ones."""
    if not named:
        return
    known = {spec.name: spec for spec in specs}
    if set(known) != {info.name for info in named}:
        raise InputError(f"--input: expected {', '.join(known)}, got {', '.join(info.name for info in named)}")
    for info in named:
        spec = known[info.name]
        if not _agree(spec, info):
            expected = _told(spec.shape[1:], str(spec.dtype).removeprefix("torch."))
            raise InputError(f"--input {info.name}: expected {expected}, got {_told(info.shape, info.dtype)}")


def _agree(spec: InputSpec, asked: InputInfo) -> bool:
    """Whether an input is asked for as it is: its type, and each size that is not free."""
    alike = asked.dtype == str(spec.dtype).removeprefix("torch.") or (asked.is_float and spec.dtype.is_floating_point)
    sizes = spec.shape[1:]
    return (
        alike
        and len(sizes) == len(asked.shape)
        and all(a in (None, b) for a, b in zip(sizes, asked.shape, strict=True))
    )


def _told(sizes: Sequence[int | None], dtype: str) -> str:
    """As --input takes it, e.g. "-1,64:float32"."""
    return f"{','.join('-1' if size is None else str(size) for size in sizes)}:{dtype}"


def _several(specs: Sequence[InputSpec], info: ModelInfo, asked: tuple[int, ...] | None) -> ModelInfo:
    names = ", ".join(spec.name for spec in specs)
    if asked is not None:
        raise InputError(f"expected --input NAME=SHAPE for each of {names}, got --input-shape {list(asked)}")
    fixed = next((spec for spec in specs if not spec.batched), None)
    if fixed is not None:
        raise InputError(
            f"expected a dynamic batch as the first size of each input ({names}), got {fixed.name} of fixed size "
            f"{list(fixed.example)}; export it with a dynamic batch"
        )
    return replace(info, input_shape=())


def _single(program: Program, info: ModelInfo, asked: tuple[int, ...] | None) -> tuple[Program, ModelInfo]:
    given = _one_tensor(program)
    shape = info.input_shape or asked or tuple(_hint(size) for size in given.shape[1:])
    if asked is not None and tuple(asked) != shape:
        raise InputError(f"expected inputs of shape {list(shape)}, got --input-shape {list(asked)}")
    if not _is_of_shape(given.shape[1:], shape):
        raise InputError(f"expected inputs of shape {[str(size) for size in given.shape[1:]]}, got {list(shape)}")
    if isinstance(given.shape[0], int):
        program = with_dynamic_batch(program, torch.zeros(given.shape[0], *shape, dtype=given.dtype))
    return program, replace(info, input_shape=shape)


def _one_tensor(program: Program) -> torch.Tensor:
    """What the program knows of its one input tensor."""
    tensors = [value for value in input_values(program) if isinstance(value, torch.Tensor)]
    if len(tensors) != 1 or tensors[0].dim() == 0:
        raise InputError(f"expected a network with one input tensor that has a batch, got {len(tensors)} input tensors")
    return tensors[0]


def _is_of_shape(sizes: torch.Size, shape: tuple[int, ...]) -> bool:
    """Whether a shape has these sizes, of which symbols may be anything."""
    pairs = zip(sizes, shape, strict=False)
    return len(shape) == len(sizes) and all(size == own for size, own in pairs if isinstance(size, int))


def _hint(size: int | torch.SymInt) -> int:
    hint = size if isinstance(size, int) else size.node.hint
    if hint is None:
        raise InputError("expected --input-shape, as the program leaves its sizes open, got none")
    return int(hint)
