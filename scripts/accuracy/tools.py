"""What each tool makes of a trained network at a strength between 0 and 1: one cut, nothing trained."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from accuracy.networks import Dense
from edgeprune import analyze, capture, cut, plan, reconstruct
from edgeprune.cost.device import Device
from edgeprune.cost.layers import layer_shapes
from edgeprune.export.onnx import draft_onnx
from edgeprune.formats.load import load
from edgeprune.graph.capture import Program
from edgeprune.measure.profiling import Timing, profile
from edgeprune.progress import Silent
from edgeprune.search.criterion import CHOICES
from edgeprune.search.datatrainer import N_PROBED
from measure.training import loss, renormalise, samples

N_CLASSES = 10
_ROUNDED = 8

Cut = Callable[[float], nn.Module]  # of the share of a cost to keep, or of channels for tools that know no costs


class Ours:
    """edgeprune on one network, by MACs or by what its layers take on this machine.

    Args:
        criterion: None for the default of `compress`: of several cuts the one that loses least untrained.
    """

    def __init__(self, dense: Dense, by: str, criterion: str | None = None) -> None:
        self._dense = dense
        self._program: Program = capture(dense.model, dense.example)
        self._graph = analyze(self._program)
        self._criteria = CHOICES if criterion is None else (criterion,)
        self._device: Device | None = None
        if by == "latency":
            self._device = profile(list(layer_shapes(self._graph).values()), Timing(), Silent())

    def __call__(self, share: float) -> nn.Module:
        """The network at a share of the cost, its layers solved again."""
        made = [self._made(share, criterion) for criterion in self._criteria]
        return made[0] if len(made) == 1 else min(made, key=lambda module: loss(module, self._dense.data, N_PROBED))

    def _made(self, share: float, criterion: str) -> nn.Module:
        batches = samples(self._dense.data, 16)
        wanted: dict[str, Any] = {"keep_macs": share}
        if self._device is not None:
            wanted = {"keep_macs": None, "keep_latency": share, "device": self._device}
        made = plan(self._program, self._graph, criterion=criterion, batches=batches, **wanted)
        slim = cut(self._program, made, self._graph)
        return reconstruct(self._program, slim, made, [x for x, _ in batches]).own_module().eval()


class TorchPruning:
    """Torch-Pruning in its documented way: one share of the channels of every layer but the classifier.

    By `magnitude`, `taylor` or `lamp`, over all layers together, widths rounded to eight; batch norm estimated again.
    """

    def __init__(self, dense: Dense, importance: str) -> None:
        self._dense, self._importance = dense, importance

    def __call__(self, share: float) -> nn.Module:
        """The network without this share's complement of its channels."""
        import torch_pruning as tp

        model, data = copy.deepcopy(self._dense.model), self._dense.data
        of = {
            "magnitude": lambda: tp.importance.MagnitudeImportance(p=2),
            "taylor": tp.importance.TaylorImportance,
            "lamp": lambda: tp.importance.LAMPImportance(p=2),
        }
        pruner = tp.pruner.BasePruner(
            model,
            self._dense.example,
            importance=of[self._importance](),
            pruning_ratio=1 - share,
            global_pruning=True,
            ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == N_CLASSES],
            round_to=_ROUNDED,
            num_heads=_heads(model),
        )
        if self._importance == "taylor":
            model.zero_grad()
            for x, y in samples(data, 64):
                nn.functional.cross_entropy(model(x), y).backward()
        pruner.step()
        model.zero_grad(set_to_none=True)
        renormalise(model.eval(), data)
        return model


class Onnxsim:
    """onnxsim's structured pruning, which takes and gives ONNX files: what it gives is read back to be trained."""

    def __init__(self, dense: Dense) -> None:
        self._data = dense.data
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "dense.onnx"
            draft_onnx(capture(copy.deepcopy(dense.model).eval(), dense.example), path)
            self._file = onnx.load(path)

    def __call__(self, share: float) -> nn.Module:
        """The network without this share's complement of what onnxsim counts; batch norm estimated again."""
        import onnxsim

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "slim.onnx"
            onnx.save(onnxsim.apply_structured_pruning(self._file, sparsity=1 - share), path)
            module = load(str(path)).program.own_module()
        renormalise(module.eval(), self._data)
        return module


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    """Attention's joint projections, which Torch-Pruning is told of."""
    return {module.qkv: module.heads for module in model.modules() if hasattr(module, "qkv")}


TOOLS: Mapping[str, Callable[[Dense, str], Cut]] = {
    "edgeprune": lambda dense, by: Ours(dense, by),
    "edgeprune taylor": lambda dense, by: Ours(dense, by, "taylor"),
    "edgeprune l2": lambda dense, by: Ours(dense, by, "l2"),
    "torch-pruning magnitude": lambda dense, _: TorchPruning(dense, "magnitude"),
    "torch-pruning taylor": lambda dense, _: TorchPruning(dense, "taylor"),
    "torch-pruning lamp": lambda dense, _: TorchPruning(dense, "lamp"),
    "onnxsim": lambda dense, _: Onnxsim(dense),
}
