"""The files of a run folder: slim.pt2 and plan.json of a network, run.json and report.html of what was measured."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.export import ExportedProgram

from edgeprune.errors import InputError
from edgeprune.export.gated import WIDTHS
from edgeprune.files import write_atomically
from edgeprune.formats.save import save_program
from edgeprune.pruning.plan import PruningPlan
from edgeprune.records import ModelInfo
from edgeprune.results import RunRecord
from edgeprune.runrecord import run_from_json, to_json

if TYPE_CHECKING:
    from edgeprune.report.answers import Answers

SLIM = "slim.pt2"
_RECORD = "run.json"


def widths_of_run(model: Path) -> Path | None:
    """The folder of the widths of the run whose slim network this file is; None where it is none, or has no widths.

    A folder of that name beside any other model is not its own.
    """
    record, folder = model.parent / _RECORD, model.parent / WIDTHS
    if model.name != SLIM or not record.is_file() or not folder.is_dir():
        return None
    try:
        run = run_from_json(record.read_bytes().decode(errors="replace"), str(record))
    except InputError:  # the record of something else
        return None
    return folder if run.shared is not None else None


def write_network(folder: Path, program: ExportedProgram, plan: PruningPlan, info: ModelInfo) -> None:
    """Write a network and the plan that leads to it."""
    save_program(folder / SLIM, program, info)
    write_atomically(folder / "plan.json", plan.to_json().encode())


def write_record(folder: Path, record: RunRecord, answers: Answers | None = None) -> None:
    """Write what was measured, for programs and for people, these with a picture of the answers."""
    from edgeprune.report.html import render  # matplotlib: a second that the other commands need not wait

    write_atomically(folder / "run.json", to_json(record).encode())
    write_atomically(folder / "report.html", render(record, answers).encode())


def model_facts(info: ModelInfo, name: str, path: str | None, sha256: str) -> dict[str, Any]:
    """What run.json says of the dense model; a task and names by input only where it has such."""
    facts = {**asdict(info), "name": name, "path": path, "sha256": sha256}
    if info.training is not None:
        facts["training"] = info.training.as_plain
    for name in ("task", "input_feature_names"):
        if not facts[name]:
            del facts[name]
    return facts
