"""The commands as library functions; this module alone knows the order of the stages."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from edgeprune import __version__
from edgeprune.arch import build
from edgeprune.cost import count_parameters, macs
from edgeprune.data import batches, check_fits, normalize, open_data
from edgeprune.data.limits import check_file
from edgeprune.errors import InputError, PlanError
from edgeprune.export.contracts import check_contracts, write_contracts
from edgeprune.export.onnx import export_onnx
from edgeprune.files import check_new, staged_folder, write_atomically
from edgeprune.graph.capture import Program
from edgeprune.inspection import feature_weights, inspect_program, locked_rows, widths
from edgeprune.latency import compare_latency
from edgeprune.load import capture_quietly, load
from edgeprune.progress import Progress, Silent
from edgeprune.pruning_plan import PruningPlan, read_plan
from edgeprune.records import (
    CompressRequest,
    DataSource,
    ExportRecord,
    ExportRequest,
    InspectRecord,
    InspectRequest,
    LatencyComparison,
    Model,
    ModelInfo,
    NetworkFigures,
    RunRecord,
    TrainRecord,
    TrainRequest,
    TrainSettings,
    ValidateRecord,
    ValidateRequest,
)
from edgeprune.report.html import render
from edgeprune.runrecord import to_json
from edgeprune.save import save_checkpoint, save_program
from edgeprune.search import Budgets, Candidate, Search, Trainer
from edgeprune.statistics import compare_accuracy
from edgeprune.train import evaluate, fit, float_type
from edgeprune.validate import validate_files

RUNS = Path("runs")
_ASSUMED_DROP = 1.0
_ASSUMED_KEEP = 0.5
_FINETUNE_STEPS = 1500  # optimizer steps of one finetuning where no epochs are given
_FINETUNE = TrainSettings(lr=1e-3)  # for a model that does not say how it was trained
_SETTLED = 2 / 3  # of the epochs: at a high learning rate a good epoch is luck on the validation split
_SMALL = 20_000_000  # MACs below which more than one thread costs more than it gains
_PARITY_SAMPLES = 256
_VERSIONS = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "onnxsim", "numpy", "scipy")


# -- train ---------------------------------------------------------------------------------------------------------


def train(request: TrainRequest, progress: Progress | None = None) -> TrainRecord:
    """Train an architecture on a data set and write its checkpoint.

    Raises:
        InputError: the architecture, the data or the output place is wrong.
        TrainingError: the loss became NaN or infinite.
    """
    told, start = progress or Silent(), time.perf_counter()
    check_new(request.out, request.force, "file")
    data = open_data(request.data)
    torch.manual_seed(request.settings.seed)
    model = build(request.arch)
    try:
        program = capture_quietly(model, data.input_shape)
    except InputError as error:
        shape = tuple(data.input_shape)
        raise type(error)(f"{request.arch} on inputs {shape} of data {data.name}: {error}") from error
    _check_logits(program, data)
    info = ModelInfo(
        input_shape=data.input_shape,
        arch=request.arch,
        classes=data.classes,
        normalization=data.normalization,
        data=request.data,
        feature_names=data.feature_names,
        training=request.settings,
    )
    check_fits(data, info, _n_outputs(program))
    settings = replace(request.settings, threads=request.settings.threads or _threads(program))
    told.stage(f"train {request.arch}")
    epochs = fit(model, data, data.normalization, settings, told)
    program = capture_quietly(model, data.input_shape)
    test = evaluate(program.module(), data.test, data.normalization)
    save_checkpoint(request.out, program, info)
    best = max(epochs, key=lambda record: record.val_accuracy) if epochs else None
    return TrainRecord(
        out=request.out,
        arch=request.arch,
        data=request.data,
        params=count_parameters(program),
        epochs=epochs,
        best_epoch=best.epoch if best else 0,
        val_accuracy=evaluate(program.module(), data.val, data.normalization).accuracy,
        test_accuracy=test.accuracy,
        seconds=time.perf_counter() - start,
    )


# -- compress ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """A compress request with every gap filled in."""

    request: CompressRequest
    model: Model
    data: DataSource | None
    trainer: Trainer | None
    search: Search
    plan: PruningPlan | None
    out: Path
    assumed: tuple[str, ...]


def compress(request: CompressRequest, progress: Progress | None = None) -> tuple[Path, RunRecord]:
    """Prune a model to its budgets, finetune, prove, measure, and write the run folder; returns it and the record.

    Raises:
        InputError: the model, the data, an option or the output place is wrong; nothing is written.
        BudgetError: a budget cannot be met; says what stood in the way; nothing is written.
        ProofError, ParityError, TrainingError: a check failed; nothing is written.
    """
    told, start = progress or Silent(), time.perf_counter()
    job = _prepared(request, told)
    with staged_folder(job.out, request.force) as folder:
        best = job.search.run() if job.plan is None else job.search.replay(job.plan)
        record = replace(_measured(job, job.search, best, told), seconds=time.perf_counter() - start)
        assert best.plan is not None
        info = _completed(job.model.info, job.data, request.data) if job.data else job.model.info
        save_program(folder / "slim.pt2", best.program, info)
        write_atomically(folder / "plan.json", best.plan.to_json().encode())
        write_atomically(folder / "run.json", to_json(record).encode())
        write_atomically(folder / "report.html", render(record).encode())
    return job.out, record


def _prepared(request: CompressRequest, told: Progress) -> _Job:
    """Read and check everything that was asked for, then say what is assumed."""
    assumed: list[str] = []
    assume = assumed.append
    if request.keep_macs is not None and not 0 < request.keep_macs <= 1:
        raise InputError(f"--keep-macs: expected a share in (0, 1], got {request.keep_macs}")
    out = Path(request.out) if request.out else _next_run(Path(request.model).stem)
    if request.out is None:
        assume(f"--out {out}")
    check_new(out, request.force, "folder")
    _check_keeps_model(Path(request.model), out)
    plan = _plan_in(Path(request.plan)) if request.plan else None
    told.stage("load")
    model, data = _model_and_data(request, request.seed)
    if data is not None:
        _check_logits(model.program, data)
    if data is not None and request.data is None:
        assume(f"--data {model.info.data} (the data that the model was trained on)")
    budgets = _budgets(request, data is not None, assume)
    trainer = _trainer(request, model, data, assume) if data else None
    search = Search(Program.adopt(model.program), budgets, trainer, told)
    search.check(plan)
    for text in assumed:
        told.say(f"assumed: {text}")
    return _Job(request, model, data, trainer, search, plan, out, tuple(assumed))


def _plan_in(path: Path) -> PruningPlan:
    """The plan in a file; every refusal names the file."""
    check_file(path, "a plan.json")
    try:
        return read_plan(path)
    except PlanError as error:
        raise PlanError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def _check_logits(program: ExportedProgram, data: DataSource) -> None:
    """Raise InputError where accuracy cannot be measured: the output is not `(batch, n_classes)`."""
    output = next(node for node in program.graph.nodes if node.op == "output")
    values = [node.meta.get("val") for node in output.all_input_nodes]
    shapes = [tuple(value.shape) for value in values if isinstance(value, torch.Tensor)]
    if len(shapes) == 1 and len(shapes[0]) == 2 and isinstance(shapes[0][1], int):
        return
    got = " and ".join(f"({', '.join(['batch', *map(str, shape[1:])])})" for shape in shapes) or "none"
    raise InputError(
        f"data {data.name}: expected a network with one output (batch, {len(data.classes)}), the scores of the "
        f"classes, got {got}; without data it can be compressed by --keep-macs"
    )


def _check_keeps_model(model: Path, out: Path) -> None:
    """Raise InputError where replacing the folder `out` would delete the model that is read."""
    if out.resolve() in model.resolve().parents:
        raise InputError(f"{out}: expected an output folder that does not hold the model, got the one of {model}")


def _budgets(request: CompressRequest, has_data: bool, assume: Any) -> Budgets:
    keep_macs, max_drop = request.keep_macs, request.max_drop
    if max_drop is not None and not has_data:
        raise InputError("--max-drop: expected data to measure the accuracy on, got none; give --data")
    if keep_macs is None and max_drop is None and request.plan is None:
        if has_data:
            max_drop = _ASSUMED_DROP
            assume(f"--max-drop {max_drop:g}")
        else:
            keep_macs = _ASSUMED_KEEP
            assume(f"--keep-macs {keep_macs:g} (there are no data to measure a drop on)")
    criterion = request.criterion or ("taylor" if has_data else "l2")
    if request.criterion is None:
        assume(f"--criterion {criterion}")
    return Budgets(
        keep_macs=keep_macs,
        max_drop=max_drop,
        **_feature_budget(request.input_features),
        criterion=criterion,
        align=request.align,
        seed=request.seed,
    )


def _trainer(request: CompressRequest, model: Model, data: DataSource, assume: Any) -> Trainer:
    settings = replace(model.info.training or _FINETUNE, seed=request.seed)
    epochs = request.finetune_epochs
    if epochs is None:
        per_epoch = max(1, -(-len(data.train) // settings.batch_size))  # type: ignore[arg-type]
        epochs = min(60, max(2, round(_FINETUNE_STEPS / per_epoch)))
        assume(f"--finetune-epochs {epochs}")
    threads = request.threads or _threads(model.program)
    normalization = model.info.normalization or data.normalization
    if model.info.normalization is None:
        means, stds = (", ".join(f"{x:.4g}" for x in part[:4]) for part in (normalization.mean, normalization.std))
        assume(f"inputs normalised as (x - mean) / std of the data: mean {means}, std {stds}")
    settings = replace(settings, epochs=epochs, threads=threads, best_from=_SETTLED)
    return Trainer(data, normalization, settings, request.distill, float_type(model.program.module()))


def _feature_budget(text: str) -> dict[str, Any]:
    """The budget's fields for `auto`, `off`, a count such as "20" or a ratio such as "0.5"."""
    fields = {"n_features": None, "feature_ratio": None, "prune_features": text == "auto"}
    if text in ("auto", "off"):
        return fields
    if text.isdecimal() and int(text) >= 1:
        return {**fields, "n_features": int(text)}
    try:
        ratio = float(text)
    except ValueError:
        ratio = math.nan
    if text.isdecimal() or not 0 < ratio <= 1:
        raise InputError(f"--input-features: expected auto, off, a count from 1 or a ratio in (0, 1], got {text!r}")
    return {**fields, "feature_ratio": ratio}


