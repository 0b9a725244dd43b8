"""Which attributes of a module say the sizes of its tensors, and what they are once the tensors are sliced.

Sizes come from the tensors' shapes wherever a shape tells them. Numbers of groups stand in the slim graph. Numbers of
heads follow from the width of what the heads give, where the size of a head is known: there are two readings then,
fewer heads or smaller ones, and a run of the module decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from edgeprune.graph import binding
from edgeprune.graph.renaming import own_name

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]  # shape before and after, by a tensor's name

# An attribute -> the tensors and the dim that say it; the first tensor that a module has counts.
_BY_DIM = {
    "out_features": (("weight", 0),),
    "in_features": (("weight", 1),),
    "in1_features": (("weight", 1),),
    "in2_features": (("weight", 2),),
    "num_features": (("weight", 0), ("running_mean", 0)),
    "num_channels": (("weight", 0),),
    "num_embeddings": (("weight", 0),),
    "embedding_dim": (("weight", 1),),
    "num_parameters": (("weight", 0),),
    "input_size": (("weight_ih_l0", 1), ("weight_ih", 1)),
    "proj_size": (("weight_hr_l0", 0),),
}
# A weight under its own name, or what PyTorch's weight norm and spectral norm make it from.
_PARAMETRIZED = "parametrizations.weight.original"
_WEIGHTS = ("weight", "weight_orig", "weight_v", _PARAMETRIZED, _PARAMETRIZED + "1")
_HEADS = ("num_heads", "n_heads", "heads", "nhead", "num_attention_heads", "n_head")
_KV_HEADS = ("num_kv_heads", "num_key_value_heads", "n_kv_heads")
_HEAD_DIMS = (
    "head_dim",
    "dim_head",
    "head_channels",
    "attention_head_size",
    "attn_head_size",
    "d_head",
    "dim_per_head",
)
_INNER = ("attn_dim", "attention_dim", "inner_dim", "all_head_dim", "all_head_size", "dim_attn", "dim_out_v")
_INCOMING = ("dim", "embed_dim", "in_dim", "dim_in", "input_dim", "in_features", "in_channels", "in_chs", "query_dim")
_OUTGOING = ("out_dim", "dim_out", "output_dim", "out_features", "out_channels", "out_chs", "num_features")
_SIZED = (nn.Linear, nn.modules.conv._ConvNd)


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What an attribute of a module is to be."""

    module: nn.Module
    name: str
    new: Any


def attribute_changes(model: nn.Module, shapes: Shapes, slim: fx.Graph) -> Iterator[tuple[Change, ...]]:
    """The attributes to change: one reading, or first that of fewer heads and then that of smaller ones.

    Args:
        model: before it is sliced.
        shapes: those of its tensors that the slim program has.
        slim: the slim program's graph, with the tensors as `get_attr`.
    """
    groups, parts = _group_counts(slim), _equal_parts(slim)
    readings = []
    for smaller in (False, True):
        changes: list[Change] = []
        for path, module in model.named_modules():
            found = _attributes(module, path, shapes, groups, smaller)
            found |= _of_parts(module, path, shapes, parts.get(path, set()))
            for name, new in found.items():
                if new != getattr(module, name):
                    changes.append(Change(module, name, new))
        readings.append(tuple(changes))
    yield readings[0]
    if [(c.module, c.name, c.new) for c in readings[0]] != [(c.module, c.name, c.new) for c in readings[1]]:
        yield readings[1]


def _attributes(
    module: nn.Module, path: str, shapes: Shapes, groups: Mapping[str, int], smaller_heads: bool
) -> dict[str, Any]:
    """The sizes that a module's attributes should say."""
    prefix = path + "." if path else ""
    if isinstance(module, nn.MultiheadAttention):
        return _multihead(module, prefix, shapes)
    stored = next((name for name in _WEIGHTS if prefix + name in shapes), "")
    own = _own_shapes(module, prefix, stored, shapes)
    found: dict[str, Any] = {}
    is_sliced = any(old != new for name, (old, new) in shapes.items() if name.startswith(prefix))
    if is_sliced and next(module.children(), None) is not None:
        found |= _of_block(module, prefix, shapes, smaller_heads)
    if any(old != new for old, new in own.values()):
        found |= _of_layer(module, own, groups.get(prefix + stored))
    return found


def _own_shapes(
    module: nn.Module, prefix: str, stored: str, shapes: Shapes
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """The shapes of a module's own tensors; of its weight under that name, whatever it is `stored` as."""
    own = {name: shapes[prefix + name] for name in (*module._parameters, *module._buffers) if prefix + name in shapes}
    return own | {"weight": shapes[prefix + stored]} if stored else own


# -- layers that own the tensors --------------------------------------------------------------------------------------


def _of_layer(
    module: nn.Module, own: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], groups: int | None
) -> dict[str, Any]:
    found: dict[str, Any] = dict(_by_dim(module, own))
    if isinstance(getattr(module, "hidden_size", None), int):
        found |= _hidden_size(module, own)
    if isinstance(module, nn.modules.conv._ConvNd) and "weight" in own:
        found |= _of_convolution(module, own["weight"][1], groups)
    if isinstance(getattr(module, "num_groups", None), int) and groups is not None:
        found["num_groups"] = groups
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, (tuple, list)) and "weight" in own and tuple(shape) == own["weight"][0]:
        found["normalized_shape"] = type(shape)(own["weight"][1])
    return found


