"""OpenVINO's part: an ONNX file becomes a model of its own format, and runs on its CPU device in float."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.export.apart import Answer
from edgeprune.export.front import is_scaling

# Else it computes in bfloat16 where the CPU can, which is not what the file says.
_OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}


def convert(source: str, out: str, half: bool) -> None:
    """Write an ONNX file as `out` (.xml) and the .bin beside it, with the weights in half precision if so asked."""
    import openvino

    # Not openvino.convert_model: it reports what it is used for, to a server.
    model = openvino.Core().read_model(source)
    if half:
        _halve(model)
    openvino.save_model(model, out, compress_to_fp16=False)


def _halve(model: Any) -> None:
    """Hold what numbers fit in half precision, but for the mean and std of raw inputs, whose difference would be lost.

    OpenVINO's own way halves all of them: 101,325, a mean of a barometer, is infinite then.
    """
    from openvino import Type, opset13

    for node in model.get_ordered_ops():
        is_float = node.get_type_name() == "Constant" and node.get_element_type() == Type.f32
        if not is_float or is_scaling(node.get_friendly_name()):
            continue
        with np.errstate(over="ignore"):
            held = node.get_data()
            half = held.astype(np.float16)
        if np.array_equal(np.isfinite(half), np.isfinite(held)):
            whole = opset13.convert(opset13.constant(half), "f32")
            whole.set_friendly_name(node.get_friendly_name())
            node.output(0).replace(whole.output(0))


def load(file: Path, threads: int) -> Answer:
    """A file (.xml) on the CPU; compiled for the sizes that come first, which is faster than free ones."""
    import openvino

    options = {**_OPTIONS, "INFERENCE_NUM_THREADS": str(threads)}
    core = openvino.Core()
    first: list[tuple[int, ...]] = []
    answers: dict[bool, Answer] = {}

    def answer(inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        shapes = [array.shape for array in inputs]
        first[:] = first or shapes
        is_first = shapes == first
        if is_first not in answers:
            model = core.read_model(str(file))
            if is_first:
                model.reshape({place.any_name: shape for place, shape in zip(model.inputs, shapes, strict=True)})
            compiled = core.compile_model(model, "CPU", options)
            answers[is_first] = _at_fixed_sizes(compiled) if is_first else _at_any_sizes(compiled)
        return answers[is_first](inputs)

    return answer


def _at_fixed_sizes(compiled: Any) -> Answer:
    """Inputs and outputs stay where they are in memory, as in a program in C++: Python's wrapping takes 0.1 ms."""
    request = compiled.create_infer_request()
    places = [request.get_input_tensor(number).data for number in range(len(compiled.inputs))]

    def answer(inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        for place, array in zip(places, inputs, strict=True):
            np.copyto(place, array)
        request.infer(share_outputs=True)
        return [request.get_output_tensor(number).data.copy() for number in range(len(compiled.outputs))]

    return answer


def _at_any_sizes(compiled: Any) -> Answer:
    request = compiled.create_infer_request()

    def answer(inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        found = request.infer(list(inputs), share_inputs=True)
        return [np.array(found[output]) for output in compiled.outputs]

    return answer
