"""The ONNX file of a network as `export` writes it: one rule for its bytes, whatever it is measured or held to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from edgeprune.export.front import Preprocessing
from edgeprune.export.metadata import metadata_of, metadata_of_named
from edgeprune.export.namedfront import NamedFront
from edgeprune.export.onnx import OnnxExport, draft_onnx, export_onnx
from edgeprune.graph.specs import input_specs
from edgeprune.records import ModelInfo
from edgeprune.tasks.task import Task


def stated_of(program: ExportedProgram, info: ModelInfo) -> dict[str, str]:
    """What the file of a network says of itself that takes whole inputs: of `full.onnx` where features are gathered."""
    if len(input_specs(program)) > 1:
        return metadata_of_named(info, "full", NamedFront.of(program, info.normalization, (), False))
    return metadata_of(info, "full", Preprocessing(tuple(info.input_shape), info.normalization, None))


def write_onnx(  # noqa: PLR0913 - a network, where to, what it is checked by and what stands beside it
    program: ExportedProgram,
    info: ModelInfo,
    path: str | Path,
    *,
    inputs: Any = None,
    task: Task | None = None,
    beside: Mapping[str, str] | None = None,
) -> OnnxExport:
    """Write the file of a network, checked beside PyTorch; InputError and ParityError as `export_onnx`.

    Args:
        program: takes normalised inputs, as the file does.
        info: what the network's own file says of it.
        path: as `export_onnx` takes it.
        inputs: as `export_onnx` takes them.
        task: as `export_onnx` takes it.
        beside: metadata of what the files of an export say that stand beside this one.
    """
    return export_onnx(program, path, inputs=inputs, task=task, metadata=stated_of(program, info) | dict(beside or {}))


def draft(info: ModelInfo, program: ExportedProgram, path: Path) -> None:
    """The same without a check, nor what onnxsim may take away: no smaller than the file that is written of it."""
    draft_onnx(program, path, stated_of(program, info))
