"""The dense network with the removed channels set to zero: what a slim network must compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from edgeprune.graph.call import Call, operator_name
from edgeprune.graph.capture import Program
from edgeprune.graph.edit import Edit
from edgeprune.graph.ops.registry import Kind, kind_of
from edgeprune.graph.prepare import prepared
from edgeprune.graph.state import state_partners
from edgeprune.pruning.folding import fold
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.surgery import analyzed_for, kept_units

_SINGULAR = {
    "div",
    "divide",
    "true_divide",
    "reciprocal",
    "rsqrt",
    "pow",
    "log",
    "log2",
    "log10",
    "_weight_norm",
}  # not finite at 0


def masked(program: ExportedProgram, plan: PruningPlan) -> fx.GraphModule:
    """The dense network, its constants folded as in the plan, with every removed slice of every tensor set to zero.

    Where the plan removes renormalised units, the normalisations compute their statistics over the kept ones, as the
    slim network's do. The parameters are the dense network's own, and each is zeroed as it is read: a copy of all of
    them would be as large as the network.
    """
    program = fold(program) if plan.folded else program
    plan = _with_all_rows(plan)
    module = Program.adopt(prepared(program)).frozen_module()
    if not plan.exact:
        _normalise_over_kept(module, program, plan)
    _divide_by_removed(module)
    _zero_buffers(module, plan)
    _zero_as_read(module, plan)
    _narrow_state(module, program, plan)
    module.recompile()
    return module


def _with_all_rows(plan: PruningPlan) -> PruningPlan:
    """The plan without what it cuts of a vocabulary: on the ids that stay, the whole tables must give the same."""
    tables = {name: dim for one in plan.vocabularies.values() for name, dim in one.tables.items()}
    tensors = {
        name: {dim: kept for dim, kept in dims.items() if tables.get(name) != dim}
        for name, dims in plan.tensors.items()
    }
    return replace(plan, tensors=tensors, vocabularies={})


def zeroed(tensor: Tensor, kept: Mapping[int, Sequence[int]]) -> Tensor:
    """A copy of a tensor with zeros where an index of a dim is not among those that a plan keeps."""
    for dim, indices in kept.items():
        removed = torch.ones(tensor.shape[dim], dtype=torch.bool)
        removed[list(indices)] = False
        tensor = tensor.index_fill(dim, removed.nonzero().flatten(), 0)
    return tensor


def _zero_buffers(module: fx.GraphModule, plan: PruningPlan) -> None:
    """Buffers are the module's own: they are zeroed once, so that what the network writes to them stays."""
    with torch.no_grad():
        for name, buffer in module.named_buffers(remove_duplicate=False):
            kept = plan.tensors.get(name)
            if kept:
                buffer.copy_(zeroed(buffer, kept))


def _zero_as_read(module: fx.GraphModule, plan: PruningPlan) -> None:
    buffers = dict(module.named_buffers(remove_duplicate=False))
    for node in module.graph.find_nodes(op="get_attr"):
        kept = {} if node.target in buffers else plan.tensors.get(str(node.target), {})
        for user in list(node.users) if kept else ():
            with module.graph.inserting_before(user):
                read = module.graph.call_function(_zeroing(kept), (node,))
            user.replace_input_with(node, read)


def _narrow_state(module: fx.GraphModule, program: ExportedProgram, plan: PruningPlan) -> None:
    """Let it take and give what is kept of a state, as the slim network does; the rest comes in as zeros."""
    partners = state_partners(program, plan.state)
    placeholders = {node.name: node for node in module.graph.find_nodes(op="placeholder")}
    output = module.graph.output_node()
    results = [leaf for leaf in tree_leaves(output.args) if isinstance(leaf, fx.Node)]
    for position, comes in partners.items():
        kept = plan.inputs.get(comes.name)
        if kept is None or kept.dim is None or comes.name not in plan.state:
            continue
        placeholder, goes = placeholders[comes.name], results[position]
        users = list(placeholder.users)
        with module.graph.inserting_after(placeholder):
            wide = module.graph.call_function(_widening(kept.size, kept.keep, kept.dim), (placeholder,))
        for user in users:
            user.replace_input_with(placeholder, wide)
        with module.graph.inserting_before(output):
            index = torch.tensor(kept.keep)
            narrow = module.graph.call_function(_narrowing(index, kept.dim), (goes,))
        output.replace_input_with(goes, narrow)


