"""A Core ML package read back from its folder, and run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.export.mil import layers, movement, pointwise
from edgeprune.export.mil.registry import RULES, Call
from edgeprune.lines import error_line

KNOWN = (layers, movement, pointwise)  # whose import registers their rules
_LOOP = "while_loop"  # what the steps of a GRU become


class MilProgram:
    """The main function of a package's program, as its files say it.

    Floats are computed in 32 bits and rounded to the type that the program gives each value: half precision, say.
    """

    def __init__(self, package: Path) -> None:
        from coremltools.converters.mil.frontend.milproto.load import load
        from coremltools.models import MLModel

        model = MLModel(str(package), skip_model_load=True)
        spec = model.get_spec()
        program = load(spec, spec.specificationVersion, model.weights_dir)
        self._main = program.functions["main"]
        self.inputs = [value.name for value in spec.description.input]
        self.outputs = [value.name for value in spec.description.output]
        unknown: dict[str, str] = {}
        for op in _all_operations(self._main):
            if op.op_type not in RULES and op.op_type != _LOOP:
                unknown.setdefault(op.op_type, op.name)
        if unknown:
            named = ", ".join(f"{kind} ({name})" for kind, name in unknown.items())
            raise InputError(f"the check of Core ML programs does not know {named}")

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """All outputs for all inputs, in the order of the package's description.

        Raises:
            InputError: an operator fails.
        """
        known: dict[str, Tensor] = {}
        for name, array in zip(self.inputs, inputs, strict=True):
            known[name] = _typed(torch.from_numpy(np.array(array)), self._main.inputs[name])
        _run(self._main, known)
        given = {value.name: _tensor_of(value, known) for value in self._main.outputs}
        return [given[name].numpy() for name in self.outputs]


def _operations(block: Any) -> Iterator[Any]:
    return (op for op in block.operations if op.op_type != "const")


def _all_operations(block: Any) -> Iterator[Any]:
    """Those of loops within it too."""
    for op in _operations(block):
        yield op
        for inner in op.blocks:
            yield from _all_operations(inner)


def _run(block: Any, known: dict[str, Tensor]) -> None:
    """Add what each operator of a block gives to what is known, by name."""
    for op in _operations(block):
        results = _looped(op, known) if op.op_type == _LOOP else _results(op, known)
        for value, tensor in zip(op.outputs, results, strict=True):
            known[value.name] = _typed(tensor, value)


def _looped(op: Any, known: Mapping[str, Tensor]) -> list[Tensor]:
    """The variables of a loop after its last turn; what stands around it is seen in it."""
    goes_on, body = op.blocks
    held = [_tensor_of(value, known) for value in op.loop_vars]
    while True:
        seen = {**known, **_named(goes_on, held)}
        _run(goes_on, seen)
        if not bool(_tensor_of(goes_on.outputs[0], seen)):
            return held
        seen = {**known, **_named(body, held)}
        _run(body, seen)
        held = [_tensor_of(value, seen) for value in body.outputs]


def _named(block: Any, held: Sequence[Tensor]) -> dict[str, Tensor]:
    return {value.name: _typed(tensor, value) for value, tensor in zip(block.inputs, held, strict=True)}


def _results(op: Any, known: Mapping[str, Tensor]) -> list[Tensor]:
    given = {name: _given(value, known) for name, value in op.inputs.items()}
    try:
        with torch.no_grad():
            results = RULES[op.op_type](Call(op.op_type, given, len(op.outputs)))
    except Exception as error:  # what PyTorch makes of shapes, too
        raise InputError(f"{op.op_type} ({op.name}) cannot be computed: {error_line(error)}") from error
    return [results] if isinstance(results, Tensor) else list(results)


def _given(value: Any, known: Mapping[str, Tensor]) -> Any:
    """An operator's input: tensors with floats in 32 bits, words as they are."""
    if isinstance(value, (tuple, list)):
        return tuple(_given(one, known) for one in value)
    tensor = _tensor_of(value, known)
    return tensor.float() if isinstance(tensor, Tensor) and tensor.is_floating_point() else tensor


def _tensor_of(value: Any, known: Mapping[str, Tensor]) -> Any:
    """What was computed before, or a constant: a word where it is one."""
    if value.name in known:
        return known[value.name]
    if value.val is None:
        raise InputError(f"{value.name}: expected a constant or what was computed before")
    return value.val if isinstance(value.val, str) else torch.from_numpy(np.array(value.val))


def _typed(tensor: Tensor, value: Any) -> Tensor:
    """A result in the type that the program says."""
    from coremltools.converters.mil.mil.types import builtin_to_string

    kind = builtin_to_string(value.dtype)
    return tensor.to({"fp16": torch.float16, "fp32": torch.float32, "bool": torch.bool}.get(kind) or _whole(kind))


def _whole(kind: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, kind)
    return found
