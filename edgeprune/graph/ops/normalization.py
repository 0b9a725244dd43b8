"""Normalisations: statistics for each channel pass labels; statistics over channels are renormalised by a cut."""

from __future__ import annotations

from edgeprune.graph import reasons
from edgeprune.graph.call import Call
from edgeprune.graph.einsum import Operand, unify
from edgeprune.graph.labels import Layer, Value
from edgeprune.graph.ops.contraction import reshaped
from edgeprune.graph.ops.registry import operator
from edgeprune.graph.rules import Labelling, Rewriting


@operator("batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")
def batch_norm(analysis: Labelling, call: Call) -> Value:
    """Each channel (dim 1) has its own statistics and affine parameters; what they are taken over is *renormalised*."""
    x = call["input"]
    letters = tuple(f"d{d}" for d in range(len(x.shape)))
    names = ("weight", "bias", "running_mean", "running_var")
    vectors = {name: call[name] for name in names if isinstance(call.get(name), Value)}
    unify(analysis, [Operand(x, letters), *(Operand(vector, ("d1",)) for vector in vectors.values())])
    over_kept = call.name != "instance_norm" and bool(call.get("training", False))
    if call.name == "instance_norm":
        for layer in x.layers:
            for dim in range(2, len(x.shape)):
                analysis.fix(layer, dim, reasons.NORMALISED)
    elif over_kept:  # also how weights are standardised: over their input channels
        _renormalise(analysis, x, {d for d in range(len(x.shape)) if d != 1})
    shift_is_zero = "bias" not in vectors or any(layer.zero for layer in vectors["bias"].layers)
    scaled = any(layer.zero for name in ("weight",) if name in vectors for layer in vectors[name].layers)
    layers = []
    for layer in x.layers:  # units along another dim alone read the channels' shifts, unless they are left out
        apart = layer.zero and (1 in layer.dims or over_kept)
        zero = shift_is_zero and (scaled or layer.zero) if layer.dims == (1,) else apart
        layers.append(Layer(layer.labels, zero))
    result = Value(x.shape, tuple(layers))
    return result if call.name in ("batch_norm", "instance_norm") else [result, *map(Value, call.shape[1:])]  # type: ignore[return-value]


def _renormalise(analysis: Labelling, x: Value, normalised: set[int]) -> None:
    """Statistics are taken over these dims: units along them alone are *renormalised*, others must not vary there."""
    for layer in x.layers:
        inside = set(layer.dims) & normalised
        if layer.pending or not inside:
            continue
        if inside == set(layer.dims):
            analysis.mark_renormalised(layer)
            continue
        for dim in sorted(inside):  # heads x channels, normalised over channels: whole heads are exact
            analysis.fix(layer, dim, reasons.NORMALISED)


def _rewrite_normalized_shape(edit: Rewriting, call: Call) -> None:
    rank = len(call["normalized_shape"])
    edit.set(call, "normalized_shape", list(edit.kept_shape(call["input"])[-rank:]))


@operator("layer_norm", "rms_norm", rewrite=_rewrite_normalized_shape)
def layer_norm(analysis: Labelling, call: Call) -> Value:
    """Unite with the affine parameters; units along the normalised dims change the statistics: *renormalised*."""
    x = call["input"]
    rank = len(call["normalized_shape"])
    letters = tuple(f"d{d}" for d in range(len(x.shape)))
    affine = [value for name in ("weight", "bias") if isinstance(value := call.get(name), Value)]
    unify(analysis, [Operand(x, letters), *(Operand(value, letters[-rank:]) for value in affine)])
    normalised = set(range(len(x.shape) - rank, len(x.shape)))
    _renormalise(analysis, x, normalised)
    affine_zero = bool(affine) and all(any(y.zero for y in value.layers) for value in affine)
    layers = (Layer(layer.labels, affine_zero and bool(normalised.intersection(layer.dims))) for layer in x.layers)
    return Value(x.shape, tuple(layers))


def _rewrite_num_groups(edit: Rewriting, call: Call) -> None:
    x, groups = call["input"], call["num_groups"]
    if groups > 1:
        per_group = x.shape[1] // groups
        edit.set(call, "num_groups", edit.kept_size(x, 1) // per_group)


@operator("group_norm", rewrite=_rewrite_num_groups)
def group_norm(analysis: Labelling, call: Call) -> Value:
    """Whole groups go, exactly; with a single group the units are *renormalised*."""
    x, groups = call["input"], call["num_groups"]
    letters = tuple(f"d{d}" for d in range(len(x.shape)))
    affine = [value for name in ("weight", "bias") if isinstance(value := call.get(name), Value)]
    unify(analysis, [Operand(x, letters), *(Operand(value, ("d1",)) for value in affine)])
    if groups == 1:
        for layer in x.on(1):
            analysis.mark_renormalised(layer)
    else:
        grouped = reshaped(x, (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
        for layer in grouped.layers:
            analysis.fix(layer, 2, reasons.NORMALISED)
    for layer in x.layers:
        for dim in range(2, len(x.shape)):
            analysis.fix(layer, dim, reasons.NORMALISED)
    affine_zero = len(affine) == 2 and all(any(y.zero for y in value.layers) for value in affine)
    return Value(x.shape, tuple(Layer(layer.labels, affine_zero) for layer in x.layers))
