"""Parity: the same inputs through PyTorch and onnxruntime, compared output by output."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument
from torch.utils import _pytree as pytree

from edgeprune.errors import InputError, ParityError
from edgeprune.export import ort
from edgeprune.graph.capture import size_hint
from edgeprune.graph.sizes import arguments, grown_shapes

PARITY_TOLERANCE = 1e-4
_BATCHES = (1, 3, 7)  # a batch size that was baked into the graph survives at most one of these
_CHUNK = 256
_CHUNK_ELEMENTS = 2**22  # keeps the activations of a large image network in memory
_CHATTY = ("torch.onnx", "torch.onnx._internal", "onnxscript", "onnx_ir", "onnx")


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


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One batch of inputs and what PyTorch makes of it."""

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]


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


def samples_of(program: ExportedProgram, inputs: Any = None) -> list[Sample]:
    """What PyTorch gives on `inputs` (array or tensor `(n, ...)`, a sequence of them for several inputs; None draws
    seeded random ones): on all rows, and at batch 1, 3 and 7 where the batch is free; at another height and width too
    where they are free.

    Raises:
        InputError: the inputs do not fit the program.
        ParityError: PyTorch itself gives NaN.
    """
    specs = input_specs(program)
    samples = _reference(program, _batches(_given(inputs, specs) or _random(specs), specs))
    shapes = grown_shapes(program)
    if shapes is not None:
        grown = [replace(spec, example=shape) for spec, shape in zip(specs, filter(None, shapes), strict=True)]
        drawn = zip(grown, _random(grown), strict=True)
        samples += _reference(program, iter([tuple(x[:2] if spec.batched else x for spec, x in drawn)]))
    return samples


def _given(inputs: Any, specs: Sequence[InputSpec]) -> tuple[torch.Tensor, ...] | None:
    """The caller's inputs as tensors of the program's types, their shapes checked."""
    if inputs is None:
        return None
    values = (inputs,) if isinstance(inputs, (np.ndarray, torch.Tensor)) else tuple(inputs)
    if len(values) != len(specs):
        raise InputError(f"inputs to check the export on: expected {len(specs)} arrays, got {len(values)}")
    return tuple(_fitted(value, spec) for value, spec in zip(values, specs, strict=True))


def _fitted(value: Any, spec: InputSpec) -> torch.Tensor:
    tensor = torch.as_tensor(value).detach().cpu()
    fits = tensor.dim() == len(spec.shape) and all(
        want in (None, got) for want, got in zip(spec.shape, tensor.shape, strict=True)
    )
    if not fits or 0 in tensor.shape:
        want = "(" + ", ".join("*" if size is None else str(size) for size in spec.shape) + ")"
        raise InputError(f"inputs to check the export on: {spec.name}: expected {want}, got {tuple(tensor.shape)}")
    return tensor.to(spec.dtype)


def _random(specs: Sequence[InputSpec]) -> tuple[torch.Tensor, ...]:
    """Seeded random inputs with the largest batch that is checked."""
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for spec in specs:
        shape = (max(_BATCHES), *spec.example[1:]) if spec.batched else spec.example
        if spec.dtype.is_floating_point:
            drawn.append(torch.randn(shape, generator=generator).to(spec.dtype))
        else:
            drawn.append(torch.randint(0, 2, shape, generator=generator).to(spec.dtype))
    return tuple(drawn)


def _batches(inputs: tuple[torch.Tensor, ...], specs: Sequence[InputSpec]) -> Iterator[tuple[torch.Tensor, ...]]:
    """All rows in chunks, then batches of several sizes (rows repeat where there are too few); whole if it is fixed."""
    if not any(spec.batched for spec in specs):
        yield inputs
        return
    n_rows = next(len(tensor) for tensor, spec in zip(inputs, specs, strict=True) if spec.batched)
    width = max(tensor[0].numel() for tensor, spec in zip(inputs, specs, strict=True) if spec.batched)
    rows = [torch.arange(n_rows)[chunk] for chunk in row_chunks(n_rows, width)]
    present = {len(chunk) for chunk in rows}
    rows += [torch.arange(size) % n_rows for size in _BATCHES if size not in present]
    for chunk in rows:
        yield tuple(tensor[chunk] if spec.batched else tensor for tensor, spec in zip(inputs, specs, strict=True))


