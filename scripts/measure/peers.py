"""The same networks pruned to the same MACs by edgeprune and by its peers, exported, checked and timed side by side."""

from __future__ import annotations

import copy
import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgeprune import analyze, capture, cut, plan
from edgeprune.cost.layers import layer_shapes
from edgeprune.export import ort
from edgeprune.export.onnx import draft_onnx
from edgeprune.measure.latency import measure_files, ratio_interval
from edgeprune.measure.profiling import Timing, profile
from edgeprune.progress import Silent
from measure.networks import build, find
from measure.versus import N_CLASSES, at_most

Record = dict[str, Any]

NETWORKS = """
resnet18 resnet50 mobilenet_v2 mobilenet_v3_small efficientnet_b0 shufflenet_v2_x1_0 regnet_y_400mf convnext_tiny
vit_b_32 squeezenet1_1
""".split()
KEEP_MACS = 0.5
_NEAR = 0.01  # of the MACs: how far from the goal a peer's ratio may land
_TRIALS = 9
_SECONDS = 25.0
_ROUNDED = 16


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """One network with random weights, and what every tool starts from."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    path: Path
    macs: float


def compare(name: str, limit: float) -> Record:
    """MACs, p50 and its ratio to the dense network's, of every tool on one torchvision network."""
    torch.set_num_threads(1)
    model, inputs = build(find(f"torchvision:{name}"))
    one = inputs[0][:1].numpy()
    record: Record = {"name": name, "tools": {}}
    with tempfile.TemporaryDirectory() as folder:
        program = capture(model, inputs)
        dense_path = Path(folder) / "dense.onnx"
        draft_onnx(program, dense_path)
        dense = Dense(model, inputs, dense_path, onnx_macs(dense_path))
        paths = {"dense": dense_path}
        for tool, prune in _TOOLS.items():
            try:
                with at_most(limit):
                    path = Path(folder) / f"{tool.replace(' ', '_')}.onnx"
                    prune(dense, path)
                    _check(path, one)
                    paths[tool] = path
            except Exception as error:  # a peer fails as it likes: its message is the result
                record["tools"][tool] = {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:200]}
        beside = {tool: _beside(dense, paths[tool]) for tool in PEERS if tool in paths}
        files = [*paths.values(), *beside.values()]
        times = measure_files(files, [one] * len(files), runs=200, max_seconds=_SECONDS)
        record["dense_ms"] = round(float(np.median(times[:, 0])), 4)
        columns = {path: times[:, [0, column]] for column, path in enumerate(files)}
        for tool in TOOLS:
            if tool in paths:
                record["tools"][tool] = _figures(paths[tool], dense, columns[paths[tool]])
            if tool in beside:
                record["tools"][tool]["edgeprune device"] = _figures(beside[tool], dense, columns[beside[tool]])
    return record


def _beside(dense: Dense, peer: Path) -> Path:
    """The network at the MACs that a peer came to, which are not quite half where it rounds its widths."""
    path = peer.with_name(f"{peer.stem}_edgeprune.onnx")
    _edgeprune_device(dense, path, min(1.0, onnx_macs(peer) / dense.macs))
    return path


def _figures(path: Path, dense: Dense, times: np.ndarray) -> Record:
    """`times` is `(n_runs, 2)`: the dense network's and the file's."""
    return {"macs": round(onnx_macs(path) / dense.macs, 4), **time_share(times)}


def time_share(times: np.ndarray) -> Record:
    """The second's median over the first's, with its 95 % interval; `times` is `(n_runs, 2)`."""
    first, second = np.median(times, axis=0)
    return {"ratio": round(float(second / first), 4), "interval": [round(bound, 4) for bound in ratio_interval(times)]}


def _check(path: Path, one: np.ndarray) -> None:
    """The one check for all: the file runs in onnxruntime and gives finite scores of the same classes."""
    scores = ort.run(ort.session(path), one)
    if scores.shape != (1, N_CLASSES) or not np.isfinite(scores).all():
        raise ValueError(f"expected finite scores (1, {N_CLASSES}), got {scores.shape}")


# -- the tools -----------------------------------------------------------------------------------------------------


def _edgeprune(dense: Dense, path: Path) -> None:
    program = capture(dense.model, dense.inputs)
    graph = analyze(program)
    draft_onnx(cut(program, plan(program, graph, keep_macs=KEEP_MACS, align=8), graph), path)


def _edgeprune_device(dense: Dense, path: Path, keep_macs: float = KEEP_MACS) -> None:
    draft_onnx(slim_for_this_machine(capture(dense.model, dense.inputs), keep_macs), path)


