"""Linear maps, convolutions and matrix products: one einsum each."""

from __future__ import annotations

import numpy as np

from edgeprune.graph import reasons
from edgeprune.graph.call import Call
from edgeprune.graph.einsum import Operand, contract, unify
from edgeprune.graph.labels import Layer, Value, not_zero, pack
from edgeprune.graph.ops.registry import Kind, operator
from edgeprune.graph.rules import Labelling, Rewriting


def reshaped(value: Value, shape: tuple[int, ...]) -> Value:
    """The same elements in another shape, labels too."""
    return Value(shape, tuple(pack(layer.labels.reshape(shape), layer.zero) for layer in value.layers))


def add_bias(analysis: Labelling, result: Value, bias: Value | None, dim: int) -> Value:
    """Unite a bias vector with the result's `dim`; removed units still read zero only where the bias does too.

    Units along another dim alone read the whole bias where they are removed.
    """
    if bias is None:
        return result
    letters = tuple(f"d{d}" for d in range(len(result.shape)))
    bias_letter = letters[dim]
    operands = [Operand(result, letters), Operand(bias, (bias_letter,))]
    unify(analysis, operands)
    layers = []
    for layer in result.layers:
        over = operands[0].over(layer)
        bias_zero = any(twin.zero for twin in bias.layers) if over == (bias_letter,) else bias_letter in over
        layers.append(Layer(layer.labels, layer.zero and bias_zero))
    return Value(result.shape, tuple(layers))


@operator("linear", kind=Kind.LINEAR)
def linear(analysis: Labelling, call: Call) -> Value:
    """`y[..., o] = sum_i x[..., i] w[o, i] + b[o]`."""
    x, weight = call["input"], call["weight"]
    free = tuple(f"x{d}" for d in range(len(x.shape) - 1))
    out = free + ("o",) if len(weight.shape) == 2 else free
    weight_letters = ("o", "i") if len(weight.shape) == 2 else ("i",)
    result = contract(analysis, [Operand(x, free + ("i",)), Operand(weight, weight_letters)], out, call.shape)
    return add_bias(analysis, result, call.get("bias"), -1) if len(weight.shape) == 2 else result


@operator("matmul", "bmm", "mm", "mv", "dot", "vdot", kind=Kind.PRODUCT)
def matmul(analysis: Labelling, call: Call) -> Value:
    """`y[..., n, m] = sum_k a[..., n, k] b[..., k, m]`, leading dims broadcast, vectors as in torch.matmul."""
    return _product(analysis, call.values[0], call.values[1], call.shape)


def _product(analysis: Labelling, a: Value, b: Value, shape: tuple[int, ...]) -> Value:
    rank = max(len(a.shape), len(b.shape)) - 2
    lead_a = tuple(f"b{rank - (len(a.shape) - 2) + d}" for d in range(max(len(a.shape) - 2, 0)))
    lead_b = tuple(f"b{rank - (len(b.shape) - 2) + d}" for d in range(max(len(b.shape) - 2, 0)))
    tail_a = ("n", "k") if len(a.shape) > 1 else ("k",)
    tail_b = ("k", "m") if len(b.shape) > 1 else ("k",)
    lead = lead_a if len(lead_a) >= len(lead_b) else lead_b
    out = lead + tail_a[:-1] + tail_b[1:]
    return contract(analysis, [Operand(a, lead_a + tail_a), Operand(b, lead_b + tail_b)], out, shape)


@operator("addmm", "baddbmm", "addmv", kind=Kind.PRODUCT)
def addmm(analysis: Labelling, call: Call) -> Value:
    """A matrix product plus a broadcast summand."""
    first, a, b = call.values
    product = _product(analysis, a, b, call.shape)
    rank = len(call.shape)
    letters = tuple(f"d{d}" for d in range(rank))
    summand = Operand(first, letters[rank - len(first.shape) :])
    unify(analysis, [Operand(product, letters), summand])
    layers = []
    for layer in product.layers:
        over = tuple(letters[d] for d in layer.dims)
        covered = any(twin.zero for twin in first.layers if summand.over(twin) == over)
        layers.append(Layer(layer.labels, layer.zero and covered))
    return Value(call.shape, tuple(layers))


def _rewrite_groups(edit: Rewriting, call: Call) -> None:
    """As many groups as are left: each takes the input channels that its part of the weight has.

    Where the batch is folded into the groups their number is symbolic, and is scaled.
    """
    groups = call.get("groups", 1)
    if groups == 1:
        return
    channels = edit.kept_size(call["input"], len(call["input"].shape) - 1 - _spatial(call))
    if is_transposed(call):
        kept = edit.kept(call["weight"], 0) // (call["weight"].shape[0] // groups)
        left = len(np.unique(kept))
    else:
        left = channels // edit.kept_size(call["weight"], 1)
    edit.set(call, "groups", edit.scaled(edit.raw(call, "groups"), groups, left))


def is_transposed(call: Call) -> bool:
    """Whether a convolution is, whose weight is `(in, out / groups, *kernel)`."""
    return call.name.startswith("conv_transpose") or bool(call.get("transposed", False))


