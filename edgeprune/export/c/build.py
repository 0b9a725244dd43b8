"""From ONNX files to a header and a C file."""

from __future__ import annotations

from pathlib import Path

from edgeprune.export.c.lower import lowered
from edgeprune.export.c.planner import arena_of, beside, rounded
from edgeprune.export.c.reading import Network, read_network
from edgeprune.export.c.text import Part, Program


def program_of(network: Path, prefix: str, front: Path | None = None, batch: int = 1) -> Program:
    """The program of an ONNX file.

    Args:
        network: its file.
        prefix: an identifier that all names begin with.
        front: the file that makes the network's inputs of raw ones, in their order.
        batch: the size of the batch where it is free.

    Raises:
        InputError: an operator, a type or a shape that there is no C for.
    """
    net = read_network(network, batch)
    made = lowered(net)
    part = Part(made, arena_of(made), net.inputs, net.outputs)
    return Program(prefix, part, None if front is None else _front(read_network(front, batch), part))


def _front(net: Network, network: Part) -> Part:
    """Steps that write where the network reads."""
    made = lowered(net)
    given = {view.value for view in made.inputs}
    for place, view in enumerate(made.outputs):
        if view.value in given or view.start:  # handed on as it is
            made.outputs[place] = made.copied(view)
    places = [network.arena.offsets[view.value] for view in network.made.inputs]
    pinned = {view.value: place for view, place in zip(made.outputs, places, strict=True)}
    sizes = [rounded(network.made.sizes[view.value]) for view in network.made.inputs]
    taken = [(place, place + size) for place, size in zip(places, sizes, strict=True)]
    return Part(made, beside(made, pinned, taken), net.inputs, net.outputs)
