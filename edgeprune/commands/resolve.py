"""What a request names: the model in a file, its data, the run folder, the threads, this machine's profile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch.export import ExportedProgram

from edgeprune.commands.weighing import weighing
from edgeprune.cost.device import Device
from edgeprune.cost.layers import layer_shapes
from edgeprune.cost.macs import macs
from edgeprune.data import check_fits, open_data
from edgeprune.data.fitting import with_inputs_of
from edgeprune.data.labels import with_classes_of
from edgeprune.data.places import found_from
from edgeprune.data.specs import told_apart
from edgeprune.errors import InputError
from edgeprune.formats.architectures import is_spec
from edgeprune.formats.load import load, load_architecture
from edgeprune.formats.trust import recorded_data, recorded_task
from edgeprune.graph.groups import analyze
from edgeprune.graph.specs import input_specs
from edgeprune.measure.profiling import Timing, profile
from edgeprune.progress import Progress
from edgeprune.records import DataSource, Model, ModelInfo
from edgeprune.requests import CompressRequest, ExportRequest, InspectRequest, ProfileRequest
from edgeprune.tasks.classification import Classification, n_outputs
from edgeprune.tasks.registry import judges_classes, open_task, wanted_targets
from edgeprune.tasks.task import Task
from edgeprune.tasks.wanted import WantedTargets
from edgeprune.tasks.weights import with_class_weights

RUNS = Path("runs")
_SMALL = 20_000_000  # MACs below which more than one thread costs more than it gains


def own_device(program: ExportedProgram, timing: Timing, told: Progress, fresh: bool = False) -> Device:
    """This machine's profile for the layers of a program, measured as far as it is not known from before.

    Raises:
        InputError: none of them can be measured.
    """
    told.stage("profile the layers on this machine")
    shapes = [shape for shape in layer_shapes(analyze(program)).values() if shape.is_measured]
    if not shapes:
        raise InputError(
            "expected a network with a layer whose time is measured (convolutions, linear and recurrent layers, "
            "attention, activations), got none; plan by the MACs"
        )
    return profile(shapes, timing, told, fresh)


def model_and_data(request: CompressRequest | ExportRequest, seed: int = 0) -> tuple[Model, DataSource | None]:
    """The model and its data, which fit each other: the data asked for, else those that the model was trained on.

    Targets are read as the task wants them: the one asked for, else the one that the model was trained for.
    """
    asked = _Asked.of(request, seed)
    model = _loaded(request, asked)
    recorded = None if request.data or _needs_none(request) else _recorded_spec(model.info.data, request)
    try:
        task = _task_spec(request, model) if request.data or recorded else None
        names = tuple(spec.name for spec in input_specs(model.program))
        with weighing(_class_weights(request), request.data or recorded):
            data = asked.read_for(task, names)
            if recorded is not None:
                data = _opened_recorded(recorded, model.info.data, seed, wanted_targets(task, names))
            return model, None if data is None else _fitting(data, model, task)
    except InputError as error:
        if request.data:
            raise
        raise InputError(f"{error} (these are the data that the model was trained on; --data names others)") from error


def _needs_none(request: CompressRequest | ExportRequest) -> bool:
    """Whether functions of the user's do all that data are needed for."""
    return isinstance(request, CompressRequest) and request.finetune is not None and request.evaluate is not None


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """The data asked for, or why they cannot be read as the targets look: the model may know better."""

    request: CompressRequest | ExportRequest
    seed: int
    data: DataSource | None = None
    refusal: InputError | None = None

    @classmethod
    def of(cls, request: CompressRequest | ExportRequest, seed: int) -> _Asked:
        if not request.data:
            return cls(request, seed)
        try:
            names = tuple(info.name for info in request.inputs or () if not info.numbers)
            data = open_data(request.data, seed=seed, wanted=wanted_targets(request.task, names))
        except InputError as error:
            if request.task is not None or not Path(request.model or "").exists():
                raise
            return cls(request, seed, refusal=error)
        return cls(request, seed, data)

    def read_for(self, task: str | None, inputs: tuple[str, ...]) -> DataSource | None:
        """The data with their targets as the task wants them, and the inputs that the network has."""
        known = self.data is not None and (not self.data.inputs and len(inputs) == 1 or self.data.inputs != ())
        if self.request.data and (task != self.request.task or not known):  # only the model's file said what these are
            return open_data(self.request.data, seed=self.seed, wanted=wanted_targets(task, inputs))
        if self.refusal is not None:
            raise self.refusal
        return self.data


