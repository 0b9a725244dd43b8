"""Input features of a slim program: which ones it gathers inside, and the program that takes only those.

A slim program in the *full* contract takes the unchanged input and picks the kept features with an `index_select`
whose index is the buffer `edgeprune_keep_<input>`. What stands between the input and that node (see `gathers`) works
on the kept features alone in the *slim* contract.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from edgeprune.errors import InputError
from edgeprune.graph.capture import Program, reexport_narrowed
from edgeprune.graph.faults import public
from edgeprune.graph.given import check_untrained
from edgeprune.graph.inputs import feature_places, slim_shape
from edgeprune.graph.names import GATHER, NUMBERS, ORDER
from edgeprune.graph.sizes import size_hint
from edgeprune.graph.tokens import kept_vocabularies, numbered
from edgeprune.pruning.gathers import (
    BATCH,
    Gather,
    Gathered,
    evaluate,
    find_gathers,
    is_assertion,
    is_batch_size,
    is_pointwise,
    moved,
    pads,
    readers,
)
from edgeprune.records import InputFeatures

_aten = torch.ops.aten


def gathered(program: ExportedProgram) -> InputFeatures | None:
    """The features that a program gathers from its input, or None.

    None also where several inputs are gathered (see `gathered_inputs`), or where the input is used beside the gather.
    `dim` is 1 for columns `(batch, n)` and for whole channels `(batch, n, ...)`, 2 for whole sensors of `(batch, steps,
    n)`, None for the flattened input.
    """
    found = gathered_inputs(program)
    return next(iter(found.values())) if len(found) == 1 else None


def gathered_inputs(program: ExportedProgram) -> dict[str, InputFeatures]:
    """The gathered features of every input that has them, by input name."""
    return {name: found.features for name, found in find_gathers(_module(program)).items()}


def on_device(program: ExportedProgram) -> ExportedProgram:
    """What a device runs of a program: its slim contract where it gathers features or numbers ids anew, else itself."""
    added = {*program.state_dict, *program.constants}
    if not any(name.startswith((GATHER, NUMBERS)) for name in added):
        return program  # known at once, without a module of it
    return slim_contract(program) if kept_vocabularies(program) or gathered_inputs(program) else program


@public("slim_contract")
def slim_contract(program: ExportedProgram) -> Program:
    """The program that takes only the kept features, ascending: `(batch, k)`, or the input with `k` along their dim.

    Of a token input whose vocabulary was cut it takes the new ids, the positions of the old ones among those kept.

    Raises:
        InputError: the program gathers no input features and numbers no ids anew, or a module that its `.module()`
            gave has been trained since.
    """
    check_untrained(program)
    module = _module(program)
    found = find_gathers(module)
    args = dict(_example_args(program))
    is_numbered = [_take_new_ids(module, name) for name in args]
    if not found and not any(is_numbered):
        raise InputError("slim contract: the program gathers no input features: expected a compressed program")
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    sizes: dict[str, tuple[Any, ...]] = {}
    for name, one in found.items():
        n_rows = BATCH if len(args) == 1 else len(args[name])  # as many as of the others
        args[name] = torch.zeros(
            (n_rows, *slim_shape(one.shape, one.features)), dtype=one.placeholder.meta["val"].dtype
        )
        batch, *whole = values[name].shape
        sizes[name] = (batch, *slim_shape(whole, one.features))
        for gather in one.gathers:
            _take_kept_only(module, one, gather)
    _drop_unread(module)
    return reexport_narrowed(module, program, tuple(args.values()), sizes)


def _take_new_ids(module: fx.GraphModule, name: str) -> bool:
    """Let an input take the new ids, if the program numbers the old ones anew; whether it does."""
    one = numbered(module, name)
    if one is None:
        return False
    for user in list(one.node.users):
        user.replace_input_with(one.node, next(iter(one.node.args[1])))  # type: ignore[arg-type]
    module.graph.erase_node(one.node)
    return True


def _drop_unread(module: fx.GraphModule) -> None:
    """Take out what nothing reads any more, the indices of the gathers among it."""
    module.graph.eliminate_dead_code()
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in module.named_buffers() if name.startswith((GATHER, NUMBERS)) and name not in used]:
        delattr(module, name)
    module.recompile()


def _module(program: ExportedProgram) -> fx.GraphModule:
    module = Program.adopt(program).editable_module()
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


# -- rewrite ----------------------------------------------------------------------------------------------------------


def _take_kept_only(module: fx.GraphModule, one: Gathered, gather: Gather) -> None:
    """Feed what the gather fed from the kept features alone: move them, then the pointwise operators of its chain."""
    end = (one.placeholder, *gather.chain)[-1]
    others = readers(end)
    with module.graph.inserting_before(gather.node or end.next):
        value = _replayed(module, one, gather)
        is_replayed = value is not None
        value = _mapped(module, one, gather, _by_elements(module, one, gather) if value is None else value, is_replayed)
    for node in (one.placeholder, *gather.chain):
        for user in list(node.users):
            if is_batch_size(user):
                user.update_arg(0, one.placeholder)
            elif is_assertion(user):
                module.graph.erase_node(user)
    if gather.node is None:
        for user in others:
            user.replace_input_with(end, value)
    else:
        gather.node.replace_all_uses_with(value)
        module.graph.erase_node(gather.node)


def _replayed(module: fx.GraphModule, one: Gathered, gather: Gather) -> fx.Node | None:
    """The chain's own moves of the kept channels, put in order behind; None where that does not give what is gathered.

    A view with sizes that are written out, say, does not take fewer channels.
    """
    if one.features.dim is None:
        return None
    n_elements = int(torch.Size(one.shape).numel())
    labels = torch.arange(n_elements).view(1, *one.shape).expand(BATCH, *one.shape)
    kept = labels.index_select(one.features.dim, torch.tensor(one.features.keep))
    try:
        out = moved(module, (one.placeholder, *gather.chain), kept, checked=False)
    except RuntimeError:
        return None
    assert out is not None
    order = _order(out.select(gather.batch_dim, 0), gather) if out.dim() == gather.labels.dim() + 1 else None
    if order is None:
        return None
    value, source = one.placeholder, one.placeholder
    for node in gather.chain:
        if not is_pointwise(node, source):
            value = module.graph.node_copy(node, partial(_instead, {source: value}))
        source = node
    if gather.dim is not None and not torch.equal(order, torch.arange(out.shape[gather.dim])):
        index = _constant(module, order)
        value = module.graph.call_function(_aten.index_select.default, (value, gather.dim, index))
    return value


def _order(moved_labels: Tensor, gather: Gather) -> Tensor | None:
    """For each index along the gather's dim the one of `moved_labels` with the same elements, or None."""
    places = {line.numpy().tobytes(): place for place, line in enumerate(gather.lines(moved_labels))}
    found = [places.get(line.numpy().tobytes()) for line in gather.lines(gather.labels)]
    return None if None in found else torch.tensor(found)


