"""Runs one after the other: each is written down as soon as it is done, and is not done twice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgeprune.errors import EdgepruneError, InputError
from edgeprune.files import write_atomically
from edgeprune.progress import Progress
from edgeprune.versions import versions

from .charts import draw
from .experiments import Experiment, Run
from .place import Machine, Place, data_of
from .recipes import follow
from .results import FAILED, Record, append, document, done, failure_of, in_short, read_lines, record_of


@dataclass(frozen=True, slots=True, eq=False)
class Campaign:
    """Where runs are written down, and what they run on.

    `lines` is the file with a line for each run; `resume` leaves out what it has, and goes on with what was begun.
    """

    lines: Path
    machine: Machine
    progress: Progress
    resume: bool = False

    def run_all(self, runs: Iterable[Run]) -> int:
        """Run what is not done; returns how many failed."""
        known = self._known()
        waiting = [run for run in runs if run.digest not in known]
        failed = 0
        for number, run in enumerate(waiting, start=1):
            record = self.run(run)
            failed += record["status"] == FAILED
            print(f"[{number}/{len(waiting)}] {in_short(run, record)}", flush=True)
        return failed

    def run_once(self, run: Run) -> Record:
        """What is written down of the run already, or else what it gives."""
        return self._known().get(run.digest) or self.run(run)

    def run(self, run: Run) -> Record:
        """One run, written down; a failure of edgeprune's is one line, and the campaign goes on."""
        place = Place(run, data_of(run.data, run.quick), self.machine, self.progress, self.lines.parent / "states")
        if not self.resume:
            place.forget()
        started = time.perf_counter()
        try:
            record = record_of(run, follow(place), time.perf_counter() - started)
            record["test_samples"] = len(place.data.test)  # type: ignore[arg-type]
        except EdgepruneError as error:
            record = failure_of(run, str(error), time.perf_counter() - started)
        append(self.lines, record)
        place.forget()
        return record

    def _known(self) -> dict[str, Record]:
        return done(read_lines(self.lines)) if self.resume else {}

    def write(self, experiment: Experiment, quick: bool, folder: Path) -> None:
        """The document of an experiment and its chart, from what is written down; none where that is nothing."""
        how = {"threads": self.machine.threads, "device": self.machine.name, "versions": versions()}
        found = document(experiment, read_lines(self.lines), quick, how)
        if any(row["runs"] for row in found["contenders"]):
            write_atomically(folder / f"{experiment.name}.json", (json.dumps(found, indent=1) + "\n").encode())
            draw(found, folder / f"{experiment.name}.png")


def check_gpu(experiment: Experiment, machine: Machine) -> None:
    """Refuse an experiment that would take weeks.

    Raises:
        InputError: it needs a GPU, and there is none; a device that is asked for by name is taken.
    """
    if experiment.needs_gpu and machine.device == "auto" and machine.torch_device.type == "cpu":
        raise InputError(
            f"{experiment.name}: expected a GPU for an experiment of this size, got none; --quick looks whether it "
            "runs, --device cpu runs it all the same"
        )
