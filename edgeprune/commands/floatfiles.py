"""The ONNX files of a network's contracts, which the files of all targets and of smaller numbers are made of."""

from __future__ import annotations

from collections.abc import Callable

from edgeprune.export.contracts import write_contracts
from edgeprune.export.feeds import n_rows
from edgeprune.export.namedfront import NamedFront
from edgeprune.export.target import Material
from edgeprune.export.writing import unheard
from edgeprune.graph.specs import input_specs
from edgeprune.records import DataSource, Model
from edgeprune.results import ExportedFile


def front_of(model: Model, data: DataSource | None, folds: bool) -> NamedFront | None:
    """What is done to the inputs of a network with several; None where there is one."""
    if len(input_specs(model.program)) == 1:
        return None
    infos = () if data is None else data.inputs
    return NamedFront.of(model.program, model.info.normalization, infos, folds)


def write_float_files(
    material: Material,
    *,
    count: int | None = None,
    opset: int | None = None,
    simplify: bool = True,
    leave_out: Callable[[str], None] = unheard,
) -> tuple[list[ExportedFile], int]:
    """Write the ONNX files into the material's folder; returns them and how many real samples they passed.

    Args:
        count: samples of the test split that they are checked on, None for all.
        opset: as for `write_contracts`.
        simplify: as for `write_contracts`.
        leave_out: as for `write_contracts`.

    Raises:
        InputError, ParityError: as `write_contracts`.
    """
    raw, data = material.raw("test", count), material.data
    files = write_contracts(
        material.model.program, material.info, material.folder, name=material.name, raw_inputs=raw,
        opset=opset, simplify=simplify, preprocess="fold" if material.folds else "apart",
        byte_scale=None if data is None else data.byte_scale, inputs=() if data is None else data.inputs,
        task=material.answering, preparation=None if data is None else data.preparation, leave_out=leave_out,
    )  # fmt: skip
    return files, 0 if raw is None else n_rows(raw)
