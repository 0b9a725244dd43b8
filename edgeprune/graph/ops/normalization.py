"""Normalisations: statistics for each channel pass labels; statistics over channels are renormalised by a cut."""

from __future__ import annotations

from typing import Any

from edgeprune.graph import binding, reasons
from edgeprune.graph.call import Call
from edgeprune.graph.einsum import Operand, unify
from edgeprune.graph.labels import Layer, Value
from edgeprune.graph.ops.contraction import reshaped
from edgeprune.graph.ops.registry import Kind, operator
from edgeprune.graph.rules import Labelling, Rewriting

_PER_CHANNEL = ("weight", "bias", "running_mean", "running_var")


@operator(
    "batch_norm", "instance_norm", "_native_batch_norm_legit_no_training", "native_batch_norm",
    kind=Kind.NORMALISATION,
)  # fmt: skip
def batch_norm(analysis: Labelling, call: Call) -> Any:
    """Each channel (dim 1) has its own statistics and affine parameters; what they are taken over is *renormalised*."""
    x = call["input"]
    unify(analysis, [_by_dim(x), *(Operand(vector, ("d1",)) for vector in _vectors(call, *_PER_CHANNEL))])
    over_kept = call.name != "instance_norm" and bool(call.get("training", False))
    if call.name == "instance_norm":
        _fix_positions(analysis, x)
    elif over_kept:  # also how weights are standardised: over their input channels
        _renormalise(analysis, x, {d for d in range(len(x.shape)) if d != 1})
    result = Value(x.shape, tuple(Layer(y.labels, _stays_zero(call, y, over_kept)) for y in x.layers))
    return result if binding.is_shape(call.shape) else [result, *map(Value, call.shape[1:])]


def _stays_zero(call: Call, layer: Layer, over_kept: bool) -> bool:
    """Whether units that read zero do so after the scale and the shift of each channel.

    Units along another dim alone read the channels' shifts, unless the statistics leave them out.
    """
    if layer.dims != (1,):
        return layer.zero and (1 in layer.dims or over_kept)
    scaled = layer.zero or any(map(_reads_zero, _vectors(call, "weight")))
    return scaled and all(map(_reads_zero, _vectors(call, "bias")))


def _by_dim(x: Value) -> Operand:
    """A value with the letters d0, d1, ..."""
    return Operand(x, tuple(f"d{d}" for d in range(len(x.shape))))


def _vectors(call: Call, *names: str) -> list[Value]:
    """The affine parameters and statistics that the call has under these names."""
    return [value for name in names if isinstance(value := call.get(name), Value)]


def _reads_zero(vector: Value) -> bool:
    return any(layer.zero for layer in vector.layers)


def _fix_positions(analysis: Labelling, x: Value) -> None:
    """What statistics are taken over behind the channels stays whole."""
    for layer in x.layers:
        for dim in range(2, len(x.shape)):
            analysis.fix(layer, dim, reasons.NORMALISED)


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
    given, x = edit.raw(call, "normalized_shape"), call["input"]
    sizes = zip(given, x.shape[-len(given) :], edit.kept_shape(x)[-len(given) :], strict=True)
    edit.set(call, "normalized_shape", [edit.scaled(size, old, new) for size, old, new in sizes])


@operator("layer_norm", "rms_norm", kind=Kind.NORMALISATION, rewrite=_rewrite_normalized_shape)
def layer_norm(analysis: Labelling, call: Call) -> Value:
    """Unite with the affine parameters; units along the normalised dims change the statistics: *renormalised*."""
    x = call["input"]
    rank = len(call["normalized_shape"])
    operand, affine = _by_dim(x), _vectors(call, "weight", "bias")
    unify(analysis, [operand, *(Operand(value, operand.letters[-rank:]) for value in affine)])
    normalised = set(range(len(x.shape) - rank, len(x.shape)))
    _renormalise(analysis, x, normalised)
    affine_zero = bool(affine) and all(map(_reads_zero, affine))
    layers = (Layer(layer.labels, affine_zero and bool(normalised.intersection(layer.dims))) for layer in x.layers)
    return Value(x.shape, tuple(layers))


def _rewrite_num_groups(edit: Rewriting, call: Call) -> None:
    x, groups = call["input"], call["num_groups"]
    if groups > 1:
        per_group = x.shape[1] // groups
        left = edit.kept_size(x, 1) // per_group
        edit.set(call, "num_groups", edit.scaled(edit.raw(call, "num_groups"), groups, left))


@operator("group_norm", kind=Kind.NORMALISATION, rewrite=_rewrite_num_groups)
def group_norm(analysis: Labelling, call: Call) -> Value:
    """Whole groups go, exactly; with a single group the units are *renormalised*."""
    x, groups = call["input"], call["num_groups"]
    affine = _vectors(call, "weight", "bias")
    unify(analysis, [_by_dim(x), *(Operand(value, ("d1",)) for value in affine)])
    if groups == 1:
        for layer in x.on(1):
            analysis.mark_renormalised(layer)
    else:
        grouped = reshaped(x, (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]))
        for layer in grouped.layers:
            analysis.fix(layer, 2, reasons.NORMALISED)
    _fix_positions(analysis, x)
    affine_zero = len(affine) == 2 and all(map(_reads_zero, affine))
    return Value(x.shape, tuple(Layer(layer.labels, affine_zero) for layer in x.layers))
