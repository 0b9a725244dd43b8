"""`edgeprune export`: the files of every target, written together or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeprune.commands.dense import dense_network
from edgeprune.commands.floatfiles import front_of, write_float_files
from edgeprune.commands.resolve import RUNS, assumed_task, completed, model_and_data, newest_run, notes_of, task_of
from edgeprune.commands.runfolder import SLIM, widths_of_run
from edgeprune.commands.sharing import note_on_shared, shared_file, write_shared
from edgeprune.commands.targets import RUNTIMES, Attempts, Made, networks, side_by_side
from edgeprune.commands.variants import Int8, agreement, check_int8, variant_files, write_variants
from edgeprune.commands.vocabulary import check_kept
from edgeprune.errors import InputError
from edgeprune.export.contracts import check_contracts
from edgeprune.export.ctext import is_ours
from edgeprune.export.description import FEATURES_FILE, note_in, restate
from edgeprune.export.fixed import write_fixed_batch
from edgeprune.export.mobile.report import Network, phones
from edgeprune.export.state import in_words, states_of
from edgeprune.export.target import CALIBRATION, Inputs, Material, Target
from edgeprune.export.targets import ONNXRUNTIME, TARGETS, TargetOptions, targets_of
from edgeprune.export.web.target import WEB
from edgeprune.files import check_new, staged_files
from edgeprune.formats.normalizing import with_normalization
from edgeprune.graph.capture import Program
from edgeprune.measure.exports import Timed, beside_dense
from edgeprune.progress import Progress, Silent
from edgeprune.records import DataSource, Model
from edgeprune.requests import ExportRequest
from edgeprune.results import ExportedFile, ExportRecord, TargetTable, VariantTable
from edgeprune.tasks.classification import Classification
from edgeprune.tasks.task import Task
from edgeprune.training import Judge
from edgeprune.usercode import running_user_code


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """What is to be exported, where to and for what; `assumed` says what was not given."""

    request: ExportRequest
    path: Path
    out: Path
    attempts: Attempts
    assumed: tuple[str, ...]

    @property
    def name(self) -> str:
        """That of the model, which its files have."""
        return self.path.stem

    def targets(self, *, free_batch: bool) -> tuple[Target, ...]:
        """Those that are written while the batch is free, or once it is fixed, if it is."""
        return tuple(target for target in self.attempts.targets if target.free_batch == free_batch)


@dataclass(frozen=True, slots=True)
class _Written:
    """What lies in the staged folder."""

    files: tuple[ExportedFile, ...]
    n_samples: int
    variants: VariantTable | None
    mobile: tuple[str, ...]
    note: str
    agreement: float | None
    targets: TargetTable | None
    left_out: tuple[str, ...]


@running_user_code()
def export(request: ExportRequest, progress: Progress | None = None) -> ExportRecord:
    """Write the files of every target that is asked for, each run in its runtime on real inputs.

    Raises:
        InputError: the model, the data or the output place is wrong, or a target cannot express it; nothing is written.
        ParityError: a file disagrees with PyTorch; nothing is left.
    """
    told = progress or Silent()
    asked = _resolved(request)
    earlier = _check_places(asked)
    asked.attempts.each(lambda target: target.check_installed())  # before anything takes long
    told.stage("load")
    material, assumed = _loaded(asked, told)
    _check_new(asked, asked.attempts.targets)  # of what is left: nothing else will be written
    with staged_files(asked.out, earlier) as folder:
        written = _write(asked, replace(material, folder=folder), told)
    return _record(asked, assumed, written, folder)


# -- what is asked -------------------------------------------------------------------------------------------------


def _resolved(request: ExportRequest) -> _Asked:
    """The request with what it left out."""
    assumed: list[str] = []
    path = Path(request.model) if request.model else newest_run() / SLIM
    if request.model is None:
        assumed.append(f"MODEL {path} (the newest run)")
    out = Path(request.out) if request.out else path.parent if path.name == SLIM else RUNS / f"{path.stem}-onnx"
    if request.out is None:
        assumed.append(f"--out {out}")
    names = (*request.targets, *RUNTIMES) if request.every else request.targets
    targets = targets_of(names, TargetOptions(request.ort_platform, request.web_runtime, request.layout))
    return _Asked(request, path, out, Attempts(targets, request.targets), tuple(assumed))


def _loaded(asked: _Asked, told: Progress) -> tuple[Material, list[str]]:
    """The model with its data and its dense network, and all that was assumed; refuses what cannot be exported."""
    request, assumed = asked.request, list(asked.assumed)
    model, data = model_and_data(replace(request, model=str(asked.path)))
    check_kept(model.program, data)
    task = task_of(request, model, data)
    if request.int8:
        check_int8(_int8(request), model, data, task)
    assumed += assumed_task(request, model, task)
    asked.attempts.each(lambda target: target.check(model.program))
    assumed += [*notes_of(model, data), *note_on_shared(model, request.shared)]
    model = with_normalization(model, data, request.normalize, assumed.append)
    _check_answers(request, model, data, task)
    info = completed(model.info, data, request.data, request.task) if data else model.info
    for text in assumed:
        told.say(f"assumed: {text}")
    dense = dense_network(request, asked.path, info, told, data.inputs if data is not None else ())
    byte_scale = data.byte_scale if data is not None and request.preprocess == "fold" else None
    front = front_of(model, data, request.preprocess == "fold")
    place = asked.out, asked.name
    folds = request.preprocess == "fold"
    material = Material(
        model,
        info,
        *place,
        data,
        dense,
        request.batch,
        byte_scale,
        task=task,
        front=front,
        folds=folds,
        int8=request.int8,
        max_drop=request.max_drop,
        widths=widths_of_run(asked.path),
    )
    return material, assumed


def _check_answers(request: ExportRequest, model: Model, data: DataSource | None, task: Task | None) -> None:
    """Raise InputError where the network does not do the task of its data, as its outputs or their targets show.

    One with several outputs needs no task to be exported, and its data may be there for its inputs alone.
    """
    if request.task is None and len(model.program.graph_signature.user_outputs) > 1:
        return
    if data is None or task is None or task.by_reference or isinstance(task, Classification):
        return  # classes were compared before, and whatever a network gives out can be matched
    assert model.info.normalization is not None
    Judge(task, model.info.normalization).check(Program.adopt(model.program).frozen_module(), data)


def _int8(request: ExportRequest) -> Int8:
    return Int8(request.max_drop, request.int8_for, request.finetune_epochs, request.allow_chance)


# -- places --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a file or a folder goes."""

    path: Path
    is_folder: bool

    @property
    def is_taken(self) -> bool:
        """Whether something lies there that an earlier export may have written.

        A folder of ours has a manifest; C says so on its first line, as its files may have the names of anyone's.
        """
        if not self.is_folder:
            return is_ours(self.path) if self.path.suffix in (".c", ".h") else os.path.lexists(self.path)
        return any((self.path / name).is_file() for name in ("manifest.json", "Manifest.json"))  # the latter Apple's


