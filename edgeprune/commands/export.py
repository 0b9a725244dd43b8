"""`edgeprune export`: the files of every target, written together or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from edgeprune.commands.dense import dense_network
from edgeprune.commands.resolve import RUNS, completed, model_and_data, newest_run, notes_of
from edgeprune.cost.layers import layer_shapes
from edgeprune.cost.macs import count_parameters, macs
from edgeprune.data import batches, first_inputs
from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.export.cheader import HEADER_FILE, write_header
from edgeprune.export.contracts import check_contracts, write_contracts
from edgeprune.export.conversions import write_dynamic, write_half
from edgeprune.export.description import FEATURES_FILE, note_in, restate
from edgeprune.export.executorch import write_executorch
from edgeprune.export.executorch_runtime import check_installed
from edgeprune.export.fixed import write_fixed_batch
from edgeprune.export.front import kept, normalized, raw_bytes
from edgeprune.export.mobile import check_mobile
from edgeprune.export.onnx import export_onnx
from edgeprune.export.ortformat import write_ort
from edgeprune.export.probes import probes_of, reference_probes
from edgeprune.export.quantize import QuantizedFile, write_int8
from edgeprune.export.state import check_stateless, in_words, states_of
from edgeprune.export.variants import compare_variants
from edgeprune.export.web import WebNetwork, WebProbe, WebRuntime, check_web, web_runtime, write_web
from edgeprune.files import check_new, staged_files
from edgeprune.formats.normalizing import with_normalization
from edgeprune.graph.drawn import drawn_input
from edgeprune.graph.groups import analyze
from edgeprune.graph.specs import input_specs, row_chunks
from edgeprune.measure.chance import check_above_chance
from edgeprune.measure.exports import Dense, beside_dense
from edgeprune.measure.latency import measure_files, ratio_interval
from edgeprune.progress import Progress, Silent
from edgeprune.pruning.slim_inputs import gathered, slim_contract
from edgeprune.records import DataSource, Model, ModelInfo
from edgeprune.requests import ExportRequest
from edgeprune.results import ExportedFile, ExportRecord, LeftOut, VariantTable
from edgeprune.tasks.classification import check_logits
from edgeprune.usercode import running_user_code

_CALIBRATION = 256  # samples
WEB = "web"  # the page's folder
_DRAWN = 64  # samples, where there are no data
_SECONDS = 12.0  # of timing the variants


@dataclass(frozen=True, slots=True, eq=False)
class _Export:
    """One export under way: `folder` is the staged one, `name` that of the model."""

    request: ExportRequest
    model: Model
    info: ModelInfo
    data: DataSource | None
    folder: Path
    name: str
    told: Progress

    @property
    def network(self) -> Path:
        """The ONNX file of the network."""
        return self.folder / f"{self.name}.onnx"

    @property
    def program(self) -> ExportedProgram:
        """The program of the network's contract: without the Gather, where it has one."""
        program = self.model.program
        return program if gathered(program) is None else slim_contract(program)

    def raw(self, split: str, count: int | None) -> np.ndarray | None:
        """Raw inputs of the first samples of a split, `(count, *input_shape)`; None without data."""
        if self.data is None:
            return None
        return first_inputs(getattr(self.data, split), count).astype(self.dtype, copy=False)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of what the program takes."""
        return np.asarray(torch.zeros((), dtype=input_specs(self.model.program)[0].dtype)).dtype

    def some_raw(self, count: int) -> np.ndarray:
        """Raw inputs of the test split, or drawn ones where there are no data."""
        raw = self.raw("test", count)
        if raw is not None:
            return np.resize(raw, (count, *raw.shape[1:]))
        return drawn_input(self.model.program, count, self.info.input_shape)

    def taken(self, raw: np.ndarray) -> np.ndarray:
        """Raw inputs as the network's file takes them."""
        handed = raw if self.byte_scale is None else raw_bytes(raw, self.byte_scale)
        if not self._preprocess.exists():
            return handed
        model = ort.session(self._preprocess)
        return np.concatenate([ort.run(model, handed[rows]) for rows in row_chunks(len(handed), handed[0].size)])

    @property
    def _preprocess(self) -> Path:
        return self.folder / "preprocess.onnx"

    @property
    def byte_scale(self) -> float | None:
        """What a byte stands for, where the preprocessing is folded and the data are bytes."""
        if self.request.preprocess != "fold" or self.data is None:
            return None
        return self.data.byte_scale


