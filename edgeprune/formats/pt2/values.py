"""A loaded graph's values: what a .pt2 says of their shapes is what its operators give."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from edgeprune.errors import InputError
from edgeprune.lines import error_line, shown

# What depends on the numbers that come in has no shape before them.
_UNKNOWN = "unknown"
_OPEN = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


def check_values(program: ExportedProgram) -> None:
    """Run the graph on tensors without content, at the sizes it was exported with.

    A file that lies about a shape, or that calls an operator with what it does not take, would else fail anywhere in
    what is done with it. From the first value on whose size depends on the input, nothing is checked.

    Raises:
        InputError: an operator that does not run on what it is given, or gives something else than the file says.
    """
    values: dict[fx.Node, Any] = {}
    nodes = (node for node in program.graph.nodes if node.op != "output")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for node in nodes:
            said = [_plain(value) for value in tree_leaves(node.meta.get("val"))]
            if _UNKNOWN in said or node.op not in ("placeholder", "call_function"):
                return
            if node.op == "placeholder":
                values[node] = _made(node.meta.get("val"))
                continue
            try:
                values[node] = _called(node, values)
            except _OPEN:
                return
            if "val" in node.meta:
                _compare(node, values[node], said)


def _compare(node: fx.Node, value: Any, said: list[Any]) -> None:
    got = [_plain(part) for part in tree_leaves(value)]
    if got != said:
        raise InputError(f"value {node.name!r}: expected {shown(got)} as {node.target} gives, got {shown(said)}")


def _called(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda inner: values[inner])
    try:
        return node.target(*args, **kwargs)  # type: ignore[operator]
    except _OPEN:
        raise
    except Exception as error:  # whatever an operator says of arguments that are none
        got = error_line(error)
        raise InputError(f"operator {node.target}: expected arguments that it takes, got {got}") from error


def _made(value: Any) -> Any:
    """The same without content: a tensor of the hinted sizes, a number by its hint."""
    if isinstance(value, torch.Tensor):
        sizes, strides = ([_hint(size) for size in sizes] for sizes in (value.shape, value.stride()))
        return torch.empty_strided(sizes, strides, dtype=value.dtype)
    return _hint(value)


def _plain(value: Any) -> Any:
    """What can be compared of a value: of a tensor its type and sizes; _UNKNOWN where a size is."""
    if isinstance(value, torch.Tensor):
        sizes = [_hint(size) for size in value.shape]
        return _UNKNOWN if _UNKNOWN in sizes else [str(value.dtype), *sizes]
    return _hint(value)


def _hint(value: Any) -> Any:
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value.node.hint if value.node.has_hint() else _UNKNOWN
    return value
