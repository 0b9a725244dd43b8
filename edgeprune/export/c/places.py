"""Operators that move numbers in ways of their own: run once on the places of numbers, they tell where each goes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeprune.export.c.graph import Call, kind_of
from edgeprune.export.c.rules import Lowering, refusal, rule
from edgeprune.lines import error_line

_IR = 10  # of ONNX 1.16, which every onnxruntime that is supported reads
_MOST = 2**24  # numbers, whose places a float32 holds
BY_PLACES = ("GatherND", "GatherElements", "DepthToSpace", "SpaceToDepth", "Tile", "ReverseSequence")


@rule(*BY_PLACES)
def by_places(low: Lowering, node: onnx.NodeProto) -> None:
    """A gather of single numbers, for an operator that makes no new ones of them."""
    x = low.view(node.input[0])
    places = _places(low, node, x.n_elements, x.shape)
    out, held = low.result(node), low.made.hold(places, "int32_t")
    sizes = ("1", str(x.n_elements), str(places.size), "1")
    low.made.add(out, Call(f"gather_{kind_of(x)}", (x, held, out, *sizes)))


def _places(low: Lowering, node: onnx.NodeProto, n_elements: int, shape: tuple[int, ...]) -> np.ndarray:
    """Which number of the input each number of the output is."""
    import onnxruntime

    if n_elements > _MOST or len(node.output) > 1:
        raise refusal(node)
    held = [
        numpy_helper.from_array(low.net.known[name], name)
        for place, name in enumerate(node.input)
        if place and name and low.constant(node, place) is not None
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (node.input[0], node.output[0]))
    graph = helper.make_graph([node], "places", [x], [y], held)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", low.net.opset)], ir_version=_IR)
    given = np.arange(n_elements, dtype=np.float32).reshape(shape)
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        [found] = session.run(None, {node.input[0]: given})
    except Exception as error:  # its errors share no base class below Exception
        raise refusal(node, f"that onnxruntime runs alone: {error_line(error)}") from error
    return np.asarray(found).astype(np.int64)
