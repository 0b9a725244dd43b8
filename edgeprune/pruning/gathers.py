"""Where a program gathers its inputs: the operators from an input to each gather, run on the numbers of the features.

Between an input and a gather stand only operators that move elements (flatten, permute, pad, ...) and pointwise ones
with numbers, parameters and constants. What they do to the features is found by running the graph's own operators, so
that a permuted or sliced input needs no case of its own.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from edgeprune.graph.inputs import feature_places
from edgeprune.graph.names import GATHER
from edgeprune.graph.ops.registry import Kind, kind_of
from edgeprune.graph.sizes import size_hint
from edgeprune.records import InputFeatures

BATCH = 2
_aten = torch.ops.aten
_PADS: dict[Any, int] = {_aten.pad.default: 3, _aten.constant_pad_nd.default: 2}  # -> position of what is added
_MAPS = (Kind.POINTWISE, Kind.COPY)  # what works on each element by itself


@dataclass(frozen=True, slots=True, eq=False)
class Gather:
    """One way from an input to what reads it: over `chain` to the gather `node`, or to readers without a gather.

    `labels` are the numbers of the features that come out, `(...)` per sample; the batch is at `batch_dim` beside
    them. Numbers below 0 stand for elements that a padding adds: -1 for the first padding of the chain, and so on.
    """

    node: fx.Node | None
    chain: tuple[fx.Node, ...]
    labels: Tensor
    batch_dim: int

    @property
    def dim(self) -> int | None:
        """The dim that is gathered along, the batch counted."""
        return None if self.node is None else int(self.node.args[1]) % (self.labels.dim() + 1)  # type: ignore[arg-type]

    def lines(self, labels: Tensor) -> Tensor:
        """What labels of this rank hold at each index of the gather's dim, `(n_indices, ...)`; without a gather all."""
        if self.dim is None:
            return labels.reshape(1, -1)
        return (
            labels.movedim(self.dim - (self.dim > self.batch_dim), 0).unsqueeze(-1).flatten(1)
        )  # of no index: (0, ...)


@dataclass(frozen=True, slots=True, eq=False)
class Gathered:
    """One input of which not all is read; `shape` is without the batch."""

    placeholder: fx.Node
    shape: tuple[int, ...]
    gathers: tuple[Gather, ...]
    features: InputFeatures


def find_gathers(module: fx.GraphModule) -> dict[str, Gathered]:
    """Every input that is gathered, and of which not all is read elsewhere, by its name.

    Placeholders hold their value in their meta.
    """
    found = {}
    for node in module.graph.nodes:
        if node.op != "placeholder" or not isinstance(node.meta.get("val"), Tensor) or node.meta["val"].dim() < 2:
            continue
        one = _read(module, node)
        if one is not None:
            found[str(node.target)] = one
    return found


def _read(module: fx.GraphModule, placeholder: fx.Node) -> Gathered | None:
    """How one input is gathered, or None where it is not, where all of it is read, or where samples are mixed."""
    sizes = placeholder.meta["val"].shape[1:]
    shape = tuple(size_hint(size) for size in sizes)
    n_elements = int(torch.Size(shape).numel())
    labels = torch.arange(BATCH * n_elements).view(BATCH, *shape)
    gathers = []
    for chain, node in _ends(placeholder):
        out = moved(module, (placeholder, *chain, *([node] if node is not None else [])), labels)
        batch_dim = None if out is None else _batch_dim(out, n_elements)
        if out is None or batch_dim is None:
            return None
        gathers.append(Gather(node, chain, out.select(batch_dim, 0), batch_dim))
    if all(gather.node is None for gather in gathers):
        return None
    features = _features(shape, gathers)
    if len(features.keep) == features.size or not _keeps_sizes(placeholder, sizes, features):
        return None
    return Gathered(placeholder, shape, tuple(gathers), features)


def _keeps_sizes(placeholder: fx.Node, sizes: Sequence[Any], features: InputFeatures) -> bool:
    """Whether what holds the kept features alone has the sizes that are free or asked for; a flat one has none."""
    lost = range(1, len(sizes) + 1) if features.dim is None else (features.dim,)
    asked = {user.args[1] for user in placeholder.users if _is_other_size(user)}
    return all(isinstance(sizes[dim - 1], int) for dim in lost) and asked.isdisjoint(lost)