def _by_dim(module: nn.Module, own: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> Iterator[tuple[str, int]]:
    """The attributes that one dim of a tensor says."""
    for attribute, places in _BY_DIM.items():
        sizes = (_resized(own, name, dim, getattr(module, attribute, None)) for name, dim in places)
        size = next((size for size in sizes if size is not None), None)
        if size is not None:
            yield attribute, size


def _resized(own: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], name: str, dim: int, value: Any) -> int | None:
    """The new size of a tensor's dim where `value` is its old one."""
    if name not in own or type(value) is not int:
        return None
    old, new = own[name]
    return new[dim] if dim < len(old) and old[dim] == value else None


def _hidden_size(module: nn.Module, own: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> dict[str, int]:
    """The rows of a recurrent weight are gates x hidden units."""
    hidden = module.hidden_size
    assert isinstance(hidden, int)
    for name in ("weight_hh_l0", "weight_hh"):
        if name in own and hidden and own[name][0][0] % hidden == 0:
            return {"hidden_size": own[name][1][0] // (own[name][0][0] // hidden)}
    return {}


def _of_convolution(module: nn.modules.conv._ConvNd, shape: tuple[int, ...], groups: int | None) -> dict[str, int]:
    """Weights are (out, in / groups, ...), of transposed ones (in, out / groups, ...)."""
    groups = module.groups if groups is None else groups
    sizes = shape[0], shape[1] * groups
    n_in, n_out = sizes if module.transposed else sizes[::-1]
    return {"in_channels": n_in, "out_channels": n_out, "groups": groups}


def _group_counts(graph: fx.Graph) -> dict[str, int]:
    """The groups of every convolution and group norm of a graph, by the name of its weight."""
    found: dict[str, int] = {}
    for node in graph.nodes:
        if node.op != "call_function" or not hasattr(node.target, "_schema"):
            continue
        values = binding.bind(node, lambda other: other).args
        count = next((name for name in ("groups", "num_groups") if name in values), None)
        if count is not None and "weight" in values:
            found |= {name: values[count] for name in _read_by(values["weight"])}
    return found


def _read_by(node: Any) -> set[str]:
    """The tensors that a weight is made from: itself, or what is standardised or reshaped to it."""
    seen: set[fx.Node] = set()
    waiting = [node] if isinstance(node, fx.Node) else []
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += node.all_input_nodes
    if any(node.op == "placeholder" for node in seen):
        return set()
    return {own_name(str(node.target)) for node in seen if node.op == "get_attr"}


# -- blocks whose layers own the tensors ------------------------------------------------------------------------------


def _multihead(module: nn.MultiheadAttention, prefix: str, shapes: Shapes) -> dict[str, int]:
    """PyTorch's module takes heads of embed_dim / num_heads channels each."""
    if f"{prefix}out_proj.weight" not in shapes:
        return {}
    n_inner = shapes[f"{prefix}out_proj.weight"][1][1]
    first = "in_proj_weight" if f"{prefix}in_proj_weight" in shapes else "q_proj_weight"
    n_embed = shapes[prefix + first][1][1]
    found = {"embed_dim": n_embed, "num_heads": n_inner // module.head_dim}
    if n_inner % module.head_dim:
        found = {"embed_dim": n_embed, "head_dim": n_inner // module.num_heads}
    for name, weight in (("kdim", "k_proj_weight"), ("vdim", "v_proj_weight")):
        found[name] = shapes[prefix + weight][1][1] if prefix + weight in shapes else n_embed
    return found


def _of_block(module: nn.Module, prefix: str, shapes: Shapes, smaller_heads: bool) -> dict[str, Any]:
    """Numbers of heads and widths that a block keeps beside its layers; those that stay unclear stay as they are."""
    layers = _layers(module, prefix, shapes)
    found = _of_heads(module, prefix, shapes, layers, smaller_heads)
    scopes = _scopes(prefix, shapes)
    for name, value in vars(module).items():
        if type(value) is int and name not in found and _is_width(name):
            size = _by_name(name, value, layers) or _by_scope(value, scopes)
            if size is not None:
                found[name] = size
    return found


def _scopes(prefix: str, shapes: Shapes) -> list[dict[int, set[int]]]:
    """What became of every size, in the block's own tensors, in those of its layers too, and in all below it."""
    scopes: list[dict[int, set[int]]] = [{}, {}, {}]
    for name, (old, new) in shapes.items():
        if name.startswith(prefix):
            depth = name[len(prefix) :].count(".")
            for before, after in zip(old, new, strict=True):
                for scope in scopes[min(depth, 2) :]:
                    scope.setdefault(before, set()).add(after)
    return scopes


def _by_scope(value: int, scopes: list[dict[int, set[int]]]) -> int | None:
    """What became of a size in the nearest scope that has it; None where it became several."""
    after = next((scope[value] for scope in scopes if value in scope), set())
    return next(iter(after)) if len(after) == 1 else None


def _layers(module: nn.Module, prefix: str, shapes: Shapes) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """((out, in) before, (out, in) after) of a block's linear layers and convolutions, in the order they were made."""
    found = []
    for name, layer in module.named_modules():
        weight = f"{prefix}{name}.weight"
        if name and isinstance(layer, _SIZED) and weight in shapes:
            old, new = shapes[weight]
            if len(old) > 1:
                found.append(((old[0], old[1]), (new[0], new[1])))
    return found


def _of_heads(
    module: nn.Module,
    prefix: str,
    shapes: Shapes,
    layers: list[tuple[tuple[int, int], tuple[int, int]]],
    smaller_heads: bool,
) -> dict[str, int]:
    """Fewer heads, or smaller ones."""
    name = next((name for name in _HEADS if type(getattr(module, name, None)) is int), None)
    if name is None:
        return {}
    heads: int = getattr(module, name)
    inner = _inner(heads, layers)
    if smaller_heads:
        return _smaller_heads(module, heads, inner)
    left = _left_of_heads(heads, prefix, shapes)
    if left is None and inner and inner[1] * heads % inner[0] == 0:
        left = inner[1] * heads // inner[0]
    return {} if left is None else {name: left, **_fewer_kv_heads(module, heads, left)}


def _smaller_heads(module: nn.Module, heads: int, inner: tuple[int, int] | None) -> dict[str, int]:
    """The size of each head, where the width of all of them became another."""
    if inner is None or inner[1] % heads:
        return {}
    return {name: inner[1] // heads for name in _HEAD_DIMS if getattr(module, name, None) == inner[0] // heads}


def _fewer_kv_heads(module: nn.Module, heads: int, left: int) -> dict[str, int]:
    """The heads of keys and values, which several heads of queries share."""
    counts = {name: getattr(module, name, None) for name in _KV_HEADS}
    return {
        name: left // (heads // count)
        for name, count in counts.items()
        if type(count) is int and heads % count == 0 and left % (heads // count) == 0
    }


def _left_of_heads(heads: int, prefix: str, shapes: Shapes) -> int | None:
    """What is left of a dim that counts heads in a tensor of the block itself, e.g. in a table of position biases."""
    own = [s for name, s in shapes.items() if name.startswith(prefix) and "." not in name[len(prefix) :]]
    left = {after for old, new in own for before, after in zip(old, new, strict=True) if before == heads}
    return left.pop() if len(left) == 1 else None


def _inner(heads: int, layers: list[tuple[tuple[int, int], tuple[int, int]]]) -> tuple[int, int] | None:
    """The width of all heads together, before and after: what the last layer takes."""
    for old, new in reversed(layers):
        if old[1] % heads == 0:
            return old[1], new[1]
    return None


def _equal_parts(graph: fx.Graph) -> dict[str, set[tuple[int, int]]]:
    """By the name of a module, (how many, how wide) the parts are that its forward splits a value into."""
    found: dict[str, set[tuple[int, int]]] = {}
    for node in graph.nodes:
        if node.target is torch.ops.aten.split_with_sizes.default:
            sizes: Any = node.args[1]
            stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
            if stack and len(set(sizes)) == 1:
                found.setdefault(stack[-1], set()).add((len(sizes), sizes[0]))
    return found


def _of_parts(module: nn.Module, path: str, shapes: Shapes, parts: set[tuple[int, int]]) -> dict[str, int]:
    """Numbers that say how wide the parts of a split are: what its layers give, shared out over the parts."""
    given = {(old[0], new[0]) for old, new in _layers(module, path + "." if path else "", shapes)}
    found: dict[str, int] = {}
    for name, value in vars(module).items() if parts else ():
        if type(value) is int:
            widths = {width for count, width in parts if (count * value, count * width) in given}
            if len(widths) == 1:
                found[name] = widths.pop()
    return found


def _is_width(name: str) -> bool:
    parts = name.lower().split("_")
    return any(part in _WIDTHS for part in parts) and name not in _HEAD_DIMS


_WIDTHS = {"dim", "dims", "channels", "chs", "features", "width", "planes", "filters", "hidden", "embed", "inner"}


def _by_name(name: str, value: int, layers: list[tuple[tuple[int, int], tuple[int, int]]]) -> int | None:
    """The size that an attribute's name stands for where its value fits several."""
    if name in _INCOMING:
        return next((new[1] for old, new in layers if old[1] == value), None)
    if name in _OUTGOING:
        return next((new[0] for old, new in reversed(layers) if old[0] == value), None)
    if name in _INNER:
        return next((new[1] for old, new in reversed(layers) if old[1] == value), None)
    return None
