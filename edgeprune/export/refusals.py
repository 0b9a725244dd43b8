"""What a file cannot hold and what its format cannot express, said alike for every format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import fx
from torch.export import ExportedProgram

from edgeprune.errors import InputError
from edgeprune.graph.binding import bind
from edgeprune.graph.lines import source_line
from edgeprune.graph.ops.registry import Kind, kind_of

_LACKING = re.compile(
    r"NOT_IMPLEMENTED : Could not find an implementation for (\w+)|(\w+) operator does not support double"
)


def check_weights(program: ExportedProgram, file: str, max_bytes: int, runtime: str) -> None:
    """Raise InputError for weights that one file cannot hold, or that its runtime does not compute with.

    Args:
        program: the network.
        file: e.g. `one ONNX file`.
        max_bytes: what it holds at most.
        runtime: what does not run bfloat16, e.g. `XNNPACK does not run`.
    """
    tensors = [*program.state_dict.values(), *(v for v in program.constants.values() if isinstance(v, torch.Tensor))]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > max_bytes:
        raise InputError(f"the weights take {size / 1e9:.2f} GB: {file} holds at most {max_bytes / 1e9:.2f} GB")
    if any(tensor.dtype is torch.bfloat16 for tensor in tensors):
        raise InputError(f"the weights are bfloat16, which {runtime}: convert with model.float()")


def check_groups(program: ExportedProgram, target: str) -> None:
    """Raise InputError where the groups of a convolution are as many as samples, which no format can say.

    The batch is folded into the groups where each sample has kernels of its own (StyleGAN2, CondConv).
    """
    for node in program.graph.nodes:
        if node.op == "call_function" and kind_of(node.target) is Kind.CONVOLUTION:
            if isinstance(bind(node, lambda n: n).get("groups"), fx.Node):
                line = source_line(node)
                raise InputError(
                    f"{target} cannot express {node.target}{f' (at {line})' if line else ''}: its number of groups is "
                    "the batch; capture the network with a fixed batch (edgeprune.capture(..., dynamic_batch=False), "
                    "the example as large as the batch on the device), or write it as a product over F.unfold"
                )


def told_of_float64(error: BaseException, program: ExportedProgram) -> str:
    """What to say in place of onnxruntime's error where it lacks an operator in the type of all weights; else nothing.

    It computes linear layers in float64, but has no convolutions and few other operators there.
    """
    types = {param.dtype for param in program.parameters() if param.dtype.is_floating_point}
    lacking = _LACKING.search(str(error))
    if types != {torch.float64} or lacking is None:
        return ""
    name = lacking[1] or lacking[2]
    return f"the weights are float64, for which onnxruntime has no {name} on a CPU: convert with model.float()"


def told_by(error: BaseException) -> list[str]:
    """What an exporter's error says, then what those say that it came from."""
    return list(_messages(error))


def _messages(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield str(error)
        error = error.__cause__


def refusal(error: BaseException, target: str, operators: Sequence[str]) -> str:
    """One line on why a network cannot be exported: the operators that stopped it, else what the first error said."""
    if operators:
        return cannot_express(target, operators)
    last = told_by(error)[-1].strip().splitlines()
    return f"the program cannot be exported to {target}: {last[0] if last else type(error).__name__}"


def cannot_express(target: str, operators: Sequence[str]) -> str:
    """E.g. `ONNX cannot express aten.foo.default; replace it in the model, or export the part before it`."""
    names = ", ".join(sorted(operators))
    return f"{target} cannot express {names}; replace it in the model, or export the part of the model before it"
