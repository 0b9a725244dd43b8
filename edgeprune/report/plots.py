"""The report's pictures, drawn by matplotlib as SVG that takes its colours from the page (light or dark)."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edgeprune.lines import printable
from edgeprune.records import POINTS, InputFeatures, Metric
from edgeprune.results import FeatureCount, FrontPoint, StepRecord

# Stand-ins that are replaced by the page's CSS variables once the SVG is written.
INK, MUTED, ACCENT, FAINT, SURFACE, WARN = "#010203", "#020304", "#030405", "#040506", "#050607", "#060708"
_VARIABLES = {INK: "ink", MUTED: "muted", ACCENT: "accent", FAINT: "faint", SURFACE: "surface", WARN: "warn"}
ACCENT_RGB = (0.06, 0.55, 0.52)  # of bitmaps, which cannot follow the page; readable on light and dark

WIDTH_INCHES = 4.4  # some 320 px: the text stays readable on a phone
_LEAST = 0.25  # a kept feature with hardly any weight is still told from a removed one
_MAX_NAMED_BARS = 40
_WORDS = {1: ("column",), 2: ("channel", "sensor"), 3: ("channel", "row", "column")}  # features, by an input's dims
_MAX_GRID_SIDE = 64
_MAX_NAME = 24


@contextmanager
def style(salt: str) -> Iterator[None]:
    """Text as text (never as formulas), ids that differ between the page's pictures and not between runs."""
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,
        "font.size": 11,
        "text.color": INK,
        "axes.facecolor": "none",
        "axes.edgecolor": MUTED,
        "axes.labelcolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that matplotlib's font lacks: the page's own font draws it
        yield


