"""LiteRT: a .tflite file for Android and others, run in LiteRT's interpreter before it is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from edgeprune.errors import InputError, ParityError
from edgeprune.export import apart
from edgeprune.export.description import add_contract
from edgeprune.export.feeds import arrays_of, filled
from edgeprune.export.filecheck import error_of, samples_of_network
from edgeprune.export.installed import check_packages
from edgeprune.export.litert_memory import arena_bytes
from edgeprune.export.parity import Sample
from edgeprune.export.refusals import check_weights
from edgeprune.export.signature import (
    NARROWED,
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
from edgeprune.export.target import CALIBRATION, Inputs, Material, Runner, Runtime
from edgeprune.export.taskjudged import judged
from edgeprune.lines import one_line
from edgeprune.progress import Progress
from edgeprune.results import ExportedFile, LeftOut

_CONVERT, _LOAD, _QUANTIZE = (f"edgeprune.export.litert_runtime:{name}" for name in ("convert", "load", "quantize"))
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
        """In float, and in int8 where that is asked for."""
        return (f"{model}.tflite", f"{model}.int8.tflite")

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
        parity = error_of(samples, _answers(out, signature, [one.inputs for one in samples]), f"{out.name} in LiteRT")
        add_contract(material.folder, material.network.name, "litert", out.name, signature.described())
        made = ExportedFile(str(out), out.stat().st_size, parity, note=_arena(out))
        if not material.int8:
            return (made,)
        told.stage("quantise for LiteRT and run it")
        small = out.with_suffix(".int8.tflite")
        try:
            return (made, _quantized(material, out, small, signature, samples))
        except (InputError, ParityError) as error:
            small.unlink(missing_ok=True)
            told.say(f"left out: int8 for LiteRT: {error}")
            return (replace(made, left_out=(LeftOut("int8", one_line(str(error))),)),)


def _converted(program: ExportedProgram, signature: Signature, out: Path) -> Path:
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        source = Path(folder) / "program.pt2"
        torch.export.save(program, source)
        asked = {"program": str(source), "signature": signature.to_json(), "out": str(out)}
        apart.called(_CONVERT, asked, f"LiteRT cannot convert {out.stem}")
    return out


def _arena(file: Path) -> str:
    """What the file's values take at once, in words; nothing where that is not known before it runs."""
    n_bytes = arena_bytes(file)
    return "" if n_bytes is None else f"arena {n_bytes:,} B"


def _answers(file: Path, signature: Signature, given: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
    """All outputs of the file for batches, each all inputs, both with channels first."""
    taken = [signature.laid_out(inputs) for inputs in given]
    found = apart.answers(_LOAD, file, taken, f"LiteRT cannot run {file.name}")
    return [signature.channels_first(outputs) for outputs in found]


def _quantized(
    material: Material, source: Path, out: Path, signature: Signature, samples: Sequence[Sample]
) -> ExportedFile:
    """The file in int8, calibrated on the training split and judged by the task beside the one in float.

    Raises:
        InputError: the quantizer cannot do it, or more is lost than may be.
        ParityError: it gives NaN or infinity, or other shapes.
    """
    _write_int8(source, out, signature, _calibration(material, signature))
    got = _answers(out, signature, [one.inputs for one in samples])
    error = _error(samples, got, out.name)
    in_float, in_int8 = (partial(_answers, file, signature) for file in (source, out))
    said, is_enough = judged(material, in_float, in_int8, material.batch or 1)
    if not is_enough:
        raise InputError(f"{said}, which is more than may be lost")
    add_contract(material.folder, material.network.name, "litert-int8", out.name, signature.described())
    return ExportedFile(
        str(out), out.stat().st_size, error, note="; ".join(filter(None, (f"int8, {said}", _arena(out))))
    )


def _write_int8(source: Path, out: Path, signature: Signature, batches: Sequence[Sequence[np.ndarray]]) -> None:
    columns = [np.stack(column) for column in zip(*batches, strict=True)]
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        given = Path(folder) / "given.npz"
        np.savez(given, *columns)
        names = [value.name for value in signature.inputs]
        asked = {"source": str(source), "names": names, "given": str(given), "out": str(out)}
        apart.called(_QUANTIZE, asked, f"LiteRT cannot quantise {source.name}")


def _calibration(material: Material, signature: Signature) -> list[list[np.ndarray]]:
    """Whole batches of the training split as the file takes them; the last one is filled from the start."""
    raw = material.raw("train", CALIBRATION)
    assert raw is not None  # else int8 was refused before
    arrays, batch = arrays_of(material.inputs(raw).file), material.batch or 1
    places = filled(len(arrays[0]), batch)
    types = [NARROWED.get(array.dtype.name, array.dtype.name) for array in arrays]
    cast = [array.astype(kind) for array, kind in zip(arrays, types, strict=True)]
    return [signature.laid_out([array[rows] for array in cast]) for rows in places]


def _error(samples: Sequence[Sample], got: Sequence[Sequence[np.ndarray]], name: str) -> float:
    """The largest absolute error of any output; raises ParityError where one is not finite, or of another shape."""
    worst = 0.0
    for sample, outputs in zip(samples, got, strict=True):
        shapes = [[array.shape for array in arrays] for arrays in (sample.outputs, outputs)]
        if shapes[0] != shapes[1] or not all(np.isfinite(array).all() for array in outputs):
            raise ParityError(f"{name} in LiteRT: expected finite outputs {shapes[0]}, got others, {shapes[1]}")
        pairs = zip(sample.outputs, outputs, strict=True)
        errors = (float(np.abs(want.astype(np.float64) - have).max(initial=0.0)) for want, have in pairs)
        worst = max(worst, *errors)
    return worst
