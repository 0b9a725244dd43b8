"""Channel shuffles for converters that know views alone: rows and columns of channels change places."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from edgeprune.export.rewriting import called, with_replaced

_aten: Any = torch.ops.aten
_SHUFFLES = {_aten.channel_shuffle.default, _aten.native_channel_shuffle.default}


def with_shuffles_apart(program: ExportedProgram) -> ExportedProgram:
    """The program with each channel shuffle as views and a transposition; the same object without any."""
    return with_replaced(program, lambda node: node.target in _SHUFFLES, _written_out)


def _written_out(graph: fx.Graph, node: fx.Node) -> fx.Node:
    x, groups = node.args
    grid = called(graph, _aten.unflatten.int, x, 1, [groups, -1])
    return called(graph, _aten.flatten.using_ints, called(graph, _aten.transpose.int, grid, 1, 2), 1, 2)
