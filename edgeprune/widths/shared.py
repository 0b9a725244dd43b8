"""One file of weights that the ONNX graphs of several widths share: each reads the first rows and columns of it.

The widest network's weights lie in `weights.bin`, each at an offset. A narrower network's graph states fewer rows at
the same offset; what it reads fewer columns of goes through a Slice, which runtimes fold when they load it. So does the
factor by which batch norm's own statistics differ. What is not found in the widest network stays in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeprune.export import ort
from edgeprune.export.floatfile import all_nodes
from edgeprune.export.gated import WEIGHTS
from edgeprune.export.onnx import export_onnx
from edgeprune.export.parity import PARITY_TOLERANCE, error_on, outputs_of, samples_of
from edgeprune.files import write_atomically
from edgeprune.formats.onnx.file import read_onnx
from edgeprune.results import SharedWeights
from edgeprune.tasks.task import Task
from edgeprune.widths.nested import NestedWidths
from edgeprune.widths.slices import Slice, slice_of

_ALIGNED = 64  # bytes
_LEAST = 512  # bytes of a tensor that is shared: a reference to a smaller one takes as much


def write_widths(  # noqa: PLR0913 - the networks, where to, and what they are checked by
    nested: NestedWidths,
    names: Sequence[str],
    folder: Path,
    *,
    inputs: object = None,
    task: Task | None = None,
    metadata: Mapping[str, str] | None = None,
) -> SharedWeights:
    """Write `NAME.onnx` of each width and the one file of weights; each is run and compared with PyTorch.

    Args:
        nested: the widths, trained; networks without a state.
        names: one for each, from wide to narrow.
        folder: where they go; it is there.
        inputs: real inputs `(n, ...)`, as `export_onnx` takes them.
        task: as `export_onnx` takes it.
        metadata: stored in each file.

    Raises:
        InputError: a network cannot be written in ONNX.
        ParityError: a file gives something else than PyTorch.
    """
    protos, sizes = [], []
    for program, name in zip(nested.programs, names, strict=True):
        path = folder / f"{name}.onnx"
        sizes.append(export_onnx(program, path, inputs=inputs, task=task, metadata=metadata).size_bytes)
        protos.append(read_onnx(path))
    weights = _Weights.of(protos[0])
    write_atomically(folder / WEIGHTS, weights.content)
    plans = [{}, *(plan.tensors for plan in nested.plans)]
    worst = 0.0
    for program, name, proto, tensors in zip(nested.programs, names, protos, plans, strict=True):
        path = folder / f"{name}.onnx"
        _share(proto, weights, tensors)
        write_atomically(path, proto.SerializeToString(deterministic=True))
        session = ort.session(path)
        for sample in samples_of(program, inputs, task):
            got = outputs_of(session, sample.inputs)
            worst = max(worst, error_on(sample, got, f"{path.name}{sample.where}", PARITY_TOLERANCE))
    total = sum((folder / file).stat().st_size for file in (WEIGHTS, *(f"{name}.onnx" for name in names)))
    return SharedWeights(f"{folder.name}/{WEIGHTS}", tuple(names), total, sizes[0], worst)


@dataclass(frozen=True, slots=True, eq=False)
class _Weights:
    """The widest network's large tensors by name, and where each begins in the file."""

    tensors: Mapping[str, np.ndarray]
    offsets: Mapping[str, int]
    content: bytes

    @classmethod
    def of(cls, proto: onnx.ModelProto) -> _Weights:
        tensors, offsets, content = {}, {}, bytearray()
        for initializer in proto.graph.initializer:
            array = numpy_helper.to_array(initializer)
            if array.nbytes < _LEAST:
                continue
            content += bytes(-len(content) % _ALIGNED)
            tensors[initializer.name], offsets[initializer.name] = array, len(content)
            content += np.ascontiguousarray(array).tobytes()
        return cls(tensors, offsets, bytes(content))


