"""`report.html`: one self-contained page from a run record, with nothing to fetch and nothing to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edgeprune.lines import printable
from edgeprune.records import ACCURACY, MetricComparison
from edgeprune.report import formats as fmt
from edgeprune.report import plots
from edgeprune.report.answers import Answers, answers_svg, is_broad
from edgeprune.report.features import shown_inputs
from edgeprune.results import ChangedSample, RunRecord
from edgeprune.tasks.budget import parse_max_drop


@dataclass(frozen=True, slots=True)
class _Figure:
    """One measure of both networks; `bar` is slim's share of dense in percent, or None."""

    name: str
    dense: str
    slim: str
    change: str
    bar: float | None = None
    note: str = ""
    dense_note: str = ""
    slim_note: str = ""


@dataclass(frozen=True, slots=True)
class _Picture:
    svg: Markup
    caption: str
    broad: bool = False


def render(run: RunRecord, answers: Answers | None = None) -> str:
    """The report of `run` as one HTML document; every text in the record is escaped, control characters too.

    `answers` are what a run leaves to be drawn once: a picture of real samples, which the record does not hold.
    """
    environment = Environment(
        loader=PackageLoader("edgeprune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["fmt"] = fmt
    page = environment.get_template("report.html.j2").render(
        run=run,
        name=str(run.model.get("name", "model")),
        headline=_headline(run),
        figures=_figures(run),
        asked=_listed({key: value for key, value in run.asked.items() if value is not None}),
        model=_listed(run.model, leave_out=("name", "feature_names", "feature_groups", "input_feature_names")),
        data=_listed(run.data or {}),
        widest=max((width.before for width in run.widths), default=1),
        features=shown_inputs(run),
        steps=_steps(run),
        front=_front(run),
        selection=_selection(run),
        answers=None if answers is None else _drawn(answers),
        changed=[_changed(one) for one in run.changed],
        locked=[_locked(group) for group in run.locked],
    )
    return printable(page)  # the drawings in it too


def _headline(run: RunRecord) -> str:
    parts = [f"{fmt.share(run.slim.macs, run.dense.macs)} of the MACs"]
    if counts := fmt.feature_counts(run):
        _, sizes, kept = zip(*counts, strict=True)
        parts.append(f"{sum(kept):,} of {sum(sizes):,} input features")
    parts.append(f"{fmt.share(run.slim.onnx_bytes, run.dense.onnx_bytes)} of the bytes")
    text = ", ".join(parts)
    if run.compared is not None:
        text += f"; {fmt.quality_change(run.compared)}"
    elif run.dense.val_value is not None and run.slim.val_value is not None:
        change = fmt.change(run.metric, run.metric.drop(run.dense.val_value, run.slim.val_value))
        text += f"; {f'{fmt.judged_on(run)} {run.metric.name}'.lstrip()} {change}"
    return text + "."


def _figures(run: RunRecord) -> list[_Figure]:
    dense, slim, latency = run.dense, run.slim, run.latency
    figures = _qualities(run)
    figures += [
        _cost("MACs", dense.macs, slim.macs, fmt.count),
        _cost("Parameters", dense.params, slim.params, fmt.count),
        _cost("ONNX file", dense.onnx_bytes, slim.onnx_bytes, fmt.size),
    ]
    figures += [_cost(name.capitalize(), before, after, fmt.size) for name, before, after in fmt.peaks(dense, slim)]
    figures += [_cost(f"Input features{of}", size, kept, fmt.count) for of, size, kept in fmt.feature_counts(run)]
    figures += [_cost(f"Ids of {one.input}", one.n_ids, one.n_kept, fmt.count) for one in run.vocabularies]
    interval = f"95 % interval {fmt.ratio_interval(latency.ratio_interval)}"
    figures += [
        _cost("Latency p50", latency.dense_p50_ms, latency.slim_p50_ms, fmt.milliseconds, interval),
        _cost("Latency p95", latency.dense_p95_ms, latency.slim_p95_ms, fmt.milliseconds),
    ]
    return figures


def _qualities(run: RunRecord) -> list[_Figure]:
    figures, metric, found = [], run.metric, run.compared
    if found is not None:
        figures.append(
            _Figure(
                f"Test {metric.name}",
                fmt.value(metric, found.dense),
                fmt.value(metric, found.slim),
                fmt.measured_change(found),
                note=_tested(found),
                dense_note=fmt.interval(metric, found.dense_interval),
                slim_note=fmt.interval(metric, found.slim_interval),
            )
        )
        figures += [_Figure(f"Test {one.name}", f"{one.dense:.4g}", f"{one.slim:.4g}", "") for one in found.beside]
    dense, slim = run.dense.val_value, run.slim.val_value
    if dense is not None and slim is not None:
        change = fmt.change(metric, metric.drop(dense, slim))
        values = fmt.value(metric, dense), fmt.value(metric, slim)
        figures.append(_Figure(_judged(run), *values, change))
    return figures


def _judged(run: RunRecord) -> str:
    """What the search judged by, at the beginning of a line."""
    return f"Validation {run.metric.name}" if fmt.judged_on(run) else fmt.title(run.metric)


def _tested(found: MetricComparison) -> str:
    """How sure the change is, e.g. "95 % interval −0.40 to +0.90; McNemar p = 0.5; 360 samples"."""
    test = "McNemar p" if found.metric == ACCURACY else "p"
    p_value = () if found.p_value is None else (f"{test} = {found.p_value:.3g}",)
    interval = f"95 % interval {fmt.change_interval(found.metric, found.drop_interval)}"
    return "; ".join((interval, *p_value, f"{found.n_samples:,} samples"))


def _cost(name: str, dense: float, slim: float, form: Any, note: str = "") -> _Figure:
    bar = 100 * slim / dense if dense else None
    return _Figure(name, form(dense), form(slim), fmt.share(slim, dense), bar, note)


def _drawn(answers: Answers) -> _Picture:
    svg, caption = answers_svg(answers)
    return _Picture(Markup(svg), caption, is_broad(answers))


def _changed(one: ChangedSample) -> tuple[str, ...]:
    return str(one.index), one.truth, one.dense, one.slim, f"{one.change:.4g}"


def _selection(run: RunRecord) -> _Picture | None:
    if not run.selection:
        return None
    svg = plots.selection_svg(run.selection, _scale(run))
    caption = (
        "Features go while the network is trained. A dot is an epoch, the line their mean at each number of features."
    )
    return _Picture(Markup(svg), caption)


def _limit(run: RunRecord) -> float | None:
    """The drop that was asked for, in the metric's unit."""
    max_drop, dense = run.asked.get("max_drop"), run.dense.val_value
    if isinstance(max_drop, bool) or not isinstance(max_drop, (int, float, str)) or dense is None:
        return None
    return parse_max_drop(max_drop).limit(run.metric, dense) if isinstance(max_drop, str) else float(max_drop)


def _scale(run: RunRecord) -> plots.Scale:
    return plots.Scale(run.metric, run.dense.val_value, _limit(run), fmt.judged_on(run))


def _steps(run: RunRecord) -> _Picture | None:
    svg = plots.steps_svg(run.steps, _scale(run))
    if svg is None:
        return None
    trains = run.asked.get("finetune_epochs") != 0 or run.asked.get("finetune")
    caption = f"Each step prunes{' and finetunes' if trains else ''}; a cross is a step that was tried and not taken."
    return _Picture(Markup(svg), caption)


def _front(run: RunRecord) -> _Picture | None:
    if not run.front:
        return None
    svg = plots.front_svg(run.front, _scale(run))
    if svg is None:
        return None
    caption = "Each point is a network that lies in the run folder; the one with a ring is the run's slim.pt2."
    return _Picture(Markup(svg), caption)


def _locked(group: Mapping[str, Any]) -> dict[str, str]:
    return {
        "name": str(group.get("name", "")),
        "reason": str(group.get("reason") or "no reason recorded"),
        "layers": _text(group.get("layers") or ()),
    }


def _listed(values: Mapping[str, Any], leave_out: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    return [(key.replace("_", " "), _text(value)) for key, value in values.items() if key not in leave_out]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items()) or fmt.NONE
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(part) for part in value) or fmt.NONE
    return fmt.NONE if value is None else str(value)
