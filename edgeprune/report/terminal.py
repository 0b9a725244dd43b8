"""Rich tables, one function a record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgeprune.catalog import ASKED_BY
from edgeprune.graph.reasons import advice
from edgeprune.records import MetricComparison
from edgeprune.report import formats as fmt
from edgeprune.report.bench import bench as bench
from edgeprune.report.certified import certify as certify
from edgeprune.report.exported import export as export
from edgeprune.report.exported import variants
from edgeprune.report.federated import federate as federate
from edgeprune.report.following import following
from edgeprune.report.sheet import Sheet, assumptions, check_mark, labelled, titled_table, unbroken
from edgeprune.results import (
    GroupRow,
    InspectRecord,
    LatencyComparison,
    MethodsRecord,
    ProfileRecord,
    RunRecord,
    TrainRecord,
    ValidateRecord,
    ValidateWidthsRecord,
)

_MAX_LAYERS = 4  # of a group in a table


def run(record: RunRecord, folder: Path) -> RenderableType:
    """What `compress` made: dense against slim, the proof, what was assumed and what to do next."""
    name = str(record.model.get("name", "model"))
    table = _comparison(f"{name}: dense and slim")
    _quality_rows(table, record)
    dense, slim = record.dense, record.slim
    table.add_row("MACs", fmt.count(dense.macs), fmt.count(slim.macs), fmt.share(slim.macs, dense.macs))
    table.add_row("parameters", fmt.count(dense.params), fmt.count(slim.params), fmt.share(slim.params, dense.params))
    table.add_row(
        "ONNX file", fmt.size(dense.onnx_bytes), fmt.size(slim.onnx_bytes), fmt.share(slim.onnx_bytes, dense.onnx_bytes)
    )
    for name, before, after in fmt.peaks(dense, slim):
        table.add_row(name, fmt.size(before), fmt.size(after), fmt.share(after, before))
    for of, size, kept in fmt.feature_counts(record):
        table.add_row(f"input features{of}", str(size), str(kept), fmt.share(kept, size))
    for one in record.vocabularies:
        table.add_row(f"ids of {one.input}", str(one.n_ids), str(one.n_kept), fmt.share(one.n_kept, one.n_ids))
        sizes = (one.dense_bytes, one.slim_bytes)
        table.add_row("  their rows", *map(fmt.size, sizes), fmt.share(*reversed(sizes)))
    _latency_rows(table, record.latency)
    return Sheet(
        table,
        *([_front(record)] if record.front else []),
        *_shared(record),
        check_mark(f"slim = masked dense ({_exactness(record)}), relative error {fmt.error(record.proof_error)}"),
        check_mark(f"ONNX = PyTorch, absolute error {fmt.error(record.onnx_parity)}"),
        _latency_line(record.latency),
        *_cuts(record),
        *(variants(record.variants) if record.variants else []),
        *assumptions(record.assumed),
        *(labelled("advice", told) for told in record.advice),
        unbroken("  report  ", str(folder / "report.html"), ""),
        _next(record, folder),
    )


def _shared(record: RunRecord) -> list[RenderableType]:
    """What is told of the file of weights that several widths share, and of the gate that picks one."""
    weights = "" if record.shared is None else fmt.shared_weights(record.shared)
    none = "" if record.shared is None else record.shared.no_gate
    marked = [check_mark(told) for told in (weights, fmt.gate(record)) if told]
    return [*marked, *([labelled("left out", f"the gate: {none}")] if none else [])]


def _exactness(record: RunRecord) -> str:
    """What the proof holds up to."""
    told = "exact" if record.proof_exact else "exact up to renormalisation"
    told += ", on the ids that are kept" if record.vocabularies else ""
    return told + (", with the products of split layers for weights" if record.splits else "")


def _cuts(record: RunRecord) -> list[RenderableType]:
    """What went beside channels, and what layers took over."""
    lines: list[RenderableType] = []
    if told := fmt.splits(record):
        lines.append(labelled("split", told))
    if record.blocks:
        lines.append(labelled("blocks", f"{', '.join(record.blocks)} went whole"))
    if scored := fmt.criteria(record):
        lines.append(labelled("scored", scored))
    if taken := fmt.reconstruction(record):
        lines.append(labelled("layers", taken))
    return lines


def _next(record: RunRecord, folder: Path) -> RenderableType:
    """What to do with the network: its file, where one is there to ship, else to export it."""
    ship = record.variants.shipped if record.variants else None
    if ship is not None:
        return unbroken("  file    ", str(folder / ship.path), "bold")
    data, task = (record.asked.get(name) or record.model.get(name) for name in ("data", "task"))
    return following("export --onnx", folder / "slim.pt2", data=data, task=task)


def _front(record: RunRecord) -> Table:
    """Several networks, from large to small."""
    table, metric = titled_table("widths of one network" if record.shared else "along the front"), record.metric
    judged = f"val. {metric.name}" if fmt.judged_on(record) else metric.name
    for name in ("network", "MACs", "p50", "vs dense", "ONNX file", judged):
        table.add_column(name, justify="left" if name == "network" else "right", no_wrap=True)
    for point in record.front:
        figures = (f"{point.p50_ms:.3g} ms", f"{point.latency_ratio:.2f}×", fmt.size(point.size_bytes))
        style = "bold green" if point.chosen else ""
        macs, value = fmt.percent(point.macs_ratio), fmt.value(metric, point.val_value)
        table.add_row(point.folder, macs, *figures, value, style=style)
    return table


def train(record: TrainRecord) -> RenderableType:
    """What `train` made."""
    table = _plain_table(record.out)
    table.add_row("network", f"{record.arch}, {fmt.count(record.params)} parameters")
    table.add_row("data", record.data)
    if record.epochs:  # none where the training had been done before
        table.add_row("epoch kept", f"{record.best_epoch} of {len(record.epochs)}")
    table.add_row(f"validation {record.metric.name}", record.metric.shown(record.val_value))
    table.add_row(f"test {record.metric.name}", record.metric.shown(record.test_value))
    for figure in record.beside:
        table.add_row(f"test {figure.name}", f"{figure.value:.4g}")
    if record.zero_share:
        table.add_row("weights exactly zero", fmt.percent(record.zero_share))
    table.add_row("time", fmt.seconds(record.seconds))
    return Sheet(table, following("compress", record.out, data=record.data, task=record.task))


def methods(record: MethodsRecord) -> RenderableType:
    """What sparse training can be made of, a table a kind."""
    tables: list[RenderableType] = []
    for kind in dict.fromkeys(entry.kind for entry in record.entries):
        table = titled_table(f"{kind}: {ASKED_BY[kind]}")
        for name in ("name", "what it does", "paper", "produces"):
            table.add_column(name, overflow="fold")
        for entry in record.entries:
            if entry.kind == kind:
                paper, does = Text(entry.paper or fmt.NONE, "dim"), Text(entry.summary)
                if entry.options:
                    does.append("\n" + " ".join(f"--{name.replace('_', '-')}" for name in entry.options), "dim")
                table.add_row(Text(entry.name, "cyan"), does, paper, entry.produces)
        tables.append(table)
    return Sheet(*tables)


def profile(record: ProfileRecord) -> RenderableType:
    """What `profile` measured: each kind of layer, its stairs, its part of the time and of the MACs; and what not."""
    table = titled_table(f"{record.model} on {record.cpu}")
    for name in ("layers", "count", "stairs", "time", "share", "of MACs"):
        table.add_column(name, justify="left" if name == "layers" else "right", no_wrap=True)
    for kind in record.kinds:
        stairs = f"{kind.step} channels" if kind.step > 1 else "smooth"
        shares = f"{kind.share:.0%}", f"{kind.macs_share:.0%}"
        table.add_row(kind.kind, str(kind.n_layers), stairs, f"{kind.ms:.3g} ms", *shares)
    for left in record.unmeasured:
        table.add_row(left.operator, str(left.n_layers), "–", "not measured", "–", f"{left.macs_share:.0%}")
    how = f"{record.runtime}, {record.threads} thread{'s' * (record.threads > 1)}, batch {record.batch_size}"
    measured = check_mark(f"{record.n_points:,} measurements in {record.seconds:.0f} s ({how})")
    return Sheet(table, measured, *_after_profile(record))


def _after_profile(record: ProfileRecord) -> Iterator[RenderableType]:
    """What the profile is good for."""
    missing = f"{sum(left.macs_share for left in record.unmeasured):.0%} of the MACs"
    if not record.is_enough:
        told = f"{missing} are in layers that are not measured: compress plans no network by this profile"
        yield Text.assemble(("! ", "bold yellow"), told)
        return
    if record.unmeasured:
        yield labelled("by MACs", f"{missing} are not measured, and count as long as those of the other layers")
    model = "model.pt" if record.arch == record.model else record.model
    arch = ("--arch", record.arch) if record.arch else ()
    shape = ("--input-shape", ",".join(map(str, record.input_shape))) if record.input_shape else ()
    words = (model, *arch, *shape, "--device", record.out)
    yield following("compress", *words, data=record.data, task=record.task)


def validated(record: ValidateRecord | ValidateWidthsRecord) -> RenderableType:
    """Dense against slim, or against each width in turn."""
    if isinstance(record, ValidateRecord):
        return validate(record)
    pairs = zip(record.names, record.widths, strict=True)
    named = [(f"width {name}" if own.gate is None else "the width that the gate picks", own) for name, own in pairs]
    return Group(*(part for name, own in named for part in (Text(name, "bold"), validate(own))))


def validate(record: ValidateRecord) -> RenderableType:
    """Dense against slim in the runtime, and the budgets that were missed."""
    found = record.compared
    table = _comparison(f"dense and slim on {found.n_samples:,} test samples")
    _test_rows(table, found)
    table.add_row(
        "ONNX file",
        fmt.size(record.dense_bytes),
        fmt.size(record.slim_bytes),
        fmt.share(record.slim_bytes, record.dense_bytes),
    )
    _latency_rows(table, record.latency)
    lines: list[RenderableType] = [
        Text(f"  largest difference of the outputs {record.parity:.3g}{_beside(record)}", "dim"),
        _latency_line(record.latency),
    ]
    if record.gate is not None:
        lines.append(labelled("gate", fmt.gate_use(record.gate)))
    lines += [Text.assemble(("✗ ", "bold red"), failure) for failure in record.failures]
    return Sheet(table, *lines)


def _beside(record: ValidateRecord) -> str:
    if record.accuracy is not None:
        return f"; McNemar p = {record.accuracy.mcnemar_p:.3g}"
    return "" if record.agreement is None else f"; {fmt.percent(record.agreement)} of the answers are the same"


def inspect(record: InspectRecord) -> RenderableType:
    """The channel groups: what can go and what hangs on it, then what cannot, why, and what would unlock it."""
    prunable = [row for row in record.groups if row.kind != "locked"]
    locked = [row for row in record.groups if row.kind == "locked"]
    parts: list[RenderableType] = []
    if prunable:
        title = f"{record.model}: {fmt.count(record.macs)} MACs, {fmt.count(record.params)} parameters"
        parts.append(_prunable_table(title, prunable))
    if locked:
        parts.append(_locked_table(f"{record.model}: locked", locked))
    if record.tokens:
        parts.append(_tokens(record))
    parts += _memory(record)
    told = Text(f"  {len(prunable)} of {len(record.groups)} groups can be pruned{_remarks(prunable)}", "dim")
    return Sheet(*parts, told, *(unbroken("  drawn   ", file, "") for file in record.files))


def _memory(record: InspectRecord) -> list[RenderableType]:
    """The peak of the activations, where it is known."""
    if record.peak is None or record.peak_int8 is None:
        return []
    return [labelled("memory", f"{fmt.peak(record.peak)}; {fmt.size(record.peak_int8.n_bytes)} in int8")]


def _tokens(record: InspectRecord) -> Table:
    """The inputs of ids, and whether a compress --input-features INPUT=IDS can keep some of them alone."""
    table = titled_table(f"{record.model}: inputs of ids")
    table.add_column("input", overflow="fold")
    table.add_column("ids", justify="right", no_wrap=True)
    table.add_column("tables that they look up", overflow="fold", ratio=1)
    table.add_column("params", justify="right", no_wrap=True)
    table.add_column("vocabulary", overflow="fold", ratio=1)
    for row in record.tokens:
        share = f"{100 * row.params / record.params:.1f} %" if record.params else fmt.NONE
        can = Text("can be cut: the ids that are used are enough", "green") if row.reason is None else Text(row.reason)
        table.add_row(row.input, str(row.n_ids), ", ".join(row.tables), share, can)
    return table


def _remarks(prunable: Sequence[GroupRow]) -> str:
    """What there is to know of some of the groups."""
    told = ""
    if any(row.kind == "heads" for row in prunable):
        told += "; whole heads go (--attention head-dim: channels within them)"
    if any(not row.exact for row in prunable):
        told += "; ≈ removal changes the statistics of a normalisation"
    return told


def _prunable_table(title: str, rows: Sequence[GroupRow]) -> Table:
    table = titled_table(title)
    table.add_column("group and its layers", overflow="fold", ratio=1)
    for name in ("units", "width", "MACs", "params"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("cut", no_wrap=True)
    for row in rows:
        units = f"{row.n_units} {row.kind}" if row.kind != "channels" else str(row.n_units)
        shares = (f"{100 * share:.1f} %" for share in (row.macs_share, row.params_share))
        cut = Text("exact", "green") if row.exact else Text("≈", "yellow")
        table.add_row(_layers(row.name, row.layers), units, str(row.width), *shares, cut)
    return table


def _locked_table(title: str, rows: Sequence[GroupRow]) -> Table:
    table = titled_table(title)
    table.add_column("layers", overflow="fold", ratio=2)
    table.add_column("width", justify="right", no_wrap=True)
    table.add_column("why, and what would unlock them", overflow="fold", ratio=3)
    for row in rows:
        why = Text(row.reason or "no reason recorded", "yellow")
        if row.where:
            why.append(f"\n{row.where}", "dim")
        if row.remedy:
            why.append(f"\n{advice(row.remedy)}", "default")
        table.add_row(_layers(row.name, row.layers), str(row.width), why)
    return table


def _layers(name: str, layers: Sequence[str]) -> Text:
    """The group's name, and the first of its other layers below."""
    others = [layer for layer in layers if layer != name]
    text = Text(name, "cyan")
    if others:
        more = f" and {len(others) - _MAX_LAYERS} more" if len(others) > _MAX_LAYERS else ""
        text.append("\n" + ", ".join(others[:_MAX_LAYERS]) + more, "dim")
    return text


