"""A program with every free size fixed, for compilers and tracers that take no others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.export import ExportedProgram

from edgeprune.export.parity import quiet
from edgeprune.graph.capture import Program, reexport
from edgeprune.graph.sizes import arguments, input_values
from edgeprune.graph.specs import input_specs


def with_fixed_sizes(program: ExportedProgram, batch: Sequence[np.ndarray]) -> ExportedProgram:
    """The program traced again at the sizes of one batch, all its inputs in their order."""
    args = arguments(program, [torch.from_numpy(array) for array in batch])
    with quiet():
        return reexport(Program.adopt(program).editable_module(), args, tuple({} for _ in input_values(program)))


def at_shapes(program: ExportedProgram, shapes: Sequence[Sequence[int]]) -> ExportedProgram:
    """The program traced again at these shapes of its inputs; any values will do."""
    specs = input_specs(program)
    zeros = [np.zeros(tuple(shape), spec.array_type) for shape, spec in zip(shapes, specs, strict=True)]
    return with_fixed_sizes(program, zeros)
