"""The identity of a program: a digest of its operators and weights that saving and loading do not change."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram


def digest(program: ExportedProgram) -> str:
    """sha256 over the graph (operators, arguments, order) and over names, shapes, types and bytes of all tensors.

    Left out is what differs between a captured program and its copy from a file: node names, symbol names, metadata,
    strides, and the numbering of outputs that nothing uses.
    """
    total = hashlib.sha256(b"edgeprune-digest/1")
    for line in _graph_lines(program):
        total.update(line.encode() + b"\n")
    for kind, tensors in (("state", program.state_dict), ("constant", program.constants)):
        for name in sorted(tensors):
            update_with(total, f"{kind} {name}", tensors[name])
    return total.hexdigest()


def update_with(total: hashlib._Hash, name: str, tensor: torch.Tensor) -> None:
    """Take a tensor into a digest: its name, type, shape and bytes."""
    total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
    total.update(_bytes_of(tensor))


def _bytes_of(tensor: torch.Tensor) -> Any:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def _graph_lines(program: ExportedProgram) -> list[str]:
    """One line a node, e.g. `%3 aten.add.Tensor self=%1 other=%2 alpha=1`; values are numbered in order."""
    sources = {spec.arg.name: f"{spec.kind.name} {spec.target}" for spec in program.graph_signature.input_specs}
    labels: dict[fx.Node, str] = {}
    lines: list[str] = []
    for node in program.graph.nodes:
        if node.target is operator.getitem:
            labels[node] = f"{labels[node.args[0]]}[{node.args[1]}]"
            continue
        labels[node] = f"%{len(lines)}"
        if node.op == "placeholder":
            lines.append(f"{labels[node]} {sources.get(node.name, 'input')}")
        else:
            arguments = [f"{name}={_show(value, labels)}" for name, value in _named_arguments(node)]
            lines.append(f"{labels[node]} {_target(node)} {' '.join(arguments)}")
    outputs = [f"{spec.kind.name} {spec.target}" for spec in program.graph_signature.output_specs]
    return [*lines, *outputs]


def _target(node: fx.Node) -> str:
    if node.op != "call_function":
        return node.op
    return str(node.target) if isinstance(node.target, torch._ops.OpOverload) else node.target.__name__  # type: ignore[union-attr]


def _named_arguments(node: fx.Node) -> Sequence[tuple[str, Any]]:
    """All arguments by name, defaults included, however the call spelt them."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return [(str(index), value) for index, value in enumerate(node.args)] + sorted(node.kwargs.items())
    named = []
    for index, argument in enumerate(node.target._schema.arguments):
        if index < len(node.args):
            value: Any = node.args[index]
        else:
            value = node.kwargs.get(argument.name, argument.default_value if argument.has_default_value() else None)
        named.append((argument.name, value))
    return named


def _show(value: Any, labels: dict[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return labels[value]
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_show(item, labels) for item in value) + "]"
    if isinstance(value, torch.device):
        return "device"  # a file is loaded on the CPU wherever it was made
    return repr(value)