@dataclass(slots=True, eq=False)
class _Graph:
    """A graph that is being made to read shared weights: its small tensors by content, and the nodes that go first."""

    graph: onnx.GraphProto
    taken: set[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    small: dict[tuple[str, bytes, tuple[int, ...]], str] = field(default_factory=dict)

    def fresh(self, wanted: str) -> str:
        """A name that nothing in the graph has."""
        name, count = wanted, 1
        while name in self.taken:
            name, count = f"{wanted}_{count}", count + 1
        self.taken.add(name)
        return name

    def constant(self, array: np.ndarray) -> str:
        """The name of a small tensor with this content."""
        key = array.dtype.str, array.tobytes(), array.shape
        if key not in self.small:
            self.small[key] = self.fresh(f"w{len(self.small)}")
            self.graph.initializer.append(numpy_helper.from_array(array, self.small[key]))
        return self.small[key]

    def node(self, kind: str, inputs: Sequence[str], output: str, axis: int | None) -> None:
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))


def _share(proto: onnx.ModelProto, weights: _Weights, planned: Mapping[str, Mapping[int, Sequence[int]]]) -> None:
    """Let a graph read its large tensors from the shared file, in place."""
    graph = proto.graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = _Graph(graph, _names_in(graph))
    kept = list(graph.initializer)
    del graph.initializer[:]
    for tensor in kept:
        wide = weights.tensors.get(tensor.name)
        dims = {dim: np.asarray(own) for dim, own in planned.get(tensor.name, {}).items()}
        found = None if wide is None else slice_of(wide, held[tensor.name], dims)
        if found is None or held[tensor.name].nbytes < _LEAST:
            graph.initializer.append(tensor)
        else:
            assert wide is not None
            _read(made, tensor.name, wide, weights.offsets[tensor.name], found)
    nodes = [*made.nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _names_in(graph: onnx.GraphProto) -> set[str]:
    """Every name that a graph uses, those within branches and loops too."""
    names = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    return names.union(*((*node.input, *node.output) for node in all_nodes(graph.node)))


def _read(made: _Graph, name: str, wide: np.ndarray, offset: int, found: Slice) -> None:
    """Give a tensor of the graph as a slice of one in the shared file."""
    rows = found.n_first(0)
    shape = wide.shape if rows is None else (rows, *wide.shape[1:])
    later = {dim: kept for dim, kept in found.dims.items() if not (dim == 0 and rows is not None)}
    steps = _steps(made, found, later)
    last = name
    current = name if not steps else made.fresh(f"{name}.shared")
    made.graph.initializer.append(_external(current, wide.dtype, shape, offset))
    for number, (kind, inputs, axis) in enumerate(steps, 1):
        output = last if number == len(steps) else made.fresh(f"{name}.part")
        made.node(kind, [current, *inputs], output, axis)
        current = output


def _steps(made: _Graph, found: Slice, later: Mapping[int, np.ndarray]) -> list[tuple[str, list[str], int | None]]:
    """The operators that make the tensor of the rows that are read: one Slice, a Gather for other indices, a Mul."""
    firsts = {dim: len(kept) for dim, kept in later.items() if found.n_first(dim) is not None}
    steps: list[tuple[str, list[str], int | None]] = []
    if firsts:
        ends, axes = np.array(list(firsts.values()), np.int64), np.array(list(firsts), np.int64)
        steps.append(("Slice", [made.constant(array) for array in (np.zeros_like(ends), ends, axes)], None))
    for dim, kept in later.items():
        if dim not in firsts:
            steps.append(("Gather", [made.constant(kept.astype(np.int64))], dim))
    if found.factor is not None:
        steps.append(("Mul", [made.constant(found.factor)], None))
    return steps


def _external(name: str, dtype: np.dtype, shape: Sequence[int], offset: int) -> TensorProto:
    """A tensor whose numbers lie in the shared file."""
    tensor = TensorProto(name=name, dims=shape, data_type=helper.np_dtype_to_tensor_dtype(dtype))
    tensor.data_location = TensorProto.EXTERNAL
    length = int(np.prod(shape)) * dtype.itemsize
    for key, value in (("location", WEIGHTS), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
