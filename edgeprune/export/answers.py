"""What a file answers, put together as its network gives it out: files know tensors by name alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument

from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.graph.containers import held
from edgeprune.graph.specs import output_names
from edgeprune.lines import shown
from edgeprune.reading import parse_json
from edgeprune.tasks.outputs import Named, mapped

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_ENTRY = "edgeprune.outputs"


@dataclass(frozen=True, slots=True, eq=False)
class Answering:
    """A session, and the names of its outputs in the dicts and lists in which the network gives them.

    `structure` None gives a single output as it is, and several by their names.
    """

    session: InferenceSession
    structure: Any = None
    bounds: ort.Bounds | None = None

    def __call__(self, inputs: ort.Feed) -> Any:
        """All outputs for the inputs `(n, ...)`; raises InputError where they do not fit, or it takes too much."""
        named_inputs = inputs if isinstance(inputs, Mapping) else {ort.input_name(self.session): inputs}
        arrays = ort.run_by_name(self.session, named_inputs, self.bounds)
        named = dict(zip(self.outputs, arrays, strict=True))
        if self.structure is not None:
            return mapped(self.structure, lambda name: named[name])
        return arrays[0] if len(arrays) == 1 else Named(named)

    @property
    def outputs(self) -> list[str]:
        """The names that the file gives them."""
        return [value.name for value in self.session.get_outputs()]


def structure_of(program: ExportedProgram) -> Any:
    """The names of a program's outputs in a file, in the dicts and lists in which it gives them; dataclasses are dicts.

    Example: `{"scores": "scores", "heads": ["output_1", "output_2"]}`; "logits" for a bare tensor.
    """
    given = [spec.arg for spec in program.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    names = iter(output_names(program))
    leaves = [np.array(next(names)) if isinstance(arg, TensorArgument) else None for arg in given]
    return mapped(held(program.call_spec.out_spec, leaves), str)


def metadata(program: ExportedProgram) -> dict[str, str]:
    """What a file says of how its outputs belong together; nothing of a bare tensor, which needs no word."""
    structure = structure_of(program)
    return {} if isinstance(structure, str) else {_ENTRY: json.dumps(structure)}


def structure_in(stated: Mapping[str, str], outputs: list[str], where: str) -> Any:
    """The structure that a file states for its outputs, or None.

    Raises:
        InputError: the entry is malformed, or names an output that there is not; `where` names the file.
    """
    text = stated.get(_ENTRY)
    if text is None:
        return None
    expected = f"{where}: {_ENTRY}: expected its outputs {', '.join(outputs)} in objects and lists"
    structure = parse_json(text, expected)
    names: list[Any] = []
    mapped(structure, names.append)
    if isinstance(structure, str) or not names or not all(name in outputs for name in names):
        raise InputError(f"{expected}, got {shown(text, 80)}")
    return structure
