"""`compress --int8`: int8 of the network that was found, beside it in the run folder."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from edgeprune.commands.floatfiles import front_of, write_float_files
from edgeprune.commands.variants import Int8, check_int8, variant_files, write_variants
from edgeprune.errors import EdgepruneError, InputError, ParityError, came_from_outside
from edgeprune.export.quantize import check_quantizable
from edgeprune.export.target import Material
from edgeprune.export.variants import FLOAT
from edgeprune.lines import one_line
from edgeprune.progress import Progress
from edgeprune.records import DataSource, Metric, Model
from edgeprune.requests import CompressRequest
from edgeprune.results import LeftOut, VariantTable
from edgeprune.tasks.budget import drop_of
from edgeprune.tasks.task import Task

_NAME = "slim"
_TRIED = 8  # samples that tell whether the dense network can be quantised at all


def asked_int8(request: CompressRequest, epochs: int) -> Int8 | None:
    """How int8 is asked for; None where it is not.

    Args:
        epochs: those of each finetuning, 0 where nothing here finetunes.

    Raises:
        InputError: CPUs are named for int8 that is not asked for, or a function of the user's judges.
    """
    if not request.int8:
        if request.int8_for is not None:
            raise InputError(f"--int8-for {request.int8_for}: expected --int8 beside it, got none")
        return None
    if request.evaluate is not None:
        raise InputError(
            f"--int8: expected to judge files by the data, got --evaluate {request.evaluate}, which takes modules"
        )
    each = epochs // len(request.widths or (1,))
    epochs = 0 if request.finetune is not None or not epochs else max(1, each)
    return Int8(request.max_drop, request.int8_for, epochs, request.allow_chance)


def check_quantizes(asked: Int8, model: Model, data: DataSource | None, task: Task | None, told: Progress) -> None:
    """Quantise the dense network, before a search that takes long: what it cannot do, the slim one cannot either.

    Raises:
        InputError: nothing to calibrate on or to judge by, nothing to quantise, or a state.
        ParityError: the quantised file does not run.
    """
    check_int8(asked, model, data, task)
    told.stage("quantise the dense network, to see that it can be")
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
        material = material_of(model, Path(folder), data, task)
        write_float_files(material, count=_TRIED)
        raw = material.raw("train", _TRIED)
        assert raw is not None  # else it was refused before
        try:
            check_quantizable(material.network, material.inputs(raw).file, asked.reduces)
        except (InputError, ParityError) as error:
            raise type(error)(f"--int8: {str(error).replace(str(material.network), model.name)}") from error


def assumed_int8(asked: Int8, request: CompressRequest, metric: Metric) -> tuple[str, ...]:
    """What is done for int8 that nobody said."""
    told = (
        () if request.max_drop is not None else (f"--max-drop {drop_of(None, metric)} (of int8, beside slim in float)",)
    )
    if request.finetune is not None:
        return (*told, f"int8 is not finetuned (--finetune {request.finetune} has its own way)")
    if not asked.finetune_epochs:
        return (*told, "int8 is not finetuned (--finetune-epochs 0)")
    return (*told, f"where int8 loses more than --max-drop it is finetuned, for {asked.finetune_epochs} epochs")


def write_int8_files(asked: Int8, material: Material, dense: float | None, told: Progress) -> VariantTable:
    """Write the ONNX files of the network that was found and those of smaller numbers into the run folder.

    Where that fails, the network is none the worse: the table says why then, and has no rows.

    Args:
        material: of the network in the folder, see `material_of`.
        dense: what the dense network comes to on the validation split.
    """
    told.stage("export for int8")
    # In a folder of their own: a set of files may come with a new folder, and nothing would hold that of the run.
    place = material.folder / "files"
    place.mkdir()
    table = _table(asked, replace(material, folder=place), told)
    for path in sorted(place.iterdir()):
        path.replace(material.folder / path.name)
    place.rmdir()
    return replace(table, notes=(*table.notes, *_beside_dense(table, dense)))


def _table(asked: Int8, material: Material, told: Progress) -> VariantTable:
    """The variants, by their names in the folder; without rows where they, or the float files, cannot be made."""
    try:
        # It leaves none of them where one fails.
        write_float_files(material, leave_out=lambda why: told.say(f"left out: {why}"))
        table = write_variants(asked, material, told)
    except EdgepruneError as error:
        if came_from_outside(error):
            raise
        for name in variant_files(_NAME):
            (material.folder / name).unlink(missing_ok=True)
        return VariantTable((), (LeftOut("int8", one_line(str(error))),), FLOAT, "int8 could not be made")
    rows = tuple(replace(row, path=str(Path(row.path).relative_to(material.folder))) for row in table.variants)
    return replace(table, variants=rows)


def _beside_dense(table: VariantTable, dense: float | None) -> tuple[str, ...]:
    """What the one to ship loses of what the dense network has: what the cut lost and what int8 does, together."""
    row, metric = table.shipped, table.metric
    if row is None or row.name == FLOAT or row.value is None or dense is None:
        return ()
    drop = metric.drop(dense, row.value)
    side = "below" if (drop >= 0) == metric.higher_is_better else "above"
    told = f"{metric.number(abs(drop))} {metric.unit}".rstrip()
    return (f"{row.name}: {told} {side} the dense network on the validation split, cut and small numbers together",)


def material_of(
    model: Model, folder: Path, data: DataSource | None, task: Task | None, dense: Model | None = None
) -> Material:
    """What the files of a network are made of; they go into `folder`."""
    front = front_of(model, data, folds=False)
    return Material(model, model.info, folder, _NAME, data, dense, task=task, front=front)
