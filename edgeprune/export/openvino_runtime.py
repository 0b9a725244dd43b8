"""OpenVINO's part: an ONNX file becomes a model of its own format, and runs on its CPU device in float."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeprune.export.apart import Answer

# Else it computes in bfloat16 where the CPU can, which is not what the file says.
_OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}


def convert(source: str, out: str, half: bool) -> None:
    """Write an ONNX file as `out` (.xml) and the .bin beside it, with the weights in half precision if so asked."""
    import openvino

    # Not openvino.convert_model: it reports what it is used for, to a server.
    model = openvino.Core().read_model(source)
    openvino.save_model(model, out, compress_to_fp16=half)


def load(file: Path, threads: int) -> Answer:
    """A file (.xml) on the CPU."""
    import openvino

    options = {**_OPTIONS, "INFERENCE_NUM_THREADS": str(threads)}
    model = openvino.Core().compile_model(str(file), "CPU", options)
    request = model.create_infer_request()

    def answer(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = request.infer(list(inputs), share_inputs=True)
        return [np.array(found[output]) for output in model.outputs]

    return answer
