"""One network, one seed, one budget: every tool is brought to it, judged untrained, finetuned alike, judged again."""

from __future__ import annotations

import base64
import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from accuracy.networks import Dense, Effort, trained
from accuracy.tools import TOOLS, Cut
from edgeprune import capture
from edgeprune.errors import BudgetError
from edgeprune.export.onnx import draft_onnx
from edgeprune.measure.latency import measure_files
from measure.peers import onnx_macs, time_share
from measure.training import correct, train

Record = dict[str, Any]

_TRIALS = 8
_NEAR = 0.02  # below the budget: near enough
_RUNS, _SECONDS = 300, 4.0
_LR = 1e-3


@dataclass(frozen=True, slots=True)
class Job:
    """What is measured: `by` is "macs" or "latency", `share` what is kept of the dense network's."""

    network: str
    seed: int
    by: str
    share: float
    tool: str
    effort: Effort

    @property
    def key(self) -> Record:
        """What tells it from the others."""
        effort = self.effort
        return {
            "network": self.network, "seed": self.seed, "by": self.by, "share": self.share, "tool": self.tool,
            "epochs": effort.epochs, "finetune_epochs": effort.finetune_epochs, "images": effort.images,
        }  # fmt: skip


def measured(job: Job, roots: Mapping[str, str], kept: Path) -> Record:
    """The record of one job; a tool that fails, or comes to no network within the budget, has its message for it."""
    torch.set_num_threads(1)
    dense = trained(job.network, job.seed, job.effort, roots, kept)
    record: Record = {**job.key, **_quality("dense", correct(dense.model, dense.data))}
    with tempfile.TemporaryDirectory() as folder:
        files = Files(dense, Path(folder))
        try:
            module = _within(TOOLS[job.tool](dense, job.by), lambda m: files.cost(m, job.by), job.share)
        except Exception as error:  # a peer fails as it likes: its message is the result
            return {**record, "failed": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
        record |= _quality("untrained", correct(module.eval(), dense.data))
        train(module.train(), dense.data, job.effort.finetune_epochs, job.effort.images, _LR)
        record |= _quality("finetuned", correct(module.eval(), dense.data))
        return {**record, **files.figures(module)}


def _quality(stage: str, right: np.ndarray) -> Record:
    """Per cent, and which samples were right, for paired intervals."""
    packed = base64.b64encode(np.packbits(right).tobytes()).decode()
    return {f"{stage}_accuracy": round(100 * float(right.mean()), 2), f"{stage}_right": packed}


def right_of(record: Record, stage: str, n_samples: int = 10_000) -> np.ndarray:
    """Which samples of the test split were right, bool `(n_samples,)`."""
    packed = np.frombuffer(base64.b64decode(record[f"{stage}_right"]), np.uint8)
    return np.unpackbits(packed)[:n_samples].astype(bool)


class Files:
    """Networks as ONNX files, beside the dense one's."""

    def __init__(self, dense: Dense, folder: Path) -> None:
        self._example, self._folder = dense.example, folder
        self._dense = self._file(dense.model, "dense")
        self._macs = onnx_macs(self._dense)

    def cost(self, module: nn.Module, by: str) -> float:
        """Its share of the dense network's."""
        path = self._file(module, "trial")
        return onnx_macs(path) / self._macs if by == "macs" else float(self._times(path)["ratio"])

    def figures(self, module: nn.Module) -> Record:
        """MACs and time as shares of the dense network's, and bytes of both files."""
        path = self._file(module, "final")
        sizes = {"bytes": path.stat().st_size, "dense_bytes": self._dense.stat().st_size}
        return {"macs": round(onnx_macs(path) / self._macs, 4), "latency": self._times(path), **sizes}

    def _file(self, module: nn.Module, name: str) -> Path:
        path = self._folder / f"{name}.onnx"
        draft_onnx(capture(copy.deepcopy(module).eval(), self._example), path)
        return path

    def _times(self, path: Path) -> Record:
        one = self._example[:1].numpy()
        return time_share(measure_files([self._dense, path], [one] * 2, runs=_RUNS, max_seconds=_SECONDS))


def _within(make: Cut, cost: Callable[[nn.Module], float], share: float) -> nn.Module:
    """The largest network within the budget that halving the strength finds; ValueError where there is none."""
    found: tuple[float, nn.Module] | None = None
    low, high, strength = 0.0, 1.0, share
    for _ in range(_TRIALS):
        try:
            module = make(strength)
        except BudgetError:  # edgeprune's, of a budget that nothing meets
            low, strength = strength, (strength + high) / 2
            continue
        kept = cost(module)
        if kept <= share and (found is None or kept > found[0]):
            found = kept, module
        if found is not None and found[0] >= share - _NEAR:
            break
        low, high = (low, strength) if kept > share else (strength, high)
        strength = (low + high) / 2
    if found is None:
        raise ValueError(f"expected at most {share:g} of the dense network's cost, got no network of it")
    return found[1]
