"""Editing a graph so that it runs on the kept slices; what the operators' rewriters call."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from edgeprune.graph import binding
from edgeprune.graph.analysis import Analysis
from edgeprune.graph.call import Call
from edgeprune.graph.labels import Value
from edgeprune.graph.lift import Unlifted
from edgeprune.graph.names import ADDED, GATHER
from edgeprune.graph.ops.registry import lookup

_INDEX = ADDED + "index_"  # + a number: buffer with indices into a pruned dim
_TABLE = ADDED + "table_"  # + a number: buffer with a constant of another kind
_aten = torch.ops.aten
_UNIFORM = {_aten.zeros.default, _aten.ones.default, _aten.full.default}  # (size, ...): the same number everywhere


class Edit:
    """A graph module under surgery, beside the labels of the graph that it was made from.

    `keep` is bool `(n_labels,)`: which units stay; `keep[0]` is True.
    """

    def __init__(self, module: fx.GraphModule | Unlifted, analysis: Analysis, keep: np.ndarray) -> None:
        self.module = module
        self.analysis = analysis
        self.keep = keep
        self._nodes = binding.counterparts(analysis.program, module.graph)
        self._gathers: dict[fx.Node, fx.Node] = {}

    def rewrite(self) -> None:
        """Rewrite every call, gather the inputs where they leave their raw part, and slice constants.

        The module has to be recompiled before it runs.
        """
        for node, call in self.analysis.calls.items():
            entry = lookup(node.target, call.name)
            self._gather_raw_arguments(node)
            self._slice_constants(node)
            if entry is not None and entry.rewrite is not None and not self._is_raw(node):
                entry.rewrite(self, call)
        self.module.graph.eliminate_dead_code()
        self.module.graph.lint()

    # -- what is kept ----------------------------------------------------------------------------------------------

    def kept(self, value: Value, dim: int) -> np.ndarray:
        """Indices along `dim` that stay, ascending; of an input's raw part, those that its readers get."""
        mask = np.ones(value.shape[dim], dtype=bool)
        for layer in value.on(dim):
            labels = layer.labels.movedim(dim, 0).reshape(value.shape[dim], -1)[:, 0]
            mask &= self.keep[labels.numpy()]
        return np.flatnonzero(mask)

    def kept_size(self, value: Value, dim: int) -> int:
        """How many indices stay along `dim`."""
        return len(self.kept(value, dim))

    def kept_shape(self, value: Value) -> tuple[int, ...]:
        """The shape that is left of a value."""
        return tuple(self.kept_size(value, dim) for dim in range(len(value.shape)))

    # -- what rewriters change -------------------------------------------------------------------------------------

    def result(self, call: Call) -> Any:
        """The value (or values) that the call returns."""
        return self.analysis.env[call.node]

    def node(self, call: Call) -> fx.Node:
        """The call's node in the graph under surgery."""
        return self._nodes[call.node]

    def counterpart(self, node: fx.Node) -> fx.Node:
        """A node of the analysed program in the graph under surgery."""
        return self._nodes[node]

    def buffer(self, name: str, tensor: torch.Tensor) -> fx.Node:
        """A node that reads a new buffer of this name, at the place where nodes are being inserted."""
        self.module.register_buffer(name, tensor)
        return self.module.graph.get_attr(name)

    def source(self, call: Call) -> Any:
        """The node of the call's first argument."""
        return self.node(call).args[0]

    def raw(self, call: Call, name: str) -> Any:
        """The argument called `name` as it stands in the graph: numbers and nodes."""
        node, position = self.node(call), _position(call, name)
        return node.args[position] if position < len(node.args) else node.kwargs[name]

    def set(self, call: Call, name: str, value: Any) -> None:
        """Set the argument called `name`."""
        node, position = self.node(call), _position(call, name)
        if position < len(node.args):
            node.update_arg(position, value)
        else:
            node.update_kwarg(name, value)

    def replace(self, call: Call, target: Any, args: tuple[Any, ...], **keywords: Any) -> None:
        """Make the call another operator's."""
        node = self.node(call)
        node.target, node.args, node.kwargs = target, args, keywords

    def select(self, call: Call, dim: int, positions: np.ndarray) -> None:
        """Make the call an index_select of `positions` in the kept slices of its first argument."""
        self.replace(call, _aten.index_select.default, (self.source(call), dim, self.indices(call, positions)))

    def indices(self, call: Call, positions: np.ndarray) -> fx.Node:
        """A constant index vector for the call."""
        with self.module.graph.inserting_before(self.node(call)):
            return self.module.graph.get_attr(self._buffer(_INDEX, positions))

    def constant(self, call: Call, array: np.ndarray) -> fx.Node:
        """A constant mask or table for the call."""
        with self.module.graph.inserting_before(self.node(call)):
            return self.module.graph.get_attr(self._buffer(_TABLE, array))

    def scale(self, call: Call, factor: float) -> None:
        """Multiply the call's result."""
        self._insert_after(self.node(call), _aten.mul.Tensor, lambda node: (node, factor))

    def scaled(self, size: Any, old: int, new: int) -> Any:
        """A size argument after the cut: -1 stays, numbers become `new`, symbolic sizes are scaled by new / old."""
        if isinstance(size, int):
            return size if size == -1 else new
        if old == new:
            return size
        graph = self.module.graph
        divisor = math.gcd(old, new)
        times, parts = _factors(size)
        if times * (new // divisor) % (old // divisor) == 0:  # 32 * batch -> 20 * batch: nothing is left to divide
            with graph.inserting_after(size):
                return graph.call_function(operator.mul, (times * new // old, parts))
        with graph.inserting_after(size):
            product = graph.call_function(operator.mul, (size, new // divisor))
        with graph.inserting_after(product):
            return graph.call_function(operator.floordiv, (product, old // divisor))

    # -- inputs and constants --------------------------------------------------------------------------------------

    def _is_raw(self, node: fx.Node) -> bool:
        """Whether a node holds an input's elements, or several parts of them (a split)."""
        return any(isinstance(value, Value) and value.raw for value in tree_leaves(self.analysis.env[node]))

    def _gather_raw_arguments(self, node: fx.Node) -> None:
        if self._is_raw(node):
            return
        for argument in node.all_input_nodes:
            if self._is_raw(argument):
                gathered = self._gathered(argument)
                if gathered is not None:
                    self._nodes[node].replace_input_with(self._nodes[argument], gathered)

    def _gathered(self, raw: fx.Node) -> fx.Node | None:
        """The kept part of a raw value, or None where all of it is kept."""
        if raw in self._gathers:
            return self._gathers[raw]
        value = self.analysis.env[raw]
        layers = [layer for layer in value.layers if len(layer.dims) == 1]
        for layer in layers:
            (dim,) = layer.dims
            labels = layer.labels.movedim(dim, 0).reshape(value.shape[dim], -1)[:, 0]
            positions = np.flatnonzero(self.keep[labels.numpy()])
            if len(positions) < value.shape[dim]:
                self._gathers[raw] = self._gather(raw, dim, positions)
                return self._gathers[raw]
        return None

    def _gather(self, raw: fx.Node, dim: int, positions: np.ndarray) -> fx.Node:
        """An index_select behind a raw value; one along this dim that is there from an earlier cut is narrowed."""
        node = self._nodes[raw]
        along, earlier = node.args[1:3] if node.target is _aten.index_select.default else (None, None)
        if along == dim and isinstance(earlier, fx.Node) and str(earlier.target).startswith(GATHER):
            chosen = self.module.get_buffer(str(earlier.target)).numpy()[positions]
            self.module.register_buffer(str(earlier.target), torch.from_numpy(chosen))
            return node
        name = self._buffer(GATHER + self._input_of(raw), positions, numbered=False)
        graph = self.module.graph
        with graph.inserting_after(node):
            index = graph.get_attr(name)
        with graph.inserting_after(index):
            return graph.call_function(_aten.index_select.default, (node, dim, index))

    def _input_of(self, raw: fx.Node) -> str:
        """The graph input that a raw value was made from."""
        while raw.op != "placeholder":
            raw = next(node for node in raw.all_input_nodes if self._is_raw(node))
        return raw.name

    def _slice_constants(self, node: fx.Node) -> None:
        """Constants are sliced where they meet labelled values; before that they are made in their full size."""
        for argument in node.all_input_nodes:
            sliced = self._nodes.get(argument)
            for dim in range(len(getattr(self.analysis.env[argument], "shape", ()))):
                source = self.analysis.sources.get(("constant", argument.name, dim))
                if source is None:
                    continue
                positions = np.flatnonzero(self.keep[self.analysis.solver.canonical[source.ids]])
                if len(positions) < len(source.ids):
                    assert sliced is not None
                    sliced = self._select_argument(self._nodes[node], sliced, dim, positions)

    def _select_argument(self, node: fx.Node, argument: fx.Node, dim: int, positions: np.ndarray) -> fx.Node:
        graph = self.module.graph
        with graph.inserting_before(node):
            if argument.target in _UNIFORM:  # made smaller from the start
                sizes: Any = argument.args[0]
                sizes = [len(positions) if d == dim else size for d, size in enumerate(sizes)]
                selected = graph.call_function(argument.target, (sizes, *argument.args[1:]), argument.kwargs)
            else:
                index = graph.get_attr(self._buffer(_INDEX, positions))
                selected = graph.call_function(_aten.index_select.default, (argument, dim, index))
        node.replace_input_with(argument, selected)
        return selected

    def _insert_after(self, node: fx.Node, target: Any, arguments: Any) -> fx.Node:
        args = arguments(node)
        with self.module.graph.inserting_after(node):
            inserted = self.module.graph.call_function(target, args)
        node.replace_all_uses_with(inserted, delete_user_cb=lambda user: user is not inserted)
        return inserted

    def _buffer(self, prefix: str, positions: np.ndarray, numbered: bool = True) -> str:
        """Register indices as a buffer under a name that is free."""
        taken = set(dict(self.module.named_buffers()))
        candidates = (f"{prefix}{k}" if numbered or k else prefix for k in range(len(taken) + 1))
        name = next(candidate for candidate in candidates if candidate not in taken)
        self.module.register_buffer(name, torch.from_numpy(np.ascontiguousarray(positions)))
        return name


def _factors(size: fx.Node) -> tuple[int, fx.Node]:
    """A symbolic size as a number times another one: `mul(32, batch)` -> (32, batch), `batch` -> (1, batch)."""
    if size.target is operator.mul:
        one, other = size.args
        if isinstance(one, int) and isinstance(other, fx.Node):
            return one, other
        if isinstance(other, int) and isinstance(one, fx.Node):
            return other, one
    return 1, size


def _position(call: Call, name: str) -> int:
    names = [argument.name for argument in call.operator._schema.arguments]
    return names.index(name)