def _check_places(asked: _Asked) -> list[Path]:
    """The files of an earlier export that this one replaces; refuses early what could not be written."""
    request, out = asked.request, asked.out
    if request.batch is not None and request.batch < 1:
        raise InputError(f"--batch: expected dynamic or a whole number from 1, got {request.batch}")
    earlier = check_contracts(out, asked.name, request.force)
    if request.force:
        every = _places(out, asked.name, targets_of(TARGETS), with_variants=True, with_shared=True)
        earlier += [place.path for place in every if place.is_taken]
    _check_new(asked, [target for target in asked.attempts.targets if target.name in request.targets])
    return earlier


def _check_new(asked: _Asked, targets: Sequence[Target]) -> None:
    """Raise InputError where something lies in the place of these targets' files, or beside them, without `--force`."""
    request = asked.request
    for place in _places(asked.out, asked.name, targets, request.int8, request.shared):
        check_new(place.path, request.force, "folder" if place.is_folder else "file")


def _places(out: Path, name: str, targets: Sequence[Target], with_variants: bool, with_shared: bool) -> list[_Place]:
    """What goes beside the ONNX files of the contracts."""
    names = [file for target in targets for file in target.files(name)]
    names += variant_files(name) if with_variants else []
    names += [shared_file(name)] if with_shared else []
    return [_Place(out / file, file.endswith("/")) for file in names]


# -- files ---------------------------------------------------------------------------------------------------------


def _write(asked: _Asked, material: Material, told: Progress) -> _Written:
    """Everything, into the material's folder."""
    request, left_out = asked.request, list[str]()
    files, n_samples = _contracts(request, material, told, left_out.append)
    agreed = agreement(material)
    variants = write_variants(_int8(request), material, told) if request.int8 else None
    attempts = asked.attempts
    early = attempts.written(asked.targets(free_batch=True), material, told)
    # The batch is fixed late, because a file with a free batch is checked faster, on more.
    material = replace(material, real=_real(material))
    samples = material.samples(request.batch or 1)
    if request.batch is not None:
        files = _with_fixed_batch(files, variants, request.batch, material.answering)
    small = write_shared(material, material.real or samples, told, left_out.append) if request.shared else ()
    made = attempts.written(asked.targets(free_batch=False), material, told)
    files = [_as_it_is(file) for file in files] + _every(made)
    mobile = _mobile(material, made, told) if request.mobile else ()
    files = _timed(asked, made, material, files, samples, told)
    network = next(file for file in files if Path(file.path) == material.network)
    table = side_by_side(attempts, made, network, material, samples, told)
    return _Written(
        (*files, *small, *_every(early)),
        n_samples,
        variants,
        mobile,
        note_in(material.folder),
        agreed,
        table,
        tuple(left_out),
    )


