"""Less common operators: bilinear forms, distances, weight norm, triangles, windows laid out as columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from edgeprune.graph import reasons
from edgeprune.graph.call import Call
from edgeprune.graph.einsum import Operand, contract, unify
from edgeprune.graph.labels import Layer, Value, core, not_zero, pack, remainder, remainders
from edgeprune.graph.ops.contraction import add_bias
from edgeprune.graph.ops.registry import Kind, operator
from edgeprune.graph.rules import Labelling, Rewriting

aten = torch.ops.aten


@operator("einsum", kind=Kind.PRODUCT)
def einsum(analysis: Labelling, call: Call) -> Value:
    """The rule itself; a letter twice in one operand takes the diagonal."""
    terms, out = einsum_letters(call["equation"], [len(value.shape) for value in call.values], len(call.shape))
    operands = [_diagonal(analysis, value, term) for value, term in zip(call.values, terms, strict=True)]
    return contract(analysis, operands, out, call.shape)


def einsum_letters(equation: str, ranks: Sequence[int], rank: int) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """The letters of each operand, and those of the result, from the numbers of their dims."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = [_letters(term, own) for term, own in zip(left.split(","), ranks, strict=True)]
    return terms, _letters(right, rank) if arrow else _implied(terms)


def _implied(terms: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The letters of the result where the equation does not say them: the ellipsis, and what stands once, in order."""
    written = [letter for term in terms for letter in term]
    dots = sorted({letter for letter in written if letter.startswith(".")}, reverse=True)
    return (*dots, *sorted(letter for letter in written if written.count(letter) == 1 and letter not in dots))


def _letters(term: str, rank: int) -> tuple[str, ...]:
    """`"a...b"` of 4 dims -> `("a", ".2", ".1", "b")`: dims of an ellipsis are counted from its end."""
    head, dots, tail = term.partition("...")
    n_dots = rank - len(head) - len(tail) if dots else 0
    return (*head, *(f".{n_dots - k}" for k in range(n_dots)), *tail)


def _diagonal(analysis: Labelling, value: Value, letters: tuple[str, ...]) -> Operand:
    """The operand with every letter once: the units of both dims of a diagonal are the same ones."""
    twice = next((letter for letter in letters if letters.count(letter) > 1), None)
    if twice is None:
        return Operand(value, letters)
    first = letters.index(twice)
    second = letters.index(twice, first + 1)
    unify(analysis, [Operand(_line(value, first), (twice,)), Operand(_line(value, second), (twice,))])
    for layer in value.layers:
        if len(layer.dims) > 1:
            analysis.fix(layer, second, reasons.NOT_FOLLOWED)
    shape = (*value.shape[:second], *value.shape[second + 1 :])
    dims = {d: d - (d > second) for d in range(len(letters)) if d != second}
    kept = Value(shape, tuple(remainders(value, dims, shape)))
    return _diagonal(analysis, kept, (*letters[:second], *letters[second + 1 :]))


@operator("diagonal", kind=Kind.ASSEMBLY)
def diagonal(analysis: Labelling, call: Call) -> Value:
    """The units of rows and columns are the same ones; beside the middle they are locked."""
    x, rank = call["self"], len(call["self"].shape)
    one, other = call["dim1"] % rank, call["dim2"] % rank
    square = call["offset"] == 0 and x.shape[one] == x.shape[other]
    if square:
        unify(analysis, [Operand(_line(x, one), ("x",)), Operand(_line(x, other), ("x",))])
    for layer in [layer for layer in x.layers if not square or len(layer.dims) > 1]:
        analysis.fix(layer, one, reasons.BLOCKS)
        analysis.fix(layer, other, reasons.BLOCKS)
    rest = [d for d in range(rank) if d not in (one, other)]
    dims = {d: position for position, d in enumerate(rest)} | ({one: rank - 2} if square else {})
    return analysis.value(call.shape, remainders(x, dims, call.shape))


def _line(value: Value, dim: int) -> Value:
    """The labels along one dim alone, `(n,)`."""
    return Value(value.shape[dim : dim + 1], tuple(Layer(core(y), y.zero) for y in value.layers if y.dims == (dim,)))


@operator("bilinear", kind=Kind.PRODUCT)
def bilinear(analysis: Labelling, call: Call) -> Value:
    """`y[..., o] = sum_ij a[..., i] w[o, i, j] b[..., j] + c[o]`."""
    free = tuple(f"x{d}" for d in range(len(call.shape) - 1))
    operands = [
        Operand(call["input1"], (*free, "i")),
        Operand(call["input2"], (*free, "j")),
        Operand(call["weight"], ("o", "i", "j")),
    ]
    return add_bias(analysis, contract(analysis, operands, (*free, "o"), call.shape), call.get("bias"), -1)


@operator("cdist", "_cdist_forward", "_euclidean_dist", kind=Kind.DISTANCE)
def distances(analysis: Labelling, call: Call) -> Value:
    """`y[..., p, r] = |a[..., p, :] - b[..., r, :]|`: a channel that reads zero on both sides adds nothing."""
    rank = len(call.shape)
    lead = tuple(f"b{d}" for d in range(rank - 2))
    operands = []
    for value, row in ((call["x1"], "p"), (call["x2"], "r")):
        operands.append(Operand(value, (*lead[rank - len(value.shape) :], row, "m")))
    if not all(any(layer.zero for layer in operand.on("m")) for operand in operands):
        operands = [Operand(not_zero(operand.value), operand.letters) for operand in operands]
    return not_zero(contract(analysis, operands, (*lead, "p", "r"), call.shape))


@operator("_weight_norm", kind=Kind.WEIGHT_NORM)
def weight_norm(analysis: Labelling, call: Call) -> Value:
    """`v g / |v|`, the norm over all dims but one, to which zeros add nothing."""
    v, g = call["v"], call["g"]
    letters = tuple(f"d{d}" for d in range(len(v.shape)))
    kept = letters[call["dim"]] if call["dim"] != -1 else None
    contract(analysis, [Operand(v, letters)], (kept,) if kept else (), (v.shape[call["dim"]],) if kept else ())
    unify(analysis, [Operand(v, letters), Operand(g, letters[len(letters) - len(g.shape) :])])
    return v


def _rewrite_triangle(edit: Rewriting, call: Call) -> None:
    """Of the kept rows and columns the same elements are zeroed as before."""
    x = call.input
    rank = len(x.shape)
    rows, columns = edit.kept(x, rank - 2), edit.kept(x, rank - 1)
    if (len(rows), len(columns)) == x.shape[-2:]:
        return
    ones = torch.ones(x.shape[-2:], dtype=torch.bool)
    stays = ones.tril(call["diagonal"]) if call.name == "tril" else ones.triu(call["diagonal"])
    outside = ~stays.numpy()[rows][:, columns]
    edit.replace(call, aten.masked_fill.Scalar, (edit.source(call), edit.constant(call, outside), 0))


@operator("tril", "triu", kind=Kind.ASSEMBLY, rewrite=_rewrite_triangle)
def triangle(analysis: Labelling, call: Call) -> Value:
    """Zeroes one side of a diagonal; which side an element is on must not depend on a size that is free."""
    x = call["self"]
    rank = len(x.shape)
    if not all(isinstance(size, int) for size in call.node.meta["val"].shape[-2:]):
        for layer in x.layers:
            for dim in (rank - 2, rank - 1):
                analysis.fix(layer, dim, reasons.NOT_FOLLOWED)
    return x


@operator("im2col", kind=Kind.ASSEMBLY)
def unfold(analysis: Labelling, call: Call) -> Value:
    """`(n, channels, height, width)` -> `(n, channels * kernel, windows)`: only channels are units."""
    x, shape = call["self"], call.shape
    rank = len(x.shape)
    for layer in x.layers:
        for dim in (rank - 2, rank - 1):
            analysis.fix(layer, dim, reasons.WINDOWS)
    layers = []
    for layer in x.layers:
        lead = remainder(layer, {d: d for d in range(rank - 2)}, x.shape[:-2])
        if lead is not None:
            labels = lead.labels.repeat_interleave(math.prod(call["kernel_size"]), -1).unsqueeze(-1).expand(shape)
            layers.append(Layer(labels, lead.zero) if lead.pending else pack(labels, lead.zero))
    return analysis.value(shape, layers)
