"""Operators that tell sizes, and constants."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.formats.onnxin.call import Call
from edgeprune.formats.onnxin.known import Known, product
from edgeprune.formats.onnxin.registry import rule


@rule("Shape")
def shape(call: Call) -> Known:
    """The sizes of a tensor, from one dim to another."""
    sizes = list(call.tensor(0).shape)
    return Known.of(sizes[slice(call.attribute("start", 0), call.attribute("end"))])


@rule("Size")
def size(call: Call) -> Known:
    """How many numbers a tensor holds."""
    return Known.of(product(call.tensor(0).shape))


@rule("Constant")
def constant(call: Call) -> Tensor:
    """Numbers that stand in the graph."""
    for name, dtype in (("value", None), ("value_float", torch.float32), ("value_floats", torch.float32),
                        ("value_int", torch.int64), ("value_ints", torch.int64)):  # fmt: skip
        value = call.attribute(name)
        if value is not None:
            return torch.from_numpy(value) if isinstance(value, np.ndarray) else torch.tensor(value, dtype=dtype)
    raise InputError("expected numbers, got a constant of another kind")
