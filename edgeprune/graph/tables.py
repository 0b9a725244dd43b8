"""Tables of learnt positions: a row is looked up for each position, and there the length ends that a network takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from edgeprune.graph.lines import source_line

_FACTOR = 64  # a size without a bound is looked at up to so many times the example's
_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class TableEnd:
    """The largest size for which a table has rows, which table that is, and where it is read."""

    most: int
    why: str
    line: str


def table_end(program: ExportedProgram, hints: Mapping[Any, int], symbol: Any, high: int | None) -> TableEnd | None:
    """The first table whose rows end before a size does; None where all go as far as is asked.

    Args:
        program: as an export gives it.
        hints: the example's size for each symbol.
        symbol: the size that grows, up to `high` (None: as far as is looked at).
    """
    names = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.target}
    for node, table, rows, index in _lookups(program):
        if not isinstance(rows, int) or not _depends_on_sizes(index, names):
            continue
        at = _Rows(program, names, index, hints, symbol)
        largest = high or hints[symbol] * _FACTOR
        if at.last(hints[symbol]) < rows <= at.last(largest):
            low, over = hints[symbol], largest
            while over - low > 1:
                middle = (low + over) // 2
                low, over = (middle, over) if at.last(middle) < rows else (low, middle)
            return TableEnd(low, f"as {names.get(table.name, table.name)!r} has {rows} rows", source_line(node))
    return None


def _lookups(program: ExportedProgram) -> Iterator[tuple[fx.Node, fx.Node, Any, fx.Node]]:
    """Every node that picks rows of a table, with the table, how many rows that has, and what picks."""
    for node in program.graph.nodes:
        arguments: Any = node.args
        if node.target is _aten.embedding.default:
            yield node, arguments[0], arguments[0].meta["val"].shape[0], arguments[1]
        elif node.target is _aten.index_select.default:
            yield node, arguments[0], arguments[0].meta["val"].shape[arguments[1]], arguments[2]
        elif node.target is _aten.index.Tensor:
            for dim, index in enumerate(arguments[1]):
                if index is not None and index.meta["val"].dtype is not torch.bool:
                    yield node, arguments[0], arguments[0].meta["val"].shape[dim], index


def _depends_on_sizes(node: fx.Node, names: Mapping[str, Any]) -> bool:
    """Whether a value follows from sizes and the network's own tensors alone."""
    seen, waiting = {node}, [node]
    while waiting:
        current = waiting.pop()
        if not isinstance(current.meta.get("val"), int | torch.SymInt):  # a tensor, or the parts of one
            if current.op == "placeholder" and current.name not in names:
                return False
            waiting += [n for n in current.all_input_nodes if n not in seen]
            seen.update(current.all_input_nodes)
    return True


class _Rows:
    """The last row that is picked, as a function of one size."""

    def __init__(
        self, program: ExportedProgram, names: Mapping[str, Any], index: fx.Node, hints: Mapping[Any, int], symbol: Any
    ) -> None:
        self._tensors = {**program.constants, **program.state_dict}
        self._names, self._index, self._hints, self._symbol = names, index, hints, symbol

    def last(self, size: int) -> int:
        """The largest index at this size; -1 where nothing is picked or it cannot be told."""
        sizes = {symbol: sympy.Integer(hint) for symbol, hint in self._hints.items()}
        sizes[self._symbol] = sympy.Integer(size)
        try:
            picked = self._value(self._index, sizes, {})
        except (RuntimeError, IndexError, TypeError, ValueError):  # no such size; the export tells that itself
            return -1
        return int(picked.max()) if isinstance(picked, Tensor) and picked.numel() else -1

    def _value(self, node: fx.Node, sizes: Mapping[Any, Any], known: dict[fx.Node, Any]) -> Any:
        val = node.meta.get("val")
        if isinstance(val, (torch.SymInt, int)):
            return int(val.node.expr.xreplace(sizes)) if isinstance(val, torch.SymInt) else val
        if node.op == "placeholder":
            return self._tensors[self._names[node.name]]
        if node not in known:
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: self._value(n, sizes, known))
            target: Any = node.target
            known[node] = target(*args, **kwargs)
        return known[node]
