"""What a result depends on: the versions of everything, and the processor."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

from edgeprune import __version__

_NAMES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "onnxsim", "numpy", "scipy")


def versions() -> dict[str, str]:
    """By name: edgeprune, Python and the libraries; an extra that is not installed takes no part."""
    found = {"edgeprune": __version__, "python": platform.python_version()}
    for name in _NAMES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return found or platform.processor() or platform.machine()
