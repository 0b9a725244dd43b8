"""The commands as library functions: what `edgeprune.NAME` and the command line call.

They resolve lazily: a command that trains has no use for what another one exports with.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeprune.commands.bench import bench
    from edgeprune.commands.certify import certify
    from edgeprune.commands.compress import compress
    from edgeprune.commands.export import export
    from edgeprune.commands.federate import federate
    from edgeprune.commands.inspect import inspect
    from edgeprune.commands.profile import profile
    from edgeprune.commands.train import train
    from edgeprune.commands.validate import validate
    from edgeprune.commands.validate_widths import validate_widths

__all__ = [
    "bench",
    "certify",
    "compress",
    "export",
    "federate",
    "inspect",
    "profile",
    "train",
    "validate",
    "validate_widths",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgeprune.pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(f"edgeprune.commands.{name}"), name)
