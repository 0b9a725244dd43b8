"""The files of a run folder: slim.pt2 and plan.json of a network, run.json and report.html of what was measured."""

from __future__ import annotations

from pathlib import Path

from torch.export import ExportedProgram

from edgeprune.files import write_atomically
from edgeprune.formats.save import save_program
from edgeprune.pruning.plan import PruningPlan
from edgeprune.records import ModelInfo
from edgeprune.results import RunRecord
from edgeprune.runrecord import to_json


def write_network(folder: Path, program: ExportedProgram, plan: PruningPlan, info: ModelInfo) -> None:
    """Write a network and the plan that leads to it."""
    save_program(folder / "slim.pt2", program, info)
    write_atomically(folder / "plan.json", plan.to_json().encode())


def write_record(folder: Path, record: RunRecord) -> None:
    """Write what was measured, for programs and for people."""
    from edgeprune.report.html import render  # matplotlib: a second that the other commands need not wait

    write_atomically(folder / "run.json", to_json(record).encode())
    write_atomically(folder / "report.html", render(record).encode())
