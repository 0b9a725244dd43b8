"""State: buffers that a network writes to as it runs, and finds changed when it runs again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.utils._pytree import tree_flatten, tree_unflatten

from edgeprune.errors import InputError
from edgeprune.graph import binding
from edgeprune.graph.comparison import outputs
from edgeprune.graph.memory import Memory
from edgeprune.graph.precision import in_float64
from edgeprune.graph.sizes import same_sizes
from edgeprune.graph.specs import output_names

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


def state_partners(program: ExportedProgram, pairs: Mapping[str, str]) -> dict[int, fx.Node]:
    """The positions of the outputs that a state goes out by, and the placeholders that it comes in by.

    Args:
        program: may give new values of its buffers too.
        pairs: input -> output, by their names (see `output_names`).

    Raises:
        InputError: a name that the program does not have, or shapes that differ.
    """
    nodes = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    found = {position: nodes[name] for position, name in _written_buffers(program).items()}
    users = [
        position
        for position, spec in enumerate(program.graph_signature.output_specs)
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(spec.arg, TensorArgument)
    ]
    outputs = dict(zip(output_names(program), users, strict=True))
    results: Any = list(program.graph.output_node().args[0])
    for name, output in pairs.items():
        if name not in program.graph_signature.user_inputs:
            known = ", ".join(map(str, program.graph_signature.user_inputs))
            raise InputError(f"state: expected the name of an input ({known}), got {name!r}")
        if output not in outputs:
            raise InputError(f"state {name!r}: expected the name of an output ({', '.join(outputs)}), got {output!r}")
        comes, goes = nodes[name], results[outputs[output]]
        if not same_sizes(comes.meta["val"].shape, goes.meta["val"].shape):
            shapes = [tuple(node.meta["val"].shape) for node in (comes, goes)]
            raise InputError(f"state {name!r}: expected {output!r} of its shape {shapes[0]}, got {shapes[1]}")
        found[outputs[output]] = comes
    return found


def _written_buffers(program: ExportedProgram) -> dict[int, str]:
    """Position of an output that is a buffer's new value -> name of the placeholder of that buffer."""
    buffers = {spec.target: spec.arg.name for spec in program.graph_signature.input_specs if spec.target}
    return {
        position: buffers[spec.target]
        for position, spec in enumerate(program.graph_signature.output_specs)
        if spec.kind is OutputKind.BUFFER_MUTATION and spec.target in buffers
    }


class FromStart:
    """A network that can be run over several steps from the state that it has now, again and again.

    Args:
        network: what runs.
        names: of the buffers that it writes to.
        fed: the leaves of its inputs that take an output of the step before, with the number of that output.
    """

    def __init__(self, network: fx.GraphModule, names: Sequence[str], fed: Mapping[int, int] | None = None) -> None:
        self.network = network
        self._names = [name for name in names if name in dict(network.named_buffers(remove_duplicate=False))]
        self._start = {name: network.get_buffer(name).clone() for name in self._names}
        self._fed = dict(fed or {})

    def reset(self) -> None:
        """Set its buffers to what they were."""
        with torch.no_grad():
            for name in self._names:
                self.network.get_buffer(name).copy_(self._start[name])

    def in_float64(self) -> FromStart:
        """A copy in float64, from the start; this one stays as it is."""
        self.reset()
        network = copy.deepcopy(self.network)
        in_float64(network)
        return FromStart(network, self._names, self._fed)

    def next_step(self, args: tuple[Any, ...], before: Sequence[Tensor]) -> tuple[Any, ...]:
        """Arguments with the state that a step left; as they are where nothing is fed, or another size is."""
        leaves, tree = tree_flatten(args)
        for leaf, output in self._fed.items():
            if before and before[output].shape == leaves[leaf].shape:
                leaves[leaf] = before[output]
        fed: tuple[Any, ...] = tree_unflatten(leaves, tree)
        return fed

    def run(self, samples: Sequence[tuple[Any, ...]]) -> list[list[Tensor]]:
        """The outputs on each sample, one after the other, from the start."""
        self.reset()
        results: list[list[Tensor]] = []
        for args in samples:
            results.append(outputs(self.network, self.next_step(args, results[-1] if results else [])))
        return results


def fed_leaves(program: ExportedProgram, pairs: Mapping[str, str]) -> dict[int, int]:
    """Input leaf -> number of the output that feeds it, for pairs of names."""
    inputs, names = list(program.graph_signature.user_inputs), output_names(program)
    return {inputs.index(name): names.index(output) for name, output in pairs.items()}
