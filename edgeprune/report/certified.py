"""What `certify` proved, for the terminal."""

from __future__ import annotations

from collections import Counter

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from edgeprune.report import formats as fmt
from edgeprune.report.sheet import Sheet, assumptions, check_mark, labelled, titled_table
from edgeprune.results import CertifyRecord

_FLOAT64 = "of the network in float64, with an outward margin for rounding; a runtime's float32 rounds otherwise"


def certify(record: CertifyRecord) -> RenderableType:
    """Shares of the samples, from above and from below, or how far two networks can be apart."""
    table = _apart(record) if record.differences else _shares(record)
    return Sheet(
        table,
        check_mark(f"{record.n_samples:,} samples in {fmt.seconds(record.seconds)}, {record.method}"),
        labelled("box", f"clipped to {record.valid_range}; in the units of the data, before normalisation"),
        labelled("proof", _FLOAT64),
        *assumptions(record.assumed),
    )


def _title(record: CertifyRecord) -> str:
    if record.n_removed is not None:
        return f"the decision, with {record.n_removed:,} of {record.n_inputs:,} inputs removed"
    if record.differences:
        return f"outputs of dense less slim within eps {record.eps:g}"
    return f"within eps {record.eps:g}"


def _apart(record: CertifyRecord) -> Table:
    """The largest difference of any output over all samples."""
    table = _titled(record, "largest difference")
    largest = [max(getattr(one, name) for one in record.differences) for name in ("here", "found", "bound")]
    for words, value in zip(("at the samples", "found in the box", "proved: at most"), largest, strict=True):
        table.add_row(words, f"{value:.4g}")
    return table


def _shares(record: CertifyRecord) -> Table:
    """What share of the samples is proved, and what share an attack leaves."""
    table = _titled(record, "samples", "which is")
    counts = Counter(sample.outcome for sample in record.samples)
    table.add_row("accuracy", fmt.percent(record.clean), "")
    table.add_row("not attacked", fmt.percent(record.attacked_at_most), "an upper bound on what is robust")
    table.add_row(Text("verified", "bold green"), fmt.percent(record.verified), "a lower bound: proved")
    table.add_row("neither", str(counts["open"]), "not proved, and no attack found")
    return table


def _titled(record: CertifyRecord, *columns: str) -> Table:
    table = titled_table(f"{record.model}: {_title(record)}")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="left" if name == "which is" else "right")
    return table
