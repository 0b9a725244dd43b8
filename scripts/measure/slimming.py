"""A network pruned for the machine that measures."""

from __future__ import annotations

from torch.export import ExportedProgram

from edgeprune import analyze, cut, plan
from edgeprune.profiling import Timing, profile
from edgeprune.progress import Silent
from edgeprune.shapes import layer_shapes


def slim_for_this_machine(program: ExportedProgram, keep_macs: float) -> ExportedProgram:
    """The program at a share of its MACs, planned by what its layers take here in onnxruntime."""
    graph = analyze(program)
    device = profile(list(layer_shapes(graph).values()), Timing(), Silent())
    return cut(program, plan(program, graph, keep_macs=keep_macs, device=device), graph)
