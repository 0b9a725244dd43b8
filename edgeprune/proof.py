"""The proof of a cut: the dense network with the removed channels set to zero gives what the slim network gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_flatten, tree_unflatten

from edgeprune.errors import ProofError
from edgeprune.folding import fold
from edgeprune.graph.capture import Program, example_inputs
from edgeprune.graph.comparison import TOLERANCE, outputs, relative_error
from edgeprune.graph.edit import Edit
from edgeprune.graph.groups import analyze
from edgeprune.graph.ops.registry import Call, operator_name
from edgeprune.graph.precision import arguments_in_float64, float64_by_default, in_float64
from edgeprune.graph.prepare import prepared
from edgeprune.graph.sizes import free_dims, grown_shapes
from edgeprune.pruning_plan import PruningPlan
from edgeprune.surgery import kept_units

_BATCH = 3  # another than the example has
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


def prove(program: ExportedProgram, slim: ExportedProgram, plan: PruningPlan, inputs: Tensor | None = None) -> float:
    """Check that slim = masked dense, and return the largest relative error over all outputs.

    Where the plan folds constants, the folded network is checked against the dense one too.

    Args:
        program: the dense program that was cut.
        slim: what `cut` made of it, before any finetuning.
        plan: what was kept.
        inputs: a batch for the first input, `(batch, ...)`; random normal numbers where it is left out. A program
            with a free height and width is run at other sizes too.

    Raises:
        ProofError: they differ by more than 1e-5 of the largest output (float32; 1e-10 in float64), where float32's
            own rounding does not explain it: a difference that float64 does not confirm is rounding.
    """
    samples = [_arguments(program, inputs)]
    shapes = grown_shapes(program)
    if shapes is not None:
        samples.append(_arguments(program, None, shapes))
    dense = program
    if plan.folded:
        program, plan = fold(program), replace(plan, folded=False)
    networks = (masked(program, plan), Program.adopt(slim).frozen_module())
    results = [outputs(networks[0], args) for args in samples]
    dtype = results[0][0].dtype
    if program is not dense:
        _check_folding(dense, program, samples, TOLERANCE[dtype])
    errors = [relative_error(a, outputs(networks[1], args)) for a, args in zip(results, samples, strict=True)]
    if max(errors) > TOLERANCE[dtype] and dtype != torch.float64:
        errors = _told_from_rounding(networks, samples, errors, TOLERANCE[dtype])
    if max(errors) > TOLERANCE[dtype]:
        raise ProofError(
            f"the slim network is not the masked dense network: expected a relative error of at most "
            f"{TOLERANCE[dtype]:g}, got {max(errors):.3g}; this is a defect in the cut, please report it with the model"
        )
    return max(errors)


def _check_folding(
    dense: ExportedProgram, folded: ExportedProgram, samples: list[tuple[object, ...]], tolerance: float
) -> None:
    networks = [Program.adopt(one).frozen_module() for one in (dense, folded)]
    error = max(relative_error(*(outputs(network, args) for network in networks)) for args in samples)
    if error > tolerance:
        raise ProofError(
            f"the network with its constants folded is not the dense network: expected a relative error of at most "
            f"{tolerance:g}, got {error:.3g}; this is a defect in the folding, please report it with the model"
        )


def _told_from_rounding(
    networks: tuple[nn.Module, nn.Module], samples: list[tuple[object, ...]], errors: list[float], tolerance: float
) -> list[float]:
    """The errors in float64 of samples that are over the tolerance, where they are small enough for rounding."""
    doubled = [in_float64(network) for network in networks]
    told = []
    for args, error in zip(samples, errors, strict=True):
        if error > tolerance:
            exact_args = arguments_in_float64(args)
            with float64_by_default():
                exact = relative_error(*(outputs(network, exact_args) for network in doubled))
            error = exact if exact <= TOLERANCE[torch.float64] else max(error, exact)
        told.append(error)
    return told


def masked(program: ExportedProgram, plan: PruningPlan) -> nn.Module:
    """The dense network, its constants folded as in the plan, with every removed slice of every tensor set to zero.

    Where the plan removes renormalised units, the normalisations compute their statistics over the kept ones, as the
    slim network's do. The parameters are the dense network's own, and each is zeroed as it is read: a copy of all of
    them would be as large as the network.
    """
    program = fold(program) if plan.folded else program
    module = Program.adopt(prepared(program)).frozen_module()
    if not plan.exact:
        _normalise_over_kept(module, program, plan)
    _divide_by_removed(module)
    _zero_as_read(module, plan)
    module.recompile()
    return module


def zeroed(tensor: Tensor, kept: Mapping[int, Sequence[int]]) -> Tensor:
    """A copy of a tensor with zeros where an index of a dim is not among those that a plan keeps."""
    for dim, indices in kept.items():
        removed = torch.ones(tensor.shape[dim], dtype=torch.bool)
        removed[list(indices)] = False
        tensor = tensor.index_fill(dim, removed.nonzero().flatten(), 0)
    return tensor


def _zero_as_read(module: fx.GraphModule, plan: PruningPlan) -> None:
    for node in module.graph.find_nodes(op="get_attr"):
        kept = plan.tensors.get(str(node.target), {})
        for user in list(node.users) if kept else ():
            with module.graph.inserting_before(user):
                read = module.graph.call_function(_zeroing(kept), (node,))
            user.replace_input_with(node, read)


def _zeroing(kept: Mapping[int, Sequence[int]]) -> Callable[[Tensor], Tensor]:
    def zeroing(tensor: Tensor) -> Tensor:
        return zeroed(tensor, kept)

    return zeroing


def _divide_by_removed(module: fx.GraphModule) -> None:
    """Let 0 / 0 (and the like) be 0: a removed divisor is zero now, and what it gives is removed too."""
    for node in module.graph.nodes:
        if node.op == "call_function" and operator_name(node.target) in _SINGULAR:
            node.target = _finite(node.target)


def _finite(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def finite(*args: Any, **kwargs: Any) -> Tensor:
        result = operator(*args, **kwargs)
        return result.nan_to_num_(0.0, 0.0, 0.0) if isinstance(result, Tensor) else result

    return finite


def _normalise_over_kept(module: fx.GraphModule, program: ExportedProgram, plan: PruningPlan) -> None:
    """Let every normalisation over units see the kept ones alone, and give zeros for the others."""
    graph = analyze(program, inputs=bool(plan.inputs), attention=plan.attention)
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
    if call.name in ("layer_norm", "rms_norm"):
        return list(range(rank - len(call["normalized_shape"]), rank))
    if call.name == "group_norm" and call["num_groups"] == 1:
        return list(range(1, rank))
    if call.name == "batch_norm" and call["training"]:
        return [d for d in range(rank) if d != 1]
    return []


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


def _arguments(
    program: ExportedProgram, inputs: Tensor | None, shapes: Sequence[tuple[int, ...] | None] | None = None
) -> tuple[object, ...]:
    """Random normal numbers for every float input, of the example's sizes or of `shapes` (one for each leaf)."""
    generator = torch.Generator().manual_seed(0)
    leaves, tree = tree_flatten(example_inputs(program))
    drawn: list[object] = []
    for leaf, free, shape in zip(leaves, free_dims(program), shapes or [None] * len(leaves), strict=True):
        if not isinstance(leaf, Tensor):
            drawn.append(leaf)
            continue
        sizes = list(shape or leaf.shape)
        if 0 in free:
            sizes[0] = _BATCH
        if leaf.is_floating_point():
            drawn.append(torch.randn(sizes, generator=generator, dtype=leaf.dtype))
        else:
            drawn.append(torch.zeros(sizes, dtype=leaf.dtype))
    if inputs is not None and isinstance(drawn[0], Tensor):
        drawn[0] = inputs.to(drawn[0].dtype)
    args: tuple[object, ...] = tree_unflatten(drawn, tree)
    return args
