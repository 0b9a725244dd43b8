"""State: buffers that a network writes to as it runs, and finds changed when it runs again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from edgeprune.graph import binding
from edgeprune.graph.memory import Memory

N_STEPS = 3  # a state that is lost or wrong shows from the second run on


def state_buffers(program: ExportedProgram) -> tuple[str, ...]:
    """The names of the buffers that a program writes to, in the order of its inputs."""
    signature = program.graph_signature
    buffers = {spec.arg.name: str(spec.target) for spec in signature.input_specs if spec.kind is InputKind.BUFFER}
    written = set(signature.buffers_to_mutate.values())
    if buffers:
        memory = Memory(program)
        for node in program.graph.nodes:
            memory.add(node)
            written |= {buffers.get(memory.roots[target].name, "") for target in binding.mutated(node)}
    return tuple(name for name in buffers.values() if name in written)


class FromStart:
    """A network that can be run over several steps from the state that it has now, again and again."""

    def __init__(self, network: fx.GraphModule, names: Sequence[str]) -> None:
        self.network = network
        self._names = [name for name in names if name in dict(network.named_buffers(remove_duplicate=False))]
        self._start = {name: network.get_buffer(name).clone() for name in self._names}

    def reset(self) -> None:
        """Set its buffers to what they were."""
        with torch.no_grad():
            for name in self._names:
                self.network.get_buffer(name).copy_(self._start[name])
