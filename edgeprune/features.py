"""Input features of a slim program: which ones it gathers inside, and the program that takes only those.

A slim program in the *full* contract takes the unchanged input and picks the kept features with an `index_select`
whose index is the buffer `edgeprune_keep_<input>`. Between the input and that node stand only data movement
(flatten, permute, ...) and pointwise operators with plain numbers. Both are undone here by running the graph's own
operators on the numbers of the features, so that a permuted or sliced input needs no case of its own.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from edgeprune.errors import InputError
from edgeprune.graph.capture import Program, reexport, size_hint
from edgeprune.graph.names import GATHER
from edgeprune.graph.sizes import free_dims
from edgeprune.records import InputFeatures

_BATCH = 2
_aten = torch.ops.aten

# Operators that only rearrange elements of their first argument.
_MOVES = frozenset(
    {
        _aten.view.default,
        _aten._unsafe_view.default,
        _aten.reshape.default,
        _aten.flatten.using_ints,
        _aten.unflatten.int,
        _aten.squeeze.default,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.unsqueeze.default,
        _aten.permute.default,
        _aten.transpose.int,
        _aten.movedim.int,
        _aten.movedim.intlist,
        _aten.slice.Tensor,
        _aten.select.int,
        _aten.narrow.default,
        _aten.flip.default,
        _aten.roll.default,
        _aten.split.Tensor,
        _aten.split_with_sizes.default,
        _aten.chunk.default,
        _aten.unbind.int,
        operator.getitem,
    }
)
# Elementwise operators that carry no pointwise tag of their own.
_COPIES = frozenset(
    {
        _aten.clone.default,
        _aten.contiguous.default,
        _aten.alias.default,
        _aten.detach.default,
        _aten.to.dtype,
        _aten.to.dtype_layout,
        _aten.to.device,
        _aten._to_copy.default,
        _aten.dropout.default,
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class _Gather:
    """One gather: the nodes from the input to it, and the numbers of the features it puts out, `(...)` per sample."""

    node: fx.Node
    chain: tuple[fx.Node, ...]
    labels: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Gathered:
    """One input whose every use is a gather; `shape` is without the batch."""

    placeholder: fx.Node
    shape: tuple[int, ...]
    gathers: tuple[_Gather, ...]
    features: InputFeatures


def gathered(program: ExportedProgram) -> InputFeatures | None:
    """The features that a program gathers from its input, or None.

    None also where several inputs are gathered (see `gathered_inputs`), or where the input is used beside the gather.
    `dim` is 1 for columns `(batch, n)` and for whole channels `(batch, n, ...)`, None for the flattened input.
    """
    found = gathered_inputs(program)
    return next(iter(found.values())) if len(found) == 1 else None


def gathered_inputs(program: ExportedProgram) -> dict[str, InputFeatures]:
    """The gathered features of every input that has them, by input name."""
    return {name: found.features for name, found in _find(_module(program)).items()}


def slim_contract(program: ExportedProgram) -> Program:
    """The program that takes only the kept features, ascending: `(batch, k)`, or `(batch, k, ...)` for channels.

    Raises:
        InputError: the program gathers no input features.
    """
    module = _module(program)
    found = _find(module)
    if not found:
        raise InputError("slim contract: the program gathers no input features: expected a compressed program")
    args = dict(_example_args(program))
    for name, one in found.items():
        args[name] = torch.zeros((_BATCH, *_slim_shape(one)), dtype=one.placeholder.meta["val"].dtype)
        for gather in one.gathers:
            _take_kept_only(module, one, gather)
    module.graph.eliminate_dead_code()
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in module.named_buffers() if name.startswith(GATHER) and name not in used]:
        delattr(module, name)
    module.recompile()
    asked = zip(free_dims(program), args.values(), strict=True)
    free = [frozenset(d for d in dims if d < arg.dim()) for dims, arg in asked]  # a flattened input has lost some
    return reexport(module, tuple(args.values()), free)


def _module(program: ExportedProgram) -> fx.GraphModule:
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    for node in module.graph.nodes:
        # The target is the input's own name; the node's is another where that name is Python's, e.g. `input`.
        if node.op == "placeholder":
            node.meta.setdefault("val", values.get(str(node.target)))
    return module


def _example_args(program: ExportedProgram) -> list[tuple[str, Any]]:
    """Name and example value of every argument, in order."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    args: list[tuple[str, Any]] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is not InputKind.USER_INPUT:
            continue
        if isinstance(spec.arg, ConstantArgument):
            args.append((spec.arg.name, spec.arg.value))
            continue
        value = values[spec.arg.name]
        args.append((spec.arg.name, torch.zeros([size_hint(size) for size in value.shape], dtype=value.dtype)))
    return args


