"""`report.html`: one self-contained page from a run record, with nothing to fetch and nothing to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edgeprune.lines import printable
from edgeprune.report import formats as fmt
from edgeprune.report import plots
from edgeprune.results import RunRecord

_MAX_LISTED = 400


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


def render(run: RunRecord) -> str:
    """The report of `run` as one HTML document; every text in the record is escaped, control characters too."""
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
        model=_listed(run.model, leave_out=("name", "feature_names", "feature_groups")),
        data=_listed(run.data or {}),
        widest=max((width.before for width in run.widths), default=1),
        features=_features(run),
        kept_names=_kept_names(run),
        kept_groups=_kept_groups(run),
        steps=_steps(run),
        front=_front(run),
        selection=_selection(run),
        locked=[_locked(group) for group in run.locked],
    )
    return printable(page)  # the drawings in it too


def _headline(run: RunRecord) -> str:
    parts = [f"{fmt.share(run.slim.macs, run.dense.macs)} of the MACs"]
    if run.features is not None:
        parts.append(f"{len(run.features.keep):,} of {run.features.size:,} input features")
    parts.append(f"{fmt.share(run.slim.onnx_bytes, run.dense.onnx_bytes)} of the bytes")
    text = ", ".join(parts)
    if run.accuracy is not None:
        text += f"; {fmt.accuracy_change(run.accuracy)}"
    return text + "."


def _figures(run: RunRecord) -> list[_Figure]:
    dense, slim, latency = run.dense, run.slim, run.latency
    figures = _accuracies(run)
    figures += [
        _cost("MACs", dense.macs, slim.macs, fmt.count),
        _cost("Parameters", dense.params, slim.params, fmt.count),
        _cost("ONNX file", dense.onnx_bytes, slim.onnx_bytes, fmt.size),
    ]
    if run.features is not None:
        figures.append(_cost("Input features", run.features.size, len(run.features.keep), fmt.count))
    interval = f"95 % interval {fmt.ratio_interval(latency.ratio_interval)}"
    figures += [
        _cost("Latency p50", latency.dense_p50_ms, latency.slim_p50_ms, fmt.milliseconds, interval),
        _cost("Latency p95", latency.dense_p95_ms, latency.slim_p95_ms, fmt.milliseconds),
    ]
    return figures


def _accuracies(run: RunRecord) -> list[_Figure]:
    figures = []
    accuracy = run.accuracy
    if accuracy is not None:
        low, high = accuracy.drop_interval
        figures.append(
            _Figure(
                "Test accuracy",
                fmt.percent(accuracy.dense),
                fmt.percent(accuracy.slim),
                f"{fmt.points(-accuracy.drop_points)} points",
                note=f"95 % interval {fmt.points_interval((-high, -low))}; McNemar p = {accuracy.mcnemar_p:.3g}; "
                f"{accuracy.n_samples:,} samples",
                dense_note=fmt.percent_interval(accuracy.dense_interval),
                slim_note=fmt.percent_interval(accuracy.slim_interval),
            )
        )
    dense, slim = run.dense.val_accuracy, run.slim.val_accuracy
    if dense is not None and slim is not None:
        change = f"{fmt.points(100 * (slim - dense))} points"
        figures.append(_Figure("Validation accuracy", fmt.percent(dense), fmt.percent(slim), change))
    return figures


def _cost(name: str, dense: float, slim: float, form: Any, note: str = "") -> _Figure:
    bar = 100 * slim / dense if dense else None
    return _Figure(name, form(dense), form(slim), fmt.share(slim, dense), bar, note)


def _features(run: RunRecord) -> _Picture | None:
    if run.features is None:
        return None
    shape, names = run.model.get("input_shape") or (), run.model.get("feature_names") or ()
    svg, caption = plots.features_svg(run.features, run.feature_weights, tuple(shape), tuple(map(str, names)))
    return _Picture(Markup(svg), caption)


def _kept_names(run: RunRecord) -> list[str]:
    """The kept features by name, or by index where they have none; cut short in a page that would grow too long."""
    if run.features is None:
        return []
    names = run.model.get("feature_names") or ()
    named = len(names) == run.features.size
    kept = [str(names[index]) if named else str(index) for index in run.features.keep[:_MAX_LISTED]]
    return [*kept, "…"] if len(run.features.keep) > _MAX_LISTED else kept


def _kept_groups(run: RunRecord) -> list[str]:
    """Of each named group how many features are left, e.g. "accelerometer: 3 of 3"; it stays or goes as one."""
    if run.features is None:
        return []
    kept = set(run.features.keep)
    groups = run.model.get("feature_groups") or ()
    return [f"{name}: {len(kept.intersection(members))} of {len(members)}" for name, members in groups]


def _selection(run: RunRecord) -> _Picture | None:
    if not run.selection:
        return None
    svg = plots.selection_svg(run.selection, run.dense.val_accuracy, _limit(run))
    caption = (
        "Features go while the network is trained. A dot is an epoch, the line their mean at each number of features."
    )
    return _Picture(Markup(svg), caption)


def _limit(run: RunRecord) -> float | None:
    """The drop that was asked for, in points."""
    max_drop = run.asked.get("max_drop")
    return float(max_drop) if isinstance(max_drop, (int, float)) else None


def _steps(run: RunRecord) -> _Picture | None:
    svg = plots.steps_svg(run.steps, run.dense.val_accuracy, _limit(run))
    if svg is None:
        return None
    caption = "Each step prunes and finetunes; a cross is a step that was tried and not taken."
    return _Picture(Markup(svg), caption)


def _front(run: RunRecord) -> _Picture | None:
    if not run.front:
        return None
    svg = plots.front_svg(run.front, run.dense.val_accuracy, _limit(run))
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
