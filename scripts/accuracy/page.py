"""What the benchmark came to: the figures of each cell over its seeds, a table and a picture."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from accuracy.job import right_of
from accuracy.tools import TOOLS
from edgeprune.tasks.intervals import compare_accuracy
from measure.documents import tool_versions
from measure.machine import machine

Record = dict[str, Any]

_ABOUT = """\
# Accuracy at equal cost

Made by `scripts/bench_accuracy`; the numbers are in [results/accuracy.json](results/accuracy.json), with the CPU and
the effort of each row. Every tool starts from the same trained weights, is brought to the same share of the dense
network's cost by one cut, and is finetuned alike: the same AdamW, one-cycle schedule, seed and order of images.
edgeprune solves the layers again on 512 training images; Torch-Pruning takes one share of the channels over all
layers together, widths rounded to eight, and its batch norms are estimated again on as many; what onnxsim's
structured pruning gives is read back from ONNX. fasterai's pruner calls Torch-Pruning; OTO 3.0.1 imports a module
that PyTorch 2.13 has not.

A cell says the accuracy on the 10,000 test images without training, then after it, in per cent, the mean over as many
seeds as stand in brackets. The column edgeprune is the default: of a cut by Taylor and one by l2 the one whose loss on
1,000 validation images is lower untrained. The last column has it beside the peer that ended best: the points it is
ahead, with the paired 95 % interval over all seeds that both have.
"""
_PICTURE = "![Points to the dense network over the cost that is kept](results/accuracy.png)\n"
_OURS = "edgeprune"
_CELL = ("network", "by", "share", "epochs", "finetune_epochs", "images")
_COLOURS = ("#0f8c85", "#4fb3aa", "#7fc4bf", "#9a6a1f", "#6b7f9e", "#a8446a", "#4d4d4d")
_COLOUR = dict(zip(TOOLS, _COLOURS, strict=True))


def write_documents(records: Sequence[Record], folder: Path) -> None:
    """accuracy.json and accuracy.png in the folder and ACCURACY.md above it, from all that was measured."""
    rows = [row(key, list(found)) for key, found in by_cell(records)]
    folder.mkdir(parents=True, exist_ok=True)
    document = {"versions": tool_versions(), "machine": machine(), "rows": rows}
    (folder / "accuracy.json").write_text(json.dumps(document, indent=1) + "\n")
    if rows:
        draw(rows, folder / "accuracy.png")
    lines = table(rows)
    (folder.parent / "ACCURACY.md").write_text("\n".join([_ABOUT, *lines, "", _PICTURE]))
    print(*lines, sep="\n")


def by_cell(records: Sequence[Record]) -> Sequence[tuple[tuple[Any, ...], Sequence[Record]]]:
    """The records of each network, cost, share and effort."""

    def of(record: Record) -> tuple[Any, ...]:
        return tuple(record[name] for name in _CELL)

    return [(key, list(found)) for key, found in itertools.groupby(sorted(records, key=of), of)]


def row(key: tuple[Any, ...], records: Sequence[Record]) -> Record:
    """Means over seeds of every tool in one cell, and ours beside the best peer's."""
    tools = {tool: [r for r in records if r["tool"] == tool] for tool in TOOLS}
    figures = {tool: _figures(found) for tool, found in tools.items() if found}
    result = {**dict(zip(_CELL, key, strict=True)), "tools": figures}
    best = _best_peer(figures)
    if best is not None and "finetuned" in figures.get(_OURS, {}):
        result["beside_best_peer"] = {"peer": best, **_paired(tools[_OURS], tools[best])}
    return result


def _best_peer(figures: Mapping[str, Record]) -> str | None:
    """The peer that ends best in the mean; None where none came to an end."""
    peers = [tool for tool, one in figures.items() if not tool.startswith(_OURS) and "finetuned" in one]
    return max(peers, key=lambda tool: figures[tool]["finetuned"], default=None)


