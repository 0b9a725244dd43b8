"""Classification: one output, the scores of the classes."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram

from edgeprune.errors import InputError
from edgeprune.graph.specs import output_names
from edgeprune.records import DataSource

_WITHOUT_DATA = "without data `edgeprune compress --keep-macs` can cut it"


def check_logits(program: ExportedProgram, data: DataSource, instead: str = _WITHOUT_DATA) -> None:
    """Raise InputError where accuracy cannot be measured: the output is not `(batch, n_classes)`.

    Of several outputs none is taken for the scores. `instead` says what can be done.
    """
    output = next(node for node in program.graph.nodes if node.op == "output")
    values = [node.meta.get("val") for node in output.all_input_nodes]
    shapes = [tuple(value.shape) for value in values if isinstance(value, torch.Tensor)]
    if len(shapes) == 1 and len(shapes[0]) == 2 and isinstance(shapes[0][1], int):
        return
    names = output_names(program)
    named = [f"{name} " for name in names] if len(names) == len(shapes) > 1 else [""] * len(shapes)
    got = " and ".join(
        f"{name}({', '.join(['batch', *map(str, shape[1:])])})" for name, shape in zip(named, shapes, strict=True)
    )
    raise InputError(
        f"data {data.name}: expected a network with one output (batch, {len(data.classes)}), the scores of the "
        f"classes, got {got or 'none'}; {instead}"
    )


def n_outputs(program: ExportedProgram) -> int | None:
    """The number of classes of a network whose one output is `(batch, n_classes)`; None for another."""
    output = next(node for node in program.graph.nodes if node.op == "output")
    values = [node.meta.get("val") for node in output.all_input_nodes]
    if len(values) != 1 or not isinstance(values[0], torch.Tensor) or values[0].dim() != 2:
        return None
    size = values[0].shape[-1]
    return size if isinstance(size, int) else None
