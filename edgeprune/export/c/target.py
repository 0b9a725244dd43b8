"""C99 as a target: a header and a file without a dependency, run before they are kept; of int8 too, where there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch.export import ExportedProgram

from edgeprune.errors import InputError, ParityError
from edgeprune.export import apart, ort
from edgeprune.export.c.build import program_of
from edgeprune.export.c.graph import View
from edgeprune.export.c.int8 import check_meaning
from edgeprune.export.c.names import identifier
from edgeprune.export.c.runtime import Library, compiler
from edgeprune.export.c.text import Program, header_text, source_text
from edgeprune.export.description import add_contract
from edgeprune.export.feeds import arrays_of
from edgeprune.export.filecheck import error_of, samples_of_network
from edgeprune.export.onnx import draft_onnx
from edgeprune.export.onnxindices import index_bounds
from edgeprune.export.parity import PARITY_TOLERANCE, Sample
from edgeprune.export.signature import scaling_of, signature_of
from edgeprune.export.state import check_stateless
from edgeprune.export.target import Inputs, Material, Runner, Runtime
from edgeprune.export.taskjudged import judged
from edgeprune.export.writing import PREPROCESS
from edgeprune.files import write_atomically
from edgeprune.formats.onnx.file import read_onnx
from edgeprune.lines import one_line
from edgeprune.progress import Progress
from edgeprune.records import VariantKind
from edgeprune.results import ExportedFile, LeftOut

_LOAD, _LOAD_RAW = (f"edgeprune.export.c.runtime:{name}" for name in ("load", "load_raw"))
_MOST_BYTES = 2**24  # of constants: beyond what a microcontroller has, compilers take gigabytes
_INT8 = "_int8"
_BEST_INT8: tuple[VariantKind, ...] = ("int8-finetuned", "int8")  # the files that integers are taken from, best first
_BYTES = 256
_N_RAW = 8  # samples that the function for raw inputs is checked on


@dataclass(frozen=True, slots=True)
class CRuntime:
    """A compiler of this machine, and its processor."""

    name: str = "C"

    def draft(self, program: ExportedProgram, folder: Path, batch: int) -> Path:
        """A C file of a network, its header beside it; of one that is too large there is none."""
        draft_onnx(program, folder / "draft.onnx")
        made = program_of(folder / "draft.onnx", "draft", None, batch)
        return _written(made, folder) if made.constant_bytes <= _MOST_BYTES else folder / "draft.c"

    def runner(self, file: Path, inputs: Inputs, threads: int = 1) -> Runner | None:
        """One inference a call, in this process: the file has run before; None where there is no file."""
        if not file.exists():
            return None
        library, arrays = Library.of(file), arrays_of(inputs.file)

        def once() -> None:
            library.fill(arrays)
            library.run()

        return once


@dataclass(frozen=True, slots=True)
class CSource:
    """C as a target; its batch is fixed, at one sample where nothing is asked for."""

    name: str = "c"
    runtime: Runtime | None = CRuntime()
    free_batch: bool = False

    def files(self, model: str) -> tuple[str, ...]:
        """Source and header, in float and of the int8 file where there is one, by a name that C can use."""
        plain = identifier(model)
        return tuple(f"{plain}{kind}.{suffix}" for kind in ("", _INT8) for suffix in ("c", "h"))

    def check_installed(self) -> None:
        """Raise InputError where there is no C compiler: nothing that did not run is written."""
        compiler()

    def check(self, program: ExportedProgram) -> None:
        """Raise InputError for a network with a state."""
        check_stateless(program, "C")

    def write(self, material: Material, told: Progress) -> tuple[ExportedFile, ...]:
        """Write the files, compile them and run them; one of int8 that is too far off is left out, and said.

        Raises:
            InputError: there is no C for an operator, or the compiler refuses the file.
            ParityError: what it computes differs from PyTorch.
        """
        told.stage("write C, compile it and run it")
        samples = samples_of_network(material, material.batch or 1)
        plain = identifier(material.name)
        first = _source_of(material, material.network, plain)
        got = _answers(first.path, [sample.inputs for sample in samples])
        parity = error_of(samples, got, f"{first.path.name} compiled")
        _describe(material, first.path, samples, self.name)
        done = first.files(parity)
        made = (material.folder / f"{material.name}.{kind}.onnx" for kind in _BEST_INT8)
        quantized = next((path for path in made if path.exists()), None)
        if quantized is not None:
            try:
                done += _quantized(material, quantized, first, samples)
            except (InputError, ParityError) as error:
                for suffix in ("c", "h"):
                    (material.folder / f"{plain}{_INT8}.{suffix}").unlink(missing_ok=True)
                told.say(f"left out: C of int8: {error}")
                done = (replace(done[0], left_out=(LeftOut("int8", one_line(str(error))),)), *done[1:])
        return done


@dataclass(frozen=True, slots=True)
class _Source:
    """A written C file, its header beside it."""

    path: Path
    program: Program

    def files(self, parity: float, said: str = "") -> tuple[ExportedFile, ...]:
        """Both, with the memory that they take and what else there is to say."""
        note = f"arena {self.program.arena_bytes:,} B, constants {self.program.constant_bytes:,} B"
        header = self.path.with_suffix(".h")
        return (
            ExportedFile(str(self.path), self.path.stat().st_size, parity, note=f"{said}{note}"),
            ExportedFile(str(header), header.stat().st_size, None),
        )


def _source_of(material: Material, network: Path, prefix: str) -> _Source:
    """Written and, where it takes raw inputs too, checked in what it makes of these."""
    front = material.folder / PREPROCESS
    program = _built(network, prefix, front if front.exists() else None, material.batch or 1)
    source = _written(program, material.folder)
    if program.front is not None:
        _check_front(source, front, program)
    return _Source(source, program)


def _quantized(material: Material, quantized: Path, first: _Source, samples: list[Sample]) -> tuple[ExportedFile, ...]:
    """The files of a quantised network.

    Raises:
        InputError: there is no C for an operator, or more is lost than may be.
        ParityError: it is far from what the file means.
    """
    made = _source_of(material, quantized, f"{first.path.stem}{_INT8}")
    got = _answers(made.path, [sample.inputs for sample in samples])
    check_meaning(quantized, samples, got, made.path.name)
    said, is_enough = judged(material, partial(_answers, first.path), partial(_answers, made.path), material.batch or 1)
    if not is_enough:
        raise InputError(f"{said}, which is more than may be lost")
    _describe(material, made.path, samples, "c-int8")
    errors = (
        float(np.abs(want.astype(np.float64) - have).max(initial=0.0))
        for sample, outputs in zip(samples, got, strict=True)
        for want, have in zip(sample.outputs, outputs, strict=True)
    )
    return made.files(max(errors), f"int8, {said}; ")


def _built(network: Path, prefix: str, front: Path | None, batch: int) -> Program:
    program = program_of(network, prefix, front, batch)
    if program.constant_bytes > _MOST_BYTES:
        raise InputError(
            f"C: expected at most {_MOST_BYTES:,} bytes of constants, got {program.constant_bytes:,}: no "
            "microcontroller has so many"
        )
    return program


def _written(program: Program, folder: Path) -> Path:
    """The C file, its header beside it."""
    source = folder / f"{program.prefix}.c"
    write_atomically(source, source_text(program).encode("ascii"))
    write_atomically(source.with_suffix(".h"), header_text(program).encode("ascii"))
    return source


def _answers(source: Path, given: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
    return apart.answers(_LOAD, source, given, f"C: {source.name} does not run")


def _check_front(source: Path, preprocess: Path, program: Program) -> None:
    """Compare what the file makes of raw inputs with preprocess.onnx, which has been checked; they are drawn."""
    assert program.front is not None
    session, chance = ort.session(preprocess), np.random.default_rng(0)
    names, bounds = [value.name for value in session.get_inputs()], index_bounds(read_onnx(preprocess).graph)
    views = [(view, bounds.get(name)) for view, name in zip(program.front.made.inputs, names, strict=True)]
    given = [[_drawn(view, bound, chance) for view, bound in views] for _ in range(_N_RAW)]
    found = apart.answers(_LOAD_RAW, source, given, f"C: {source.name} does not run")
    for raw, got in zip(given, found, strict=True):
        wanted = ort.run_by_name(session, dict(zip(names, raw, strict=True)))
        for want, have in zip(wanted, got, strict=True):
            error = float(np.abs(want.astype(np.float64) - have).max(initial=0.0))
            if error > PARITY_TOLERANCE * max(1.0, float(np.abs(want).max(initial=0.0))):
                raise ParityError(
                    f"{source.name}: expected of raw inputs what {preprocess.name} makes, got {error:.3g}"
                )


def _drawn(view: View, bound: int | None, chance: np.random.Generator) -> np.ndarray:
    """Raw values: bytes, whole numbers below what they index, or floats."""
    if view.type in ("uint8_t", "int32_t"):
        kind = np.uint8 if view.type == "uint8_t" else np.int64
        return chance.integers(0, bound or _BYTES, view.shape).astype(kind)
    return chance.standard_normal(view.shape, np.float32)


def _describe(material: Material, source: Path, samples: list[Sample], contract: str) -> None:
    """Say in features.json what the file takes and gives, by the names of its functions."""
    first = samples[0]
    signature = signature_of(material.program, first.inputs, first.outputs, scaling=scaling_of(material))
    numbered = replace(
        signature,
        inputs=tuple(replace(one, name=f"{source.stem}_input{k}") for k, one in enumerate(signature.inputs)),
        outputs=tuple(replace(one, name=f"{source.stem}_output{k}") for k, one in enumerate(signature.outputs)),
    )
    add_contract(material.folder, material.network.name, contract, source.name, numbered.described())