# -- from the input to its gathers ------------------------------------------------------------------------------------


def _ends(placeholder: fx.Node) -> list[tuple[tuple[fx.Node, ...], fx.Node | None]]:
    """Every way from the input to a gather, or None for a value that is read otherwise: the nodes between, and it."""
    found: list[tuple[tuple[fx.Node, ...], fx.Node | None]] = []
    open_paths: list[tuple[fx.Node, ...]] = [(placeholder,)]
    while open_paths:
        path = open_paths.pop()
        for user in path[-1].users:
            if is_assertion(user):
                continue
            if _is_gather(user, path):
                found.append((path[1:], user))
            elif is_move(user, path[-1]) or is_pointwise(user, path[-1]):
                open_paths.append((*path, user))
        if readers(path[-1]):
            found.append((path[1:], None))
    return found


def readers(node: fx.Node) -> list[fx.Node]:
    """What reads a value of a chain otherwise than to move it, to map it or to gather from it."""
    followed: list[Callable[[fx.Node], bool]] = [is_batch_size, is_assertion]
    followed.append(lambda user: is_move(user, node) or is_pointwise(user, node))
    if node.op == "placeholder":
        followed.append(_is_other_size)
    return [user for user in node.users if not any(is_followed(user) for is_followed in followed)]


def is_batch_size(node: fx.Node) -> bool:
    """Whether the node asks for the size of the batch."""
    return node.target is _aten.sym_size.int and bool(node.args[1] == 0)


def _is_other_size(node: fx.Node) -> bool:
    """Whether the node asks for the height, say, which channels that are taken out leave as it is."""
    return node.target is _aten.sym_size.int and isinstance(node.args[1], int) and node.args[1] > 0


def is_assertion(node: fx.Node) -> bool:
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


def is_move(node: fx.Node, source: fx.Node) -> bool:
    """Whether the node rearranges `source`; its other arguments may be sizes and constants."""
    if node.op != "call_function" or node.args[:1] != (source,) or node.args.count(source) != 1:
        return False
    if node.target is operator.getitem:
        return True
    return kind_of(node.target) is Kind.MOVE


def is_pointwise(node: fx.Node, source: fx.Node) -> bool:
    """Whether the node is elementwise in `source` alone, with numbers, parameters and constants beside it."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    if node.target._schema.is_mutable or not all(n is source or _is_static(n) for n in node.all_input_nodes):
        return False
    return kind_of(node.target) in _MAPS


def _is_static(node: fx.Node) -> bool:
    """Whether the node depends on no input."""
    return node.op == "get_attr" or (node.op == "call_function" and all(map(_is_static, node.all_input_nodes)))


def pads(chain: tuple[fx.Node, ...]) -> list[tuple[fx.Node, float]]:
    """The nodes of a chain that add a number around what comes in, and the number."""
    found = []
    for node in chain:
        if _adds_number(node):
            given = dict(enumerate(node.args)).get(_PADS[node.target], node.kwargs.get("value"))
            found.append((node, float(given or 0)))  # type: ignore[arg-type]
    return found


def _adds_number(node: fx.Node) -> bool:
    if node.target is not _aten.pad.default:
        return node.target is _aten.constant_pad_nd.default
    return dict(enumerate(node.args)).get(2, node.kwargs.get("mode", "constant")) == "constant"


def _with_number(node: fx.Node, number: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a padding that adds this number."""
    position = _PADS[node.target]
    if position < len(node.args):
        return (*node.args[:position], number, *node.args[position + 1 :]), node.kwargs
    return node.args, {**node.kwargs, "value": number}


# -- running it -------------------------------------------------------------------------------------------------------


