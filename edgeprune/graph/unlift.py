"""Parameters go back to their modules in time linear in the depth of a network.

PyTorch looks for other names of the same module ("layer@1", a second call) among all modules beside it, for every
parameter: half a minute in a chain of 2,000 layers. A program's modules are made from its parameters' names here, and
have no other names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn
from torch.export import _unlift

from edgeprune.graph.patches import replaced

_ASSIGN = "_assign_attr"  # puts one parameter, buffer or constant into a module


@contextmanager
def direct_assignment() -> Iterator[None]:
    """Inside, `ExportedProgram.module()` follows each parameter's name straight down."""
    original: Any = getattr(_unlift, _ASSIGN, None)  # another PyTorch may lack it, and does it otherwise

    def assign(value: Any, root: nn.Module, target: str, *kind: Any, **more: Any) -> None:
        *path, field = target.split(".")
        for name in path:
            if not hasattr(root, name):
                setattr(root, name, nn.Module())
            root = getattr(root, name)
        original(value, root, field, *kind, **more)

    with replaced(_unlift, _ASSIGN, assign):
        yield


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside, graphs get no code, three times in `ExportedProgram.module()` alone: who edits one last compiles it."""
    with replaced(fx.GraphModule, "recompile", lambda _: None):
        yield
