"""Tensors of a program under other names, where a name means something else to what holds them."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, OutputKind

from edgeprune.errors import CaptureError

_WRITES = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)
_UNQUOTABLE = re.compile(r"[\"\\\x00-\x1f]")  # PyTorch writes names into code between plain quotes


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
    """Rename, in place, tensors whose name a graph's module cannot have: `meta.weight` becomes `meta_.weight`.

    So does `layers.in.weight` become `layers.in_.weight`: the code of a graph reads tensors as attributes.

    Raises:
        CaptureError: a name has quotes, backslashes or control characters, which no graph's code can have.
    """
    names = (*program.state_dict, *program.constants)
    bad = next((name for name in names if _UNQUOTABLE.search(name)), None)
    if bad is not None:
        raise CaptureError(
            f"tensor {bad!r}: expected a name of letters and digits, without double quotes, backslashes and control "
            "characters; rename its module"
        )
    if any(_free_name(name) != name for name in names):
        renamed(program, _free_name)


def own_name(name: str) -> str:
    """The name that a tensor of a program has in the module that was captured: `meta_.weight` is `meta.weight`."""
    parts = name.split(".")
    return ".".join(
        part[:-1] if part.endswith("_") and _means_another(part, place) else part for place, part in enumerate(parts)
    )


def _free_name(name: str) -> str:
    """Names that end in underscores already get one more, so that no two names become one."""
    parts = name.split(".")
    return ".".join(part + "_" if _means_another(part, place) else part for place, part in enumerate(parts))


def _means_another(part: str, place: int) -> bool:
    """Whether a part of a name, but for underscores at its end, is a word of Python or taken by a graph's module."""
    word = part.rstrip("_") or part
    return keyword.iskeyword(word) or (place == 0 and word in _taken())


@cache
def _taken() -> frozenset[str]:
    """The attributes that a graph's module has and a plain one has not, and what its code calls the module."""
    own = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph()))) - frozenset(dir(nn.Module()))
    return own | {"self"}
