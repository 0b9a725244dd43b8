"""What the runs gave: a line of JSON for each, and from those the document of an experiment."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError
from measure.machine import machine

from .experiments import Contender, Experiment, Run

Record = dict[str, Any]
DONE, FAILED = "done", "failed"
_SECONDS = "seconds"
_FIELDS = {"experiment", "title", "network", "data", "epochs", "axis", "quick", "settings", "contenders"}
_FIELDS |= {"threads", "device", "versions"}


def record_of(run: Run, figures: Mapping[str, float], seconds: float) -> Record:
    """The line of a run that came to its end."""
    return {
        **_whose(run),
        "machine": machine(),
        "status": DONE,
        "figures": _rounded(figures),
        _SECONDS: round(seconds, 1),
    }


def failure_of(run: Run, reason: str, seconds: float) -> Record:
    """The line of one that did not."""
    return {**_whose(run), "status": FAILED, "reason": reason, _SECONDS: round(seconds, 1)}


def _whose(run: Run) -> Record:
    names = ("experiment", "contender", "at", "seed", "digest", "train", "how")
    return {name: getattr(run, name) for name in names}


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    """With six digits, which is more than any of them means."""
    return {name: float(f"{value:.6g}") for name, value in figures.items()}


def in_short(run: Run, record: Record) -> str:
    """One line for the terminal."""
    if record["status"] == FAILED:
        return f"{run.name}: failed: {record['reason']}"
    told = [_SHORT[name].format(value) for name, value in record["figures"].items() if name in _SHORT]
    return f"{run.name}: {', '.join(told)}, {record[_SECONDS]:.0f} s"


_SHORT = {
    "test_accuracy": "{:.2%} test",
    "zero_share": "{:.2%} zeros",
    "params_share": "{:.2%} of the parameters",
    "macs_share": "{:.2%} of the MACs",
    "bytes_share": "{:.2%} of the bytes",
    "n_features": "{:.0f} features",
    "step_ms": "{:.2f} ms",
    "step_ratio": "{:.3f} times SGD's",
}


# -- the lines --------------------------------------------------------------------------------------------------------


def append(path: Path, record: Record) -> None:
    """Add a line at once, below what a kill may have left of another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0, 2)
        torn = file.tell() > 0 and _last_byte(path) != b"\n"
        file.write((b"\n" if torn else b"") + json.dumps(record).encode() + b"\n")


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1)


def read_lines(path: Path) -> list[Record]:
    """All whole lines, none where there is no such file."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # what a kill left of one: its run is not done
    return found


def done(records: Iterable[Record]) -> dict[str, Record]:
    """The last record of each run that came to its end, by the run's digest."""
    return {record["digest"]: record for record in records if record["status"] == DONE}


# -- the document -----------------------------------------------------------------------------------------------------


def document(experiment: Experiment, records: Iterable[Record], quick: bool, how: Record) -> Record:
    """What docs/results/NAME.json holds: for each contender and point the figures over its seeds, and every run."""
    known = done(records)
    rows = [
        _row(contender, at, [known[run.digest] for run in runs if run.digest in known])
        for contender, at, runs in _cells(experiment, quick)
    ]
    used = [known[run.digest] for run in experiment.runs(quick) if run.digest in known]
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "network": experiment.arch,
        "data": experiment.data,
        "epochs": experiment.epochs,
        "axis": experiment.axis,
        "quick": quick,
        "settings": {"all": experiment.train, **{own.label: {**own.train, **own.how} for own in experiment.contenders}},
        "contenders": rows,
        "machines": _machines(used),
        "test_samples": max((_n_judged(record) for record in used), default=0),
        **how,
    }


def _n_judged(record: Record) -> int:
    """The test samples that a run was judged by, 0 where that was not written down."""
    n_all = int(record.get("test_samples", 0))
    return min(n_all, int(record["how"].get("judged") or n_all))


def _machines(records: Iterable[Record]) -> list[Record]:
    """Those that the runs were made on, each once; none where that was not written down."""
    told = {json.dumps(record["machine"], sort_keys=True) for record in records if "machine" in record}
    return [json.loads(one) for one in sorted(told)]


def _cells(experiment: Experiment, quick: bool) -> Iterator[tuple[Contender, int | None, list[Run]]]:
    """The runs of each contender and point."""
    for contender in experiment.contenders:
        for at in contender.at:
            yield contender, at, [experiment.run(contender, at, seed, quick) for seed in range(contender.seeds)]


def _row(contender: Contender, at: int | None, records: Sequence[Record]) -> Record:
    names = list(dict.fromkeys(name for record in records for name in record["figures"]))
    return {
        "name": contender.name,
        "label": contender.label,
        "goal": contender.goal_at(at),
        "at": at,
        "seeds_wanted": contender.seeds,
        "figures": {name: _spread([record["figures"][name] for record in records]) for name in names},
        "runs": [{"seed": r["seed"], _SECONDS: r[_SECONDS], **r["figures"]} for r in records],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "mean": float(f"{statistics.mean(values):.6g}"),
        "min": min(values),
        "max": max(values),
        "std": float(f"{statistics.stdev(values):.4g}") if len(values) > 1 else 0.0,
    }


def read_document(path: Path) -> Record | None:
    """The document at this place, None where there is none.

    Raises:
        InputError: something else is there.
    """
    if not path.is_file():
        return None
    try:
        found: Record = json.loads(path.read_text(encoding="utf-8"))
        missing = _FIELDS - set(found)
    except (json.JSONDecodeError, TypeError) as error:
        raise InputError(f"{path}: expected the JSON of an experiment, got {error}") from error
    if missing:
        raise InputError(f"{path}: expected the JSON of an experiment, got one without {', '.join(sorted(missing))}")
    return found
