"""What `edgeprune export` writes for: a target, what it makes its files of, and the runtime that runs them.

A new runtime is one file with a `Target`, its name in `targets.py` and its entry, with the extra that it needs, in the
catalog. Nothing else knows it: the command checks places, writes and times whatever is registered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch.export import ExportedProgram

from edgeprune.data import first_inputs
from edgeprune.export import ort
from edgeprune.export.feeds import filled, repeated
from edgeprune.export.front import drawn_raw, kept, normalized, raw_bytes
from edgeprune.export.namedfront import NamedFront
from edgeprune.export.ort import Feed
from edgeprune.graph.specs import exactly, input_specs, row_chunks
from edgeprune.graph.tokens import kept_vocabularies, with_numbers
from edgeprune.progress import Progress
from edgeprune.pruning.slim_inputs import gathered, on_device
from edgeprune.records import DataSource, Model, ModelInfo
from edgeprune.results import ExportedFile
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.tasks.task import Task

CALIBRATION = 256  # samples that smaller numbers are calibrated on

Runner = Callable[[], object]  # one inference a call


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """The same samples in the three forms in which networks take them, `(n, ...)` each, by name of several inputs.

    `file` is what the network's ONNX file takes (raw where preprocessing is folded), `program` what its program takes
    (normalised, the kept features alone), `full` what the dense network takes (normalised, all features).
    """

    file: Feed
    program: Feed
    full: Feed


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What the files of a target are made of.

    The network's ONNX files lie in `folder`, where the target's go too; `name` is the model's. `dense` is the network
    that this one came from, where it is known; `batch` the fixed one, None where it is free; `byte_scale` what a byte
    stands for where the files take bytes. `real` holds real samples to check on, None where there are no data;
    `task` is what they are for, `front` what is done to the inputs where there are several. `folds` says that the ONNX
    files take raw values, as preprocessing is folded into them; `int8` says that smaller numbers are asked for, and
    `max_drop` what they may lose. `widths` is the folder of its run's widths, where it has some.
    """

    model: Model
    info: ModelInfo
    folder: Path
    name: str
    data: DataSource | None = None
    dense: Model | None = None
    batch: int | None = None
    byte_scale: float | None = None
    real: Inputs | None = None
    task: Task | None = None
    front: NamedFront | None = None
    folds: bool = False
    int8: bool = False
    max_drop: float | str | None = None
    widths: Path | None = None

    @property
    def network(self) -> Path:
        """The ONNX file of the network."""
        return self.folder / f"{self.name}.onnx"

    @property
    def program(self) -> ExportedProgram:
        """The program of the network's contract: without the Gather, and with new ids, where it has those."""
        return on_device(self.model.program)

    @property
    def answering(self) -> Task | None:
        """What the outputs are for, also without data where the model is known to tell classes apart."""
        is_classifier = bool(self.info.classes) and self.info.task is None
        return CLASSIFICATION if self.task is None and is_classifier else self.task

    def raw(self, split: str, count: int | None) -> Feed | None:
        """Raw inputs of the first samples of a split, or of all; None without data."""
        return None if self.data is None else self.held(first_inputs(getattr(self.data, split), count))

    def held(self, raw: Feed) -> Feed:
        """What a data set holds, in the types that the network takes; raises InputError where that would change it."""
        specs, what = input_specs(self.model.program), "inputs of the data"
        if self.front is not None and isinstance(raw, Mapping):
            return {spec.name: exactly(raw[spec.name], spec, what) for spec in specs}
        return exactly(next(iter(raw.values())) if isinstance(raw, Mapping) else raw, specs[0], what)

    def samples(self, count: int) -> Inputs:
        """So many samples of the test split, or drawn ones where there are no data; see `inputs`."""
        raw = self.raw("test", count)
        if raw is None and self.front is not None:
            raw = self.front.raw(self.model.program, None)
        elif raw is None:
            raw = drawn_raw(self.model.program, count, self.info.input_shape, self.info.normalization)
        return self.inputs(repeated(raw, count))

    def inputs(self, raw: Feed) -> Inputs:
        """Raw inputs in every form, as preprocess.onnx makes them where there is one."""
        if isinstance(raw, Mapping):
            assert self.front is not None
            whole = self.front.normalized(raw)
            handed = self.front.handed(raw) if self.front.fold else whole
            return Inputs(self.front.slim(handed), self.front.slim(whole), whole)
        features = gathered(self.model.program)
        full = normalized(raw, self.info.normalization)
        return Inputs(self._taken(raw), self._numbered(full) if features is None else kept(full, features), full)

    def _numbered(self, full: np.ndarray) -> np.ndarray:
        """The first input with new ids, where its vocabulary was cut."""
        first = input_specs(self.model.program)[0].name
        numbered: np.ndarray = dict(with_numbers(kept_vocabularies(self.model.program), {first: full}))[first]
        return numbered

    def _taken(self, raw: np.ndarray) -> np.ndarray:
        handed = raw if self.byte_scale is None else raw_bytes(raw, self.byte_scale)
        preprocess = self.folder / "preprocess.onnx"
        if not preprocess.exists():
            return handed
        model = ort.session(preprocess)
        fixed, n_rows = model.get_inputs()[0].shape[0], len(handed)
        places = filled(n_rows, fixed) if isinstance(fixed, int) else row_chunks(n_rows, handed[0].size)
        return np.concatenate([ort.run(model, handed[rows]) for rows in places])[:n_rows]


class Runtime(Protocol):
    """What runs files on this machine."""

    @property
    def name(self) -> str:
        """As it is told of, e.g. `onnxruntime`."""

    def draft(self, program: ExportedProgram, folder: Path, batch: int) -> Path:
        """A file of a network in `folder`, to be timed beside others and thrown away."""

    def runner(self, file: Path, inputs: Inputs, threads: int = 1) -> Runner | None:
        """One inference of a file a call, with all that need not be timed done before; None if not on this machine.

        Raises:
            InputError: the file does not load, or not run on the inputs.
        """


class Target(Protocol):
    """One of the things that an export can be written for."""

    @property
    def name(self) -> str:
        """That of its option and of its entry in the catalog, e.g. `c-header`."""

    @property
    def runtime(self) -> Runtime | None:
        """What runs its first file; None where nothing does on this machine."""

    @property
    def free_batch(self) -> bool:
        """Whether it is written of ONNX files whose batch is still free."""

    def files(self, model: str) -> tuple[str, ...]:
        """What it writes for a model of this name; a folder's name ends in a slash, and it holds a manifest.json."""

    def check_installed(self) -> None:
        """Have at hand what it needs; raises InputError, before anything takes long, that says what to install."""

    def check(self, program: ExportedProgram) -> None:
        """Raise InputError for a network that it cannot express, as far as that can be told at once."""

    def write(self, material: Material, told: Progress) -> tuple[ExportedFile, ...]:
        """Write its files and run them, as far as they can be run here.

        Raises:
            InputError: it cannot express the network.
            ParityError: a file gives something else than PyTorch.
        """
