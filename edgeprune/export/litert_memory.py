"""How much memory a .tflite file's values take at once: what an arena of LiteRT for Microcontrollers has to hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ALIGNED = 16  # bytes, where each value of an arena begins
_BITS = {"FLOAT64": 64, "INT64": 64, "UINT64": 64, "FLOAT16": 16, "INT16": 16, "UINT16": 16,
         "INT8": 8, "UINT8": 8, "BOOL": 8, "INT4": 4}  # fmt: skip
_USUAL_BITS = 32


@dataclass(frozen=True, slots=True)
class _Buffer:
    """The memory of one tensor from one operator to another; 0 is before the first."""

    n_bytes: int
    first: int
    last: int

    def meets(self, other: _Buffer) -> bool:
        """Whether both are in use at some operator."""
        return self.first <= other.last and other.first <= self.last


def arena_bytes(file: Path) -> int | None:
    """The bytes that inputs, outputs and what is between them take, where LiteRT for Microcontrollers puts them.

    That is what is alive at once, in the order of the file's operators, and the gaps that are left between. What is
    copied for a padded or a transposed convolution counts, as the file has operators of their own for it; what
    a kernel takes beside (CMSIS-NN's scratch) does not. None for files with loops or branches.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(file.read_bytes())
    if model.SubgraphsLength() != 1:
        return None
    graph = model.Subgraphs(0)
    names = {number: name for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
    tensors = [graph.Tensors(place) for place in range(graph.TensorsLength())]
    is_weight = [_is_weight(model.Buffers(tensor.Buffer())) for tensor in tensors]
    sizes = [
        0 if weight else _n_bytes(tensor, names[tensor.Type()])
        for tensor, weight in zip(tensors, is_weight, strict=True)
    ]
    return _placed(_buffers(graph, sizes, [place for place, tensor in enumerate(tensors) if tensor.IsVariable()]))


def _buffers(graph: Any, sizes: Sequence[int], states: Sequence[int]) -> list[_Buffer]:
    """What is in use from when to when, in the order of the tensors; what nothing reads is so at its operator alone."""
    first, last = dict.fromkeys([*_inputs(graph), *states], 0), dict[int, int]()
    for number in range(1, graph.OperatorsLength() + 1):
        operator = graph.Operators(number - 1)
        for place in _outputs(operator):
            first.setdefault(place, number)
        last.update(dict.fromkeys([*_inputs(operator), *_outputs(operator)], number))
    last.update(dict.fromkeys([*_outputs(graph), *states], graph.OperatorsLength()))
    return [
        _Buffer(size, first[place], last.get(place, 0)) for place, size in enumerate(sizes) if size and place in first
    ]


def _placed(buffers: Sequence[_Buffer]) -> int:
    """The end of the last one by LiteRT's greedy planner: the largest first, each in the first gap that it fits.

    Of those of a size the last one comes first, as in tflite-micro.
    """
    placed: list[tuple[int, _Buffer]] = []
    for buffer in sorted(reversed(buffers), key=lambda one: -one.n_bytes):
        offset = 0
        for start, other in sorted(placed, key=lambda pair: pair[0]):
            if other.meets(buffer):
                if start - offset >= buffer.n_bytes:
                    break
                offset = max(offset, start + other.n_bytes)
        placed.append((offset, buffer))
    return max((offset + buffer.n_bytes for offset, buffer in placed), default=0)


def _inputs(of: Any) -> list[int]:
    """The numbers of the tensors that an operator or a graph takes; a vector that is left out has no array."""
    return [of.Inputs(place) for place in range(of.InputsLength())]


def _outputs(of: Any) -> list[int]:
    return [of.Outputs(place) for place in range(of.OutputsLength())]


def _is_weight(buffer: Any) -> bool:
    """Whether a buffer's values stand in the file; one that is computed has none."""
    return bool(buffer.DataLength() or buffer.Offset() > 1)


def _n_bytes(tensor: Any, kind: str) -> int:
    n_elements = 1
    for place in range(tensor.ShapeLength()):
        n_elements *= max(tensor.Shape(place), 1)
    n_bytes = (n_elements * _BITS.get(kind, _USUAL_BITS) + 7) // 8
    return -(-n_bytes // _ALIGNED) * _ALIGNED
