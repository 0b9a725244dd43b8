"""Which dims of which weights read units: those that a layer or a matrix product sums over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import fx

from edgeprune.graph import binding
from edgeprune.graph.analysis import Analysis
from edgeprune.graph.call import Call
from edgeprune.graph.labels import Value, core
from edgeprune.graph.ops.contraction import is_transposed
from edgeprune.graph.ops.forms import einsum_letters
from edgeprune.graph.ops.registry import Kind, kind_of


def read_dims(analysis: Analysis) -> frozenset[tuple[str, int]]:
    """The dims, by the tensor's name, along which weights read units: `(linear.weight, 1)`, say.

    A weight is whatever depends on no input, transposed or reshaped as it may be. What two inputs make of each other
    (queries and keys) is not read by a weight.
    """
    static = binding.static_nodes(analysis.program)
    found: set[tuple[str, int]] = set()
    for node in analysis.calls:
        for weight, dims in _summed(binding.bind(node, lambda n: n)):
            if weight in static:
                found.update(_places(analysis, weight, dims))
    return frozenset(found)


def _summed(call: Call) -> Iterator[tuple[fx.Node, tuple[int, ...]]]:
    """The arguments of a call that may be weights, each with the dims that are summed over."""
    kind = kind_of(call.node.target)
    if kind is Kind.LINEAR:
        yield call["weight"], (-1,)
    elif kind is Kind.CONVOLUTION:
        yield call["weight"], (0 if is_transposed(call) else 1,)
    elif kind is Kind.RECURRENT:
        yield from ((tensor, (1,)) for tensor in call.node.all_input_nodes if _rank(tensor) == 2)
    elif kind is Kind.PRODUCT:
        yield from _of_product(call)


def _of_product(call: Call) -> Iterator[tuple[fx.Node, tuple[int, ...]]]:
    if call.name == "bilinear":
        yield call["weight"], (1, 2)
        return
    if call.name == "einsum":
        terms, out = einsum_letters(call["equation"], [_rank(one) for one in call["tensors"]], len(call.shape))
        for operand, letters in zip(call["tensors"], terms, strict=True):
            yield operand, tuple(dim for dim, letter in enumerate(letters) if letter not in out)
        return
    left, right = [value for value in call.args.values() if isinstance(value, fx.Node)][-2:]  # before them: a summand
    yield left, (-1,)
    yield right, (-1 if _rank(right) == 1 else -2,)


def _places(analysis: Analysis, weight: fx.Node, dims: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """Where the units along some dims of a weight lie in the parameters that it is made of."""
    name, rank = _own_name(analysis, weight), _rank(weight)
    if name is not None:
        yield from ((name, dim % rank) for dim in dims)
        return
    made_of, canonical = _made_of(analysis, weight), analysis.solver.canonical
    units = _units(analysis.env[weight], [dim % rank for dim in dims])
    for (kind, tensor, own), source in analysis.sources.items():
        is_part = kind == "tensor" and own is not None and tensor in made_of
        if is_part and np.isin(canonical[source.ids], units).any():
            yield tensor, own or 0


def _units(value: Any, dims: Sequence[int]) -> np.ndarray:
    """The units that a value has along some dims."""
    layers = [layer for dim in dims for layer in value.on(dim)] if isinstance(value, Value) else []
    labels = [core(layer).reshape(-1).numpy() for layer in layers]
    units = np.unique(np.concatenate([np.zeros(0, np.int64), *labels]))
    return units[units > 0]


def _own_name(analysis: Analysis, node: fx.Node) -> str | None:
    """The name of the tensor that a node holds; None where it is computed."""
    specs = {spec.arg.name: spec.target for spec in analysis.program.graph_signature.input_specs if spec.target}
    name = specs.get(node.name)
    return None if name is None else analysis.tensors.first_name(name)


def _made_of(analysis: Analysis, weight: fx.Node) -> set[str]:
    """The names of the tensors that a computed weight is made of."""
    found, waiting = set(), [weight]
    while waiting:
        node = waiting.pop()
        name = _own_name(analysis, node)
        if name is not None:
            found.add(name)
        waiting.extend(node.all_input_nodes)
    return found


def _rank(node: fx.Node) -> int:
    return len(binding.shapes_of(node))