# --- read


def _find(module: fx.GraphModule) -> dict[str, _Gathered]:
    found = {}
    for node in module.graph.nodes:
        if node.op != "placeholder" or not isinstance(node.meta.get("val"), Tensor) or node.meta["val"].dim() < 2:
            continue
        one = _read(module, node)
        if one is not None:
            found[str(node.target)] = one
    return found


def _read(module: fx.GraphModule, placeholder: fx.Node) -> _Gathered | None:
    """How one input is gathered, or None where a use of it does not end in a gather or mixes samples."""
    shape = tuple(placeholder.meta["val"].shape[1:])
    if not all(isinstance(size, int) for size in shape):
        return None
    chains = _chains(placeholder)
    if not chains:
        return None
    n_elements = int(torch.Size(shape).numel())
    labels = torch.arange(_BATCH * n_elements).view(_BATCH, *shape)
    gathers = []
    for chain in chains:
        out = _run_labels(module, chain, labels)
        if out is None or not _samples_apart(out, n_elements):
            return None
        gathers.append(_Gather(chain[-1], chain[1:-1], out[0]))
    features = _features(shape, tuple(gathers))
    return _Gathered(placeholder, shape, tuple(gathers), features)


def _chains(placeholder: fx.Node) -> list[tuple[fx.Node, ...]]:
    """Every path from the input to a gather, both ends included; empty where a path ends in anything else."""
    chains: list[tuple[fx.Node, ...]] = []
    open_paths: list[tuple[fx.Node, ...]] = [(placeholder,)]
    while open_paths:
        path = open_paths.pop()
        for user in path[-1].users:
            if _is_batch_size(user) or _is_assertion(user):
                continue
            if _is_gather(user, path):
                chains.append((*path, user))
            elif _is_move(user, path[-1]) or _is_pointwise(user, path[-1]):
                open_paths.append((*path, user))
            else:
                return []
    return chains


def _is_batch_size(node: fx.Node) -> bool:
    return node.target is _aten.sym_size.int and bool(node.args[1] == 0)


def _is_assertion(node: fx.Node) -> bool:
    """What the exporter puts before a conversion: it checks the type and gives nothing."""
    return node.target is _aten._assert_tensor_metadata.default


def _is_gather(node: fx.Node, path: tuple[fx.Node, ...]) -> bool:
    """Whether the node gathers, from the end of the path, the kept features of the input it starts at."""
    if node.target is not _aten.index_select.default or node.args[0] is not path[-1]:
        return False
    index = node.args[2]
    if not isinstance(index, fx.Node) or index.op != "get_attr":
        return False
    # A second gather of the same input has a number behind its name.
    return re.fullmatch(re.escape(GATHER + str(path[0].target)) + r"_?\d*", str(index.target)) is not None


def _is_move(node: fx.Node, source: fx.Node) -> bool:
    """Whether the node rearranges `source`; its other arguments may be sizes, not tensors."""
    return node.target in _MOVES and node.args[0] is source and node.args.count(source) == 1