def _model_and_data(request: CompressRequest | ExportRequest, seed: int = 0) -> tuple[Model, DataSource | None]:
    """The model and its data, which fit each other: the data asked for, else those that the model was trained on."""
    data = open_data(request.data, seed=seed) if request.data else None
    model = load(
        request.model or "",
        arch=request.arch,
        input_shape=request.input_shape,
        unsafe_pickle=request.unsafe_pickle,
        data_shape=data.input_shape if data else None,
    )
    try:
        if data is None and model.info.data is not None:
            data = open_data(model.info.data, seed=seed)
        if data is not None:
            check_fits(data, model.info, _n_outputs(model.program))
    except InputError as error:
        if request.data:
            raise
        raise InputError(f"{error} (these are the data that the model was trained on; --data names others)") from error
    return model, data


def _n_outputs(program: ExportedProgram) -> int | None:
    """The number of classes of a network whose one output is `(batch, n_classes)`; None for another."""
    output = next(node for node in program.graph.nodes if node.op == "output")
    values = [node.meta.get("val") for node in output.all_input_nodes]
    if len(values) != 1 or not isinstance(values[0], torch.Tensor) or values[0].dim() != 2:
        return None
    size = values[0].shape[-1]
    return size if isinstance(size, int) else None


def _threads(program: ExportedProgram) -> int | None:
    return 1 if macs(program) < _SMALL else None


