"""Core ML: packages for iPhones, in float, half precision and with 8-bit weights, whose programs are checked here."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from edgeprune.errors import ParityError
from edgeprune.export import apart
from edgeprune.export.coreml_runtime import KINDS, packages
from edgeprune.export.description import add_contract
from edgeprune.export.filecheck import HALF_TOLERANCE, error_of, samples_of_network
from edgeprune.export.fixedsizes import at_shapes
from edgeprune.export.installed import check_packages
from edgeprune.export.parity import PARITY_TOLERANCE, Sample
from edgeprune.export.shuffles import with_shuffles_apart
from edgeprune.export.signature import Signature, scaling_of, signature_of
from edgeprune.export.state import check_stateless
from edgeprune.export.target import Material, Runtime
from edgeprune.lines import one_line
from edgeprune.progress import Progress
from edgeprune.results import ExportedFile, LeftOut

NOTE = "program checked; Apple's kernels not run"
_CONVERT, _LOAD = (f"edgeprune.export.coreml_runtime:{name}" for name in ("convert", "load"))
_TOLERANCES = {"fp32": PARITY_TOLERANCE, "fp16": HALF_TOLERANCE, "w8": 5e-2}
# What Core ML takes of what PyTorch has.
_TAKEN = {"uint8": np.float32, "float64": np.float32, "float16": np.float32, "int64": np.int32}


@dataclass(frozen=True, slots=True)
class CoreMl:
    """Core ML as a target, for iOS 17 and later; one fixed batch. Nothing but a Mac runs it."""

    name: str = "coreml"
    runtime: Runtime | None = None
    free_batch: bool = False

    def files(self, model: str) -> tuple[str, ...]:
        """The packages in float, half precision and with 8-bit weights."""
        return f"{model}.mlpackage/", f"{model}.fp16.mlpackage/", f"{model}.w8.mlpackage/"

    def check_installed(self) -> None:
        """Raise InputError where coremltools is missing, too old or too new."""
        check_packages("coreml", "Core ML (coremltools)")

    def check(self, program: ExportedProgram) -> None:
        """Raise InputError for a network with a state."""
        check_stateless(program, "Core ML")

    def write(self, material: Material, told: Progress) -> tuple[ExportedFile, ...]:
        """Write the packages and run their programs; a smaller variant that is too far off is left out, and said.

        Raises:
            InputError: Core ML cannot express the network, or the check does not know one of its operators.
            ParityError: what the program in float computes differs from PyTorch.
        """
        told.stage("write for Core ML and check its programs")
        samples = [_taken(sample) for sample in samples_of_network(material, material.batch or 1)]
        first = samples[0]
        signature = signature_of(material.program, first.inputs, first.outputs, scaling=scaling_of(material))
        package = material.folder / f"{material.name}.mlpackage"
        _convert(material.program, signature, package)
        given = [sample.inputs for sample in samples]
        got = apart.answers(_LOAD, package, given, f"{package.name} cannot be checked")
        done: list[ExportedFile] = []
        left_out: list[LeftOut] = []
        for place, (kind, path) in enumerate(zip(KINDS, packages(package), strict=True)):
            n_outputs = len(first.outputs)
            own = [outputs[place * n_outputs : (place + 1) * n_outputs] for outputs in got]
            try:
                done.append(_checked(path, samples, own, _TOLERANCES[kind]))
            except ParityError as error:
                if path == package:
                    raise
                shutil.rmtree(path)
                told.say(f"left out: {error}")
                left_out.append(LeftOut("fp16" if kind == "fp16" else "w8", one_line(str(error))))
        add_contract(material.folder, material.network.name, self.name, package.name, signature.described())
        return (replace(done[0], left_out=tuple(left_out)), *done[1:])


def _taken(sample: Sample) -> Sample:
    """A sample whose inputs are of types that Core ML takes."""
    return replace(
        sample, inputs=tuple(array.astype(_TAKEN.get(array.dtype.name, array.dtype)) for array in sample.inputs)
    )


def _convert(program: ExportedProgram, signature: Signature, package: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        source = Path(folder) / "program.pt2"
        fixed = at_shapes(program, [value.shape for value in signature.inputs])
        torch.export.save(with_shuffles_apart(fixed), source)
        outs = {kind: str(path) for kind, path in zip(KINDS, packages(package), strict=True)}
        asked = {"program": str(source), "signature": signature.to_json(), "outs": outs}
        apart.called(_CONVERT, asked, f"Core ML cannot convert {package.stem}")


def _checked(
    package: Path, samples: Sequence[Sample], got: Sequence[Sequence[np.ndarray]], tolerance: float
) -> ExportedFile:
    parity = error_of(samples, got, f"{package.name} as a program", tolerance)
    size = sum(file.stat().st_size for file in package.rglob("*") if file.is_file())
    return ExportedFile(str(package), size, parity, note=NOTE)
