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
    "plan": "edgeprune.planner",
    "plan_dead": "edgeprune.deadunits",
    "fold": "edgeprune.folding",
    "PruningPlan": "edgeprune.pruning_plan",
    "cut": "edgeprune.surgery",
    "prove": "edgeprune.proof",
    "slim_contract": "edgeprune.features",
    "export_onnx": "edgeprune.export.onnx",
    "load_model": "edgeprune.formats.load",
    "compress": "edgeprune.pipeline",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgeprune' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