def row_chunks(n_rows: int, row_elements: int) -> list[slice]:
    """Rows in chunks that a network can take at once; `row_elements` is the size of one row."""
    step = max(1, min(_CHUNK, _CHUNK_ELEMENTS // max(1, row_elements)))
    return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]


def _reference(program: ExportedProgram, batches: Iterator[tuple[torch.Tensor, ...]]) -> list[Sample]:
    with quiet():
        module = program.module()

    def network(*tensors: torch.Tensor) -> Any:
        return module(*arguments(program, tensors))

    samples = []
    for args in batches:
        inputs = tuple(tensor.numpy() for tensor in args)
        outputs = torch_outputs(network, inputs)
        if any(np.isnan(output).any() for output in outputs):
            raise ParityError("the network gives NaN in PyTorch, so no export of it can be checked")
        samples.append(Sample(inputs, outputs))
    return samples


def torch_outputs(module: Callable[..., Any], inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """All output tensors of a network, in the order of its output tree."""
    with torch.no_grad():
        # A copy: a graph may write into its input.
        leaves = pytree.tree_leaves(module(*(torch.from_numpy(array.copy()) for array in inputs)))
    return tuple(leaf.numpy() for leaf in leaves if isinstance(leaf, torch.Tensor))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's prints, warnings and logs away from the user; everything is put back."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def parity_of(proto: onnx.ModelProto, samples: Sequence[Sample], tolerance: float) -> float:
    """Largest absolute error of the graph over all samples.

    Raises:
        InputError: onnxruntime does not load the graph.
        ParityError: an output is off by more than the tolerance, or a clear argmax changed.
    """
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        try:
            session = ort.session(path)
        except InputError as error:
            raise InputError(f"the exported graph: {str(error).removeprefix(f'{path}: ')}") from error
    worst = 0.0
    for sample in samples:
        outputs = outputs_of(session, sample.inputs)
        worst = max(worst, largest_error(sample.outputs, outputs, f"ONNX at batch {len(sample.inputs[0])}", tolerance))
    return worst


def outputs_of(session: onnxruntime.InferenceSession, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """All outputs of an ONNX file for the inputs in their order.

    Raises:
        ParityError: onnxruntime cannot run the graph on them.
    """
    names = [value.name for value in session.get_inputs()]
    try:
        return tuple(session.run(None, dict(zip(names, inputs, strict=True))))
    except Exception as error:  # onnxruntime's own exceptions share no base class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ParityError(f"the ONNX graph does not run on {[array.shape for array in inputs]}: {reason}") from error


def largest_error(
    wanted: Sequence[np.ndarray], got: Sequence[np.ndarray], what: str, tolerance: float = PARITY_TOLERANCE
) -> float:
    """The largest absolute error of any output; see `check_parity`."""
    if len(wanted) != len(got):
        raise ParityError(f"{what}: expected {len(wanted)} outputs, got {len(got)}")
    return max((check_parity(want, have, what, tolerance) for want, have in zip(wanted, got, strict=True)), default=0.0)


def check_parity(want: np.ndarray, got: np.ndarray, what: str, tolerance: float = PARITY_TOLERANCE) -> float:
    """Compare outputs `(n, ...)`; return the largest absolute error.

    Raises:
        ParityError: shapes differ, an error is over `tolerance * max(1, max|want|)`, or the argmax over dim 1 of
            `(n, n_classes)` differs where the two best are further apart than that.
    """
    if want.shape != got.shape:
        raise ParityError(f"{what}: expected output shape {want.shape}, got {got.shape}")
    if want.size == 0:
        return 0.0
    reference, output = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(reference)
    with np.errstate(invalid="ignore"):
        error = np.where(reference == output, 0.0, np.abs(reference - output))
    allowed = tolerance * max(1.0, float(np.abs(reference[finite]).max(initial=0.0)))
    worst = float(error.max())
    if not worst <= allowed:  # also catches NaN
        raise ParityError(f"{what}: largest error expected at most {allowed:.1e}, got {worst:.1e}")
    if reference.ndim == 2 and reference.shape[1] > 1:
        _check_argmax(reference, output, what, allowed)
    return worst


def _check_argmax(reference: np.ndarray, output: np.ndarray, what: str, allowed: float) -> None:
    best = np.sort(reference, axis=1)[:, -2:]
    with np.errstate(invalid="ignore"):
        clear = (best[:, 1] - best[:, 0]) > allowed
    changed = clear & (reference.argmax(axis=1) != output.argmax(axis=1))
    if changed.any():
        raise ParityError(f"{what}: the best class changed on {int(changed.sum())} of {len(changed)} inputs")
