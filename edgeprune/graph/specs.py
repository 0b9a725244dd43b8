"""The inputs of a network: which it takes, what a caller gives for them, checked and in its types, and all in batches.

One rule says what fits, whether the network is a program or an ONNX file: a size that is not free is as stated, each
input has as many rows, and a number stays what it is: integers may become floats, and floats narrower ones, but floats
become no integers. What data sets hold as floats is converted exactly or refused. `drawn.py` draws what is not given.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.utils._pytree import tree_leaves

from edgeprune.errors import InputError
from edgeprune.graph.containers import held
from edgeprune.graph.sizes import FILE_INPUT, size_hint

BATCHES = (1, 3, 7)  # a batch size that was baked into a graph survives at most one of these
_CHUNK = 256
_CHUNK_ELEMENTS = 2**22  # keeps the activations of a large image network in memory


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input tensor of a program or a file: `shape` has None where a size is free; dim 0 is the batch.

    `example` is the shape that a program was captured with; a file has none.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    example: tuple[int, ...] = ()

    @property
    def batched(self) -> bool:
        """Whether the first dim is free."""
        return bool(self.shape) and self.shape[0] is None

    @property
    def array_type(self) -> np.dtype[Any]:
        """Its type in numpy; raises InputError where numpy has none."""
        try:
            return torch.zeros(0, dtype=self.dtype).numpy().dtype
        except TypeError as error:
            raise InputError(
                f"{self.name}: expected an input of a type that numpy has, got {_name(self.dtype)}"
            ) from error


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
    return [FILE_INPUT] if len(specs) == 1 else [spec.name for spec in specs]


def output_names(program: ExportedProgram) -> list[str]:
    """`logits` for a single output, the keys of a dict, else `output_0, output_1, ...`; no two, and no input's.

    What is no tensor has none, as no file can give it.
    """
    given = [spec.arg for spec in program.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    if len(given) == 1:
        names = ["logits"]
    else:
        names = _keys(program, len(given)) or [f"output_{index}" for index in range(len(given))]
    names = _unique(names, file_inputs(program))
    return [name for name, arg in zip(names, given, strict=True) if isinstance(arg, TensorArgument)]


def _keys(program: ExportedProgram, count: int) -> list[str]:
    """The keys of a flat dict of outputs; empty where the outputs are no such dict."""
    tree = held(program.call_spec.out_spec, range(count))
    if not isinstance(tree, Mapping) or list(tree.values()) != list(range(count)):
        return []
    return [str(key) for key in tree]


def _unique(names: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """The names of outputs, those that are an input's or another output's under others, e.g. `output_x`."""
    found: list[str] = []
    for name in names:
        others = itertools.chain([f"output_{name}"], (f"{name}_{number}" for number in itertools.count(2)))
        taken = {*inputs, *found}
        own = name if name not in taken else next(one for one in others if one not in {*taken, *names})
        found.append(own)
    return found


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
    tensors = fitted_apart(specs, inputs, what)
    rows = {spec.name: len(tensor) for tensor, spec in zip(tensors, specs, strict=True) if spec.batched}
    if len(set(rows.values())) > 1:
        got = ", ".join(f"{count} of {name}" for name, count in rows.items())
        raise InputError(f"{what}: expected as many rows of each input, got {got}")
    return tensors


def fitted_apart(specs: Sequence[InputSpec], inputs: Any, what: str) -> tuple[Tensor, ...]:
    """The same where inputs may have numbers of rows of their own."""
    values = _in_order(specs, inputs, what)
    if len(values) != len(specs):
        names = ", ".join(spec.name for spec in specs)
        raise InputError(f"{what}: expected {_arrays(len(specs))} ({names}), got {len(values)}")
    return tuple(_fitted(value, spec, what) for value, spec in zip(values, specs, strict=True))


def exactly(array: np.ndarray, spec: InputSpec, what: str) -> np.ndarray:
    """What a data set holds, floats whatever it stands for, in the type of an input.

    Raises:
        InputError: the input takes integers, and there are numbers that are none of its type's.
    """
    with np.errstate(invalid="ignore"):  # what is out of range shows below
        taken = array.astype(spec.array_type, copy=False)
    if taken.dtype.kind in "iub" and not np.array_equal(taken, array):
        raise InputError(
            f"{what}: {spec.name}: expected numbers of {_name(spec.dtype)}, got others, e.g. "
            f"{array[taken != array].flat[0]:g}"
        )
    return taken


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
    tensor = _as_tensor(value, spec, what)
    if not fits(spec.shape, tensor.shape) or 0 in tensor.shape:
        want = "(" + ", ".join("*" if size is None else str(size) for size in spec.shape) + ")"
        raise InputError(f"{what}: {spec.name}: expected {want}, got {tuple(tensor.shape)}")
    if not torch.can_cast(tensor.dtype, spec.dtype):
        raise InputError(f"{what}: {spec.name}: expected {_name(spec.dtype)}, got {_name(tensor.dtype)}")
    return tensor.to(spec.dtype)


def _as_tensor(value: Any, spec: InputSpec, what: str) -> Tensor:
    try:
        if isinstance(value, np.ndarray):  # torch takes no other order of bytes, no steps backwards, and writes
            value = np.require(value, value.dtype.newbyteorder("="), ["C", "W"])
        return torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        expected = "an array or tensor" if not isinstance(value, np.ndarray) else _name(spec.dtype)
        got = type(value).__name__ if not isinstance(value, np.ndarray) else value.dtype
        raise InputError(f"{what}: {spec.name}: expected {expected}, got {got}") from error


def fits(stated: Sequence[int | None], got: Sequence[int]) -> bool:
    """Whether sizes are those that are stated, where None is any."""
    return len(stated) == len(got) and all(want in (None, have) for want, have in zip(stated, got, strict=True))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# -- in batches -------------------------------------------------------------------------------------------------------


def batches_of(
    tensors: Sequence[Tensor], specs: Sequence[InputSpec], sizes: Sequence[int] = BATCHES
) -> Iterator[tuple[Tensor, ...]]:
    """All rows in chunks, then batches of `sizes` (rows repeat where there are too few); whole where none is free."""
    n_rows = _n_rows(tensors, specs)
    if not n_rows:
        yield tuple(tensors)
        return
    width = max(tensor[0].numel() for tensor, spec in zip(tensors, specs, strict=True) if spec.batched)
    rows = [torch.arange(n_rows)[chunk] for chunk in row_chunks(n_rows, width)]
    present = {len(chunk) for chunk in rows}
    rows += [torch.arange(size) % n_rows for size in sizes if size not in present]
    for chunk in rows:
        yield _rows(tensors, specs, chunk)


def batches_of_one_size(
    tensors: Sequence[Tensor], specs: Sequence[InputSpec], batch: int
) -> Iterator[tuple[Tensor, ...]]:
    """All rows in batches of one size, the last filled with rows from the start; whole where none is free."""
    n_rows = _n_rows(tensors, specs)
    if not n_rows:
        yield tuple(tensors)
    for start in range(0, n_rows, batch):
        yield _rows(tensors, specs, torch.arange(start, start + batch) % n_rows)


def row_chunks(n_rows: int, row_elements: int) -> list[slice]:
    """Rows in chunks that a network can take at once; `row_elements` is the size of one row."""
    step = max(1, min(_CHUNK, _CHUNK_ELEMENTS // max(1, row_elements)))
    return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]


def _n_rows(tensors: Sequence[Tensor], specs: Sequence[InputSpec]) -> int:
    """How many rows the inputs with a free batch have; 0 where there are none."""
    return next((len(tensor) for tensor, spec in zip(tensors, specs, strict=True) if spec.batched), 0)


def _rows(tensors: Sequence[Tensor], specs: Sequence[InputSpec], rows: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor[rows] if spec.batched else tensor for tensor, spec in zip(tensors, specs, strict=True))
