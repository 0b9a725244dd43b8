"""The versions of everything that a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform

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
