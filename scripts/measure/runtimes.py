"""Networks, dense and at half of their MACs, written for every runtime that is installed: right, or refused."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeprune import analyze, capture, cut, plan
from edgeprune.cost.macs import macs
from edgeprune.errors import InputError, ParityError
from edgeprune.export.contracts import write_contracts
from edgeprune.export.filecheck import samples_of_network
from edgeprune.export.namedfront import NamedFront
from edgeprune.export.target import Inputs, Material, Runtime, Target
from edgeprune.export.targets import ONNXRUNTIME, targets_of
from edgeprune.formats.load import load
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import Program
from edgeprune.graph.specs import input_specs
from edgeprune.measure.latency import measure_runners
from edgeprune.progress import Silent
from edgeprune.records import ModelInfo
from edgeprune.results import ExportedFile
from measure.matrix import KINDS, refused
from measure.twelve import built

RUNTIMES = ("onnx", "ort", "litert", "coreml", "openvino", "ncnn", "executorch", "c")
LEFT_OUT = "left out"
KEEP_MACS, ALIGN = 0.5, 8  # no weights are trained here that coarse widths could cost accuracy
SHUFFLED = {"shufflenet_v2"}  # whose halves stay equal, so that its shuffles stay blocks that are moved
_SECONDS = 8.0
Cell = dict[str, Any]
Record = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class _Written:
    """A network's ONNX file, what else is made of it, and the largest number that it puts out."""

    material: Material
    onnx: ExportedFile
    size: float


def compare(
    name: str,
    runtimes: Sequence[str] = RUNTIMES,
    with_latency: bool = True,
    keep: Path | None = None,
    known: Mapping[str, Cell] | None = None,
) -> Iterator[Record]:
    """One network by each runtime: both files with their errors, or why not; and the ratio of their times.

    The record comes again after each runtime, with the cells until then. Files stay in the folder `keep`, and those of
    `known` cells are not written again where they are there.
    """
    torch.set_num_threads(1)
    model, inputs = built(name)
    program = capture(model, inputs[0] if len(inputs) == 1 else inputs)
    chosen = plan(program, analyze(program), keep_macs=KEEP_MACS, align=ALIGN, appliable=name in SHUFFLED)
    slim = cut(program, chosen)
    shapes = [[1, *spec.example[1:]] for spec in input_specs(program)]
    record: Record = {"name": name, "inputs": shapes, "macs": [macs(program), macs(slim)], "cells": {}}
    with _folder(name, keep) as folder:
        written = [_written(one, Path(folder) / kind) for one, kind in zip((program, slim), KINDS, strict=True)]
        for runtime in runtimes:
            cell = _cell(runtime, written, with_latency, (known or {}).get(runtime))
            record = {**record, "cells": {**record["cells"], runtime: cell}}
            yield record


def _folder(name: str, keep: Path | None) -> AbstractContextManager[str]:
    return tempfile.TemporaryDirectory() if keep is None else nullcontext(str(keep / name))


def _written(program: Program, folder: Path) -> _Written:
    folder.mkdir(parents=True, exist_ok=True)
    specs = input_specs(program)
    info = ModelInfo(tuple(specs[0].example[1:]))
    save_program(folder / "net.pt2", program, info)
    model = load(folder / "net.pt2")
    front = NamedFront.of(model.program, None, (), False) if len(specs) > 1 else None
    files = write_contracts(model.program, info, folder, name="net", simplify=True)
    material = Material(model, info, folder, "net", front=front)
    size = max(float(np.abs(output).max()) for sample in samples_of_network(material, 1) for output in sample.outputs)
    return _Written(material, next(file for file in files if file.path.endswith("net.onnx")), size)


def _cell(name: str, written: Sequence[_Written], with_latency: bool, known: Cell | None) -> Cell:
    """Both networks' files, and the time of the slim one over the dense one's, run by run in turn."""
    target = None if name == "onnx" else targets_of([name])[0]
    if target is not None:
        try:
            target.check_installed()
        except InputError as error:
            return {"missing": str(error)}
    cell: Cell
    if known and "missing" not in known and all(_file(target, one).exists() for one in written):
        cell = known
    else:
        cell = {kind: _files(target, one) for kind, one in zip(KINDS, written, strict=True)}
    if with_latency and not refused(cell):
        cell = {**cell, **_times(target, written)}
    return cell


def _file(target: Target | None, one: _Written) -> Path:
    """The first that a runtime has of a network."""
    material = one.material
    return material.network if target is None else material.folder / target.files(material.name)[0]


def _files(target: Target | None, one: _Written) -> Cell:
    """The error and the bytes of each file that is run, by what it adds to the network's name; or why there is none."""
    files: Sequence[ExportedFile] = [one.onnx]
    said = _Said()
    if target is not None:
        try:
            target.check(one.material.program)
            files = target.write(one.material, said)
        except (InputError, ParityError) as error:
            return {"refused": str(error)}
    found: Cell = {
        Path(file.path).name.removeprefix(one.material.name): {
            "error": float(f"{file.parity / one.size:.1e}"),
            "bytes": file.size_bytes,
        }
        for file in files
        if file.parity is not None
    }
    return {**found, LEFT_OUT: said.left_out} if said.left_out else found


class _Said(Silent):
    """Keeps what is said of files that are left out."""

    def __init__(self) -> None:
        self.left_out: list[str] = []

    def say(self, message: str) -> None:
        """A line that stays."""
        if message.startswith(f"{LEFT_OUT}: "):
            self.left_out.append(message.removeprefix(f"{LEFT_OUT}: "))


def _times(target: Target | None, written: Sequence[_Written]) -> Cell:
    runtime: Runtime | None = ONNXRUNTIME if target is None else target.runtime
    runners = [None if runtime is None else _runner(runtime, _file(target, one), one.material) for one in written]
    if None in runners:
        return {"untimed": "does not run on this machine"}
    medians = np.median(measure_runners(runners, max_seconds=_SECONDS), axis=0)  # type: ignore[arg-type]
    dense_ms, slim_ms = (round(float(median), 4) for median in medians)
    return {"dense_ms": dense_ms, "slim_ms": slim_ms, "ratio": round(float(medians[1] / medians[0]), 3)}


def _runner(runtime: Runtime, file: Path, material: Material) -> Any:
    samples = material.samples(1)
    return runtime.runner(file, Inputs(samples.file, samples.program, samples.full))
