"""A network becomes steps: each operator by its rule, in the order of the file."""

from __future__ import annotations

from edgeprune.export.c import choices, layers, movement, places, pointwise, pools, recurrent, resizing
from edgeprune.export.c.graph import Lowered
from edgeprune.export.c.integers import on_integers
from edgeprune.export.c.reading import Network
from edgeprune.export.c.rules import RULES, Lowering, refusal

__all__ = [
    "choices",
    "layers",
    "lowered",
    "movement",
    "places",
    "pointwise",
    "pools",
    "recurrent",
    "resizing",
]  # importing them registers their rules
_DOMAINS = ("", "ai.onnx")


def lowered(net: Network) -> Lowered:
    """The steps of a network.

    Raises:
        InputError: an operator that there is no C for, or a type; names it and its layer.
    """
    for node in net.nodes:
        if node.domain not in _DOMAINS or node.op_type not in RULES:
            raise refusal(node)
    low = Lowering(net)
    for name in net.inputs:
        low.views[name] = low.new(net.shapes[name], name)
        low.made.inputs.append(low.views[name])
    for node in net.nodes:
        if node.output[0] not in low.done and not on_integers(low, node):
            RULES[node.op_type](low, node)
    for name in net.outputs:
        low.made.outputs.append(low.view(name))
    return low.made
