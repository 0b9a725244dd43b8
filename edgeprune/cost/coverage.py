"""How much of a network a device's profile has measured, and how much of it any profile could."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgeprune.cost.device import Device
from edgeprune.cost.layers import LayerShape, layer_shapes
from edgeprune.cost.macs import macs_by_node
from edgeprune.errors import InputError
from edgeprune.graph.call import operator_name
from edgeprune.graph.groups import ChannelGraph
from edgeprune.results import UnmeasuredLayers

_LEAST_KNOWN = 0.5  # of a network's MACs: what a device's profile must cover to plan with it
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Coverage:
    """The share of the MACs of each kind of layer that was measured, and the layers with MACs that were not.

    A kind without MACs, such as "pointwise", has the share 0.
    """

    by_kind: dict[str, float]
    unmeasured: tuple[UnmeasuredLayers, ...]

    @property
    def known(self) -> float:
        """The share of the MACs whose layers were measured."""
        return sum(self.by_kind.values())

    @property
    def is_enough(self) -> bool:
        """Whether a network can be planned by it."""
        return self.known >= _LEAST_KNOWN

    @property
    def told(self) -> str:
        """The layers that were not measured, e.g. "rnn_relu (84%), lstm_cell (9%)"; those of most MACs first."""
        named = [f"{one.operator} ({one.macs_share:.0%})" for one in self.unmeasured]
        return ", ".join(named[:_SHOWN]) + (f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else "")


def coverage(graph: ChannelGraph, device: Device) -> Coverage:
    """What a device's profile has of a network."""
    return _coverage(graph, device.knows)


def check_known(graph: ChannelGraph, device: Device, where: str, how: str) -> None:
    """Raise InputError where a profile has too few of a network's layers to plan with; `how` says how to make one.

    Where no profile could have them that is said instead.
    """
    found = coverage(graph, device)
    if found.is_enough:
        return
    most = _coverage(graph, lambda shape: shape.is_measured)
    if most.is_enough:
        got = f"got those of {found.known:.0%} of its MACs"
        raise InputError(f"{where}: expected measurements of this network's layers, {got}; {how}")
    raise InputError(
        f"{where}: expected a network of which a profile measures {_LEAST_KNOWN:.0%} of the MACs, got one with "
        f"{most.told or 'no MACs'}, which none measures; plan without a profile"
    )


def _coverage(graph: ChannelGraph, has: Callable[[LayerShape], bool]) -> Coverage:
    by_node, shapes = macs_by_node(graph.analysis.program), layer_shapes(graph)
    total = max(1, sum(by_node.values()))
    targets = {node.name: node.target for node in graph.analysis.program.graph.nodes}
    by_kind = dict.fromkeys((shape.kind for shape in shapes.values() if has(shape)), 0.0)
    others: dict[str, list[float]] = {}
    for name, macs in by_node.items():
        shape = shapes.get(name)
        if shape is not None and has(shape):
            by_kind[shape.kind] += macs / total
        elif macs:
            others.setdefault(operator_name(targets[name]), []).append(macs / total)
    unmeasured = [UnmeasuredLayers(name, len(shares), sum(shares)) for name, shares in others.items()]
    return Coverage(by_kind, tuple(sorted(unmeasured, key=lambda one: -one.macs_share)))
