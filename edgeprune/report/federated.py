"""What `federate` came to, for the terminal."""

from __future__ import annotations

from rich.console import RenderableType

from edgeprune.report import formats as fmt
from edgeprune.report.following import following
from edgeprune.report.sheet import Sheet, labelled, titled_table
from edgeprune.results import FederateRecord, RoundRecord

_SHOWN = 10  # rounds, evenly spaced


def federate(record: FederateRecord) -> RenderableType:
    """Rounds with what they had cost and come to, and the network that is left."""
    own, last = record.settings, record.rounds[-1]
    table = titled_table(f"{record.out}: {record.arch}, {fmt.count(record.params)} parameters, on {record.data}")
    for name in ("round", "clients", "loss", f"validation {record.metric.name}", "uploaded"):
        table.add_column(name, justify="right")
    for one in _spaced(record.rounds):
        loss = fmt.NONE if one.loss is None else f"{one.loss:.3f}"
        table.add_row(str(one.number), str(one.n_taken), loss, record.metric.shown(one.val_value), _mb(one))
    shared = "evenly" if own.alpha is None else f"by Dirichlet({own.alpha:g})"
    zeros = f"; {fmt.percent(record.zero_share)} of the weights are zero" if record.zero_share else ""
    left_out = [labelled("left out", f"{record.n_left_out} replies", "yellow")] if record.n_left_out else []
    return Sheet(
        table,
        labelled("test", f"{record.metric.name} {record.metric.shown(record.test_value)}{zeros}"),
        labelled("clients", f"{own.n_per_round} of {own.n_clients} a round, samples shared out {shared}"),
        labelled("bytes", f"{_mb(last)} up, {last.downloaded_bytes / 1e6:.3g} MB down, {fmt.seconds(record.seconds)}"),
        *left_out,
        following("compress", record.out, data=record.data, task=record.task),
    )


def _spaced(rounds: tuple[RoundRecord, ...]) -> list[RoundRecord]:
    step = max(1, len(rounds) // _SHOWN)
    return [one for i, one in enumerate(rounds) if (len(rounds) - 1 - i) % step == 0]


def _mb(record: RoundRecord) -> str:
    return f"{record.uploaded_bytes / 1e6:.3g} MB"