def _loaded(request: CompressRequest | ExportRequest, asked: _Asked) -> Model:
    try:
        return load(
            request.model or "",
            arch=request.arch,
            input_shape=request.input_shape,
            unsafe_pickle=request.unsafe_pickle,
            data_shape=(asked.data.input_shape or None) if asked.data else None,
            inputs=request.inputs or (),
            data_inputs=asked.data.inputs if asked.data else (),
            dynamic_size=request.dynamic_size,
            dynamic=request.dynamic,
            module=request.module if isinstance(request, CompressRequest) else None,
            state_key=request.state_key,
            ignore_keys=request.ignore_keys,
        )
    except InputError:
        if asked.refusal is not None:
            raise asked.refusal from None
        raise


def task_of(request: CompressRequest | ExportRequest, model: Model, data: DataSource | None) -> Task | None:
    """The task: the one asked for, else the model's, else what the targets call for; None without data.

    Raises:
        InputError: as `open_task`, or one is asked for without data.
    """
    if data is not None:
        with weighing(_class_weights(request), request.data or data.name):
            return open_task(_task_spec(request, model), data)
    if request.task is not None:
        raise InputError(f"--task {request.task}: expected data to do it on, got none; give --data")
    if _class_weights(request) is not None:
        raise InputError("--class-weights: expected data whose classes weigh so much, got none; give --data")
    return None


def assumed_task(request: CompressRequest | ExportRequest, model: Model, task: Task | None) -> tuple[str, ...]:
    """What is assumed of the task where nothing was asked; of a classification nothing is said."""
    plain = isinstance(task, Classification) and model.info.task in (None, "classification")
    if task is None or request.task is not None or plain:
        return ()
    if model.info.task is not None:
        return (f"--task {model.info.task} (the task that the model was trained for)",)
    return (f"--task {task.name}, as the targets are",)


def _task_spec(request: CompressRequest | ExportRequest, model: Model) -> str | None:
    spec = request.task
    if spec is None and model.info.task is not None:
        spec = recorded_task(model.info.task, str(request.model), request.trust_recorded)
    return with_class_weights(spec, _class_weights(request))


def _class_weights(request: CompressRequest | ExportRequest) -> str | None:
    return request.class_weights if isinstance(request, CompressRequest) else None


def _opened_recorded(found: str, recorded: str | None, seed: int, wanted: WantedTargets) -> DataSource:
    """The data that a model was trained on, where they were found."""
    data = open_data(found, seed=seed, wanted=wanted)
    return data if found == recorded else replace(data, notes=(*data.notes, f"the recorded data are {found}"))


def _fitting(data: DataSource, model: Model, task: str | None) -> DataSource:
    """The data with the model's classes, once the two fit each other."""
    data = told_apart(with_inputs_of(data, model.program), model.info.data)
    data = with_classes_of(data, model.info.classes, n_outputs(model.program))
    check_fits(data, model.info, n_outputs(model.program), judges_classes(task, data))
    return data


def notes_of(model: Model, data: DataSource | None) -> tuple[str, ...]:
    """What was decided about the files of both."""
    return model.notes if data is None else (*model.notes, *data.notes)