def _next_run(name: str) -> Path:
    numbers = [int(p.name[len(name) + 1 :]) for p in RUNS.glob(f"{name}-*") if p.name[len(name) + 1 :].isdecimal()]
    return RUNS / f"{name}-{max(numbers, default=0) + 1}"


def _completed(info: ModelInfo, data: DataSource, spec: str | None) -> ModelInfo:
    """What a model's file says of it, and what its data say where it says nothing."""
    return replace(
        info,
        data=spec or info.data,
        normalization=info.normalization or data.normalization,
        classes=info.classes or data.classes,
        feature_names=info.feature_names or data.feature_names,
    )


# -- measuring -----------------------------------------------------------------------------------------------------


def _measured(job: _Job, search: Search, best: Candidate, told: Progress) -> RunRecord:
    """Everything that is reported, measured on the final network."""
    dense = search.dense
    told.stage("measure in onnxruntime")
    sizes, parity, latency = _onnx_figures(job, best, told)
    plan = best.plan
    assert plan is not None
    accuracy, test = None, (None, None)
    if job.trainer is not None:
        outcomes = [
            evaluate(program.module(), job.trainer.data.test, job.trainer.normalization)
            for program in (dense.program, best.program)
        ]
        accuracy = compare_accuracy(outcomes[0].correct, outcomes[1].correct)
        test = (accuracy.dense, accuracy.slim)  # type: ignore[assignment]
    features = next(iter(plan.inputs.values()), None)
    return RunRecord(
        command=job.request.command,
        versions=versions(),
        asked=_asked(job.request),
        assumed=job.assumed,
        model={**asdict(job.model.info), "name": job.model.name, "path": job.request.model, "sha256": job.model.sha256},
        data=_data_facts(job.data),
        dense=_figures(dense, sizes[0], test[0]),
        slim=_figures(best, sizes[1], test[1]),
        accuracy=accuracy,
        latency=latency,
        proof_error=best.proof_error,
        proof_exact=plan.exact,
        onnx_parity=parity,
        widths=widths(dense.program, best.program),
        features=features,
        feature_weights=feature_weights(best.program, features) if features else (),
        steps=tuple(search.steps),
        locked=tuple(
            {"name": row.name, "reason": row.reason, "layers": list(row.layers)} for row in locked_rows(search.graph)
        ),
    )