def _mobile(material: Material, made: Made, told: Progress) -> tuple[str, ...]:
    """What accelerators of phones would take, of the .tflite file too where one was written."""
    tflite = next((Path(file.path) for file in made.get("litert", ())), None)
    return phones(Network(material.network, material.program, tflite, material.batch or 1), told)


def _as_it_is(file: ExportedFile) -> ExportedFile:
    """features.json with its size, after targets have told in it what their files take."""
    path = Path(file.path)
    return replace(file, size_bytes=path.stat().st_size) if path.name == FEATURES_FILE else file


def _every(made: Made) -> list[ExportedFile]:
    return [file for files in made.values() for file in files]


def _contracts(
    request: ExportRequest, material: Material, told: Progress, leave_out: Callable[[str], None]
) -> tuple[list[ExportedFile], int]:
    """The ONNX files of the contracts, and how many samples they passed."""
    told.stage("export and check")
    state = in_words(states_of(material.model.program))
    if state:
        told.say(state)
    return write_float_files(material, opset=request.opset, simplify=request.simplify, leave_out=leave_out)


def _real(material: Material) -> Inputs | None:
    """Real inputs to check targets on; None where there are no data."""
    raw = material.raw("test", CALIBRATION)
    return None if raw is None else material.inputs(raw)


def _with_fixed_batch(
    files: Sequence[ExportedFile], variants: VariantTable | None, batch: int, task: Task | None
) -> list[ExportedFile]:
    """The files with their batch fixed; the float one of the variants is among them."""
    fixed = [_fixed(file, batch, task) for file in files]
    for one in variants.variants[1:] if variants else ():
        write_fixed_batch(Path(one.path), Path(one.path), batch, task=task)
    return fixed


def _fixed(file: ExportedFile, batch: int, task: Task | None) -> ExportedFile:
    """A file with its batch fixed; features.json comes last, and says so of those before it."""
    path = Path(file.path)
    if path.name == FEATURES_FILE:
        return restate(path.parent)
    if path.suffix != ".onnx":
        return file
    return replace(write_fixed_batch(path, path, batch, task=task), parity=file.parity)


# -- figures -------------------------------------------------------------------------------------------------------


def _timed(  # noqa: PLR0913 - what is timed, and on what
    asked: _Asked, made: Made, material: Material, files: Sequence[ExportedFile], samples: Inputs, told: Progress
) -> list[ExportedFile]:
    """The files with their latency beside the dense network, where that is known and they hold the network."""
    if material.dense is None:
        return list(files)
    told.stage("time the files beside the dense network")
    timed = [Timed(material.network, ONNXRUNTIME)]
    for target in asked.targets(free_batch=False):
        if target.runtime is not None:
            timed += [Timed(Path(file.path), target.runtime) for file in networks(target, made)]
    figures = beside_dense(timed, material.dense, samples, told)
    found = [(file, figures.get(Path(file.path))) for file in files]
    return [file if one is None else replace(file, p50_ms=one.p50_ms, ratio=one.ratio) for file, one in found]


def _record(asked: _Asked, assumed: Sequence[str], written: _Written, folder: Path) -> ExportRecord:
    """What was written, under the names that it has now."""

    def moved(path: str) -> str:
        return str(asked.out / Path(path).relative_to(folder))

    variants = written.variants
    if variants is not None:
        rows = tuple(replace(variant, path=moved(variant.path)) for variant in variants.variants)
        variants = replace(variants, variants=rows)
    table = written.targets
    if table is not None:
        of_targets = tuple(replace(row, path=moved(row.path)) for row in table.rows)
        table = replace(table, rows=of_targets, ship=moved(table.ship))
    return ExportRecord(
        model=str(asked.path),
        files=tuple(replace(file, path=moved(file.path)) for file in written.files),
        assumed=tuple(assumed),
        n_samples=written.n_samples,
        variants=variants,
        mobile=written.mobile,
        web=str(asked.out / WEB) if "web" in asked.request.targets else None,
        note=written.note,
        agreement=written.agreement,
        targets=table,
        left_out=written.left_out,
    )