def as_svg(figure: Figure, label: str) -> str:
    """The figure as an `<svg>` element for an HTML page; `label` must be plain text of ours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", facecolor="none", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg height="[^"]*" width="[^"]*"', r"<svg \1", svg, count=1
    )
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    for stand_in, name in _VARIABLES.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return svg


@dataclass(frozen=True, slots=True)
class Scale:
    """What values are drawn in: a metric, what the dense network has of it, and the drop allowed, in its unit.

    `split` is what it is measured on; "" where a function of the user's knows.
    """

    metric: Metric
    dense: float | None
    max_drop: float | None
    split: str = "validation"

    def drawn(self, values: Iterable[float | None]) -> np.ndarray:
        """In the unit: a share in percent."""
        return np.array([self.metric.scale * (value or 0.0) for value in values])

    @property
    def limit(self) -> float | None:
        """The value beyond which a network is not taken, as drawn; None where there is no such limit."""
        if self.dense is None or self.max_drop is None:
            return None
        down = self.metric.scale * self.dense - self.max_drop
        return down if self.metric.higher_is_better else self.metric.scale * self.dense + self.max_drop

    @property
    def label(self) -> str:
        """Of the axis, e.g. "validation accuracy, %"."""
        unit = "%" if self.metric.unit == POINTS else self.metric.unit
        return ", ".join(part for part in (self._name, shortened(unit)) if part)

    @property
    def title(self) -> str:
        """In HTML, e.g. "Validation accuracy"."""
        return escape(self._name[:1].upper() + self._name[1:])

    @property
    def _name(self) -> str:
        return f"{self.split} {shortened(self.metric.name)}".lstrip()


def steps_svg(steps: Sequence[StepRecord], scale: Scale) -> str | None:
    """The metric on the validation split over the pruning steps, or None where no step measured it."""
    measured = [step for step in steps if step.val_value is not None]
    if not measured:
        return None
    with style("steps"):
        figure = Figure(figsize=(WIDTH_INCHES, 2.9), layout="constrained")
        axes = figure.subplots()
        _draw_steps(axes, measured, scale)
        _draw_budget(axes, scale)
        _finish(axes, scale)
        return as_svg(figure, f"{scale.title} over the pruning steps")


def _draw_budget(axes: Axes, scale: Scale) -> None:
    """The value beyond which a network is not taken, where there is such a limit."""
    limit = scale.limit
    if limit is None or limit <= 0:
        return
    axes.axhline(limit, color=WARN, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        "budget",
        (0.0, limit),
        xycoords=("axes fraction", "data"),
        xytext=(4, 3),
        color=WARN,
        textcoords="offset points",
        fontsize=9.5,
    )


def _finish(axes: Axes, scale: Scale, x_margin: float = 0.05) -> None:
    """An axis of values; percents end at 0, where none is below, and at 100. Marks at the ends are drawn whole."""
    axes.set_ylabel(scale.label)
    lowest = axes.dataLim.y0
    axes.margins(x=x_margin, y=0.18)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.tick_params(length=0)
    low, high = axes.get_ylim()
    if lowest >= 0:
        low = max(0.0, low)
    axes.set_ylim(low, min(100.0, high) if scale.metric.unit == POINTS else high)
    for mark in (*axes.lines, *axes.collections):
        mark.set_clip_on(False)


def selection_svg(points: Sequence[FeatureCount], scale: Scale) -> str:
    """The validation metric while the input features became fewer, from many on the left to few on the right."""
    with style("selection"):
        figure = Figure(figsize=(WIDTH_INCHES, 2.9), layout="constrained")
        axes = figure.subplots()
        x = np.array([point.n_features for point in points])
        y = scale.drawn(point.val_value for point in points)
        counts = np.unique(x)
        axes.plot(counts, [y[x == count].mean() for count in counts], color=ACCENT, linewidth=2, zorder=3)
        axes.scatter(x, y, s=10, color=MUTED, alpha=0.5, linewidths=0, zorder=2)
        _draw_budget(axes, scale)
        axes.set_xscale("log", base=2)
        ticks = [2**k for k in range(int(np.log2(min(x))), int(np.log2(max(x))) + 1)]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.invert_xaxis()
        axes.set_xlabel("input features left")
        _finish(axes, scale)
        return as_svg(figure, f"{scale.title} over the number of input features")


def front_svg(points: Sequence[FrontPoint], scale: Scale) -> str | None:
    """The metric over the latency of several networks and the dense one; None where it was not measured."""
    if scale.dense is None or any(point.val_value is None for point in points):
        return None
    with style("front"):
        figure = Figure(figsize=(WIDTH_INCHES, 2.9), layout="constrained")
        axes = figure.subplots()
        x = np.array([1.0, *(point.latency_ratio for point in points)])
        y = scale.drawn([scale.dense, *(point.val_value for point in points)])
        axes.plot(x, y, color=ACCENT, linewidth=2, zorder=2)
        axes.scatter(x[1:], y[1:], s=36, color=ACCENT, zorder=3)
        axes.scatter(x[:1], y[:1], s=36, color=MUTED, zorder=3)
        axes.annotate("dense", (x[0], y[0]), xytext=(-8, -4), textcoords="offset points", color=MUTED, ha="right")
        for point in points:
            if point.chosen:
                [value] = scale.drawn([point.val_value])
                axes.scatter(
                    point.latency_ratio, value, s=130, facecolors="none", edgecolors=INK, linewidths=1.5, zorder=4
                )
        _draw_budget(axes, scale)
        axes.set_xlabel("latency, share of the dense network's")
        _finish(axes, scale, 0.08)
        return as_svg(figure, f"{scale.title} over latency")


def _draw_steps(axes: Axes, steps: Sequence[StepRecord], scale: Scale) -> None:
    x = np.array([step.step for step in steps])
    y = scale.drawn(step.val_value for step in steps)
    taken = np.array([step.accepted for step in steps])
    axes.plot(x[taken], y[taken], color=ACCENT, linewidth=2, zorder=2)
    axes.scatter(x[taken], y[taken], s=34, color=ACCENT, edgecolors=SURFACE, linewidths=1.2, zorder=3)
    axes.scatter(x[~taken], y[~taken], s=40, marker="x", color=WARN, linewidths=1.8, zorder=3)
    every = -(-len(steps) // 7)
    shown = steps[::every]
    axes.set_xticks([step.step for step in shown], [f"{100 * step.macs_ratio:.0f} %" for step in shown])
    axes.set_xlabel("MACs kept at each step")


def features_svg(
    features: InputFeatures,
    weights: Sequence[float],
    input_shape: Sequence[int],
    names: Sequence[str],
    salt: str = "features",
) -> tuple[str, str]:
    """The kept features as a picture, and a caption: a heat map for single numbers, bars for what lies along a dim.

    `weights` in [0, 1] goes with `features.keep`: how strongly the network reads each; empty where that is not known.
    `salt` makes the picture's ids its own in a page.
    """
    strength = np.zeros(features.size)
    strength[list(features.keep)] = _LEAST + (1 - _LEAST) * np.asarray(weights or 1.0)
    if features.dim is None and len(input_shape) in (2, 3) and np.prod(input_shape) == features.size:
        return _heat_map(strength.reshape(-1, *input_shape[-2:]), salt, is_image=len(input_shape) == 3)
    if features.size <= _MAX_NAMED_BARS:
        word = feature_word(input_shape, features.dim)
        return _bars(strength, _names(names, features.size, word), word, salt)
    return _strip(strength, salt)


def feature_word(input_shape: Sequence[int], dim: int | None) -> str:
    """What a feature along a dim of the batch is, e.g. "sensor" of `(steps, sensors)` along dim 2."""
    words = _WORDS.get(len(input_shape), ())
    place = 1 if dim is None and len(words) == 1 else dim or 0  # the numbers of a table are its columns
    return words[place - 1] if 1 <= place <= len(words) else "feature"


def _heat_map(strength: np.ndarray, salt: str, is_image: bool) -> tuple[str, str]:
    """`strength` is `(channels, height, width)` in [0, 1]; a pixel's shade is the mean over its channels.

    Two dims may as well be the steps of sensors: nothing but numbers is told of those.
    """
    channels, height, width = strength.shape
    with style(salt):
        figure = Figure(figsize=(3.6, max(0.6, 3.6 * height / width)), layout="constrained")
        _grid(figure.subplots(), strength.mean(axis=0))
        what = f"pixels of a {height} by {width} image" if is_image else f"numbers of {height} by {width}"
        svg = as_svg(figure, f"The kept {what}")
    if not is_image:
        return svg, (
            f"The input of {height} × {width} numbers: the stronger the colour, the more weight the network gives a "
            "number; grey ones are never read."
        )
    values = "" if channels == 1 else f" (its {channels} values together)"
    return svg, (
        f"The image of {height} × {width} pixels: the stronger the colour, the more weight the network gives a pixel"
        f"{values}; grey pixels are never read."
    )


def _grid(axes: Axes, share: np.ndarray) -> None:
    """Draw `share`, `(rows, columns)` in [0, 1], as cells; NaN is no cell."""
    rows, columns = share.shape
    image = np.zeros((rows, columns, 4))
    image[..., :3] = ACCENT_RGB
    image[..., 3] = np.nan_to_num(share)
    empty = np.isnan(share)
    axes.set_facecolor(FAINT)
    axes.imshow(image, interpolation="none", extent=(0, columns, rows, 0), zorder=1)
    for row, column in zip(*np.nonzero(empty), strict=True):
        axes.axvspan(column, column + 1, 1 - (row + 1) / rows, 1 - row / rows, color=SURFACE, zorder=2, linewidth=0)
    if max(rows, columns) <= _MAX_GRID_SIDE:
        line = 2.0 if max(rows, columns) <= 16 else 0.6
        axes.hlines(range(rows + 1), 0, columns, color=SURFACE, linewidth=line, zorder=3)
        axes.vlines(range(columns + 1), 0, rows, color=SURFACE, linewidth=line, zorder=3)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _bars(strength: np.ndarray, names: Sequence[str], word: str, salt: str) -> tuple[str, str]:
    """One bar a feature, the longer the stronger; none where it is removed."""
    kept = strength > 0
    with style(salt):
        figure = Figure(figsize=(WIDTH_INCHES, 0.3 + 0.25 * kept.size), layout="constrained")
        axes = figure.subplots()
        rows = np.arange(kept.size)
        axes.barh(rows, 1.0, height=0.66, color=FAINT)
        axes.barh(rows[kept], strength[kept], height=0.66, color=ACCENT)
        axes.set_yticks(rows, [shortened(name) for name in names])
        for label, stays in zip(axes.get_yticklabels(), kept, strict=True):
            label.set_color(INK if stays else MUTED)
        axes.set_xticks([])
        axes.set_xlim(0, 1)
        axes.set_ylim(kept.size - 0.4, -0.6)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return as_svg(figure, f"The kept {word}s"), (
            f"Coloured {word}s are kept, the longer the bar the more weight they get; grey ones are never read."
        )


def _strip(strength: np.ndarray, salt: str) -> tuple[str, str]:
    """Many features, as rows of cells in reading order."""
    columns = 32 if strength.size <= 2048 else 128
    rows = -(-strength.size // columns)
    share = np.full(rows * columns, np.nan)
    share[: strength.size] = strength
    with style(salt):
        figure = Figure(figsize=(WIDTH_INCHES, max(0.4, WIDTH_INCHES * rows / columns)), layout="constrained")
        _grid(figure.subplots(), share.reshape(rows, columns))
        svg = as_svg(figure, "The kept features in order")
    return svg, f"The {strength.size:,} features in reading order, {columns} a row: coloured ones are kept."


def _names(names: Sequence[str], n_features: int, word: str) -> list[str]:
    return list(names) if len(names) == n_features else [f"{word} {index}" for index in range(n_features)]


def shortened(name: str) -> str:
    name = printable(" ".join(name.split()))
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"
