"""edgeprune beside Torch-Pruning on one network: what each takes to find its groups and to prune, in turns."""

from __future__ import annotations

import copy
import gc
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune import analyze, capture, cut, plan
from edgeprune.errors import BudgetError
from measure.networks import build, find

Record = dict[str, Any]

NETWORKS = """
alexnet vgg11_bn squeezenet1_0 squeezenet1_1 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet0_5 mnasnet1_0
shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x2_0 resnet18 resnet34 resnet50 resnet101 resnet152
wide_resnet50_2 resnext50_32x4d densenet121 densenet201 googlenet inception_v3 efficientnet_b0 efficientnet_b3
efficientnet_v2_s regnet_x_400mf regnet_y_400mf regnet_y_3_2gf convnext_tiny convnext_small vit_b_32 swin_t swin_v2_t
maxvit_t
""".split()
N_CLASSES = 1000
KEEP_MACS = 0.5


class OutOfTime(Exception):
    """The limit for one tool on one network is over."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the body once the time is over."""

    def ring(*_: object) -> None:
        raise OutOfTime(f"not done within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def compare(name: str, rounds: int, limit: float) -> Record:
    """Median seconds of both tools on one torchvision network, `rounds` times in turns."""
    torch.set_num_threads(1)
    model, inputs = build(find(f"torchvision:{name}"))
    record: Record = {"name": name, "parameters": sum(p.numel() for p in model.parameters())}
    tools: dict[str, Callable[[nn.Module, tuple[Tensor, ...]], dict[str, float]]] = {
        "edgeprune": _edgeprune,
        "torch_pruning": _torch_pruning,
    }
    seconds: dict[str, list[dict[str, float]]] = {tool: [] for tool in tools}
    for _ in range(rounds):
        for tool, work in tools.items():
            if f"{tool}_failed" in record:
                continue
            fresh = copy.deepcopy(model)
            gc.collect()
            try:
                with at_most(limit):
                    seconds[tool].append(work(fresh, inputs))
            except Exception as error:  # the other tool fails as it likes: its message is the result
                record[f"{tool}_failed"] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    for tool, found in seconds.items():
        if found and f"{tool}_failed" not in record:
            record[tool] = {stage: round(statistics.median(s[stage] for s in found), 4) for stage in found[0]}
    return record


def _edgeprune(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    program = _timed(seconds, "capture", lambda: capture(model, inputs))
    graph = _timed(seconds, "analyze", lambda: analyze(program))
    try:
        pruning = _timed(seconds, "plan", lambda: plan(program, graph, keep_macs=KEEP_MACS))
    except BudgetError:
        pruning = _timed(seconds, "plan", lambda: plan(program, graph, keep_macs=0.9))
    _timed(seconds, "cut", lambda: cut(program, pruning, graph))
    seconds["total"] = sum(seconds.values())
    return seconds


def _torch_pruning(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """Its documented way: half of the channels of every layer but the classifier, by magnitude."""
    import torch_pruning as tp

    heads = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and _width(m) == N_CLASSES]
    seconds: dict[str, float] = {}
    pruner = _timed(
        seconds,
        "build",
        lambda: tp.pruner.MagnitudePruner(
            model,
            inputs[0],
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=heads,
        ),
    )
    _timed(seconds, "prune", pruner.step)
    seconds["total"] = sum(seconds.values())
    with torch.no_grad():
        model(*inputs)  # a network that no longer runs was not pruned
    return seconds


def _width(module: nn.Linear | nn.Conv2d) -> int:
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def _timed(seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = work()
    seconds[name] = time.perf_counter() - start
    return result


def summary(records: Sequence[Record]) -> Record:
    """The geometric mean of analysis over Torch-Pruning's building and pruning, where both came to their end."""
    both = [r for r in records if "edgeprune" in r and "torch_pruning" in r]
    ratios = [r["edgeprune"]["analyze"] / r["torch_pruning"]["total"] for r in both]
    analyses = [r["edgeprune"]["analyze"] for r in records if "edgeprune" in r]
    totals = [r["edgeprune"]["total"] for r in records if "edgeprune" in r]
    return {
        "networks": len(records),
        "compared": len(both),
        "ratio_geometric_mean": math.exp(statistics.fmean(map(math.log, ratios))) if ratios else None,
        "analyze_median_seconds": statistics.median(analyses) if analyses else None,
        "analyze_max_seconds": max(analyses, default=None),
        "capture_to_cut_max_seconds": max(totals, default=None),
        "edgeprune_failed": sorted(r["name"] for r in records if "edgeprune_failed" in r),
        "torch_pruning_failed": sorted(r["name"] for r in records if "torch_pruning_failed" in r),
    }
