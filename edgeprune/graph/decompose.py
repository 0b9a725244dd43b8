"""Taking operators apart into those that PyTorch defines them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from edgeprune.graph.capture import Program
from edgeprune.graph.composites import composites_known

_aten = torch.ops.aten


def decomposed(program: ExportedProgram, table: Mapping[Any, Callable[..., Any]]) -> Program:
    """The program without writes and without the operators of a table, which are replaced by their definitions.

    What else decomposition changes is put back: batch norm in its inference form, and reshapes as views, which hold for
    one memory layout alone (that of attention depends on the device, the types and on whether gradients are wanted).
    """
    with composites_known():
        changed = Program.adopt(program.run_decompositions(dict(table)))
    _restore_batch_norm(changed.graph)
    for view in changed.graph.find_nodes(op="call_function", target=_aten.view.default):
        view.target = _aten.reshape.default
    return changed


def _restore_batch_norm(graph: fx.Graph) -> None:
    """Turn the inference form of batch norm, which decomposition leaves, back into the one that can be trained."""
    for node in list(graph.nodes):
        if node.target is not _aten._native_batch_norm_legit_no_training.default:
            continue
        x, weight, bias, mean, variance, momentum, eps = node.args
        with graph.inserting_before(node):
            whole = graph.call_function(
                _aten.batch_norm.default, (x, weight, bias, mean, variance, False, momentum, eps, False)
            )
        whole.meta = {**node.meta, "val": node.meta["val"][0]}
        for part in list(node.users):
            if part.args[1] != 0:
                raise AssertionError(f"{part.name}: nothing reads the statistics of an inference batch norm")
            part.replace_all_uses_with(whole)
            graph.erase_node(part)
        graph.erase_node(node)