def _plain_table(title: str) -> Table:
    table = titled_table(title)
    table.show_header = False
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _comparison(title: str) -> Table:
    table = titled_table(title)
    table.add_column("", no_wrap=True)
    table.add_column("dense", justify="right")
    table.add_column("slim", justify="right", style="bold")
    table.add_column("slim vs dense", justify="right", style="cyan")
    return table


def _quality_rows(table: Table, record: RunRecord) -> None:
    dense, slim, metric = record.dense.val_value, record.slim.val_value, record.metric
    if dense is not None and slim is not None:
        change = fmt.change(metric, metric.drop(dense, slim))
        table.add_row(
            f"{fmt.judged_on(record)} {metric.name}".lstrip(), fmt.value(metric, dense), fmt.value(metric, slim), change
        )
    if record.compared is not None:
        _test_rows(table, record.compared)


def _test_rows(table: Table, found: MetricComparison) -> None:
    metric = found.metric
    change = fmt.measured_change(found)
    table.add_row(f"test {metric.name}", fmt.value(metric, found.dense), fmt.value(metric, found.slim), change)
    intervals = (fmt.interval(metric, found.dense_interval), fmt.interval(metric, found.slim_interval))
    table.add_row("  95 % interval", *intervals, fmt.change_interval(metric, found.drop_interval), style="dim")
    for figure in found.beside:
        table.add_row(f"test {figure.name}", f"{figure.dense:.4g}", f"{figure.slim:.4g}", "")


def _latency_rows(table: Table, latency: LatencyComparison) -> None:
    p50 = (fmt.milliseconds(latency.dense_p50_ms), fmt.milliseconds(latency.slim_p50_ms))
    p95 = (fmt.milliseconds(latency.dense_p95_ms), fmt.milliseconds(latency.slim_p95_ms))
    table.add_row("latency p50", *p50, fmt.ratio(latency.ratio))
    table.add_row("  95 % interval", "", "", fmt.ratio_interval(latency.ratio_interval), style="dim")
    table.add_row("latency p95", *p95, fmt.ratio(latency.slim_p95_ms / latency.dense_p95_ms))


def _latency_line(latency: LatencyComparison) -> Text:
    mark, style = ("✓ ", "green") if fmt.latency_holds(latency) else ("! ", "bold yellow")
    return Text.assemble((mark, style), fmt.latency_verdict(latency), (f"\n  {fmt.latency_method(latency)}", "dim"))