def _is_pointwise(node: fx.Node, source: fx.Node) -> bool:
    """Whether the node is elementwise in `source` alone, with plain numbers beside it."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if node.all_input_nodes != [source] or node.target._schema.is_mutable:
        return False
    return node.target in _COPIES or torch.Tag.pointwise in node.target.tags


def _run_labels(module: fx.GraphModule, path: tuple[fx.Node, ...], labels: Tensor) -> Tensor | None:
    """The labels after the operators of the path; pointwise ones leave them. None where they give no tensor."""
    values: dict[fx.Node, Any] = {path[0]: labels}

    def value(node: fx.Node) -> Any:
        if node in values:
            return values[node]
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(module)
        if node.op == "placeholder":
            return torch.zeros([size if isinstance(size, int) else _BATCH for size in node.meta["val"].shape])
        assert callable(node.target)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        return node.target(*args, **kwargs)

    for source, node in zip(path[:-1], path[1:], strict=True):
        values[node] = values[source] if _is_pointwise(node, source) else value(node)
    out = values[path[-1]]
    return out if isinstance(out, Tensor) else None


def _samples_apart(labels: Tensor, n_elements: int) -> bool:
    """Whether dim 0 is still the batch, and every sample gathers the same features."""
    if labels.dim() < 2 or labels.shape[0] != _BATCH:
        return False
    first = labels[0]
    return bool((first < n_elements).all()) and torch.equal(labels[1], first + n_elements)


def _features(shape: tuple[int, ...], gathers: tuple[_Gather, ...]) -> InputFeatures:
    kept = torch.cat([gather.labels.flatten() for gather in gathers]).unique()
    per_channel = int(torch.Size(shape[1:]).numel())
    n_elements = shape[0] * per_channel
    channels = (kept // per_channel).unique()
    if len(shape) == 1 or all(_takes_channels(gather, shape) for gather in gathers):
        return InputFeatures(shape[0], tuple(channels.tolist()), 1)
    return InputFeatures(n_elements, tuple(kept.tolist()), None)


def _takes_channels(gather: _Gather, shape: tuple[int, ...]) -> bool:
    """Whether whole channels are gathered straight from the input, nothing moved before."""
    along_channels = gather.node.args[1] in (1, -len(shape))
    return along_channels and not any(node.target in _MOVES for node in gather.chain)


# --- rewrite


def _slim_shape(one: _Gathered) -> tuple[int, ...]:
    """Shape without the batch of the input that holds only the kept features."""
    n_kept = len(one.features.keep)
    return (n_kept, *one.shape[1:]) if one.features.dim == 1 else (n_kept,)


def _take_kept_only(module: fx.GraphModule, one: _Gathered, gather: _Gather) -> None:
    """Feed what the gather fed from the kept features alone: reorder, then the pointwise operators of its chain."""
    graph = module.graph
    with graph.inserting_before(gather.node):
        value = _reordered(module, one, gather)
        for node in gather.chain:
            if node.target not in _MOVES:
                # graph.node_copy maps every node that the copied one reads; a pointwise one reads its source alone.
                value = graph.node_copy(node, partial(_instead, value))
    for node in (one.placeholder, *gather.chain):
        for user in list(node.users):
            if _is_batch_size(user):
                user.update_arg(0, one.placeholder)
            elif _is_assertion(user):
                graph.erase_node(user)
    gather.node.replace_all_uses_with(value)
    graph.erase_node(gather.node)


def _instead(value: fx.Node, _: fx.Node) -> fx.Node:
    return value


def _reordered(module: fx.GraphModule, one: _Gathered, gather: _Gather) -> fx.Node:
    """The slim input, its features in the order and the shape that the gather gave; the input itself where it fits."""
    graph = module.graph
    value = one.placeholder
    order = _positions(one, gather)
    if not torch.equal(order, torch.arange(len(one.features.keep))):
        value = graph.call_function(_aten.index_select.default, (value, 1, _constant(module, order)))
    if one.features.dim is None and gather.labels.dim() > 1:
        value = graph.call_function(_aten.reshape.default, (value, [-1, *gather.labels.shape]))
    return value


def _positions(one: _Gathered, gather: _Gather) -> Tensor:
    """For everything that the gather gives, its position along dim 1 of the slim input."""
    labels = gather.labels.flatten()
    if one.features.dim == 1:
        width = int(torch.Size(one.shape[1:]).numel())
        labels = labels[::width] // width
    return torch.searchsorted(torch.tensor(one.features.keep), labels)


def _constant(module: fx.GraphModule, index: Tensor) -> fx.Node:
    """A new buffer of the module, read where the graph is being edited."""
    number = 0
    while hasattr(module, f"edgeprune_order_{number}"):
        number += 1
    module.register_buffer(f"edgeprune_order_{number}", index)
    return module.graph.get_attr(f"edgeprune_order_{number}")
