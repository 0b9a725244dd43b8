"""What was measured on a phone, as a table."""

from __future__ import annotations

from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from edgeprune.report import formats as fmt
from edgeprune.report.sheet import Sheet, labelled, titled_table, unbroken
from edgeprune.results.bench import BenchRecord, BenchRow


def bench(record: BenchRecord) -> RenderableType:
    """Each network with its time, its memory, and its time over the first of its runtime."""
    phone = record.phone
    table = titled_table(phone.model or phone.serial)
    for name in ("network", "mean", "p50", "p95", "memory", "ratio", "95 % interval"):
        table.add_column(name, justify="left" if name == "network" else "right", overflow="fold")
    for row in record.rows:
        table.add_row(Text(Path(row.file).name), *_figures(row))
    return Sheet(
        table,
        labelled("device", _described(record)),
        *_remarks(record),
        *(labelled("note", note) for note in record.notes),
        unbroken("  wrote   ", record.out, ""),
    )


def _remarks(record: BenchRecord) -> list[RenderableType]:
    """What ran the networks, how much of each, and what the figure of memory counts; each once."""
    said = [("runtime", f"{row.runtime} with {row.delegate}, by {row.program}") for row in record.rows]
    said += [("ran", f"{Path(row.file).name}: {row.delegated}") for row in record.rows if row.delegated]
    said += [("memory", f"{row.runtime}: {row.memory_is}") for row in record.rows if row.memory_bytes is not None]
    return [labelled(*one) for one in dict.fromkeys(said)]


def _figures(row: BenchRow) -> list[str]:
    """Times, memory, and e.g. `0.52×` and `0.50 to 0.54`; a single round has no interval."""
    times = [fmt.NONE if ms is None else f"{ms:.3g} ms" for ms in (row.mean_ms, row.p50_ms, row.p95_ms)]
    memory = fmt.NONE if row.memory_bytes is None else fmt.size(row.memory_bytes)
    ratio = fmt.NONE if row.ratio is None else f"{row.ratio:.2f}×"
    interval = row.ratio_interval
    return [*times, memory, ratio, fmt.NONE if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"]


def _described(record: BenchRecord) -> str:
    phone = record.phone
    parts = [phone.serial, phone.chip, phone.android and f"Android {phone.android}", ", ".join(phone.abis[:1])]
    threads = "1 thread" if record.threads == 1 else f"{record.threads} threads"
    rounds = len(record.rows[0].rounds)
    parts += [threads, f"{rounds} round{'s' * (rounds > 1)} of {record.runs} inferences"]
    before, after = record.thermal
    parts.append("" if before is None else f"thermal status {before} before, {after or 'not told'} after")
    return "; ".join(filter(None, parts))
