"""Tensors of a program under other names, where a name means something else to what holds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, OutputKind

_WRITES = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)


def renamed(program: ExportedProgram, new_name: Callable[[str], str]) -> None:
    """Give every parameter, buffer and constant of a program another name, in place."""
    signature = program.graph_signature
    inputs = [
        replace(spec, target=None if spec.target is None else new_name(spec.target)) for spec in signature.input_specs
    ]
    outputs = [
        replace(spec, target=new_name(str(spec.target))) if spec.kind in _WRITES else spec
        for spec in signature.output_specs
    ]
    program._graph_signature = ExportGraphSignature(inputs, outputs)
    program._state_dict = {new_name(name): tensor for name, tensor in program.state_dict.items()}
    program._constants = {new_name(name): value for name, value in program.constants.items()}


def free_names(program: ExportedProgram) -> None:
    """Rename, in place, tensors whose name a graph's module has taken: `meta.weight` becomes `meta_.weight`."""
    names = (*program.state_dict, *program.constants)
    if any(_free_name(name) != name for name in names):
        renamed(program, _free_name)


def own_name(name: str) -> str:
    """The name that a tensor of a program has in the module that was captured: `meta_.weight` is `meta.weight`."""
    first, dot, rest = name.partition(".")
    return first[:-1] + dot + rest if first.endswith("_") and first.rstrip("_") in _taken() else name


def _free_name(name: str) -> str:
    """Names that end in underscores already get one more, so that no two names become one."""
    first, dot, rest = name.partition(".")
    return first + "_" + dot + rest if (first.rstrip("_") or first) in _taken() else name


@cache
def _taken() -> frozenset[str]:
    """The attributes that a graph's module has and a plain one has not."""
    return frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph()))) - frozenset(dir(nn.Module()))
