"""What a network costs: MACs and parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from edgeprune.graph.binding import shape_of
from edgeprune.graph.sizes import input_values, size_hint


def _fused_lstm(steps: torch.Size, w_ih: torch.Size, w_hh: torch.Size, *_: Any, **__: Any) -> int:
    """FLOPs of one direction of an LSTM layer, `steps` `(time, batch, features)`; PyTorch has no formula for it."""
    return 2 * steps[0] * steps[1] * (w_ih.numel() + w_hh.numel())


_FORMULAS = {torch.ops.aten.mkldnn_rnn_layer: _fused_lstm}


def macs_by_node(program: ExportedProgram) -> dict[str, int]:
    """Multiply-accumulates of each node for one sample, by `torch.utils.flop_counter` (which counts two FLOPs each)."""
    values = input_values(program)
    batch = next((size_hint(val.shape[0]) for val in values if isinstance(val, Tensor) and val.dim()), 1)
    found = {}
    known: dict[str, int] = {}  # networks repeat their layers
    with FakeTensorMode(), torch.no_grad():
        for node in program.graph.nodes:
            if not _may_multiply(node):
                continue
            call = str((node.target, *fx.node.map_arg((node.args, node.kwargs), _shown)))
            if call not in known:
                known[call] = _flops(node)
            if known[call]:
                found[node.name] = known[call] // 2 // batch
    return found


def _shown(node: fx.Node) -> Any:
    """A node's value as far as its cost goes: shapes and types."""

    def leaf(val: Any) -> Any:
        return (shape_of(val), str(val.dtype)) if isinstance(val, Tensor) else size_hint(val)

    return tree_map(leaf, node.meta.get("val"))


def macs(program: ExportedProgram) -> int:
    """Multiply-accumulates of the whole network for one sample."""
    return sum(macs_by_node(program).values())


def _may_multiply(node: fx.Node) -> bool:
    """Whether it is an operator that has a formula, or is made of others that may have one."""
    operator = node.target
    if not isinstance(operator, torch._ops.OpOverload) or torch.Tag.pointwise in operator.tags:
        return False
    if operator is torch.ops.aten.batch_norm.default:  # made of twenty operators, and none has a formula
        return False
    if node.meta.get("unbacked_bindings"):  # how large the result is depends on data: it picks, and multiplies nothing
        return False
    is_known = operator.overloadpacket in flop_registry or operator.overloadpacket in _FORMULAS
    return is_known or torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CompositeImplicitAutograd")


def _flops(node: fx.Node) -> int:
    """Floating-point operations of one node, run on tensors without contents of the shapes that it has."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), _stand_in)
    target: Any = node.target
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        target(*args, **kwargs)
    return counter.get_total_flops()


def _stand_in(node: fx.Node) -> Any:
    """A tensor of the shape and type of a node's value; symbolic sizes as the ints that they stand for."""

    def leaf(val: Any) -> Any:
        return torch.empty(shape_of(val), dtype=val.dtype) if isinstance(val, Tensor) else size_hint(val)

    return tree_map(leaf, node.meta.get("val"))


def count_parameters(program: ExportedProgram) -> int:
    """Numbers in parameters, tied ones once."""
    unique = {p.data_ptr(): p.numel() for p in program.state_dict.values() if isinstance(p, torch.nn.Parameter)}
    return sum(unique.values())
