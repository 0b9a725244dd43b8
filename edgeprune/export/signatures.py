"""What the exporter finds out about its operators, found out once.

For every network that it exports, the exporter parses the source of each of its 500 operators again, makes their
signatures again from their type hints, and asks PyTorch once for each of thirty namespaces for all operators of all of
them: three quarters of the time that a small network takes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import onnxscript
import torch._export.utils
from torch.onnx._internal.exporter import _schemas

_Operator: Any = onnxscript.TracedOnnxFunction
_read: Any = vars(_Operator).get("function_ir")
_DESCRIBE = "op_signature_from_function"  # makes a signature from type hints
_described: Any = getattr(_schemas, _DESCRIBE, None)
_MATERIALIZE = "_materialize_cpp_cia_ops"  # lets Python know every operator that C++ has


@functools.cache
def _source(operator: Any) -> Any:
    return _read.fget(operator)


@functools.cache
def _signature(operator: Any, *told: Any, **more: Any) -> Any:
    return _described(operator, *told, **more)


@contextlib.contextmanager
def signatures_read_once() -> Iterator[None]:
    """Within it an operator is read the first time only: its source and signature do not change.

    Operators may be added between two exports, so that PyTorch is asked for them in each, though once.
    """
    with contextlib.ExitStack() as stack:
        # Another version of the exporter may lack any of these, and keep what it knows itself.
        if isinstance(_read, property):
            stack.enter_context(_replaced(_Operator, "function_ir", property(_source)))
        if _described is not None:
            stack.enter_context(_replaced(_schemas, _DESCRIBE, _signature))
        ask = getattr(torch._export.utils, _MATERIALIZE, None)
        if ask is not None:
            stack.enter_context(_replaced(torch._export.utils, _MATERIALIZE, functools.cache(ask)))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