@running_user_code()
def export(request: ExportRequest, progress: Progress | None = None) -> ExportRecord:
    """Write the files of every target that is asked for, each run in its runtime on real inputs.

    Raises:
        InputError: the model, the data or the output place is wrong, or a target cannot express it; nothing is written.
        ParityError: a file disagrees with PyTorch; nothing is left.
    """
    told = progress or Silent()
    assumed: list[str] = []
    path = Path(request.model) if request.model else newest_run() / "slim.pt2"
    if request.model is None:
        assumed.append(f"MODEL {path} (the newest run)")
    out = Path(request.out) if request.out else path.parent if path.name == "slim.pt2" else RUNS / f"{path.stem}-onnx"
    if request.out is None:
        assumed.append(f"--out {out}")
    earlier = _check_places(request, out, path.stem)
    runtime = web_runtime(request.web_runtime) if request.web else None  # before anything takes long
    if request.executorch:
        check_installed()
    told.stage("load")
    model, data = model_and_data(replace(request, model=str(path)))
    _check_judged(request, model, data)
    _check_state(request, model)
    assumed += notes_of(model, data)
    model = with_normalization(model, data, request.normalize, assumed.append)
    info = completed(model.info, data, request.data) if data else model.info
    for text in assumed:
        told.say(f"assumed: {text}")
    dense = dense_network(request, path, info, told)
    with staged_files(out, earlier) as folder:
        export = _Export(request, model, info, data, folder, path.stem, told)
        files, n_samples = _contracts(export)
        variants = _variants(export) if request.int8 else None
        page = []
        if dense is not None and runtime is not None:
            told.stage("write the web page")
            page = [_web(export, dense, runtime)]
        inputs, raw = _inputs(export, "test"), export.some_raw(request.batch or 1)
        example = export.taken(raw)
        if request.batch is not None:  # last, because a file with a free batch is checked faster, on more
            files = [_fixed(file, request.batch) for file in files]
            for one in variants.variants[1:] if variants else ():
                write_fixed_batch(Path(one.path), Path(one.path), request.batch)
        files += _targets(export, inputs if inputs is None else inputs[: request.batch])
        mobile = tuple(check.words for check in check_mobile(export.network)) if request.mobile else ()
        if dense is not None and len(input_specs(model.program)) == 1:
            told.stage("time the files beside the dense network")
            beside = Dense(dense, normalized(raw[:1], info.normalization))
            files = beside_dense(files, beside, example, _normalized(export, raw), told)
        files += page
        note = note_in(folder)
    return ExportRecord(
        model=str(path),
        files=tuple(replace(file, path=_moved(file.path, folder, out)) for file in files),
        assumed=tuple(assumed),
        n_samples=n_samples,
        variants=variants and _renamed(variants, folder, out),
        mobile=mobile,
        web=str(out / WEB) if request.web else None,
        note=note,
    )


# -- places --------------------------------------------------------------------------------------------------------


def _check_places(request: ExportRequest, out: Path, name: str) -> list[Path]:
    """The files of an earlier export that this one replaces; refuses early what could not be written."""
    if request.batch is not None and request.batch < 1:
        raise InputError(f"--batch: expected dynamic or a whole number from 1, got {request.batch}")
    earlier = check_contracts(out, name, request.force)
    earlier += [out / target for target in _names(name, request) if os.path.lexists(out / target) and request.force]
    for target, asked in _names(name, request).items():
        if asked:
            check_new(out / target, request.force, "file")
    if request.web:
        check_web(out / WEB, request.force)
    if request.force and (out / WEB / "manifest.json").is_file():  # a page of ours, of another network
        earlier.append(out / WEB)
    return earlier


def _names(name: str, request: ExportRequest) -> dict[str, bool]:
    """The files beside those of the contracts, and whether they are asked for."""
    return {
        HEADER_FILE: request.c_header,
        f"{name}.ort": request.ort,
        f"{name}.required_operators_and_types.config": request.ort,
        f"{name}.pte": request.executorch,
        **{f"{name}.{kind}.onnx": request.int8 for kind in ("int8", "dynamic", "fp16")},
    }


def _check_judged(request: ExportRequest, model: Model, data: DataSource | None) -> None:
    """Raise InputError where smaller numbers have nothing to be calibrated on, or to be judged by."""
    if not request.int8:
        return
    if data is None:
        raise InputError("--int8: expected data to calibrate on, got none; give --data")
    check_logits(model.program, data, "without --int8 it can be exported")


def _check_state(request: ExportRequest, model: Model) -> None:
    """Raise InputError for a target that would lose a network's state."""
    for option, asked in (("--int8", request.int8), ("--ort", request.ort), ("--web", request.web)):
        if asked:
            check_stateless(model.program, option)


def _moved(path: str, folder: Path, out: Path) -> str:
    return str(out / Path(path).relative_to(folder))


def _renamed(table: VariantTable, folder: Path, out: Path) -> VariantTable:
    return replace(table, variants=tuple(replace(v, path=_moved(v.path, folder, out)) for v in table.variants))


# -- targets -------------------------------------------------------------------------------------------------------


def _contracts(export: _Export) -> tuple[list[ExportedFile], int]:
    """The ONNX files of the contracts, and how many samples they passed."""
    request = export.request
    export.told.stage("export and check")
    state = in_words(states_of(export.model.program))
    if state:
        export.told.say(state)
    raw = export.raw("test", None)
    files = write_contracts(
        export.model.program, export.info, export.folder, name=export.name, raw_inputs=raw, opset=request.opset,
        simplify=request.simplify, preprocess=request.preprocess,
        byte_scale=None if export.data is None else export.data.byte_scale,
    )  # fmt: skip
    return files, 0 if raw is None else len(raw)


