"""Everything that checkers say of a network on phones, a line each; NNAPI, which Android gives up, comes last."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch.export import ExportedProgram

from edgeprune.errors import InputError
from edgeprune.export.litert import Litert, LitertRuntime
from edgeprune.export.mobile import qnn
from edgeprune.export.mobile.litert import check_litert
from edgeprune.export.mobile.places import layer_prints
from edgeprune.export.mobile.providers import as_the_phone_sees_it, check_mobile
from edgeprune.progress import Progress

_LEGACY = "NNAPI"
_DELEGATES = "LiteRT's XNNPACK and GPU delegates"


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """What is checked: the ONNX file, the program that a .tflite file is made of, and one that is there already."""

    onnx: Path
    program: ExportedProgram
    tflite: Path | None = None
    batch: int = 1


def phones(network: Network, told: Progress) -> tuple[str, ...]:
    """A line for each accelerator; of one whose checker is missing or fails, that.

    Raises:
        InputError: onnxruntime cannot read the ONNX file.
    """
    told.stage("ask what accelerators of phones would take")
    checks = check_mobile(network.onnx)
    legacy = [check.words for check in checks if check.provider == _LEGACY]
    others = [check.words for check in checks if check.provider != _LEGACY]
    return (*_litert(network), *others, _core_ml(), _qnn(network), *legacy)


def _litert(network: Network) -> tuple[str, ...]:
    try:
        Litert().check_installed()
    except InputError as error:
        return (f"{_DELEGATES}: no checker on this machine: {error}",)
    try:
        weights = layer_prints(as_the_phone_sees_it(network.onnx).graph)
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            file = network.tflite or LitertRuntime().draft(network.program, Path(folder), network.batch)
            return check_litert(file, weights).words
    except InputError as error:
        return (f"{_DELEGATES}: nothing that they could take: {error}",)


def _core_ml() -> str:
    """Apple's compute plan, which says what of a package runs where, is in macOS alone."""
    where = "give the package to coremltools' MLComputePlan" if sys.platform == "darwin" else "it is on a Mac alone"
    return f"Core ML's own packages: no checker on this machine: Apple's compute plan says what runs where, {where}"


def _qnn(network: Network) -> str:
    if not qnn.is_installed():
        return "QNN: no checker on this machine: pip install 'edgeprune[qnn]' (x86-64 Linux, Windows)"
    try:
        return qnn.check_qnn(as_the_phone_sees_it(network.onnx), network.onnx.name).words
    except InputError as error:
        return f"QNN: not checked: {error}"