def _spatial(call: Call) -> int:
    return len(call["weight"].shape) - 2


@operator(
    "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    kind=Kind.CONVOLUTION, rewrite=_rewrite_groups,
)  # fmt: skip
def convolution(analysis: Labelling, call: Call) -> Value:
    """`y[n, g, o, ...] = sum_{c, k} x[n, g, c, ...] w[g, o, c, k]`; positions that a kernel mixes stay whole.

    With groups there are two modes: whole groups go, or the same offset goes in every group: whichever has more units
    where no other call has a preference.
    """
    x, weight, groups, out = call["input"], call["weight"], call.get("groups", 1), call.shape
    spatial = _spatial(call)
    lead = ("n",) if len(x.shape) == spatial + 2 else ()
    channel = len(lead)
    here, kernel = [f"x{d}" for d in range(spatial)], [f"k{d}" for d in range(spatial)]
    there = [here[d] if _keeps_position(call, d) else f"y{d}" for d in range(spatial)]
    mixed = [letter for letter in here if letter not in there]
    channels = ("c", "o") if is_transposed(call) else ("o", "c")
    w = Operand(_grouped(weight, 0, groups), ("g", *channels, *kernel))
    operands = [Operand(_grouped(x, channel, groups), (*lead, "g", "c", *here)), w]
    if groups > 1:
        _choose_groups(analysis, call, operands)
    per_group = w.value.shape[w.letters.index("o")]
    grouped_shape = (*out[:channel], groups, per_group, *out[channel + 1 :])
    result = contract(analysis, operands, (*lead, "g", "o", *there), grouped_shape, fixed=(*mixed, *kernel))
    return add_bias(analysis, reshaped(result, out), call.get("bias"), channel)


def _grouped(value: Value, dim: int, groups: int) -> Value:
    """`(..., channels, ...)` as `(..., groups, channels / groups, ...)`."""
    shape = value.shape
    return reshaped(value, (*shape[:dim], groups, shape[dim] // groups, *shape[dim + 1 :]))


def _choose_groups(analysis: Labelling, call: Call, operands: list[Operand]) -> None:
    """Heads of an attention may lie across the groups of channels: which of them go is left to other calls."""
    layers = [(layer, operand.over(layer)) for operand in operands for layer in operand.value.layers]
    analysis.choose_later([layer for layer, over in layers if set(over) == {"g", "c"}])
    if is_transposed(call) and any(over == ("g",) for _, over in layers):
        operands[1].fix(analysis, "o", reasons.TWO_PATTERNS)  # whole groups go: these are shared by all of them


def _keeps_position(call: Call, d: int) -> bool:
    """Whether the result at each position of spatial dim `d` comes from the same position alone."""
    weight, stride = call["weight"], call.get("stride", 1)
    step = stride if isinstance(stride, int) else stride[d % len(stride)]
    from_end = d - _spatial(call)
    return weight.shape[2 + d] == 1 and step == 1 and call.shape[from_end] == call["input"].shape[from_end]


def _rewrite_attention(edit: Rewriting, call: Call) -> None:
    """The scale of the original head size stays, whatever is cut from it."""
    if call.get("scale") is None:
        edit.set(call, "scale", call["query"].shape[-1] ** -0.5)


@operator("scaled_dot_product_attention", kind=Kind.ATTENTION, rewrite=_rewrite_attention)
def attention(analysis: Labelling, call: Call) -> Value:
    """`softmax(q k' / sqrt(d)) v`: channels of q and k are contracted, key positions stay whole."""
    q, k, v, mask = call["query"], call["key"], call["value"], call.get("attn_mask")
    lead = tuple(f"b{d}" for d in range(len(q.shape) - 2))
    shared, shape = lead, call.shape
    if call.get("enable_gqa", False):  # heads are (groups, queries of a group); a group shares its keys and values
        groups = k.shape[-3]
        lead, shared = (*lead[:-1], "g", "r"), (*lead[:-1], "g")
        q, shape = _in_groups(q, groups), _in_groups(Value(call.shape), groups).shape
        mask = mask if mask is None or len(mask.shape) < 3 or mask.shape[-3] == 1 else _in_groups(mask, groups)
    logits_shape = (*shape[:-1], k.shape[-2])
    operands = [Operand(q, (*lead, "t", "d")), Operand(k, (*shared, "s", "d"))]
    logits = contract(analysis, operands, (*lead, "t", "s"), logits_shape, fixed=("s",))
    if mask is not None:
        letters = (*lead, "t", "s")
        unify(analysis, [Operand(logits, letters), Operand(mask, letters[len(letters) - len(mask.shape) :])])
    operands = [Operand(not_zero(logits), (*lead, "t", "s")), Operand(v, (*shared, "s", "e"))]
    return reshaped(contract(analysis, operands, (*lead, "t", "e"), shape, fixed=("s",)), call.shape)


def _in_groups(value: Value, groups: int) -> Value:
    """`(..., heads, t, d)` as `(..., groups, heads / groups, t, d)`."""
    *lead, heads, t, d = value.shape
    return reshaped(value, (*lead, groups, heads // groups, t, d))