def _recorded_spec(spec: str | None, request: CompressRequest | ExportRequest) -> str | None:
    """The data that a model records, if any, once they may be opened; they may lie beside its file instead."""
    if spec is None:
        return None
    where, trusted = str(request.model), request.trust_recorded
    found = found_from(recorded_data(spec, where, trusted), Path(request.model or ""))
    return found if found == spec else recorded_data(found, where, trusted)


@dataclass(frozen=True, slots=True)
class Threads:
    """CPU threads: to train and score with, None being all cores; and of a runtime while a network is measured."""

    training: int | None
    runtime: int


def threads_of(asked: int | None, program: ExportedProgram) -> Threads:
    """As many as are asked for; else what the network's size suggests to train with, and one to measure with."""
    small = 1 if macs(program) < _SMALL else None
    return Threads(asked or small, asked or 1)


def next_run(name: str, unfinished: str = "", resume: bool = False) -> Path:
    """The run folder `runs/NAME-N` that is free; with `resume` the last one whose state lies beside it.

    Args:
        unfinished: how the name of such a state ends.
    """
    ends = {path.name[len(name) + 1 :] for path in RUNS.glob(f"{name}-*")}
    left = [int(end.removesuffix(unfinished)) for end in ends if _is_left(end, unfinished)]
    if resume and left:
        return RUNS / f"{name}-{max(left)}"
    numbers = [int(end) for end in ends if end.isdecimal()]
    return RUNS / f"{name}-{max([*numbers, *left], default=0) + 1}"


def _is_left(end: str, unfinished: str) -> bool:
    return bool(unfinished) and end.endswith(unfinished) and end.removesuffix(unfinished).isdecimal()


def completed(info: ModelInfo, data: DataSource, spec: str | None, task: str | None = None) -> ModelInfo:
    """What a model's file says of it, and what its data say where it says nothing."""
    return replace(
        with_names_of(info, data),
        data=spec or info.data,
        task=task or info.task,
        classes=info.classes or data.classes,
    )


def written_info(request: CompressRequest, model: Model, data: DataSource | None) -> ModelInfo:
    """What the files of a run say of its network."""
    task = with_class_weights(request.task or model.info.task, request.class_weights)
    return completed(model.info, data, request.data, task) if data else model.info


def with_names_of(info: ModelInfo, data: DataSource | None) -> ModelInfo:
    """What a model's file says of it, its features called as the data do where it says nothing of that."""
    if data is None:
        return info
    return replace(
        info,
        feature_names=info.feature_names or data.feature_names,
        input_feature_names=info.input_feature_names or data.input_feature_names,
    )


def newest_run() -> Path:
    """The run folder under `runs/` that was written last; InputError where there is none."""
    runs = [path.parent for path in RUNS.glob("*/slim.pt2")]
    if not runs:
        raise InputError(
            f"{RUNS}/: expected a run to export, got none; run `edgeprune compress` first, or name a model"
        )
    return max(runs, key=lambda run: (run / "slim.pt2").stat().st_mtime_ns)


def is_architecture(request: InspectRequest | ProfileRequest) -> bool:
    """Whether an architecture is named in the place of a file."""
    return request.arch is None and is_spec(request.model) and not Path(request.model).exists()


def opened(request: InspectRequest | ProfileRequest, told: Progress) -> Model:
    """The model in a file, or of an architecture by its name, with random weights."""
    asked = request if isinstance(request, InspectRequest) else InspectRequest(request.model)
    if is_architecture(request):
        free = asked.dynamic_size, asked.module, asked.dynamic
        return load_architecture(request.model, request.input_shape, *free, request.inputs or ())
    model = load(
        request.model,
        arch=request.arch,
        input_shape=request.input_shape,
        inputs=request.inputs or (),
        unsafe_pickle=request.unsafe_pickle,
        dynamic_size=asked.dynamic_size,
        module=asked.module,
        dynamic=asked.dynamic,
        state_key=request.state_key,
        ignore_keys=request.ignore_keys,
    )
    for note in model.notes:
        told.say(f"assumed: {note}")
    return model
