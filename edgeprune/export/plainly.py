"""A program in the operators that PyTorch's ONNX exporter translates, without tracing it anew where that is not needed.

The exporter has every program traced again, operator by operator, to take some of them apart: four fifths of the time
that a network takes. Most networks hold a dozen operators of which it is known what becomes of them. That is put in
their place here, and the graph is what tracing gives; one that holds anything else is traced.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from edgeprune.graph.capture import Program
from edgeprune.graph.composites import all_composites
from edgeprune.graph.copies import copied_module
from edgeprune.graph.lift import suppressing_guards
from edgeprune.graph.writes import functional, out_of_place

_aten = torch.ops.aten
_SIZES = {operator.getitem, operator.mul, operator.add, operator.sub, operator.floordiv}


class Plainly(Program):
    """A program that knows what becomes of it by the exporter's table of what is taken apart."""

    def run_decompositions(self, decomp_table: Any = None, *told: Any, **more: Any) -> ExportedProgram:
        """As PyTorch's, which traces the program where it holds anything that is not known here."""
        known = _plain(self, decomp_table) if decomp_table and not told and not more else None
        return super().run_decompositions(decomp_table, *told, **more) if known is None else known


class _Unknown(Exception):
    """A call of which it is not known here what becomes of it."""


def _plain(program: ExportedProgram, table: Mapping[Any, Any]) -> ExportedProgram | None:
    """The program with what is known put in its place; None where there is more to take apart."""
    if functional(program) is not program:
        return None
    changed = Program.adopt(program)
    changed._graph_module = copied_module(program.graph_module)
    for own, copied in zip(program.graph.nodes, changed.graph.nodes, strict=True):
        copied.name = own.name  # a copy renames what is called as a builtin of Python, an input among it
    try:
        with suppressing_guards(program):
            out_of_place(changed.graph)
            for node in [node for node in changed.graph.nodes if node.op == "call_function"]:
                _put_plainly(node, table)
    except _Unknown:
        return None
    changed.graph.eliminate_dead_code()
    changed.graph_module.recompile()
    return changed


def _put_plainly(node: fx.Node, table: Mapping[Any, Any]) -> None:
    rule = _RULES.get(node.target)
    if rule is not None:
        rule(node)
    elif not _stays(node.target, table):
        raise _Unknown


def _stays(target: Any, table: Mapping[Any, Any]) -> bool:
    """Whether taking apart by a table leaves calls of an operator as they are."""
    if target in _SIZES:
        return True
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable or target in table:
        return False
    is_composite = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
    return not is_composite or target in all_composites()


# -- what is known ----------------------------------------------------------------------------------------------------


def _batch_norm(node: fx.Node) -> None:
    x, weight, bias, mean, variance, training, momentum, eps, _ = node.args
    if training or mean is None:
        raise _Unknown
    with node.graph.inserting_before(node):
        whole = node.graph.call_function(
            _aten._native_batch_norm_legit_no_training.default, (x, weight, bias, mean, variance, momentum, eps)
        )
    nothing = _value(node).new_empty(0)
    whole.meta = {**node.meta, "val": (node.meta["val"], nothing, nothing)}
    _become(node, operator.getitem, whole, 0)


def _adaptive_average(node: fx.Node) -> None:
    x, sizes = node.args
    if list(sizes) != [1, 1]:  # type: ignore[arg-type]
        raise _Unknown
    _become(node, _aten.mean.dim, x, [-1, -2], True)


def _dropout(node: fx.Node) -> None:
    x, _, training = node.args
    if training:
        raise _Unknown
    _become(node, _aten.clone.default, x)


def _view(node: fx.Node) -> None:
    shape = _value(node).shape
    if _is_same_shape(_operand(node).shape, shape):
        _vanish(node)
        return
    # Tracing makes a view or a copy of it, by the strides, of which a file knows nothing.
    free = [d for d, size in enumerate(shape) if isinstance(size, torch.SymInt)]
    sizes = [-1 if [d] == free else _size(node, size) for d, size in enumerate(shape)]
    _become(node, _aten.reshape.default, node.args[0], sizes)


