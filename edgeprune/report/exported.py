"""What `export` wrote: files, variants of them, and the files of several runtimes side by side."""

from __future__ import annotations

import os

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from edgeprune.records import Metric
from edgeprune.report import formats as fmt
from edgeprune.report.following import following
from edgeprune.report.sheet import Sheet, assumptions, check_mark, labelled, titled_table
from edgeprune.results import ExportedFile, ExportRecord, TargetTable, VariantTable


def export(record: ExportRecord) -> RenderableType:
    """What `export` wrote and how far each file is from PyTorch."""
    parts: list[RenderableType] = [_agreement(record)]
    if record.variants is not None:
        parts += variants(record.variants)
    if record.targets is not None:
        parts += _targets(record.targets)
    parts += [labelled("left out", why) for why in record.left_out]
    if record.note:
        parts.append(labelled("inputs", record.note))
    parts += [labelled("phones", words) for words in record.mobile]
    if record.web is not None:
        parts += [following("serve", record.web)]
    return Sheet(_files(record), *parts, *assumptions(record.assumed))


def _files(record: ExportRecord) -> Table:
    """Every file that was written, by its place in their folder."""
    folder = os.path.commonpath([os.path.dirname(file.path) or "." for file in record.files])
    table = titled_table(f"{record.model} exported to {folder}")
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("largest error", justify="right", no_wrap=True)
    timed = any(file.p50_ms is not None for file in record.files)
    for name in ("p50", "vs dense") if timed else ():
        table.add_column(name, justify="right", no_wrap=True)
    for file in record.files:
        parity = fmt.NONE if file.parity is None else fmt.error(file.parity)
        times = _times(file) if timed else ()
        table.add_row(Text(os.path.relpath(file.path, folder)), fmt.size(file.size_bytes), parity, *times)
    return table


def _times(file: ExportedFile) -> tuple[str, str]:
    if file.p50_ms is None or file.ratio is None:
        return fmt.NONE, fmt.NONE
    return f"{file.p50_ms:.3g} ms", f"{file.ratio:.2f}×"


def _agreement(record: ExportRecord) -> Text:
    """On how many real inputs the files were checked; on none is told for what it is."""
    if record.n_samples:
        same = "" if record.agreement is None else f"; {fmt.percent(record.agreement)} of the answers are the same"
        return check_mark(f"the files agree with PyTorch on {record.n_samples:,} inputs{same}")
    told = "the files agree with PyTorch on drawn inputs alone: there were no data; --data names some"
    return Text.assemble(("! ", "bold yellow"), told)


def variants(found: VariantTable) -> list[RenderableType]:
    """fp32 beside int8 and the others, and which one to ship."""
    is_exact = any(variant.exact_drop is not None for variant in found.variants)
    lines: list[RenderableType] = [_variant_rows(found, is_exact)] if found.variants else []
    lines += [labelled("left out", f"{one.kind}: {one.reason}") for one in found.left_out]
    lines += [labelled("note", note) for note in found.notes]
    if is_exact:
        told = f"exact is what a file means, {found.metric.name} and times are of this CPU: {found.cpu}"
        lines.append(labelled("int8", f"{fmt.int8_for(found.int8_for)}; {told}"))
    return [*lines, Text.assemble(("✓ ", "bold green"), f"ship {found.ship}: {found.why}")]


def _variant_rows(found: VariantTable, is_exact: bool) -> Table:
    """A row for each, with what it means where that is known of any."""
    table, metric = titled_table("variants"), found.metric
    meant = ("exact",) if is_exact else ()
    for name in ("variant", "size", metric.name, *meant, "p50", "vs fp32", "verdict"):
        table.add_column(name, justify="left" if name in ("variant", "verdict") else "right", overflow="fold")
    for v in found.variants:
        values = [_value(metric, v.value, v.drop)]
        values += [_value(metric, v.exact_value, v.exact_drop)] if is_exact else []
        style = "bold green" if v.name == found.ship else ""
        table.add_row(
            v.name, fmt.size(v.size_bytes), *values, f"{v.p50_ms:.3g} ms", f"{v.ratio:.2f}×", v.verdict, style=style
        )
    return table


def _value(metric: Metric, value: float | None, drop: float | None) -> str:
    """A value, or what is lost where there are no values."""
    return fmt.change(metric, drop) if value is None and drop is not None else fmt.value(metric, value)


def _targets(found: TargetTable) -> list[RenderableType]:
    """The files of all runtimes, and which one to ship."""
    table = titled_table("runtimes")
    for name in ("target", "file", "size", "largest error", "p50", "vs ONNX", "verdict"):
        table.add_column(name, justify="left" if name in ("target", "file", "verdict") else "right", overflow="fold")
    for row in found.rows:
        table.add_row(
            row.target,
            Text(os.path.basename(row.path)),
            fmt.size(row.size_bytes),
            fmt.NONE if row.parity is None else fmt.error(row.parity),
            fmt.NONE if row.p50_ms is None else f"{row.p50_ms:.3g} ms",
            fmt.NONE if row.ratio is None else f"{row.ratio:.2f}×",
            row.verdict,
            style="bold green" if row.path == found.ship else "",
        )
    lines: list[RenderableType] = [table]
    lines += [labelled("left out", f"{one.target}: {one.reason}") for one in found.left_out]
    return [*lines, Text.assemble(("✓ ", "bold green"), f"ship {os.path.basename(found.ship)}: {found.why}")]
