"""The report's picture of what both networks answer, one for each kind of task; it is drawn once, of real samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edgeprune.report.plots import ACCENT, FAINT, INK, MUTED, WARN, WIDTH_INCHES, as_svg, shortened, style

_MOST_SIDE = 160  # pixels of a picture in the page
_MOST_BARS = 24
_MOST_NAMED = 10
_MOST_COLUMNS = 4
_MOST_POINTS = 400
_BINS = 40
_TAIL = 99.0  # per cent of the errors that a histogram shows, at least
_OVER = 0.55  # of a mask over its image
_GREY = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """Numbers: what is true and what both say, float64 `(n_samples, n_columns)` each, in a unit."""

    truth: np.ndarray
    dense: np.ndarray
    slim: np.ndarray
    unit: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Errors:
    """The relative error of slim on each sample, a share float64 `(n_samples,)`."""

    relative: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class PerLabel:
    """The average precision of each label, float64 `(n_labels,)` each, and the names of the labels."""

    dense: np.ndarray
    slim: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class MaskedImage:
    """A sample of a split: raw input `(channels, height, width)`, and masks int64 `(height, width)` of classes."""

    index: int
    image: np.ndarray
    truth: np.ndarray
    dense: np.ndarray
    slim: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """Some images with their masks, the names of the classes, and the value that counts nowhere."""

    images: tuple[MaskedImage, ...]
    names: tuple[str, ...]
    ignore: int | None


Answers = Predicted | Errors | PerLabel | Masks


def is_broad(answers: Answers) -> bool:
    """Whether the picture wants more than half a page's width."""
    return isinstance(answers, Masks) or (isinstance(answers, Predicted) and answers.truth.shape[1] > 1)


def answers_svg(answers: Answers) -> tuple[str, str]:
    """The picture and its caption."""
    with style("answers"):
        if isinstance(answers, Predicted):
            return _predicted(answers)
        if isinstance(answers, Errors):
            return _errors(answers)
        return _per_label(answers) if isinstance(answers, PerLabel) else _masks(answers)


# --- numbers


