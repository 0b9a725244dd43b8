"""What no 8 bits can hold: values so far apart that the step between two levels swallows all that is meant by them.

The mask of an attention is the usual case: -inf, or a number that stands for it, is added to scores of which each
tenth counts. MinMax calibration would spread 256 levels from there to the largest score.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgeprune.export.floatfile import FloatFile, weighted_nodes
from edgeprune.export.quanttools import Reader, tools_for

_MOST = 1e8  # wider than any activation that is used as a number; `masked_fill(-1e9)` is wider
# What asks only for the largest of some values, or for how far they are behind it: what is masked out gets -1e4 and the
# like there. Scores that are really this far apart leave one of them, for which 256 levels are no less too few.
_CHOOSING = ("Softmax", "LogSoftmax", "ReduceMax", "ReduceLogSumExp", "ArgMax", "TopK", "Max")
_MOST_CHOSEN_FROM = 1e3

Bounds = tuple[float, float]


def calibrated(file: FloatFile, source: Path, ranges: Path, op_types: Collection[str]) -> dict[str, Bounds]:
    """The lowest and highest value of each activation of `source` on the file's inputs; they are kept in `ranges`.

    Raises:
        InputError: onnxruntime cannot run it with all these values as outputs.
    """
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator, save_tensors_data

    augmented = ranges.with_name("augmented.onnx")
    with tools_for(file):
        calibrator = create_calibrator(
            source, list(op_types), augmented_model_path=str(augmented), calibrate_method=CalibrationMethod.MinMax
        )
        calibrator.collect_data(Reader(file.feeds))
        found = calibrator.compute_data()
        save_tensors_data(found, ranges)
    augmented.unlink()
    return {name: (float(np.min(one.lowest)), float(np.max(one.highest))) for name, one in found.items()}


def too_wide(graph: onnx.GraphProto, bounds: Mapping[str, Bounds], op_types: Collection[str]) -> tuple[str, ...]:
    """The nodes of these types that take or give a value of which 8 bits tell nothing, by name.

    Args:
        graph: every node has a name.
        bounds: of activations, see `calibrated`; constants are looked at here.

    Example: `("add_mask",)` for scores to which -inf is added before their softmax.
    """
    widths = {name: high - low for name, (low, high) in (dict(_constants(graph)) | dict(bounds)).items()}
    unusable = {name for name, width in widths.items() if not width <= _MOST}  # NaN, too
    unusable |= _chosen_from(graph, widths)
    return tuple(
        node.name for node in graph.node if node.op_type in op_types and unusable & {*node.input, *node.output}
    )


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, Bounds]]:
    """The bounds of the constants, with the zero that every scale of 8 bits has to hold."""
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor)
            yield tensor.name, (float(array.min(initial=0.0)), float(array.max(initial=0.0)))


def _chosen_from(graph: onnx.GraphProto, widths: Mapping[str, float]) -> set[str]:
    """The values too wide to choose from, back to what made them so."""
    makers = {name: node for node in graph.node for name in node.output}
    weighted = {node.name for node in weighted_nodes(graph)}
    waiting = [node.input[0] for node in graph.node if node.op_type in _CHOOSING]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        # One of which nothing is known was made by what stays in float: it is looked through.
        if name in seen or not widths.get(name, math.inf) > _MOST_CHOSEN_FROM:
            continue
        seen.add(name)
        maker = makers.get(name)
        if maker is not None and maker.name not in weighted:
            waiting += maker.input
    return {name for name in seen if widths.get(name, 0.0) > _MOST_CHOSEN_FROM}
