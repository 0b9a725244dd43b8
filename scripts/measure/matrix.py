"""The matrix of networks by runtimes: counted, and as a table of docs/RUNTIMES.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
START, END = "<!-- written by scripts/bench_runtimes -->", "<!-- end of what it writes -->"
KINDS = ("dense", "slim")


def is_done(cell: Record | None, with_latency: bool) -> bool:
    """Whether a cell of an earlier run has all that is asked for now."""
    if cell is None or "missing" in cell:
        return False
    return not with_latency or "ratio" in cell or "untimed" in cell or bool(refused(cell))


def refused(cell: Record) -> list[str]:
    """The kinds of network that there is no file of, of a cell whose runtime is installed."""
    return [kind for kind in KINDS if "refused" in cell[kind]]


def summary(records: Sequence[Record], runtimes: Sequence[str]) -> Record:
    """How many cells are files, and the geometric mean of slim over dense in each runtime that was timed."""
    cells = [cell[kind] for _, _, cell in _installed(records, runtimes) for kind in KINDS]
    means = {}
    for runtime in runtimes:
        ratios = [cell["ratio"] for _, _, cell in _installed(records, [runtime]) if "ratio" in cell]
        if ratios:
            means[runtime] = round(statistics.geometric_mean(ratios), 3)
    n_files = sum(_first_error(files) is not None for files in cells)
    return {"cells": len(cells), "files": n_files, "geometric_means": means}


def row(record: Record, runtimes: Sequence[str]) -> str:
    """A network's row, e.g. `| cnn | 3e-07, 4e-07 | 0.52: 3e-07, 4e-07 | refused |`."""
    return f"| {record['name']} | {' | '.join(_shown(record['cells'].get(runtime)) for runtime in runtimes)} |"


def put(page: Path, document: Record, runtimes: Sequence[str]) -> None:
    """Write the table between the marks of a page."""
    before, start, rest = page.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{page}: expected the marks {START} and {END}, got none")
    text = "\n".join([START, "", *_lines(document, runtimes), "", END])
    page.write_text(f"{before}{text}{after}", encoding="utf-8")


def _lines(document: Record, runtimes: Sequence[str]) -> Iterator[str]:
    records = document["networks"]
    n_open = document.get("of_cells", document["cells"]) - document["cells"]
    rest = f" {n_open} are not measured yet; they are empty." if n_open else ""
    yield f"{document['files']} of {document['cells']} cells are files that are equal.{rest}"
    yield ""
    yield f"| network | {' | '.join(runtimes)} |"
    yield f"|---|{'---|' * len(runtimes)}"
    for record in records:
        yield row(record, runtimes)
    means = document["geometric_means"]
    if means:
        yield f"| slim / dense, geometric mean | {' | '.join(str(means.get(runtime, '')) for runtime in runtimes)} |"
    yield from _reasons(records, runtimes, "Refused:", "refused")
    yield from _reasons(records, runtimes, "Left out, beside a file in float:", "left out")


def _reasons(records: Sequence[Record], runtimes: Sequence[str], title: str, key: str) -> list[str]:
    """What is said of cells that have this key, the same of dense and slim once."""
    said: dict[tuple[str, str, str], list[str]] = {}
    for name, runtime, cell in _installed(records, runtimes):
        for kind in KINDS:
            reasons = cell[kind].get(key, [])
            for reason in [reasons] if isinstance(reasons, str) else reasons:
                said.setdefault((name, runtime, reason), []).append(kind)
    lines = [f"- {name}, {runtime}, {' and '.join(kinds)}: {reason}" for (name, runtime, reason), kinds in said.items()]
    return ["", title, "", *lines] if lines else []


def _installed(records: Sequence[Record], runtimes: Sequence[str]) -> list[tuple[str, str, Record]]:
    return [
        (record["name"], runtime, record["cells"][runtime])
        for record in records
        for runtime in runtimes
        if runtime in record["cells"] and "missing" not in record["cells"][runtime]
    ]


def _shown(cell: Record | None) -> str:
    """E.g. `0.52: 3e-07, 4e-07`: the ratio of the times, and the errors of the first dense and slim file."""
    if cell is None:
        return ""
    if "missing" in cell:
        return "not installed"
    ratio = f"{cell['ratio']:.2f}: " if "ratio" in cell else ""
    return ratio + ", ".join(_error(cell[kind]) for kind in KINDS)


def _first_error(files: Record) -> float | None:
    """That of the first file that was compared with PyTorch; None where none was."""
    return next((found["error"] for found in files.values() if isinstance(found, dict)), None)


def _error(files: Record) -> str:
    if "refused" in files:
        return "refused"
    first = _first_error(files)
    if first is None:
        return "not compared"
    return "0" if first == 0 else f"{first:.0e}" if math.isfinite(first) else "wrong"
