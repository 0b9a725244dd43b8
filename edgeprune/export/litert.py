"""LiteRT: a .tflite file for Android and others, run in LiteRT's interpreter before it is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from edgeprune.export import apart
from edgeprune.export.description import add_contract
from edgeprune.export.feeds import arrays_of
from edgeprune.export.filecheck import error_of, samples_of_network
from edgeprune.export.installed import check_packages
from edgeprune.export.parity import Sample
from edgeprune.export.refusals import check_weights
from edgeprune.export.signature import (
    FileValue,
    Layout,
    Signature,
    example_inputs,
    example_outputs,
    scaling_of,
    signature_of,
)
from edgeprune.export.silence import native_silence
from edgeprune.export.state import check_stateless
from edgeprune.export.target import Inputs, Material, Runner, Runtime
from edgeprune.progress import Progress
from edgeprune.results import ExportedFile

_CONVERT, _LOAD = (f"edgeprune.export.litert_runtime:{name}" for name in ("convert", "load"))
_MAX_BYTES = 2**31 - 2**20


@dataclass(frozen=True, slots=True)
class LitertRuntime:
    """LiteRT's interpreter with XNNPACK, and files that take images in a layout."""

    layout: Layout = "nhwc"
    name: str = "LiteRT"

    def draft(self, program: ExportedProgram, folder: Path, batch: int) -> Path:
        """A .tflite file for one batch."""
        signature = signature_of(program, example_inputs(program, batch), example_outputs(program), self.layout)
        return _converted(program, signature, folder / "draft.tflite")

    def runner(self, file: Path, inputs: Inputs, threads: int = 1) -> Runner:
        """One inference a call, in this process: the file has run before."""
        from edgeprune.export.litert_runtime import load

        arrays = self._laid_out(arrays_of(inputs.file))
        with native_silence():
            model = load(file, threads)
            model(arrays)
        return lambda: model(arrays)

    def _laid_out(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        is_image = self.layout == "nhwc"
        return [FileValue("", (), "", is_image and array.ndim == 4).laid_out(array) for array in arrays]


@dataclass(frozen=True, slots=True)
class Litert:
    """LiteRT as a target; one fixed batch, and images in a layout."""

    layout: Layout = "nhwc"
    name: str = "litert"
    free_batch: bool = False

    @property
    def runtime(self) -> Runtime:
        """LiteRT's interpreter."""
        return LitertRuntime(self.layout)

    def files(self, model: str) -> tuple[str, ...]:
        """The one file."""
        return (f"{model}.tflite",)

    def check_installed(self) -> None:
        """Raise InputError where a part of LiteRT is missing, too old or too new."""
        check_packages("litert", "LiteRT")

    def check(self, program: ExportedProgram) -> None:
        """Raise InputError for a network with a state."""
        check_stateless(program, "LiteRT")

    def write(self, material: Material, told: Progress) -> tuple[ExportedFile, ...]:
        """Write the file and run it, and say in features.json what it takes.

        Raises:
            InputError: LiteRT cannot express or run the network.
            ParityError: what it computes differs from PyTorch.
        """
        told.stage("write for LiteRT and run it")
        program = material.program
        check_weights(program, "one .tflite file", _MAX_BYTES, "XNNPACK does not run")
        samples = samples_of_network(material, material.batch or 1)
        first = samples[0]
        signature = signature_of(program, first.inputs, first.outputs, self.layout, scaling_of(material))
        out = _converted(program, signature, material.folder / f"{material.name}.tflite")
        parity = _parity(out, signature, samples)
        add_contract(material.folder, material.network.name, "litert", out.name, signature.described())
        return (ExportedFile(str(out), out.stat().st_size, parity),)


def _converted(program: ExportedProgram, signature: Signature, out: Path) -> Path:
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        source = Path(folder) / "program.pt2"
        torch.export.save(program, source)
        asked = {"program": str(source), "signature": signature.to_json(), "out": str(out)}
        apart.called(_CONVERT, asked, f"LiteRT cannot convert {out.stem}")
    return out


def _parity(file: Path, signature: Signature, samples: Sequence[Sample]) -> float:
    given = [signature.laid_out(sample.inputs) for sample in samples]
    found = apart.answers(_LOAD, file, given, f"LiteRT cannot run {file.name}")
    got = [signature.channels_first(outputs) for outputs in found]
    return error_of(samples, got, f"{file.name} in LiteRT")
