"""docs/REPRODUCTION.md: what each paper states, what was measured, what differs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeprune.files import write_atomically

from .experiments import Experiment
from .results import read_document

Record = dict[str, Any]
_ABOUT = """
Made by `scripts/reproduce --tables` from the files in [results](results), which `scripts/reproduce NAME` writes. All
contenders of an experiment train for the same number of epochs, on the same training split; what is given is the
accuracy on the test split after the last epoch, as the mean over the seeds with the lowest and the highest. Settings
were chosen without the test split. Zeros are exact, and counted over all weights of two dims or more; parameters, MACs
and bytes are shares of the dense network's.

A difference of about one test image is called no change. A range holds on the machine that it was measured on: another
processor, or another set of instructions, rounds otherwise, and a training ends elsewhere. So xRDA on LeNet-300-100
with 95 % zeros gave 89.43 % on a machine with AVX2, outside the range of 89.22 to 89.25 % below.

Which paper is meant by what: RDA with proper initialisation and adaptivity is He, Jia, Xu, Zhang and Zhao, Make l1
Regularization Effective in Training Sparse CNN, Computational Optimization and Applications 77, 2020 (arXiv
1807.04222), after Xiao, Dual Averaging Methods for Regularized Stochastic Learning and Online Optimization, JMLR 11,
2010: 95 % zeros in ResNet18 on CIFAR-10 without a loss of accuracy. iRDA, iterative RDA (OpenReview HJMXus0ct7), is its
relative: more than 95 % on MNIST and CIFAR-10. Both are `--optimizer rda`. xRDA is their successor: Siegel, Chen, Zhang
and Xu, Training Sparse Neural Networks using Compressed Sensing (arXiv 2008.09661). The full texts of 2303.10999,
2008.09661, 1807.04222 and of iRDA were not at hand: what is said of them is from their abstracts, and of xRDA from
the settings that were published with it.
""".strip().splitlines()
_PAGE, _RESULTS = "REPRODUCTION.md", "results"

# Of each figure: the column's heading, the factor, and how its mean is written.
_COLUMNS: Mapping[str, tuple[str, float, str]] = {
    "n_features": ("features", 1.0, "{:.0f}"),
    "zero_share": ("zeros, %", 100.0, "{:.2f}"),
    "params_share": ("parameters, %", 100.0, "{:.2f}"),
    "macs_share": ("MACs, %", 100.0, "{:.1f}"),
    "n_bytes": ("file, kB", 1e-3, "{:.0f}"),
    "bytes_share": ("file, %", 100.0, "{:.1f}"),
    "uploaded_bytes": ("uploaded, MB", 1e-6, "{:.1f}"),
    "step_ms": ("step, ms", 1.0, "{:.2f}"),
    "sgd_step_ms": ("SGD's step, ms", 1.0, "{:.2f}"),
    "step_ratio": ("ratio", 1.0, "{:.3f}"),
}
_ONE_IMAGE = 1.5  # test images, below which a difference is about one
# Where inputs are chosen, zeros are cut out.
_LEFT_OUT = {"features": ("zero_share",), "zeros": (), "bytes": ()}


def write_page(experiments: Sequence[Experiment], folder: Path) -> Path:
    """Write REPRODUCTION.md into the folder, from the documents that are in its results/."""
    documents = {e.name: read_document(folder / _RESULTS / f"{e.name}.json") for e in experiments}
    page = folder / _PAGE
    sections = [line for e in experiments for line in _section(e, documents[e.name])]
    write_atomically(page, "\n".join([*_head(experiments, documents), *sections]).encode())
    return page


def _head(experiments: Sequence[Experiment], documents: Mapping[str, Record | None]) -> list[str]:
    rows = [f"| [{e.name}](#{e.name}) | {e.title} | {_state(documents[e.name])} |" for e in experiments]
    return [
        "# Reproductions",
        "",
        *_ABOUT,
        "",
        "| experiment | what it is about | state |",
        "|---|---|---|",
        *rows,
        "",
    ]  # fmt: skip


def _state(document: Record | None) -> str:
    if document is None:
        return "not run"
    wanted = sum(row["seeds_wanted"] for row in document["contenders"])
    got = sum(len(row["runs"]) for row in document["contenders"])
    if document["quick"]:
        return "a quick look only: no result"
    return "measured" if got == wanted else f"{got} of {wanted} runs"


def _section(experiment: Experiment, document: Record | None) -> list[str]:
    lines = [
        f"## {experiment.name}",
        "",
        f"{experiment.title}. {experiment.paper}.",
        "",
        f"**The paper states**: {_one_line(experiment.states)}",
        "",
    ]
    if document is None:
        gpu = " on a machine with a GPU" if experiment.needs_gpu else ""
        lines += [f"**Measured here**: not run; `scripts/reproduce {experiment.name}` does it{gpu}.", ""]
    else:
        lines += _measured(document)
    return [*lines, f"**What differs**: {_one_line(experiment.differs)}", ""]


def _measured(document: Record) -> list[str]:
    rows = document["contenders"]
    left_out = _LEFT_OUT[document["axis"]]
    shown = [name for name in _COLUMNS if name not in left_out and any(name in row["figures"] for row in rows)]
    accurate = any("test_accuracy" in row["figures"] for row in rows)
    reference = next((r for r in rows if r["at"] is None and "test_accuracy" in r["figures"]), None)
    head = ["contender", "goal", *(["test accuracy, %", "points from dense"] if accurate else [])]
    head += [*(_COLUMNS[name][0] for name in shown), "seeds"]
    table = [_row(row, shown, accurate, reference, document.get("test_samples", 0)) for row in rows]
    return [
        f"**Measured here**: {_state(document)}. Network `{document['network']}`, data {document['data']}, "
        f"{_setting(document)}.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(cells) + " |" for cells in table),
        "",
        f"![{document['title']}]({_RESULTS}/{document['experiment']}.png)",
        "",
        *_settings(document["settings"]),
    ]


def _setting(document: Record) -> str:
    versions = document["versions"]
    told = [f"{name} {versions[name]}" for name in ("edgeprune", "torch") if name in versions]
    threads = f"{document['threads']} thread{'s' if document['threads'] > 1 else ''}"
    machines = [f"{one['cpu']} with {one['instructions']}" for one in document.get("machines", ())]
    where = " and ".join(machines) or f"{document['device']} (which kind was not written down)"
    return ", ".join([f"{document['epochs']} epochs", where, threads, *told])


def _row(row: Record, shown: Sequence[str], accurate: bool, reference: Record | None, n_test: int) -> list[str]:
    figures = row["figures"]
    cells = [row["label"], row["goal"]]
    if accurate:
        cells += _accuracy(figures.get("test_accuracy"), None if row is reference else reference, n_test)
    cells += [_cell(figures.get(name), *_COLUMNS[name][1:]) for name in shown]
    return [*cells, _seeds(row)]


def _accuracy(figure: Mapping[str, float] | None, reference: Record | None, n_test: int) -> list[str]:
    """The mean with its spread, and how far it is from the reference in points; about one image is no change."""
    if figure is None:
        return ["not run", ""]
    spread = f" ({100 * figure['min']:.2f} to {100 * figure['max']:.2f})" if figure["min"] < figure["max"] else ""
    change = "" if reference is None else _change(_points(figure, reference), n_test)
    return [f"{100 * figure['mean']:.2f}{spread}", change]


def _change(points: float, n_test: int) -> str:
    return f"no change ({points:+.2f})" if abs(points) / 100 * n_test < _ONE_IMAGE and n_test else f"{points:+.2f}"


def _points(figure: Mapping[str, float], reference: Record) -> float:
    return 100 * (figure["mean"] - float(reference["figures"]["test_accuracy"]["mean"]))


def _cell(figure: Mapping[str, float] | None, factor: float, form: str) -> str:
    return "" if figure is None else form.format(factor * figure["mean"])


def _seeds(row: Record) -> str:
    got, wanted = len(row["runs"]), row["seeds_wanted"]
    return str(got) if got == wanted else f"{got} of {wanted}"


def _settings(settings: Mapping[str, Record]) -> list[str]:
    """What all contenders were trained with, and each; folded away."""
    lines = [f"- {label}: `{json.dumps(own)}`" for label, own in settings.items() if own]
    return ["<details><summary>Settings</summary>", "", *lines, "", "</details>", ""]


def _one_line(text: str) -> str:
    return " ".join(text.split())
