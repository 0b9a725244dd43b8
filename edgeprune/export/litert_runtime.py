"""LiteRT's part: a program becomes a .tflite file by litert-torch, and runs in LiteRT's interpreter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import InputError
from edgeprune.export.apart import Answer

# What a file does to its inputs first, by the module that does it. It stays in float: 8 bits for all raw values have
# steps that are larger than a gyroscope's whole range where a barometer is among them.
_FRONT = r"signature\.Taken"


def convert(program: str, signature: dict[str, Any], out: str) -> None:
    """Write a program (.pt2) as `out` (.tflite), whose inputs and outputs are those of a signature as JSON.

    Raises:
        InputError: names the operator that LiteRT has not.
    """
    import litert_torch
    import torch

    from edgeprune.export.refusals import refusal
    from edgeprune.export.signature import Signature, Wrapped

    wanted = Signature.from_json(signature)
    network = Wrapped(torch.export.load(program), wanted)

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.training = network, False

        def forward(self, **given: torch.Tensor) -> dict[str, torch.Tensor]:
            outputs = self.network(*(given[value.name] for value in wanted.inputs))
            return {value.name: tensor for value, tensor in zip(wanted.outputs, outputs, strict=True)}

    samples = {value.name: torch.zeros(value.shape, dtype=getattr(torch, value.type)) for value in wanted.inputs}
    try:
        made = litert_torch.convert(Named(), sample_kwargs=samples)
    except Exception as error:  # a compiler: whatever it raises
        operators = sorted(set(re.findall(r"[Ll]owering not found:? (aten\.[\w.]+)", str(error))))
        if operators:
            raise InputError(refusal(error, "LiteRT", operators)) from error
        raise
    made.export(out)


def quantize(source: str, names: list[str], given: str, out: str) -> None:
    """Quantise a .tflite file statically: activations and weights of 8 bits, inputs and their scaling as they are.

    Args:
        source: the float file.
        names: of its inputs.
        given: an archive (.npz) of one array `(n_batches, *shape)` for each of them in their order, to calibrate on.
        out: the file to write.

    Raises:
        InputError: nothing in it could be quantised.
    """
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.utils import qsv_utils

    tool = quantizer.Quantizer(source, recipe.static_wi8_ai8())
    for edge in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        tool.update_quantization_recipe(".*", edge, algorithm_key=AlgorithmName.NO_QUANTIZE)
    for scaling in (qtyping.TFLOperationName.SUB, qtyping.TFLOperationName.DIV, qtyping.TFLOperationName.MUL):
        tool.update_quantization_recipe(_FRONT, scaling, algorithm_key=AlgorithmName.NO_QUANTIZE)
    [key] = Interpreter(model_path=source).get_signature_list()
    with np.load(given) as held:
        columns = [held[f"arr_{place}"] for place in range(len(names))]
    batches = [dict(zip(names, rows, strict=True)) for rows in zip(*columns, strict=True)]
    rules = recipe_manager.RecipeManager()
    rules.load_quantization_recipe(tool.get_quantization_recipe())
    # The quantizer's own way is a moving average of each batch's range, which cuts off what one class in three has.
    calibration = calibrator.Calibrator(source, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    calibration.calibrate({key: batches}, rules)
    found = calibration.get_model_qsvs()
    if not found or not _quantized(tool.quantize(found, enable_progress_report=False), out):
        raise InputError("expected operators that LiteRT's quantizer knows, got none")


def _quantized(result: Any, out: str) -> bool:
    """Whether the file of a result, which is written, holds integers of 8 bits."""
    from ai_edge_litert.interpreter import Interpreter

    result.export_model(out, overwrite=True)
    return any(one["dtype"] is np.int8 for one in Interpreter(model_path=out).get_tensor_details())


def load(file: Path, threads: int) -> Answer:
    """A .tflite file, with XNNPACK; its inputs and outputs in the order in which the file lists them."""
    from ai_edge_litert.interpreter import Interpreter

    model = Interpreter(model_path=str(file), num_threads=threads)
    model.allocate_tensors()
    inputs = [(one["index"], np.dtype(one["dtype"])) for one in model.get_input_details()]
    outputs = [one["index"] for one in model.get_output_details()]

    def answer(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        for (index, dtype), array in zip(inputs, arrays, strict=True):
            model.set_tensor(index, array.astype(dtype, copy=False))
        model.invoke()
        return [model.get_tensor(index) for index in outputs]

    return answer