def _contiguous(node: fx.Node) -> None:
    if len(node.args) > 1 or node.kwargs:
        raise _Unknown
    if _operand(node).is_contiguous():
        _vanish(node)
    else:
        _become(node, _aten.clone.default, node.args[0])
        node.kwargs = {"memory_format": torch.contiguous_format}


def _chunk(node: fx.Node) -> None:
    x, n_parts, dim = (*node.args, 0)[:3]
    size = _operand(node).shape[dim]  # type: ignore[index]
    if not isinstance(size, int) or not size:
        raise _Unknown
    _become(node, _aten.split.Tensor, x, -(-size // n_parts), dim)  # type: ignore[operator]


def _to(node: fx.Node) -> None:
    x, dtype = _operand(node), _value(node).dtype
    if x.dtype == dtype:
        _vanish(node)
    else:
        _become(node, _aten._to_copy.default, node.args[0])
        node.kwargs = {"dtype": dtype}


def _expand_as(node: fx.Node) -> None:
    _become(node, _aten.expand.default, node.args[0], [_size(node, size) for size in _value(node).shape])


def _swap(node: fx.Node) -> None:
    _become(node, _aten.transpose.int, *node.args)


def _and(node: fx.Node) -> None:
    _become(node, _aten.bitwise_and.Tensor, *node.args)


_RULES: dict[Any, Callable[[fx.Node], None]] = {
    _aten.batch_norm.default: _batch_norm,
    _aten.adaptive_avg_pool2d.default: _adaptive_average,
    _aten.dropout.default: _dropout,
    _aten.flatten.using_ints: _view,
    _aten.unflatten.int: _view,
    _aten.reshape.default: _view,
    _aten.contiguous.default: _contiguous,
    _aten.chunk.default: _chunk,
    _aten.reshape_as.default: _view,
    _aten.expand_as.default: _expand_as,
    _aten.swapaxes.default: _swap,
    _aten.__and__.Tensor: _and,
    **dict.fromkeys((_aten.to.device, _aten.to.dtype, _aten.to.dtype_layout, _aten.to.other), _to),
}


def _become(node: fx.Node, target: Any, *args: Any) -> None:
    node.target, node.args, node.kwargs = target, args, {}


def _vanish(node: fx.Node) -> None:
    """What was read of a call is read of its argument."""
    if node.graph.output_node() in node.users:
        raise _Unknown  # an output has its name
    [x] = node.args[:1]
    assert isinstance(x, fx.Node)
    node.replace_all_uses_with(x)
    node.graph.erase_node(node)


def _operand(node: fx.Node) -> Tensor:
    return _value(node.args[0])


def _value(node: Any) -> Tensor:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, Tensor):
        raise _Unknown
    return value


def _size(node: fx.Node, size: int | torch.SymInt) -> int | fx.Node:
    """A size as a number, or as what gives it: the call that asks an input for it."""
    if isinstance(size, int):
        return size
    for asked in node.graph.find_nodes(op="call_function", target=_aten.sym_size.int):
        if asked < node and _is(asked.meta.get("val"), size):
            return asked
    inputs = node.graph.find_nodes(op="placeholder")
    shapes = [getattr(given.meta.get("val"), "shape", ()) for given in inputs]
    place = next(((g, d) for g, shape in enumerate(shapes) for d, own in enumerate(shape) if _is(own, size)), None)
    if place is None:
        raise _Unknown
    with node.graph.inserting_after(inputs[-1]):
        asked = node.graph.call_function(_aten.sym_size.int, (inputs[place[0]], place[1]))
    asked.meta["val"] = size
    return asked


def _is_same_shape(one: Sequence[int | torch.SymInt], other: Sequence[int | torch.SymInt]) -> bool:
    """Whether two shapes are the same whatever the free sizes are."""
    return len(one) == len(other) and all(
        a == b if isinstance(a, int) and isinstance(b, int) else _is(a, b) for a, b in zip(one, other, strict=True)
    )


def _is(one: Any, size: Any) -> bool:
    """Whether a size is the same free one, as far as is known."""
    return isinstance(one, torch.SymInt) and isinstance(size, torch.SymInt) and bool(one.node.expr == size.node.expr)
