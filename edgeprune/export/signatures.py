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
_is_read_each_time = isinstance(_read, property)
_read_once = property(functools.cache(_read.fget)) if _is_read_each_time else _read


@contextlib.contextmanager
def signatures_read_once() -> Iterator[None]:
    """Within it an operator's source is parsed the first time only; a signature does not change."""
    if not _is_read_each_time:
        yield
        return
    _Operator.function_ir = _read_once
    try:
        yield
    finally:
        _Operator.function_ir = _read