def slim_for_this_machine(program: ExportedProgram, keep_macs: float) -> ExportedProgram:
    """The program at a share of its MACs, planned by what its layers take here in onnxruntime."""
    graph = analyze(program)
    device = profile(list(layer_shapes(graph).values()), Timing(), Silent())
    return cut(program, plan(program, graph, keep_macs=keep_macs, align=8, device=device), graph)


def _torch_pruning(round_to: int | None) -> Callable[[Dense, Path], None]:
    def prune(dense: Dense, path: Path) -> None:
        import torch_pruning as tp

        example = dense.inputs[0]
        whole, _ = tp.utils.count_ops_and_params(dense.model, example)

        def share(ratio: float) -> float:
            counted, _ = tp.utils.count_ops_and_params(_torch_pruned(dense.model, example, ratio, round_to), example)
            return float(counted / whole)

        model = _torch_pruned(dense.model, example, _ratio_for(share), round_to)
        draft_onnx(capture(model, dense.inputs), path)

    return prune


def _torch_pruned(model: nn.Module, example: Tensor, ratio: float, round_to: int | None) -> nn.Module:
    """Its documented way: a share of the channels of every layer but the classifier, by magnitude."""
    import torch_pruning as tp

    model = copy.deepcopy(model)
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == N_CLASSES]
    heads += [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels == N_CLASSES]
    tp.pruner.MagnitudePruner(
        model,
        example,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=heads,
        round_to=round_to,
    ).step()
    return model


def _onnxsim(dense: Dense, path: Path) -> None:
    import onnxsim

    model = onnx.load(dense.path)

    def share(ratio: float) -> float:
        onnx.save(onnxsim.apply_structured_pruning(model, sparsity=ratio), path)
        return onnx_macs(path) / dense.macs

    share(_ratio_for(share))


def _ratio_for(share: Callable[[float], float]) -> float:
    """The pruning ratio at which a tool keeps the MACs asked for; raises ValueError where it cannot."""
    low, high = 0.0, 1.0
    ratio = kept = 0.5
    for _ in range(_TRIALS):
        ratio = (low + high) / 2
        kept = share(ratio)
        if abs(kept - KEEP_MACS) <= _NEAR:
            break
        low, high = (ratio, high) if kept > KEEP_MACS else (low, ratio)
    if kept > KEEP_MACS + 5 * _NEAR:
        raise ValueError(f"expected {KEEP_MACS:g} of the MACs, got no closer than {kept:.3f}")
    return ratio


_TOOLS: dict[str, Callable[[Dense, Path], None]] = {
    "edgeprune": _edgeprune,
    "edgeprune device": _edgeprune_device,
    "torch-pruning": _torch_pruning(None),
    f"torch-pruning round {_ROUNDED}": _torch_pruning(_ROUNDED),
    "onnxsim": _onnxsim,
}
TOOLS = tuple(_TOOLS)
PEERS = TOOLS[2:]


# -- MACs, counted alike for all -----------------------------------------------------------------------------------


def onnx_macs(path: Path) -> float:
    """Multiply-accumulates of the convolutions and matrix products in an ONNX file, for one sample."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
    graph = model.graph
    shapes = {v.name: _shape(v) for v in (*graph.input, *graph.value_info, *graph.output)}
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    total = 0.0
    for node in graph.node:
        if node.op_type == "Conv":
            weight = shapes[node.input[1]]
            total += math.prod(shapes[node.output[0]]) * math.prod(weight[1:])
        elif node.op_type in ("Gemm", "MatMul"):
            left, out = shapes[node.input[0]], shapes[node.output[0]]
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            total += math.prod(out) * (left[0] if transposed else left[-1])
    return total


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    """A value's shape for a batch of one."""
    return [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]


def summary(records: list[Record]) -> Record:
    """Geometric means of the ratios of each tool, and of edgeprune's over each peer's at the peer's own MACs."""
    found: Record = {"networks": len(records)}
    for tool in TOOLS:
        ratios = [r["tools"][tool]["ratio"] for r in records if "ratio" in r["tools"].get(tool, {})]
        found[tool] = {"networks": len(ratios), "ratio_geometric_mean": _mean(ratios)}
    for tool in PEERS:
        both = [r["tools"][tool] for r in records if "ratio" in r["tools"].get(tool, {})]
        found[tool]["edgeprune_device_over_it"] = _mean([p["edgeprune device"]["ratio"] / p["ratio"] for p in both])
    return found


def _mean(ratios: list[float]) -> float | None:
    return round(math.exp(statistics.fmean(map(math.log, ratios))), 4) if ratios else None
