"""An ONNX file with its batch fixed, every shape known, and all computed that no input has a part in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeprune.errors import InputError
from edgeprune.export.fixed import is_batch_free, with_fixed_batch
from edgeprune.formats.onnx.file import read_onnx
from edgeprune.lines import error_line, shown

_OF_SHAPES = ("Shape", "Size")  # what they give is known however large a number is
_BY_CHANCE = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """The operators that read inputs, in their order; `known` are the values that none has a part in.

    `shapes` and `types` are of all values, `makers` the operators of all that are made by some; `opset` is the version
    of the operators.
    """

    nodes: tuple[onnx.NodeProto, ...]
    known: Mapping[str, np.ndarray]
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    makers: Mapping[str, onnx.NodeProto]
    opset: int

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """The operators that read a value."""
        return [node for node in self.nodes if name in node.input]


def read_network(path: Path, batch: int = 1) -> Network:
    """A file as `export_onnx` or the quantisation writes it.

    Args:
        path: of the file.
        batch: the size of the batch where it is free.

    Raises:
        InputError: it cannot be read or run, has a free size beside the batch, or an operator with graphs of its own.
    """
    proto = read_onnx(path)
    if is_batch_free(proto):
        proto = with_fixed_batch(proto, batch)
    _check(proto.graph, path)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    given = {value.name: _zeros(value) for value in proto.graph.input if value.name not in held}
    return _network(proto, held, given, _computed(proto, given, path))


def _network(
    proto: onnx.ModelProto,
    held: Mapping[str, np.ndarray],
    given: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
) -> Network:
    """A graph with what it stores, its inputs, and what its operators give for those."""
    graph = proto.graph
    known = {**held, **{name: found[name] for name in _constant(graph, held)}}
    every = {**held, **found, **given}
    return Network(
        tuple(node for node in graph.node if not known.keys() >= set(_results(node))),
        known,
        {name: tuple(array.shape) for name, array in every.items()},
        {name: array.dtype.name for name, array in every.items()},
        tuple(given),
        tuple(one.name for one in graph.output),
        {name: node for node in graph.node for name in node.output},
        _opset(proto),
    )


def _opset(proto: onnx.ModelProto) -> int:
    return next((one.version for one in proto.opset_import if not one.domain), 0)


def _results(node: onnx.NodeProto) -> list[str]:
    return [name for name in node.output if name]


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """By name, as Python has them; texts as str."""
    values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def where(node: onnx.NodeProto) -> str:
    """The operator and its layer, e.g. `LSTM (lstm_1)`."""
    layer = shown(node.name or next(iter(node.output), ""), 80).strip("'\"")
    return f"{node.op_type} ({layer})" if layer else str(node.op_type)


def _check(graph: onnx.GraphProto, path: Path) -> None:
    for node in graph.node:
        if any(entry.type in (entry.GRAPH, entry.GRAPHS) for entry in node.attribute):
            raise InputError(f"C has no {where(node)}")
    for value in graph.input:
        free = [size.dim_param for size in value.type.tensor_type.shape.dim if size.dim_value < 1]
        if free:
            what = f"{shown(free[0])} of input {shown(value.name)}"
            raise InputError(
                f"C: {path.name}: expected every size but the batch to be fixed, got a free one: {what}; leave out "
                "--dynamic and --dynamic-size, or capture the network with a size"
            )


def _zeros(value: onnx.ValueInfoProto) -> np.ndarray:
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return np.zeros([size.dim_value for size in value.type.tensor_type.shape.dim], kind)


def _computed(proto: onnx.ModelProto, inputs: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """What every operator gives for these inputs, by name."""
    import onnxruntime

    names = [name for node in proto.graph.node for name in _results(node)]
    told = onnx.ModelProto()
    told.CopyFrom(proto)
    del told.graph.output[:]
    told.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            told.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        computed = session.run(None, dict(inputs)) if names else []
        return {name: np.asarray(one) for name, one in zip(names, computed, strict=True)}
    except Exception as error:  # its errors share no base class below Exception
        raise InputError(f"{path.name}: onnxruntime cannot run it: {error_line(error)}") from error


def _constant(graph: onnx.GraphProto, held: Mapping[str, np.ndarray]) -> list[str]:
    """The values that operators make and no input has a part in."""
    found: list[str] = []
    known = set(held) | {""}
    for node in graph.node:
        if node.op_type in _BY_CHANCE:
            raise InputError(f"C has no {where(node)}")
        if node.op_type in _OF_SHAPES or all(name in known for name in node.input):
            known |= set(node.output)
            found += _results(node)
    return found
