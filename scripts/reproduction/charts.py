"""One chart an experiment, as PNG: accuracy over zeros or features, a line for each contender with its spread."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

Record = dict[str, Any]

_GRID, _REFERENCE = "#d8dcdc", "#555555"
_COLOURS = ("#0f8c85", "#b8651b", "#6b7f9e", "#a8446a", "#8a9a2f", "#7a5ca8", "#c2a13a")
_MARKERS = "osD^vP*"
_LABELS = {
    "zeros": "weights that are exactly zero, %",
    "features": "input features",
    "bytes": "bytes of the file, % of the dense network's",
}
_SHARES = {"zeros": "zero_share", "bytes": "bytes_share"}  # the figure that an axis shows


def draw(document: Record, path: Path) -> None:
    """Draw what there is to draw; a document without accuracies has step times."""
    rows = [row for row in document["contenders"] if row["runs"]]
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    if any("step_ratio" in row["figures"] for row in rows):
        _draw_ratios(axes, rows)
    else:
        _draw_accuracies(axes, rows, document["axis"])
    axes.set_title(document["title"], fontsize=9.5, loc="left")
    _plain(axes)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _draw_accuracies(axes: Axes, rows: Sequence[Record], axis: str) -> None:
    by_contender: dict[str, list[Record]] = {}
    for row in rows:
        by_contender.setdefault(row["name"], []).append(row)
    looks = itertools.cycle(zip(_COLOURS, _MARKERS, strict=True))
    for own in by_contender.values():
        accuracy = [row["figures"]["test_accuracy"] for row in own]
        if _is_reference(own):
            _draw_reference(axes, own[0]["label"], accuracy[0])
            continue
        colour, marker = next(looks)
        x = [row["at"] if axis == "features" else 100 * row["figures"][_SHARES[axis]]["mean"] for row in own]
        order = sorted(range(len(x)), key=x.__getitem__)
        x, accuracy = [x[i] for i in order], [accuracy[i] for i in order]
        width = 1.4 if len(x) > 1 else 0.0
        axes.plot(x, _percent(accuracy, "mean"), color=colour, marker=marker, ms=5, lw=width, label=_label(own))
        _draw_spread(axes, x, accuracy, colour)
    axes.set_xlabel(_LABELS[axis])
    axes.set_ylabel("test accuracy, %")
    if axis == "features":
        _feature_ticks(axes, sorted({row["at"] for row in rows if row["at"] is not None}))
    axes.legend(frameon=False, fontsize=8)


def _draw_spread(axes: Axes, x: Sequence[float], accuracy: Sequence[Mapping[str, float]], colour: str) -> None:
    """A band between the lowest and the highest seed; for a lone point a bar."""
    low, high = _percent(accuracy, "min"), _percent(accuracy, "max")
    if len(x) > 1:
        axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    else:
        axes.vlines(x, low, high, color=colour, lw=3, alpha=0.35)


def _draw_reference(axes: Axes, label: str, accuracy: Mapping[str, float]) -> None:
    axes.axhline(100 * accuracy["mean"], color=_REFERENCE, lw=1.2, ls="--", label=label)
    axes.axhspan(100 * accuracy["min"], 100 * accuracy["max"], color=_REFERENCE, alpha=0.12, lw=0)


def _is_reference(rows: Sequence[Record]) -> bool:
    """A contender without points, which leaves the network as it is."""
    figures = rows[0]["figures"]
    dense = figures.get("zero_share", {"mean": 0.0})["mean"] < 0.01
    return dense and all(row["at"] is None for row in rows)


def _label(rows: Sequence[Record]) -> str:
    """With the MACs, where one number tells them."""
    label = str(rows[0]["label"])
    macs = rows[0]["figures"].get("macs_share")
    return f"{label} ({macs['mean']:.0%} of the MACs)" if macs and len(rows) == 1 else label


def _percent(figures: Sequence[Mapping[str, float]], name: str) -> list[float]:
    return [100 * figure[name] for figure in figures]


def _feature_ticks(axes: Axes, counts: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(list(counts), [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_ratios(axes: Axes, rows: Sequence[Record]) -> None:
    """A bar for each contender, with its quartiles."""
    places = list(range(len(rows)))[::-1]
    ratios = [row["figures"]["step_ratio"]["mean"] for row in rows]
    low = [ratio - row["figures"]["step_ratio_low"]["mean"] for ratio, row in zip(ratios, rows, strict=True)]
    high = [row["figures"]["step_ratio_high"]["mean"] - ratio for ratio, row in zip(ratios, rows, strict=True)]
    axes.barh(places, ratios, height=0.5, color=_COLOURS[0], xerr=[low, high], ecolor=_REFERENCE, capsize=3)
    axes.axvline(1.0, color=_REFERENCE, lw=1.2, ls="--")
    axes.set_yticks(places, [row["label"] for row in rows])
    axes.set_xlabel("time of a whole training step, as a multiple of SGD's")


def _plain(axes: Axes) -> None:
    axes.grid(color=_GRID, lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
