"""The charts of the benchmarks, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

Record = dict[str, Any]

_ACCENT, _OTHER, _GRID = "#0f8c85", "#9a6a1f", "#d8dcdc"
_COLOURS = {"capture": "#6b7f9e", "analyze": _ACCENT, "plan": _OTHER, "cut": "#a8446a"}


def draw_versus(records: Sequence[Record], path: Path) -> None:
    """Each network's two times on one line, slowest at the top."""
    shown = [r for r in records if "edgeprune" in r]
    shown.sort(key=lambda r: r["edgeprune"]["analyze"])
    figure = Figure(figsize=(7.2, 1.2 + 0.21 * len(shown)), layout="constrained")
    axes = figure.subplots()
    rows = range(len(shown))
    ours = [r["edgeprune"]["analyze"] for r in shown]
    done = [(row, r["torch_pruning"]["total"]) for row, r in zip(rows, shown, strict=True) if "torch_pruning" in r]
    axes.hlines([row for row, _ in done], [ours[row] for row, _ in done], [t for _, t in done], color=_GRID, zorder=1)
    axes.scatter(ours, list(rows), s=26, color=_ACCENT, label="edgeprune: labels to groups", zorder=3)
    axes.scatter(
        [t for _, t in done], [row for row, _ in done], s=26, color=_OTHER, label="Torch-Pruning: graph and pruning"
    )
    missing = [row for row in rows if row not in {row for row, _ in done}]
    for row in missing:
        axes.annotate("  Torch-Pruning fails", (ours[row], row), va="center", fontsize=7.5, color=_OTHER)
    axes.set_yticks(list(rows), [r["name"] for r in shown], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("seconds, one thread")
    axes.set_ylim(-0.7, len(shown) - 0.3)
    figure.legend(frameon=False, fontsize=8, loc="outside upper right", ncols=2)
    _plain(axes)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def draw_depth(records: Sequence[Record], path: Path) -> None:
    """Seconds of each stage and the memory over the number of nodes, both logarithmic."""
    kinds = list(dict.fromkeys(record["network"] for record in records))
    figure = Figure(figsize=(7.2, 3.0 * len(kinds)), layout="constrained")
    grid = figure.subplots(len(kinds), 2, squeeze=False)
    for (left, right), kind in zip(grid, kinds, strict=True):
        mine = sorted((r for r in records if r["network"] == kind), key=lambda r: r["nodes"])
        nodes = [r["nodes"] for r in mine]
        for stage, colour in _COLOURS.items():
            left.plot(nodes, [r["seconds"][stage] for r in mine], marker="o", ms=4, color=colour, label=stage)
        _linear(left, nodes, [sum(r["seconds"].values()) for r in mine])
        left.set_ylabel("seconds")
        left.set_title(f"{kind}, depth {mine[0]['depth']} to {mine[-1]['depth']}", fontsize=9, loc="left")
        memory = [max(*r["peak_bytes"].values(), 1) / 2**20 for r in mine]
        right.plot(nodes, memory, marker="o", ms=4, color=_ACCENT)
        _linear(right, nodes, memory)
        right.set_ylabel("peak memory above the start, MiB")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(nodes, [f"{n:,}" for n in nodes], fontsize=7.5, rotation=30)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(_short)
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("graph nodes")
            _plain(axes)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside upper right", ncols=len(labels))
    figure.savefig(path, dpi=130, metadata={"Software": None})


def draw_peers(records: Sequence[Record], path: Path) -> None:
    """Each tool's latency beside the dense network's, a row a network; a tool that failed has no mark."""
    tools = list(dict.fromkeys(tool for record in records for tool in record["tools"]))
    figure = Figure(figsize=(7.2, 1.4 + 0.3 * len(records)), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(tools, ("#7cc4be", _ACCENT, _OTHER, "#a8446a", "#6b7f9e"), strict=False))
    rows = range(len(records))
    for tool in tools:
        found = [(row, r["tools"][tool].get("ratio")) for row, r in zip(rows, reversed(records), strict=True)]
        marks = [(row, ratio) for row, ratio in found if ratio is not None]
        axes.scatter([x for _, x in marks], [y for y, _ in marks], s=34, color=colours[tool], label=tool, zorder=3)
    axes.axvline(1.0, color=_GRID, linewidth=1.2, zorder=1)
    axes.set_yticks(list(rows), [r["name"] for r in reversed(records)], fontsize=8)
    axes.set_xlabel("p50 at half the MACs, share of the dense network's (onnxruntime, one thread)")
    axes.set_ylim(-0.7, len(records) - 0.3)
    figure.legend(frameon=False, fontsize=8, loc="outside upper right", ncols=3)
    _plain(axes)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _short(value: float, _: int) -> str:
    return f"{value:g}"


def _linear(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """A dashed line of slope 1 through the last point, for the eye."""
    axes.plot(x, [y[-1] * value / x[-1] for value in x], ls="--", lw=1, color="#888888", label="linear", zorder=0)


def _plain(axes: Axes) -> None:
    axes.grid(color=_GRID, lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
