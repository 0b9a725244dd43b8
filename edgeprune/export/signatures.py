"""The signatures of the exporter's operators, read once.

For every network that it exports, the exporter parses the source of each of its 500 operators again: nearly half of the
time that a small network takes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import onnxscript

_Operator: Any = onnxscript.TracedOnnxFunction
_read: Any = vars(_Operator).get("function_ir")


@functools.cache
def _signature(operator: Any) -> Any:
    return _read.fget(operator)


@contextlib.contextmanager
def signatures_read_once() -> Iterator[None]:
    """Within it an operator's source is parsed the first time only; a signature does not change."""
    if not isinstance(_read, property):  # another version of the exporter keeps them itself
        yield
        return
    _Operator.function_ir = property(_signature)
    try:
        yield
    finally:
        _Operator.function_ir = _read
