"""Outputs so small that they tell nothing of a network, such as a detector's that finds nothing in drawn images.

A sigmoid near 0 or a softmax over many classes is right to a rounding of 1 in onnxruntime, which may be as large as it.
What it was taken of is compared then.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from torch import Tensor

from edgeprune.formats.onnxin.nodes import Graph, Node

_BOUNDED = {"Sigmoid", "Softmax", "HardSigmoid", "Tanh"}  # their results are at most 1
_EPSILONS = 4


def is_faint(own: Tensor, wanted: np.ndarray) -> bool:
    """Whether two results differ by what a rounding of 1 does, and no more."""
    if not own.is_floating_point() or tuple(own.shape) != wanted.shape:
        return False
    most = _EPSILONS * float(np.finfo(np.float32).eps)
    return bool(np.abs(own.double().numpy() - wanted.astype(np.float64)).max(initial=0.0) <= most)


def graph_beneath(graph: Graph, output: str) -> Graph | None:
    """The graph that ends in what the output's operator was taken of; None where that operator is not bounded."""
    maker = next((node for node in graph.nodes if output in node.outputs), None)
    if maker is None or maker.op not in _BOUNDED or maker.inputs[0] in graph.constants:
        return None
    return replace(graph, nodes=_up_to(graph, maker), outputs=(maker.inputs[0],))


def file_beneath(path: str, graph: Graph) -> bytes:
    """The file with the output of a graph beneath it in the place of its own."""
    proto = onnx.load(path)
    del proto.graph.output[:]
    proto.graph.output.append(onnx.ValueInfoProto(name=graph.outputs[0]))
    data: bytes = proto.SerializeToString()
    return data


def _up_to(graph: Graph, maker: Node) -> tuple[Node, ...]:
    """The operators that run before one; they are in order."""
    return graph.nodes[: graph.nodes.index(maker)]