def evaluate(module: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    """The value of a node that depends on no input but for its batch, or on the nodes whose values are known."""
    if node in known:
        return known[node]
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(module)
    if node.op == "placeholder":
        batch, *sizes = node.meta["val"].shape
        return torch.zeros([batch if isinstance(batch, int) else BATCH, *map(size_hint, sizes)])
    return _called(module, node, node.args, node.kwargs, known)


def _called(module: fx.GraphModule, node: fx.Node, args: Any, kwargs: Any, known: dict[fx.Node, Any]) -> Any:
    assert callable(node.target)
    with torch.no_grad():
        args, kwargs = fx.node.map_arg((args, kwargs), lambda other: evaluate(module, other, known))
        return node.target(*args, **kwargs)


def moved(module: fx.GraphModule, path: tuple[fx.Node, ...], labels: Tensor, checked: bool = True) -> Tensor | None:
    """`labels` in place of the path's first node, after its operators; pointwise ones leave them.

    None where they give no tensor; where `checked`, also if something that is combined with them is larger than they
    are.
    """
    added = {node: -1 - number for number, (node, _) in enumerate(pads(path))}
    known: dict[fx.Node, Any] = {path[0]: labels}
    for source, node in zip(path[:-1], path[1:], strict=True):
        if is_pointwise(node, source):
            known[node] = known[source]
            if checked and not _fits(module, node, source, known):
                return None
        elif node in added:
            known[node] = _called(module, node, *_with_number(node, added[node]), known)
        elif node.target in _PADS:  # these modes take no whole numbers
            known[node] = _called(module, node, node.args, node.kwargs, {**known, source: known[source].double()})
            known[node] = known[node].to(labels.dtype)
        else:
            known[node] = _called(module, node, node.args, node.kwargs, known)
    out = known[path[-1]]
    return out if isinstance(out, Tensor) else None


def _fits(module: fx.GraphModule, node: fx.Node, source: fx.Node, known: dict[fx.Node, Any]) -> bool:
    """Whether what is combined with a value does not widen it, and is the same for all samples."""
    shape = known[source].shape
    others = [evaluate(module, n, {}) for n in node.all_input_nodes if n is not source]
    sizes = [other.shape for other in others if isinstance(other, Tensor)]
    return all(
        len(size) <= len(shape)
        and all(n in (1, m) for n, m in zip(size[::-1], shape[::-1], strict=False))
        and (len(size) < len(shape) or size[0] == 1)
        for size in sizes
    )


def _batch_dim(labels: Tensor, n_elements: int) -> int | None:
    """Where the batch is, if every sample holds the same features."""
    for dim, size in enumerate(labels.shape):
        if size == BATCH and labels.dim() > 1:
            first, second = labels.unbind(dim)
            if bool((first < n_elements).all()) and torch.equal(second, first + n_elements * (first >= 0)):
                return dim
    return None


# -- how features are counted -----------------------------------------------------------------------------------------


def _features(shape: tuple[int, ...], gathers: list[Gather]) -> InputFeatures:
    """Along the first dim of which whole slices (channels, sensors) are gathered, else over the flattened input."""
    n_elements = int(torch.Size(shape).numel())
    kept = torch.cat([gather.labels.flatten() for gather in gathers]).unique()
    kept = kept[kept >= 0]
    for dim, size in enumerate(shape, 1):
        slice_of = torch.empty(n_elements, dtype=torch.long)
        slice_of[torch.from_numpy(feature_places(shape, dim))] = torch.arange(size)[:, None]
        slices = slice_of[kept].unique()
        if len(shape) == 1 or _are_whole(gathers, slice_of, n_elements // size, len(slices)):
            return InputFeatures(size, tuple(slices.tolist()), dim)
    return InputFeatures(n_elements, tuple(kept.tolist()), None)


def _are_whole(gathers: list[Gather], slice_of: Tensor, n_in_slice: int, n_slices: int) -> bool:
    """Whether every index of every gather holds elements of one slice alone, and each slice is whole somewhere.

    `slice_of` `(n_elements,)` is the slice of each element of the flattened input, `n_slices` are those with any kept.
    """
    whole: set[int] = set()
    for gather in gathers:
        lines = gather.lines(gather.labels).sort(1).values
        slices = torch.where(lines >= 0, slice_of[lines.clamp(min=0)], -1)
        last = slices[:, -1:]  # of an index that holds any: what a padding adds is below 0
        if bool(((slices != last) & (slices >= 0)).any()):
            return False
        first_of_each = torch.nn.functional.pad(lines.diff(dim=1) != 0, (1, 0), value=True) & (lines >= 0)
        whole.update(last[first_of_each.sum(1) == n_in_slice, 0].tolist())
    return len(whole) == n_slices
