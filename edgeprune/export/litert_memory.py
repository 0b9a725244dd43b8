"""How much memory a .tflite file's values take at once: what an arena of LiteRT for Microcontrollers has to hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeprune.cost.liveness import Lifetimes, Operation

_ALIGNED = 16  # bytes, where each value of an arena begins
_BITS = {"FLOAT64": 64, "INT64": 64, "UINT64": 64, "FLOAT16": 16, "INT16": 16, "UINT16": 16,
         "INT8": 8, "UINT8": 8, "BOOL": 8, "INT4": 4}  # fmt: skip
_USUAL_BITS = 32


def arena_bytes(file: Path) -> int | None:
    """The most bytes that inputs, outputs and what is between them take at once, in the order of the file's operators.

    What is copied for a padded or a transposed convolution counts, as the file has operators of their own for it; what
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
    states = [place for place, tensor in enumerate(tensors) if tensor.IsVariable()]
    operators = (graph.Operators(place) for place in range(graph.OperatorsLength()))
    operations = [
        Operation(frozenset(place for place in _inputs(one) if place >= 0), tuple(_outputs(one))) for one in operators
    ]
    life = Lifetimes(sizes, [*_inputs(graph), *states], [*_outputs(graph), *states], operations)
    return life.peak_of(range(len(operations)))


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
