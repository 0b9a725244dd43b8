"""A Core ML package read back from its folder, and run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        self._operations = [op for op in self._main.operations if op.op_type != "const"]
        unknown = dict.fromkeys(op.op_type for op in self._operations if op.op_type not in RULES)
        if unknown:
            named = ", ".join(f"{kind} ({self._name_of(kind)})" for kind in unknown)
            raise InputError(f"the check of Core ML programs does not know {named}")

    def _name_of(self, kind: str) -> str:
        return str(next(op.name for op in self._operations if op.op_type == kind))

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """All outputs for all inputs, in the order of the package's description.

        Raises:
            InputError: an operator fails.
        """
        known: dict[str, Tensor] = {}
        for name, array in zip(self.inputs, inputs, strict=True):
            known[name] = _typed(torch.from_numpy(np.array(array)), self._main.inputs[name])
        for op in self._operations:
            for value, tensor in zip(op.outputs, self._results(op, known), strict=True):
                known[value.name] = _typed(tensor, value)
        given = {one.name: known[one.name] if one.name in known else _constant(one) for one in self._main.outputs}
        return [given[name].numpy() for name in self.outputs]

    def _results(self, op: Any, known: Mapping[str, Tensor]) -> list[Tensor]:
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
    tensor = known[value.name] if value.name in known else _constant(value)
    return tensor.float() if isinstance(tensor, Tensor) and tensor.is_floating_point() else tensor


def _constant(value: Any) -> Any:
    held = value.val
    if held is None:
        raise InputError(f"{value.name}: expected a constant or what was computed before")
    return held if isinstance(held, str) else torch.from_numpy(np.array(held))


def _typed(tensor: Tensor, value: Any) -> Tensor:
    """A result in the type that the program says."""
    from coremltools.converters.mil.mil.types import builtin_to_string

    kind = builtin_to_string(value.dtype)
    return tensor.to({"fp16": torch.float16, "fp32": torch.float32, "bool": torch.bool}.get(kind) or _whole(kind))


def _whole(kind: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, kind)
    return found