def _predicted(found: Predicted) -> tuple[str, str]:
    n_columns = min(found.truth.shape[1], _MOST_COLUMNS)
    figure = Figure(figsize=(WIDTH_INCHES * min(2, n_columns), 3.9 * -(-n_columns // 2)), layout="constrained")
    grid = figure.subplots(-(-n_columns // 2), min(2, n_columns), squeeze=False)
    for axes in grid.flat[n_columns:]:
        axes.set_axis_off()
    rows = np.linspace(0, len(found.truth) - 1, min(len(found.truth), _MOST_POINTS // n_columns)).astype(int)
    for column, axes in enumerate(grid.flat[:n_columns]):
        name = found.columns[column] if column < len(found.columns) else ""
        _scatter(axes, [values[rows, column] for values in (found.truth, found.dense, found.slim)], found.unit, name)
    grid.flat[0].legend(loc="upper left", frameon=False, labelcolor=INK, fontsize=9.5, handletextpad=0.1)
    more = found.truth.shape[1] - n_columns
    rest = f" The first {n_columns} of {found.truth.shape[1]} columns." if more else ""
    caption = f"{len(rows):,} test samples: on the line the answer is what is true.{rest}"
    return as_svg(figure, "Predicted over true, dense and slim"), caption


def _scatter(axes: Axes, columns: Sequence[np.ndarray], unit: str, name: str) -> None:
    truth, dense, slim = columns
    ends = [float(np.min(columns)), float(np.max(columns))]
    axes.plot(ends, ends, color=MUTED, linewidth=1, zorder=1)
    axes.scatter(truth, dense, s=16, facecolors="none", edgecolors=MUTED, linewidths=0.9, label="dense", zorder=2)
    axes.scatter(truth, slim, s=12, color=ACCENT, alpha=0.75, linewidths=0, label="slim", zorder=3)
    suffix = f", {shortened(unit)}" if unit else ""
    axes.set_xlabel(f"true{suffix}")
    axes.set_ylabel(f"predicted{suffix}")
    if name:
        axes.set_title(shortened(name), fontsize=10, color=INK, loc="left")
    axes.grid(color=FAINT, linewidth=0.8)
    axes.tick_params(length=0)


# --- errors


def _errors(found: Errors) -> tuple[str, str]:
    percent = 100 * found.relative
    last = float(np.percentile(percent, _TAIL)) or 1.0
    beyond = int((percent > last).sum())
    median = float(np.median(percent))
    figure = Figure(figsize=(WIDTH_INCHES, 2.9), layout="constrained")
    axes = figure.subplots()
    axes.hist(percent, bins=_BINS, range=(0.0, last), color=ACCENT)
    axes.axvline(median, color=WARN, linewidth=1.2, linestyle=(0, (4, 3)))
    top = axes.get_ylim()[1]
    axes.annotate(
        f"median {median:.3g} %", (median, top), xytext=(4, -12), textcoords="offset points", color=WARN, fontsize=9.5
    )
    axes.set_xlabel("relative error of slim, %")
    axes.set_ylabel("test samples")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    rest = f" {beyond:,} of them lie beyond the picture." if beyond else ""
    caption = f"{len(percent):,} test samples: how far slim is from the answer of the dense network.{rest}"
    return as_svg(figure, "The distribution of the relative error"), caption


# --- labels


def _per_label(found: PerLabel) -> tuple[str, str]:
    order = np.argsort(-np.abs(found.slim - found.dense), kind="stable")[:_MOST_BARS]
    order = np.sort(order)
    rows = np.arange(len(order))
    figure = Figure(figsize=(WIDTH_INCHES, 0.9 + 0.36 * len(order)), layout="constrained")
    axes = figure.subplots()
    axes.barh(rows - 0.19, 100 * found.dense[order], height=0.34, color=MUTED, label="dense")
    axes.barh(rows + 0.19, 100 * found.slim[order], height=0.34, color=ACCENT, label="slim")
    names = [found.names[i] if i < len(found.names) else f"label {i}" for i in order]
    axes.set_yticks(rows, [shortened(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("average precision, %")
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=INK, fontsize=9.5)
    some = len(order) < len(found.dense)
    caption = (
        f"The {len(order)} of {len(found.dense)} labels that changed most." if some else "Each label on the test split."
    )
    return as_svg(figure, "The average precision of each label, dense and slim"), caption


# --- masks


def _masks(found: Masks) -> tuple[str, str]:
    titles = ("input", "true", "dense", "slim")
    n_rows = len(found.images)
    height, width = found.images[0].truth.shape
    side = 1.5
    size = (side * len(titles) + 0.4, n_rows * (side * min(2.0, height / width) + 0.08) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(n_rows, len(titles), squeeze=False)
    for row, sample in zip(grid, found.images, strict=True):
        image = _picture(sample.image, sample.truth.shape)
        drawn = [image, *(_over(mask, image, found.ignore) for mask in (sample.truth, sample.dense, sample.slim))]
        for axes, pixels in zip(row, drawn, strict=True):
            axes.imshow(_shrunk(pixels), interpolation="nearest", aspect="equal")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
        row[0].set_ylabel(f"sample {sample.index}", fontsize=9.5)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10, color=INK)
    return as_svg(figure, "Images with the true mask and those of dense and slim"), _key(found)


def _key(found: Masks) -> str:
    """What the colours mean; those that occur."""
    masks = [mask.ravel() for one in found.images for mask in (one.truth, one.dense, one.slim)]
    seen = [int(one) for one in np.unique(np.concatenate(masks)) if one != found.ignore]
    listed = ", ".join(f"{_class_name(found, one)} ({_colour_name(one)})" for one in seen[:_MOST_NAMED])
    more = f" and {len(seen) - _MOST_NAMED} more" if len(seen) > _MOST_NAMED else ""
    ignored = any((one.truth == found.ignore).any() for one in found.images)
    note = "; where the true mask is grey, nothing is known" if ignored else ""
    return f"The samples that changed most, and others beside them. Classes: {listed}{more}{note}."


def _class_name(found: Masks, one: int) -> str:
    return found.names[one] if 0 <= one < len(found.names) else f"class {one}"


def _picture(raw: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The input as colours in [0, 1] `(height, width, 3)`; grey all over where it is no picture of the masks' size."""
    if raw.ndim != 3 or raw.shape[1:] != tuple(size):
        return np.full((*size, 3), _GREY)
    channels = raw if len(raw) == 3 else np.repeat(raw.mean(axis=0, keepdims=True), 3, axis=0)
    low, high = float(channels.min()), float(channels.max())
    return np.moveaxis((channels - low) / (high - low) if high > low else np.full_like(channels, _GREY), 0, 2)


def _over(mask: np.ndarray, image: np.ndarray, ignore: int | None) -> np.ndarray:
    colours = np.array([_COLOURS[one % len(_COLOURS)] for one in range(max(1, int(mask.max()) + 1))])
    painted = colours[np.clip(mask, 0, None)]
    if ignore is not None:
        painted[mask == ignore] = _GREY
    return _OVER * painted + (1 - _OVER) * image


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    step = -(-max(pixels.shape[:2]) // _MOST_SIDE)
    return pixels[::step, ::step]


# Okabe and Ito 2008: told apart whatever colours one sees.
_NAMED = {
    "blue": (0.0, 0.45, 0.70), "orange": (0.90, 0.62, 0.0), "green": (0.0, 0.62, 0.45), "pink": (0.80, 0.47, 0.65),
    "yellow": (0.94, 0.89, 0.26), "red": (0.84, 0.37, 0.0), "sky blue": (0.34, 0.71, 0.91), "black": (0.0, 0.0, 0.0),
}  # fmt: skip
_COLOURS = tuple(_NAMED.values())


def _colour_name(one: int) -> str:
    return tuple(_NAMED)[one % len(_NAMED)]
