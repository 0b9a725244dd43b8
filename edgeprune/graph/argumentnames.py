"""Inputs by the names that the forward's arguments have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, TensorArgument
from torch.fx.graph import _custom_builtins
from torch.utils._pytree import tree_leaves

from edgeprune.errors import CaptureError

_ALWAYS = {"torch", "pytree", "fx_pytree"}  # what the code of each graph reads


def check_argument_names(program: ExportedProgram, names: Sequence[str]) -> None:
    """Raise CaptureError for an argument that hides what the code of the graph reads by its name, such as `device`."""
    suspects = [name for name in names if name in _custom_builtins]
    code = program.graph.python_code("self").src.splitlines() if suspects else []
    hidden = [name for name in suspects if name in _ALWAYS or any(_reads(line, name) for line in code)]
    if hidden:
        raise CaptureError(
            f"input {hidden[0]!r}: expected another name, as the code that PyTorch makes of the graph reads "
            f"{hidden[0]} itself; rename the argument of forward"
        )


def _reads(line: str, name: str) -> bool:
    """Whether a line of a graph's code reads what Python calls so; the argument itself is taken under another name."""
    is_own = line.startswith("def ") or re.fullmatch(rf"\s*\w+ = {name}", line)
    return not is_own and re.search(rf"(?<![\w.]){name}\b", line) is not None


def take_argument_names(program: ExportedProgram, names: Sequence[str], args: Sequence[Any]) -> None:
    """Call the inputs of a program, in place, as the forward calls its arguments: an export lowers capitals.

    Args:
        program: just exported.
        names: of the arguments, see `sizes.argument_names`.
        args: what it was exported with; the tensors of one that is a list or a dict keep their names.
    """
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    taken, new, place = {node.name for node in program.graph.nodes}, {}, 0
    for name, arg in zip(names, args, strict=True):
        have = specs[place].arg.name if isinstance(arg, Tensor) else name
        if have != name and name not in taken and name.isascii():  # as files write the names of nodes
            new[have] = name
            taken = (taken - {have}) | {name}
        place += len(tree_leaves(arg))
    if new:
        _rename(program, new)


def _rename(program: ExportedProgram, new: Mapping[str, str]) -> None:
    signature = program.graph_signature
    program._graph_signature = ExportGraphSignature(
        [replace(spec, arg=_renamed(spec.arg, new)) for spec in signature.input_specs],
        [
            replace(spec, arg=_renamed(spec.arg, new), target=new.get(str(spec.target), spec.target))
            for spec in signature.output_specs
        ],
    )
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name in new:
            node.name = node.target = new[node.name]
            program.graph._graph_namespace._rename_object(node, node.name)
    program.graph_module.recompile()


def _renamed(arg: Any, new: Mapping[str, str]) -> Any:
    return replace(arg, name=new[arg.name]) if isinstance(arg, TensorArgument) and arg.name in new else arg
