"""Parity: the same inputs through PyTorch and onnxruntime, compared output by output."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from edgeprune.errors import InputError, ParityError
from edgeprune.export import ort
from edgeprune.graph.comparison import TIMES_ROUNDING, TOLERANCE, output_types, outputs_in_float64, own_rounding
from edgeprune.graph.decisions import Choice, Recording, chosen_outputs
from edgeprune.graph.drawn import drawn_tensors
from edgeprune.graph.precision import HALF
from edgeprune.graph.randomness import drawing, told_of
from edgeprune.graph.sizes import arguments, grown_shapes
from edgeprune.graph.specs import BATCHES, batches_of, fitted, input_specs
from edgeprune.lines import error_reason
from edgeprune.tasks.task import Task

PARITY_TOLERANCE = 1e-4
_FEW = 2  # rows at other sizes
_CHATTY = ("torch.onnx", "torch.onnx._internal", "onnxscript", "onnx_ir", "onnx")


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One batch of inputs and what PyTorch makes of it.

    For each output, as far as it is known, `types` has the coarsest type that it is computed in and `choices` what it
    was chosen from, where it is indices. `exact` gives the outputs in float64, None where they cannot be had. `task` is
    what the outputs are for, where that is known: its decisions stay as they are.
    """

    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]
    types: tuple[torch.dtype, ...] = ()
    choices: tuple[Choice | None, ...] = ()
    exact: Callable[[], tuple[np.ndarray, ...] | None] = lambda: None
    task: Task | None = None

    @property
    def where(self) -> str:
        """E.g. ` at batch 3`."""
        first = next((array for array in self.inputs if array.ndim), None)
        return "" if first is None else f" at batch {len(first)}"


def samples_of(program: ExportedProgram, inputs: Any = None, task: Task | None = None) -> list[Sample]:
    """What PyTorch gives on `inputs` (array or tensor `(n, ...)`, a sequence or dict of them for several inputs; None
    draws ones that the program accepts): on all rows, and at batch 1, 3 and 7 where the batch is free; at another
    height and width too where they are free.

    Raises:
        InputError: the inputs do not fit the program, or it fails on them.
        ParityError: PyTorch itself gives NaN.
    """
    specs, reference = input_specs(program), Reference(program, task)
    if inputs is not None:
        samples = reference.samples(batches_of(fitted(specs, inputs, "inputs to check the export on"), specs))
    else:
        samples = reference.first(batches_of(tensors, specs) for tensors in drawn_tensors(program, max(BATCHES)))
    shapes = grown_shapes(program)
    if shapes is not None:
        samples += reference.first(iter([tensors]) for tensors in drawn_tensors(program, _FEW, shapes))
    return samples


class Reference:
    """A program in PyTorch, which the files that are made of it are compared with."""

    def __init__(self, program: ExportedProgram, task: Task | None = None) -> None:
        self._program, self._task = program, task
        with quiet():
            self._module = program.module()
        self._types = tuple(output_types(program.graph))
        self._choosers = chosen_outputs(self._module.graph)

    def first(self, candidates: Iterable[Iterable[tuple[torch.Tensor, ...]]]) -> list[Sample]:
        """The samples of the first inputs that the network takes; the error on the first ones where it takes none."""
        failures: list[InputError | ParityError] = []
        for batches in candidates:
            try:
                return self.samples(batches)
            except (InputError, ParityError) as error:
                failures.append(error)
        raise failures[0]

    def samples(self, batches: Iterable[tuple[torch.Tensor, ...]]) -> list[Sample]:
        """What the network gives on each batch.

        Raises:
            InputError: it fails on one.
            ParityError: it gives NaN, or other numbers each time.
        """
        for node in drawing(self._program.graph):
            raise ParityError(f"{told_of(node)}, so that no export of it can be checked: let it draw none in eval mode")
        return [self._sample(tuple(tensor.numpy() for tensor in args)) for args in batches]

    def _sample(self, inputs: tuple[np.ndarray, ...]) -> Sample:
        network: Any = Recording(self._module) if any(self._choosers) else self._module
        try:
            outputs = torch_outputs(lambda *tensors: network(*arguments(self._program, tensors)), inputs)
        except Exception as error:  # whatever a network raises on inputs that it does not take
            shapes, reason = [array.shape for array in inputs], error_reason(error)
            raise InputError(f"inputs to check the export on: the network fails on {shapes}: {reason}") from error
        if any(np.isnan(output).any() for output in outputs if output.dtype.kind == "f"):
            raise ParityError("the network gives NaN in PyTorch, so no export of it can be checked")
        made = network.choices if isinstance(network, Recording) else {}
        choices = tuple(None if node is None else made.get(node) for node in self._choosers)
        return Sample(inputs, outputs, self._types, choices, lambda: self._exact(inputs), self._task)

    def _exact(self, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...] | None:
        """The outputs in float64; None for a network that does not run so."""
        tensors = [torch.from_numpy(array.copy()) for array in inputs]  # a graph may write into its input
        with quiet():
            exact = outputs_in_float64(self._program.module(), arguments(self._program, tensors))
        return None if exact is None else tuple(output.numpy() for output in exact)