def _figures(records: Sequence[Record]) -> Record:
    done = [r for r in records if "failed" not in r]
    result: Record = {"seeds": len(done), "dense": _mean(r["dense_accuracy"] for r in records)}
    if len(done) < len(records):
        result["failed"] = [r["failed"] for r in records if "failed" in r]
    if done:
        result |= {stage: _mean(r[f"{stage}_accuracy"] for r in done) for stage in ("untrained", "finetuned")}
        result["macs"] = _mean(r["macs"] for r in done)
        if done[0]["by"] == "latency":  # else times were taken on whatever machine was free
            result["latency"] = _mean(r["latency"]["ratio"] for r in done)
    return result


def _paired(ours: Sequence[Record], theirs: Sequence[Record]) -> Record:
    """Points that ours are ahead, with the paired interval over the samples of all seeds that both have."""
    by_seed = {r["seed"]: r for r in theirs if "failed" not in r}
    both = [(r, by_seed[r["seed"]]) for r in ours if "failed" not in r and r["seed"] in by_seed]
    if not both:
        return {}
    mine, other = (np.concatenate([right_of(pair[side], "finetuned") for pair in both]) for side in (0, 1))
    found = compare_accuracy(other, mine)
    low, high = found.drop_interval
    return {"ahead": round(-found.drop_points, 2), "interval": [round(-high, 2), round(-low, 2)]}


def _mean(values: Any) -> float:
    return round(statistics.fmean(values), 4)


def table(rows: Sequence[Record]) -> list[str]:
    """The rows as Markdown: accuracy without training / after finetuning, per cent."""
    tools = [tool for tool in TOOLS if any(tool in one["tools"] for one in rows)]
    lines = [f"| network | kept | dense | {' | '.join(tools)} | ahead of the best peer |"]
    lines.append("|" + "---|" * (len(tools) + 4))
    for one in rows:
        dense = next(figures["dense"] for figures in one["tools"].values())
        cells = [_cell(one["tools"].get(tool)) for tool in tools]
        beside = one.get("beside_best_peer", {})
        ahead = "{ahead:+.2f} ({interval[0]:+.2f} to {interval[1]:+.2f})".format(**beside) if "ahead" in beside else ""
        kept = f"{one['share']:.0%} of the {'MACs' if one['by'] == 'macs' else one['by']}"
        lines.append(f"| {one['network']} | {kept} | {dense:.2f} | {' | '.join(cells)} | {ahead} |")
    return lines


def _cell(figures: Record | None) -> str:
    if figures is None:
        return "not run"
    if "finetuned" not in figures:
        return "failed"
    return f"{figures['untrained']:.2f} / {figures['finetuned']:.2f} ({figures['seeds']})"


def draw(rows: Sequence[Record], path: Path) -> None:
    """A panel a network and cost: points lost after finetuning over the share of the dense network's cost."""
    names = list(dict.fromkeys((one["network"], one["by"]) for one in rows))
    columns = min(3, len(names))
    height = -(-len(names) // columns)
    figure = Figure(figsize=(max(4.8, 3.4 * columns), 2.8 * height + 0.8), layout="constrained")
    panels = figure.subplots(height, columns, squeeze=False).flatten()
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for panel, name in zip(panels, names, strict=False):
        _draw_network(panel, *name, [one["tools"] for one in rows if (one["network"], one["by"]) == name])
    handles = {label: h for p in panels for h, label in zip(*p.get_legend_handles_labels(), strict=True)}
    where = {"loc": "outside upper left", "ncols": columns + 1 if columns > 1 else 2}
    figure.legend(handles.values(), handles.keys(), frameon=False, fontsize=8, **where)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _draw_network(panel: Axes, name: str, by: str, tools: Sequence[Mapping[str, Record]]) -> None:
    for tool, colour in _COLOUR.items():
        found = [one[tool] for one in tools if "finetuned" in one.get(tool, {})]
        points = sorted((figures[by], figures["finetuned"] - figures["dense"]) for figures in found)
        if points:
            panel.plot(
                *np.array(points).T, marker="o", ms=4, lw=1, color=colour, label=tool, zorder=2 + (tool == _OURS)
            )
    panel.axhline(0, color="#d8dcdc", lw=1)
    panel.set_title(name, fontsize=9, loc="left")
    panel.set_xlabel(f"share of the dense {'MACs' if by == 'macs' else by}", fontsize=8)
    panel.set_ylabel("points to dense", fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