def _figures(candidate: Candidate, onnx_bytes: int, test_accuracy: float | None) -> NetworkFigures:
    return NetworkFigures(
        macs=candidate.macs,
        params=count_parameters(candidate.program),
        onnx_bytes=onnx_bytes,
        val_accuracy=candidate.val_accuracy,
        test_accuracy=test_accuracy,
    )


def _onnx_figures(job: _Job, best: Candidate, told: Progress) -> tuple[tuple[int, int], float, LatencyComparison]:
    """Sizes of both networks as ONNX, the parity of the slim one, and the latency of both."""
    shape = job.model.info.input_shape
    inputs = _real_inputs(job, _PARITY_SAMPLES)
    one = inputs[:1] if inputs is not None else torch.zeros(1, *shape, dtype=float_type(best.program.module())).numpy()
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        paths = [Path(folder) / "dense.onnx", Path(folder) / "slim.onnx"]
        exports = [
            export_onnx(program, path, inputs=inputs)
            for program, path in zip((job.model.program, best.program), paths, strict=True)
        ]
        latency = compare_latency(
            paths[0], paths[1], one, one, threads=job.request.threads or 1, max_seconds=8.0, progress=told
        )
    return (exports[0].size_bytes, exports[1].size_bytes), exports[1].parity, latency