def _widening(size: int, keep: Sequence[int], dim: int) -> Callable[[Tensor], Tensor]:
    index = torch.tensor(keep)

    def widening(state: Tensor) -> Tensor:
        sizes = list(state.shape)
        sizes[dim] = size
        return state.new_zeros(sizes).index_copy(dim, index, state)

    return widening


def _narrowing(index: Tensor, dim: int) -> Callable[[Tensor], Tensor]:
    def narrowing(state: Tensor) -> Tensor:
        return state.index_select(dim, index)

    return narrowing


def _zeroing(kept: Mapping[int, Sequence[int]]) -> Callable[[Tensor], Tensor]:
    def zeroing(tensor: Tensor) -> Tensor:
        return zeroed(tensor, kept)

    return zeroing


def _divide_by_removed(module: fx.GraphModule) -> None:
    """Let 0 / 0 (and the like) be 0: a removed divisor is zero now, and what it gives is removed too."""
    for node in divisions(module.graph):
        node.target = _finite(node.target)  # type: ignore[arg-type]


def divisions(graph: fx.Graph) -> list[fx.Node]:
    """The calls that need not be finite at 0: divisions, roots, logarithms."""
    return [node for node in graph.nodes if node.op == "call_function" and operator_name(node.target) in _SINGULAR]


def _finite(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def finite(*args: Any, **kwargs: Any) -> Tensor:
        result = operator(*args, **kwargs)
        return result.nan_to_num_(0.0, 0.0, 0.0) if isinstance(result, Tensor) else result

    return finite


def _normalise_over_kept(module: fx.GraphModule, program: ExportedProgram, plan: PruningPlan) -> None:
    """Let every normalisation over units see the kept ones alone, and give zeros for the others."""
    graph = analyzed_for(program, plan)
    edit = Edit(module, graph.analysis, kept_units(graph, plan))
    for call in graph.analysis.calls.values():
        x = call.values[0]
        kept = {dim: edit.kept(x, dim) for dim in _normalised_dims(call)}
        pruned = {dim: torch.from_numpy(k) for dim, k in kept.items() if len(k) < x.shape[dim]}
        if pruned:
            node = edit.node(call)
            node.target = _over_kept(call.operator, min(kept), pruned)


def _normalised_dims(call: Call) -> list[int]:
    """The dims that a normalisation takes its statistics over and whose units may go one by one."""
    rank = len(call.values[0].shape)
    if kind_of(call.operator) is not Kind.NORMALISATION:
        return []
    if "normalized_shape" in call.args:
        return list(range(rank - len(call["normalized_shape"]), rank))
    if call.get("num_groups") == 1:
        return list(range(1, rank))
    return [d for d in range(rank) if d != 1] if call.get("training") else []


def _over_kept(operator: Callable[..., Tensor], first: int, kept: dict[int, Tensor]) -> Callable[..., Tensor]:
    """`operator`, normalising over the kept indices of some dims from `first` on; removed ones come out as zero."""

    def narrowed(tensor: Any, offset: int) -> Any:
        if isinstance(tensor, Tensor):
            for dim, indices in kept.items():
                tensor = tensor.index_select(dim - offset, indices)
        return tensor

    def normalise_over_kept(x: Tensor, *args: Any) -> Tensor:
        small = narrowed(x, 0)
        if isinstance(args[0], int):  # group_norm(x, num_groups, weight, bias, ...): affine parameters are over dim 1
            result = operator(small, args[0], *(narrowed(a, 1) for a in args[1:3]), *args[3:])
        elif not isinstance(args[0], list):  # batch_norm(x, weight, bias, ...): affine parameters are over dim 1
            result = operator(small, *args)
        else:  # layer_norm(x, normalized_shape, weight, bias, eps) and rms_norm
            result = operator(small, list(small.shape[first:]), *(narrowed(a, first) for a in args[1:]))
        for dim, indices in kept.items():
            full = list(result.shape)
            full[dim] = x.shape[dim]
            result = result.new_zeros(full).index_copy(dim, indices, result)
        return result

    return normalise_over_kept
