"""Smaller files that need no calibration: weights of int8 with activations scaled as they come, and half precision."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgeprune.errors import InputError
from edgeprune.export.exact import has_own_products, may_saturate
from edgeprune.export.floatfile import WEIGHTED, FloatFile, all_nodes, open_float, weighted_nodes, with_header_of
from edgeprune.export.judging import Judge, QuantizedFile, check_places, record_of
from edgeprune.export.quanttools import may_saturate_here, prepared, tools_for
from edgeprune.files import write_atomically
from edgeprune.records import ACCURACY, Metric, VariantKind
from edgeprune.results import LeftOut

_DYNAMIC = ("MatMul", "Gemm", "LSTM")


def write_dynamic(  # noqa: PLR0913 - the public entry point spells its options out
    source: Path,
    out: Path,
    inputs: Any,
    *,
    value: Callable[[Path], float] | None = None,
    metric: Metric = ACCURACY,
    max_drop: float = 1.0,
    threads: int = 1,
    reduce_range: bool = True,
) -> QuantizedFile | LeftOut:
    """Quantise linear and LSTM layers with int8 weights; activations are scaled anew on every run.

    Convolutions stay in float: onnxruntime's dynamic ones are slower than those, and a network without other layers
    is left out.

    Args:
        source: a float file as `export_onnx` writes it; its batch stays free and its metadata go with it.
        out: the file to write; it appears whole or not at all.
        inputs: real inputs `(n, ...)` to check on, or a sequence of them for several inputs.
        value: as for `write_int8`.
        metric: as for `write_int8`.
        max_drop: as for `write_int8`.
        threads: as for `write_int8`.
        reduce_range: as for `write_int8`.

    Raises:
        InputError: a file, inputs or a budget that cannot be used.
        ParityError: the written file does not run, or gives NaN or infinity.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    check_places(source, out, max_drop)
    file = open_float(source, inputs, threads)
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        ready, path = prepared(file, Path(folder)), Path(folder) / "dynamic.onnx"
        graph = _weights_as_matmul_takes_them(ready)
        layers = weighted_nodes(graph, (*WEIGHTED, "LSTM"))
        if not any(node.op_type in _DYNAMIC for node in layers):
            return LeftOut("dynamic", "the network has no linear or LSTM layers, which alone gain by it")
        with tools_for(file):
            quantize_dynamic(
                ready,
                path,
                op_types_to_quantize=[op for op in _DYNAMIC if op != "Gemm"],  # made a MatMul and an Add first
                per_channel=True,
                reduce_range=reduce_range,
                weight_type=QuantType.QInt8,
            )
        path.write_bytes(with_header_of(file, onnx.load(path), {"edgeprune.quantization": "dynamic"}))
        if has_own_products(path) and may_saturate(path) and may_saturate_here():
            return LeftOut(
                "dynamic",
                "what an LSTM with 8-bit weights means cannot be found out on this CPU, whose int8 products may "
                "saturate; --int8-for any writes 7 bits",
            )
        return _finished("dynamic", path, out, Judge(file, value, metric, max_drop, threads), len(layers))


def _weights_as_matmul_takes_them(path: Path) -> onnx.GraphProto:
    """Rewrite a file with `x @ w` for `x @ w.T`, once for weights that several layers share.

    onnxruntime (1.31) does so too, but once for each layer: the second one transposes shared weights back.
    """
    proto = onnx.load(path)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    turned: dict[str, str] = {}
    for node in proto.graph.node:
        flag, name = _transposes(node), node.input[1] if len(node.input) > 1 else ""
        if flag is None or name not in weights:
            continue
        if name not in turned:
            turned[name] = f"{name}_transposed"
            array = np.ascontiguousarray(numpy_helper.to_array(weights[name]).T)
            proto.graph.initializer.append(numpy_helper.from_array(array, turned[name]))
        node.input[1] = turned[name]
        node.attribute.remove(flag)
    used = {name for node in all_nodes(proto.graph.node) for name in node.input}
    for name in turned.keys() - used:
        proto.graph.initializer.remove(weights[name])
    path.write_bytes(proto.SerializeToString())
    return proto.graph


def _transposes(node: onnx.NodeProto) -> onnx.AttributeProto | None:
    """What says that a linear layer transposes its weights; None where nothing does."""
    if node.op_type != "Gemm":
        return None
    return next((entry for entry in node.attribute if entry.name == "transB" and entry.i), None)


def write_half(  # noqa: PLR0913 - the public entry point spells its options out
    source: Path,
    out: Path,
    inputs: Any,
    *,
    value: Callable[[Path], float] | None = None,
    metric: Metric = ACCURACY,
    max_drop: float = 1.0,
    threads: int = 1,
) -> QuantizedFile | LeftOut:
    """Convert a float file to float16, with float32 inputs and outputs, where onnxruntime computes in it here.

    Elsewhere (x86 CPUs) it would convert every weight back and only lose accuracy: that file is left out.

    Args:
        source: a float file as `export_onnx` writes it; its batch stays free and its metadata go with it.
        out: the file to write; it appears whole or not at all.
        inputs: real inputs `(n, ...)` to check on, or a sequence of them for several inputs.
        value: as for `write_int8`.
        metric: as for `write_int8`.
        max_drop: as for `write_int8`.
        threads: as for `write_int8`.

    Raises:
        InputError: nothing to convert, or a file, inputs or a budget that cannot be used.
        ParityError: the written file does not run, or gives NaN or infinity.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    check_places(source, out, max_drop)
    file = open_float(source, inputs, threads)
    layers = weighted_nodes(file.proto.graph)
    if not layers:
        raise InputError(f"{source}: expected float32 convolutions, linear layers or matrix products, got none")
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        path = Path(folder) / "half.onnx"
        with tools_for(file):
            half = convert_float_to_float16(copy.deepcopy(file.proto), keep_io_types=True)
        path.write_bytes(with_header_of(file, half, {"edgeprune.quantization": "fp16"}))
        n_native = _computed_in_half(path, Path(folder) / "optimized.onnx", file)
        if n_native == 0:
            return LeftOut(
                "fp16", "onnxruntime has no half-precision kernels on this CPU and would convert every weight back"
            )
        return _finished("fp16", path, out, Judge(file, value, metric, max_drop, threads), len(layers))


def _computed_in_half(path: Path, optimized: Path, file: FloatFile) -> int:
    """How many layers keep float16 weights once onnxruntime has fitted the graph to its kernels."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 4
    with tools_for(file):
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(optimized).graph
    half = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    return sum(1 for node in graph.node if node.op_type in WEIGHTED and half & set(node.input))


def _finished(kind: VariantKind, path: Path, out: Path, judge: Judge, n_layers: int) -> QuantizedFile:
    """Run and measure the file, then put it in its place."""
    judged = judge(path)
    write_atomically(out, path.read_bytes())
    note = "" if judged.within_budget else judge.missed(judged)
    return replace(record_of(kind, judged, out, (), n_layers), note=note)
