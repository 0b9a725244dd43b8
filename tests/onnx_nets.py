"""ONNX files written by hand, and what onnxruntime gives for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Node = tuple[Any, ...]  # operator, inputs, outputs, attributes
_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bool": TensorProto.BOOL}


def model(
    nodes: Sequence[Node],
    inputs: Mapping[str, Sequence[int | str]],
    weights: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    types: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """A model of nodes `(operator, inputs, outputs, attributes)`, whose weights are floats unless numpy says more.

    Two spaces stand for an input that is left out.
    """
    made = [
        helper.make_node(op, given.split(" ") if given else [], out.split(), name=f"n{k}", **(rest[0] if rest else {}))
        for k, (op, given, out, *rest) in enumerate(nodes)
    ]
    types = types or {}
    values = [
        helper.make_tensor_value_info(name, _TYPES[types.get(name, "float32")], list(shape))
        for name, shape in inputs.items()
    ]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    stored = [numpy_helper.from_array(_array(value), name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(made, "g", values, results, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value.astype(np.float32) if value.dtype == np.float64 else value
    array = np.array(value)
    return array.astype(np.float32) if array.dtype == np.float64 else array.astype(np.int64)


def written(path: Path, proto: onnx.ModelProto) -> Path:
    """The file, with its outputs' types as onnxruntime infers them."""
    inferred = onnx.shape_inference.infer_shapes(proto)
    known = {value.name: value for value in inferred.graph.value_info}
    for output in proto.graph.output:
        if output.name in known and not output.type.HasField("tensor_type"):
            output.type.CopyFrom(known[output.name].type)
    onnx.save(proto, path)
    return path


def judged(source: Path | bytes, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What onnxruntime gives."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return [np.asarray(out) for out in session.run(None, dict(zip(names, inputs, strict=True)))]
