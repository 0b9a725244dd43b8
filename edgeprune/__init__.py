"""edgeprune: structured pruning and induced feature selection for edge devices, with proof.

The public functions resolve lazily, so that importing the package (and `edgeprune --help`) does not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "capture": "edgeprune.graph.capture",
    "analyze": "edgeprune.graph.groups",
    "ChannelGraph": "edgeprune.graph.groups",
    "ChannelGroup": "edgeprune.graph.groups",
    "vocabularies": "edgeprune.pruning.vocabulary",
    "used_ids": "edgeprune.graph.rows",
    "plan": "edgeprune.pruning.planner",
    "plan_dead": "edgeprune.pruning.dead_units",
    "fold": "edgeprune.pruning.folding",
    "PruningPlan": "edgeprune.pruning.plan",
    "cut": "edgeprune.pruning.surgery",
    "prove": "edgeprune.pruning.proof",
    "reconstruct": "edgeprune.reconstruction.reconstruct",
    "slim_contract": "edgeprune.pruning.slim_inputs",
    "export_onnx": "edgeprune.export.onnx",
    "load_model": "edgeprune.formats.load",
    "compress": "edgeprune.pipeline",
    "Pruner": "edgeprune.pruner",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgeprune' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
