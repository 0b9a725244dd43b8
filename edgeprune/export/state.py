"""State in a file: a buffer that the network writes to becomes an input and an output of the ONNX graph.

ONNX has no state: each run begins with what it is given. The input `cache_in` takes what `cache_out` gave in the run
before; where it is left out, it is what the buffer was at the start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from edgeprune.errors import InputError, ParityError
from edgeprune.export.parity import Reference, Sample, error_on, quiet, torch_outputs
from edgeprune.graph.capture import Program, reexport
from edgeprune.graph.drawn import drawn_arguments, drawn_tensors, first_accepted
from edgeprune.graph.sizes import arguments, free_ranges
from edgeprune.graph.specs import batches_of, file_inputs, fitted, input_specs, output_names
from edgeprune.graph.state import N_STEPS, FromStart, state_buffers

_BATCH = 2


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """One buffer, the names of its input and output in the file, and what it is at the start."""

    buffer: str
    input: str
    output: str
    start: Tensor


def states_of(program: ExportedProgram) -> tuple[State, ...]:
    """The state of a program; empty where it has none."""
    buffers = {**program.constants, **program.state_dict}
    taken = {spec.name for spec in input_specs(program)} | set(output_names(program)) | {"input"}
    found = []
    for name in state_buffers(program):
        base = name.replace(".", "_")
        while {f"{base}_in", f"{base}_out"} & taken:
            base += "_"
        taken |= {f"{base}_in", f"{base}_out"}
        found.append(State(name, f"{base}_in", f"{base}_out", buffers[name].detach().clone().contiguous()))
    return tuple(found)


def check_stateless(program: ExportedProgram, what: str) -> None:
    """Raise InputError for a program with a state, which `what` would lose."""
    names = state_buffers(program)
    if names:
        raise InputError(
            f"{what}: expected a network without a state, got one that writes to its buffer{'s' * (len(names) > 1)} "
            f"{', '.join(names)}; ONNX files have them as inputs and outputs"
        )


class Whole:
    """The program in PyTorch, each run from its state at the start."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        with quiet():
            self._network = FromStart(program.module(), state_buffers(program))

    def __call__(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Its outputs for the tensors among its inputs; what else it takes is as it was captured with."""
        self._network.reset()
        network: Any = self._network.network
        return torch_outputs(lambda *tensors: network(*arguments(self._program, tensors)), inputs)


class _Apart(nn.Module):
    """A network whose state comes in after its inputs and goes out after its outputs."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self._names = network, tuple(names)

    def forward(self, inputs: tuple[Any, ...], states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One step."""
        held = {name: state.clone() for name, state in zip(self._names, states, strict=True)}
        result = functional_call(self.network, held, inputs)
        return (*(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)), *held.values())


def with_state_apart(program: ExportedProgram, states: Sequence[State]) -> Program:
    """The program without a state, which takes its values and gives the new ones."""
    module = program.module()
    args = first_accepted(module, drawn_arguments(program, _BATCH))
    network = _Apart(Program.adopt(program).editable_module(), [state.buffer for state in states])
    free = [*free_ranges(program), *[{}] * len(states)]
    with quiet():
        return reexport(network, (args, tuple(state.start.clone() for state in states)), free)


def file_names(program: ExportedProgram, states: Sequence[State]) -> tuple[list[str] | None, list[str]]:
    """The names of a file's inputs and outputs; None leaves those of the inputs to the exporter."""
    specs = input_specs(program)
    if not states:
        return ["input"] if len(specs) == 1 else None, output_names(program)
    return [*file_inputs(program), *(state.input for state in states)], [
        *output_names(program),
        *(state.output for state in states),
    ]


def steps_of(program: ExportedProgram, apart: Program, states: Sequence[State], inputs: Any) -> list[Sample]:
    """What the program gives over several steps, each with the state that the one before left.

    Raises:
        InputError: the inputs do not fit the program, or it fails on them.
        ParityError: with its state apart it is another network.
    """
    failures: list[InputError | ParityError] = []
    for steps in _steps(program, inputs):
        try:
            samples = list(_chained(Reference(apart), steps, [state.start.numpy() for state in states]))
        except (InputError, ParityError) as error:
            failures.append(error)
            continue
        _check_own(program, steps, samples, len(states))
        return samples
    raise failures[0]


def _steps(program: ExportedProgram, inputs: Any) -> Iterator[list[tuple[Tensor, ...]]]:
    specs = input_specs(program)
    if inputs is not None:
        steps = list(batches_of(fitted(specs, inputs, "inputs to check the export on"), specs))
        yield [*steps, *[steps[-1]] * (N_STEPS - len(steps))]
        return
    drawn = [drawn_tensors(program, 1 if step % 2 else 3, seed=step) for step in range(N_STEPS)]
    yield from map(list, zip(*drawn, strict=True))


def _chained(
    reference: Reference, steps: Sequence[tuple[Tensor, ...]], state: Sequence[np.ndarray]
) -> Iterator[Sample]:
    for args in steps:
        [sample] = reference.samples([(*args, *map(torch.from_numpy, state))])
        yield sample
        state = sample.outputs[-len(state) :]


def _check_own(
    program: ExportedProgram, steps: Sequence[tuple[Tensor, ...]], samples: Sequence[Sample], n_states: int
) -> None:
    """The network with its own state gives the same."""
    with quiet():
        module = program.module()
    for args, sample in zip(steps, samples, strict=True):
        got = torch_outputs(lambda *t: module(*arguments(program, t)), [tensor.numpy() for tensor in args])
        error_on(
            Sample(sample.inputs, sample.outputs[:-n_states], sample.types), got, "the network with its state apart"
        )


def at_start(sample: Sample, n_states: int) -> Sample:
    """The first step, its state left out."""
    return replace(sample, inputs=sample.inputs[:-n_states])


def put_starts(proto: onnx.ModelProto, states: Sequence[State]) -> None:
    """What the state is where a run leaves it out, in place."""
    proto.graph.initializer.extend(numpy_helper.from_array(state.start.numpy(), state.input) for state in states)


def metadata(states: Sequence[State]) -> dict[str, str]:
    """What a file says of its state."""
    if not states:
        return {}
    entries = [{"buffer": state.buffer, "input": state.input, "output": state.output} for state in states]
    return {"edgeprune.state": json.dumps(entries)}


def in_words(states: Sequence[State]) -> str:
    """E.g. `state: cache_in takes what cache_out gave in the run before`; empty without one."""
    if not states:
        return ""
    pairs = ", ".join(f"{state.input} takes what {state.output} gave in the run before" for state in states)
    return f"state: {pairs}; left out, it is as at the start"