def _fixed(file: ExportedFile, batch: int) -> ExportedFile:
    """A file with its batch fixed; features.json comes last, and says so of those before it."""
    path = Path(file.path)
    if path.name == FEATURES_FILE:
        return restate(path.parent)
    if path.suffix != ".onnx":
        return file
    return replace(write_fixed_batch(path, path, batch), parity=file.parity)


def _targets(export: _Export, inputs: np.ndarray | None) -> list[ExportedFile]:
    """C, the ORT format and ExecuTorch; `inputs` are real ones, as the network's file takes them."""
    request, files = export.request, []
    if request.c_header:
        files.append(write_header(export.folder))
    if request.ort:
        export.told.stage("write the ORT format and run it")
        made = write_ort(export.network, export.folder / f"{export.name}.ort", inputs, platform=request.ort_platform)
        files.append(ExportedFile(made.path, made.size_bytes, made.parity))
        files.append(ExportedFile(made.config_path, Path(made.config_path).stat().st_size, None))
    if request.executorch:
        export.told.stage("write for ExecuTorch and run it")
        raw = export.raw("test", _CALIBRATION)
        taken = None if raw is None else _normalized(export, raw)
        pte = write_executorch(export.program, export.folder / f"{export.name}.pte", taken, batch=request.batch or 1)
        export.told.say(pte.words)
        files.append(ExportedFile(pte.path, pte.size_bytes, pte.parity))
    return files


def _normalized(export: _Export, raw: np.ndarray) -> np.ndarray:
    """Raw inputs as the program takes them."""
    features = gathered(export.model.program)
    inputs = normalized(raw, export.info.normalization)
    return inputs if features is None else kept(inputs, features)


def _inputs(export: _Export, split: str) -> np.ndarray | None:
    """Real inputs as the network's file takes them; None where there are no data."""
    raw = export.raw(split, _CALIBRATION)
    return None if raw is None else export.taken(raw)


def _variants(export: _Export) -> VariantTable:
    """int8, dynamic and half-precision files, timed beside fp32, and which one to ship."""
    request, told = export.request, export.told
    calibration = _inputs(export, "train")
    assert calibration is not None
    if export.data is not None and not request.allow_chance:
        check_above_chance(export.model, export.data)
    accuracy = _accuracy(export)
    paths = {kind: export.folder / f"{export.name}.{kind}.onnx" for kind in ("int8", "dynamic", "fp16")}
    told.stage("quantise to int8")
    made: list[QuantizedFile | LeftOut] = [
        write_int8(
            export.network, paths["int8"], calibration, accuracy=accuracy, max_drop=request.max_drop, progress=told
        ),
    ]
    told.stage("quantise dynamically, and to half precision")
    for write, kind in ((write_dynamic, "dynamic"), (write_half, "fp16")):
        made.append(write(export.network, paths[kind], calibration, accuracy=accuracy, max_drop=request.max_drop))
    told.stage("time the variants")
    accuracies: dict[str, float] | None = None
    if accuracy is not None:
        accuracies = {one.kind: accuracy(Path(one.path)) for one in made if isinstance(one, QuantizedFile)}
        accuracies["fp32"] = accuracy(export.network)
    return compare_variants(
        export.network,
        made,
        calibration[:1],
        max_drop=request.max_drop,
        measure=partial(measure_files, max_seconds=_SECONDS, progress=told),
        interval=ratio_interval,
        accuracies=accuracies,
    )


def _accuracy(export: _Export) -> Callable[[Path], float] | None:
    """Measures a file on the validation split, in onnxruntime."""
    data = export.data
    if data is None:
        return None
    parts = [(export.taken(x.numpy()), y.numpy()) for x, y in batches(data.val, 256)]

    def accuracy(path: Path) -> float:
        model = ort.session(path)
        right = [(ort.run_one(model, inputs).argmax(axis=1) == labels) for inputs, labels in parts]
        return float(np.concatenate(right).mean())

    return accuracy


# -- the web page --------------------------------------------------------------------------------------------------


def _web(export: _Export, dense: Model, runtime: WebRuntime) -> ExportedFile:
    """The folder of the page: both networks on the same samples, and the dense one's layers to profile."""
    raw = export.some_raw(_DRAWN)
    taken = export.taken(raw)
    inputs = normalized(raw, export.info.normalization)
    figures = [(macs(model.program), count_parameters(model.program)) for model in (dense, export.model)]
    facts = [(what, f"{a:,}", f"{b:,}") for what, a, b in zip(("MACs", "parameters"), *figures, strict=True)]
    shapes = list(layer_shapes(analyze(dense.program)).values())
    probes = [
        WebProbe(p.shape.key, p.width_in, p.width_out, p.model(), p.inputs(), p.batch)
        for p in (*reference_probes(shapes), *probes_of(shapes))
    ]
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as place:
        file = Path(place) / "dense.onnx"
        export_onnx(dense.program, file, inputs=inputs)
        networks = (WebNetwork(file, inputs), WebNetwork(export.network, taken))
        page = write_web(export.folder / WEB, *networks, title=dense.name, facts=facts, probes=probes, runtime=runtime)
    return ExportedFile(str(export.folder / WEB), sum(part.size_bytes for part in page), None)
