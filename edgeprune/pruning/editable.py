"""A program as a graph that is edited, and the tensors that it reads by name."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx
from torch.export import ExportedProgram

from edgeprune.graph.capture import Program
from edgeprune.graph.lift import Unlifted, unlifted
from edgeprune.graph.prepare import prepared


def editable(program: ExportedProgram) -> fx.GraphModule | Unlifted:
    """A copy of a program to edit; its tensors are to be replaced, and not written to."""
    ready = prepared(program)
    return unlifted(ready) or Program.adopt(ready).editable_module()


def forget(module: fx.GraphModule | Unlifted, gone: Iterable[str]) -> None:
    """Delete tensors that nothing reads any more."""
    for name in gone:
        owner, _, attribute = name.rpartition(".")
        delattr(module.get_submodule(owner) if owner else module, attribute)
    for node in module.graph.find_nodes(op="get_attr"):
        if not node.users:
            module.graph.erase_node(node)