def torch_outputs(module: Callable[..., Any], inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """All output tensors of a network, in the order of its output tree."""
    with torch.no_grad():
        # A copy: a graph may write into its input.
        leaves = pytree.tree_leaves(module(*(torch.from_numpy(array.copy()) for array in inputs)))
    return tuple(leaf.detach().numpy() for leaf in leaves if isinstance(leaf, torch.Tensor))


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
        ParityError: an output is off by more than the tolerance, or a decision of the task changed.
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
        worst = max(worst, error_on(sample, outputs, f"ONNX{sample.where}", tolerance))
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
        reason = error_reason(error)
        raise ParityError(f"the ONNX graph does not run on {[array.shape for array in inputs]}: {reason}") from error


def largest_error(
    wanted: Sequence[np.ndarray], got: Sequence[np.ndarray], what: str, task: Task | None = None
) -> float:
    """The largest absolute error of any output; see `check_parity`."""
    return error_on(Sample((), tuple(wanted), task=task), got, what)


def error_on(sample: Sample, got: Sequence[np.ndarray], what: str, tolerance: float = PARITY_TOLERANCE) -> float:
    """The largest absolute error of any output on a sample; see `check_parity`.

    An error is rounding where it is no larger than a few times PyTorch's own, which float64 tells. Indices may be
    others where what they choose is as good.
    """
    if len(sample.outputs) != len(got):
        raise ParityError(f"{what}: expected {len(sample.outputs)} outputs, got {len(got)}")
    return max((_error_of(sample, place, have, what, tolerance) for place, have in enumerate(got)), default=0.0)


def _error_of(sample: Sample, place: int, got: np.ndarray, what: str, tolerance: float) -> float:
    want = sample.outputs[place]
    dtype = sample.types[place] if place < len(sample.types) else None
    allowed = max(tolerance, TOLERANCE[dtype]) if dtype in HALF else tolerance
    task = sample.task if len(sample.outputs) == 1 else None  # of several, nobody knows which it decides by
    try:
        return check_parity(want, got, what, allowed, task=task)
    except ParityError:
        choice = sample.choices[place] if place < len(sample.choices) else None
        if choice is not None and choice.is_as_good(torch.from_numpy(got), tolerance):
            return 0.0
        rounding = _rounding(sample, place)
        if not rounding:
            raise
        return check_parity(want, got, what, allowed, TIMES_ROUNDING * rounding, task)


def _rounding(sample: Sample, place: int) -> float:
    """The largest error of PyTorch's own float output; 0 where it is not known."""
    want = sample.outputs[place]
    exact = sample.exact() if want.dtype.kind == "f" else None
    return 0.0 if exact is None else own_rounding(torch.from_numpy(want), torch.from_numpy(exact[place]))


def check_parity(  # noqa: PLR0913 - two arrays, what they are, and what is allowed
    want: np.ndarray,
    got: np.ndarray,
    what: str,
    tolerance: float = PARITY_TOLERANCE,
    rounding: float = 0.0,
    task: Task | None = None,
) -> float:
    """Compare outputs `(n, ...)`; return the largest absolute error.

    Args:
        want: of PyTorch.
        got: of a file.
        what: the file, for the message.
        tolerance: the error that is allowed, as a share of the larger of 1 and `max|want|`; at least that of half
            precision for outputs in it.
        rounding: the absolute error that is allowed all the same.
        task: what the output is for; None where nobody knows.

    Raises:
        ParityError: shapes differ, an error is larger than allowed, a whole number is another one, or the task decides
            otherwise where `want` was clear by more than that.
    """
    if want.shape != got.shape:
        raise ParityError(f"{what}: expected output shape {want.shape}, got {got.shape}")
    if want.size == 0:
        return 0.0
    if want.dtype.kind != "f":
        changed = int((want != got).sum())
        if changed:
            raise ParityError(f"{what}: expected the same whole numbers, got others in {changed} of {want.size} places")
        return 0.0
    reference, output = want.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(reference)
    with np.errstate(invalid="ignore"):
        error = np.where(reference == output, 0.0, np.abs(reference - output))
    share = max(tolerance, TOLERANCE[torch.float16]) if want.dtype == np.float16 else tolerance
    allowed = max(share * max(1.0, float(np.abs(reference[finite]).max(initial=0.0))), rounding)
    worst = float(error.max())
    if not worst <= allowed:  # also catches NaN
        raise ParityError(f"{what}: largest error expected at most {allowed:.1e}, got {worst:.1e}")
    changed = 0 if task is None else task.n_changed(reference, output, allowed)
    if task is not None and changed:
        raise ParityError(f"{what}: {changed} answers of the task {task.name} changed that were clear")
    return worst