def _by_elements(module: fx.GraphModule, one: Gathered, gather: Gather) -> fx.Node:
    """The kept elements one by one, in the order and the shape that the gather gave; the input itself where it fits."""
    graph, value = module.graph, one.placeholder
    if one.features.dim is not None and len(one.shape) > 1:
        value = graph.call_function(_aten.flatten.using_ints, (value, 1))
    order = _positions(one, gather)
    if not torch.equal(order, torch.arange(int(torch.Size(slim_shape(one.shape, one.features)).numel()))):
        value = graph.call_function(_aten.index_select.default, (value, 1, _constant(module, order)))
    if gather.labels.dim() > 1:
        value = graph.call_function(_aten.reshape.default, (value, [-1, *gather.labels.shape]))
    if gather.batch_dim:
        value = graph.call_function(_aten.movedim.int, (value, 0, gather.batch_dim))
    return value


def _positions(one: Gathered, gather: Gather) -> Tensor:
    """For everything that the gather gives, its position in the flattened slim input; the first for what is added."""
    labels = gather.labels.flatten().clamp(min=0)
    places = feature_places(one.shape, one.features.dim)[list(one.features.keep)]
    # Ascending, the kept elements lie as in the flattened slim input, whichever dim is narrower.
    kept = torch.from_numpy(np.sort(places, axis=None))
    return torch.searchsorted(kept, labels) * (gather.labels.flatten() >= 0)


def _mapped(module: fx.GraphModule, one: Gathered, gather: Gather, value: fx.Node, is_replayed: bool) -> fx.Node:
    """The pointwise operators of the chain on what is laid out as the gather gave it, and the numbers of paddings."""
    path = (one.placeholder, *gather.chain, *([gather.node] if gather.node is not None else []))
    added = {node: (-1 - k, number) for k, (node, number) in enumerate(pads(gather.chain))}
    is_mapped = not is_replayed  # a padding that is replayed before any map has its number already
    for position, node in enumerate(gather.chain, 1):
        source = path[position - 1]
        if is_pointwise(node, source):
            shape = _shape_at(module, one, path[:position])
            given = [n for n in node.all_input_nodes if n is not source]
            others = {n: _laid_out(module, path[position - 1 :], n, shape) for n in given}
            value = module.graph.node_copy(node, partial(_instead, {source: value, **others}))
            is_mapped = True
        elif node in added and is_mapped:
            label, number = added[node]
            mask = gather.labels.unsqueeze(gather.batch_dim) == label
            if bool(mask.any()):
                arguments = (value, _constant(module, _narrowed(mask)), number)
                value = module.graph.call_function(_aten.masked_fill.Scalar, arguments)
    return value


def _shape_at(module: fx.GraphModule, one: Gathered, path: tuple[fx.Node, ...]) -> torch.Size:
    """The shape at the end of a path from the input, with the batch."""
    at = moved(module, path, torch.zeros((BATCH, *one.shape)), checked=False)
    assert at is not None
    return at.shape


def _laid_out(module: fx.GraphModule, path: tuple[fx.Node, ...], other: fx.Node, shape: torch.Size) -> fx.Node:
    """What a value of `shape` at the start of `path` is combined with, laid out as the path's gather lays that out."""
    given = evaluate(module, other, {})
    if not isinstance(given, Tensor) or given.numel() == 1:
        return other
    laid_out = moved(module, path, given.detach().expand(shape), checked=False)
    assert laid_out is not None
    return _constant(module, _narrowed(laid_out))


def _narrowed(tensor: Tensor) -> Tensor:
    """The tensor with size 1 along every dim on which it does not vary."""
    for dim in range(tensor.dim()):
        first = tensor.narrow(dim, 0, 1)
        tensor = first if torch.equal(first.expand_as(tensor), tensor) else tensor
    return tensor.contiguous()


def _instead(values: dict[fx.Node, fx.Node], node: fx.Node) -> fx.Node:
    return values.get(node, node)


def _constant(module: fx.GraphModule, tensor: Tensor) -> fx.Node:
    """A new buffer of the module, read where the graph is being edited."""
    number = 0
    while hasattr(module, f"{ORDER}{number}"):
        number += 1
    module.register_buffer(f"{ORDER}{number}", tensor)
    return module.graph.get_attr(f"{ORDER}{number}")
