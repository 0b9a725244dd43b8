"""Where and how the files of an export are written: what every contract goes by."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from torch.export import ExportedProgram

from edgeprune.export.front import Preprocessing
from edgeprune.export.onnx import OnnxExport, export_onnx
from edgeprune.files import write_atomically
from edgeprune.records import InputFeatures, InputInfo, ModelInfo
from edgeprune.results import ExportedFile
from edgeprune.tasks.task import Task

FULL, PREPROCESS, SOUND = "full.onnx", "preprocess.onnx", "sound.onnx"
_CONTRACTS = {FULL: "full", PREPROCESS: "preprocess", SOUND: "sound"}


def unheard(why: str) -> None:
    """Nobody asks what is left out, or why."""


def warned(why: str) -> None:
    """Warn a caller in Python of what is left out."""
    warnings.warn(f"left out: {why}", stacklevel=2)


@dataclass(frozen=True, slots=True)
class Writing:
    """Where and how the files of one export are written; `leave_out` is told of a file that is not, and why."""

    folder: Path
    info: ModelInfo
    name: str
    opset: int | None
    simplify: bool
    fold: bool
    byte_scale: float | None
    inputs: tuple[InputInfo, ...] = ()
    task: Task | None = None
    preparation: Mapping[str, Any] = field(default_factory=dict)
    leave_out: Callable[[str], None] = unheard

    @property
    def network(self) -> str:
        """The file that holds the network: of the slim contract where features are gathered, else of the full one."""
        return f"{self.name}.onnx"

    def preprocessing(self, features: InputFeatures | None) -> Preprocessing:
        """What is done to raw inputs ahead of the network."""
        byte_scale = self.byte_scale if self.fold else None
        return Preprocessing(tuple(self.info.input_shape), self.info.normalization, features, byte_scale)

    def contracts(self, files: Sequence[ExportedFile]) -> dict[str, str]:
        """The names of written files by contract: where there is a full.onnx, the network is that of the slim one."""
        names = [Path(file.path).name for file in files]
        network = "slim" if FULL in names else "full"
        return {_CONTRACTS.get(name, network): name for name in names}

    def exported(self, program: ExportedProgram, name: str, inputs: Any, metadata: Mapping[str, str]) -> ExportedFile:
        """The file of a program, checked beside PyTorch on `inputs` as the program takes them."""
        done: OnnxExport = export_onnx(
            program,
            self.folder / name,
            inputs=inputs,
            opset=self.opset,
            simplify=self.simplify,
            metadata=dict(metadata),
            task=self.task,
        )
        return ExportedFile(done.path, done.size_bytes, done.parity)

    def written(self, name: str, model: onnx.ModelProto) -> ExportedFile:
        """The file of a graph, as it is."""
        content = model.SerializeToString(deterministic=True)
        write_atomically(self.folder / name, content)
        return ExportedFile(str(self.folder / name), len(content), None)


def opened(file: ExportedFile) -> onnx.ModelProto:
    """The graph of a written file."""
    return onnx.load(file.path, load_external_data=False)
