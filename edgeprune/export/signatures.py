"""What the exporter finds out about its operators, found out once.

For every network that it exports, the exporter parses the source of each of its 500 operators again, makes their
signatures again from their type hints, and draws up again which of PyTorch's operators are to be taken apart for it:
three quarters of the time that a small network takes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import onnxscript
import torch
from torch.onnx._internal.exporter import _decomp, _schemas

from edgeprune.graph.composites import composites_known, registered
from edgeprune.graph.patches import replaced

_Operator: Any = onnxscript.TracedOnnxFunction
_read: Any = vars(_Operator).get("function_ir")
_DESCRIBE = "op_signature_from_function"  # makes a signature from type hints
_described: Any = getattr(_schemas, _DESCRIBE, None)
_TABLE = "create_onnx_friendly_decomposition_table"  # says what is taken apart, and into what
_drawn_up: Any = getattr(_decomp, _TABLE, None)
_tables: dict[Any, dict[Any, Any]] = {}


@functools.cache
def _source(operator: Any) -> Any:
    return _read.fget(operator)


@functools.cache
def _signature(operator: Any, *told: Any, **more: Any) -> Any:
    return _described(operator, *told, **more)


def _table(known: set[Any]) -> dict[Any, Any]:
    """What is taken apart beside the operators that the exporter knows."""
    made_of = registered(), frozenset(known), frozenset(torch._decomp.decomposition_table.items())
    if made_of not in _tables:
        _tables.clear()
        _tables[made_of] = _drawn_up(known)
    return dict(_tables[made_of])


@contextlib.contextmanager
def signatures_read_once() -> Iterator[None]:
    """Within it an operator is read the first time only: its source and signature do not change.

    Operators may be added between two exports, and then what is taken apart is drawn up anew.
    """
    with contextlib.ExitStack() as stack:
        # Another version of the exporter may lack any of these, and keep what it knows itself.
        if isinstance(_read, property):
            stack.enter_context(replaced(_Operator, "function_ir", property(_source)))
        if _described is not None:
            stack.enter_context(replaced(_schemas, _DESCRIBE, _signature))
        if _drawn_up is not None:
            stack.enter_context(replaced(_decomp, _TABLE, _table))
        stack.enter_context(composites_known())
        yield
