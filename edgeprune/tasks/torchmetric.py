"""torchmetrics, imported where a metric needs it: it takes a second, and classification does without."""

from __future__ import annotations

import importlib
from typing import Any


def functional() -> Any:
    """Its functions for classes and labels."""
    import edgeprune.compat  # noqa: F401 - it imports torchvision, of which a CUDA build lacks a part beside a CPU PyTorch

    return importlib.import_module("torchmetrics.functional.classification")