def _real_inputs(job: _Job, count: int) -> np.ndarray | None:
    """Normalised test inputs `(count, *input_shape)`, or None where there are no data."""
    if job.trainer is None:
        return None
    x = _first(job.trainer.data, count)
    return normalize(torch.from_numpy(x).to(job.trainer.dtype), job.trainer.normalization).numpy()


def _first(data: DataSource, count: int | None) -> np.ndarray:
    """Raw inputs of the first `count` test samples, or of all."""
    found: list[np.ndarray] = []
    for x, _ in batches(data.test, 256):
        found.append(x.numpy())
        if count is not None and sum(len(part) for part in found) >= count:
            break
    return np.concatenate(found)[:count]


def _data_facts(data: DataSource | None) -> dict[str, Any] | None:
    if data is None:
        return None
    sizes = {name: len(getattr(data, name)) for name in ("train", "val", "test")}
    return {"name": data.name, **sizes, "classes": len(data.classes)}


def _asked(request: CompressRequest) -> dict[str, Any]:
    """The options as they were given; what was left out is left out."""
    return {name: value for name, value in asdict(request).items() if value is not None and name != "command"}


def versions() -> dict[str, str]:
    """Versions of everything that a result depends on."""
    found = {"edgeprune": __version__, "python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed takes no part
    return found


# -- export, validate, inspect ------------------------------------------------------------------------------------


def export(request: ExportRequest, progress: Progress | None = None) -> ExportRecord:
    """Write the ONNX contracts of a model, each checked in onnxruntime on real inputs.

    Raises:
        InputError: the model, the data or the output place is wrong; nothing is written.
        ParityError: a file disagrees with PyTorch; nothing is left.
    """
    told = progress or Silent()
    assumed: list[str] = []
    path = Path(request.model) if request.model else _newest_run() / "slim.pt2"
    if request.model is None:
        assumed.append(f"MODEL {path} (the newest run)")
    out = Path(request.out) if request.out else path.parent if path.name == "slim.pt2" else RUNS / f"{path.stem}-onnx"
    if request.out is None:
        assumed.append(f"--out {out}")
    check_contracts(out, path.stem, request.force)
    told.stage("load")
    model, data = _model_and_data(replace(request, model=str(path)))
    raw, info = (_first(data, None), _completed(model.info, data, request.data)) if data else (None, model.info)
    for text in assumed:
        told.say(f"assumed: {text}")
    told.stage("export and check")
    files = write_contracts(
        model.program, info, out, name=path.stem, raw_inputs=raw, opset=request.opset,
        simplify=request.simplify, force=request.force,
    )  # fmt: skip
    return ExportRecord(str(path), tuple(files), tuple(assumed), 0 if raw is None else len(raw))


def _newest_run() -> Path:
    runs = [path.parent for path in RUNS.glob("*/slim.pt2")]
    if not runs:
        raise InputError(
            f"{RUNS}/: expected a run to export, got none; run `edgeprune compress` first, or name a model"
        )
    return max(runs, key=lambda run: (run / "slim.pt2").stat().st_mtime_ns)


def validate(request: ValidateRequest, progress: Progress | None = None) -> ValidateRecord:
    """Compare two ONNX files in onnxruntime: accuracy, parity, size, latency.

    Raises:
        InputError: a file or the data is wrong or they do not fit each other.
    """
    return validate_files(request, open_data(request.data), progress=progress or Silent())


def inspect(request: InspectRequest, progress: Progress | None = None) -> InspectRecord:
    """The channel groups of a model, and why the rest is locked.

    Raises:
        InputError: the model is wrong.
    """
    told = progress or Silent()
    told.stage("load")
    model = load(request.model, arch=request.arch, input_shape=request.input_shape, unsafe_pickle=request.unsafe_pickle)
    told.stage("analyse")
    return inspect_program(model.program, request.model)
