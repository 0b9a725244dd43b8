"""Two networks that should compute the same: their outputs, and how far these may be apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from edgeprune.graph.owninputs import spared
from edgeprune.graph.precision import arguments_in_float64, float64_by_default, in_float64

# Largest relative difference that rounding explains, from the coarsest type to the finest.
TOLERANCE = {torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float32: 1e-5, torch.float64: 1e-10}
TIMES_ROUNDING = 4.0  # another order of the same sums rounds otherwise, by about as much as the network itself


def outputs(network: Callable[..., Any], args: Sequence[Any]) -> list[Tensor]:
    """All output tensors of a network, in the order of its output tree; the arguments stay as they are."""
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(network(*spared(network, args))) if isinstance(leaf, Tensor)]


def outputs_in_float64(network: nn.Module, args: Sequence[Any]) -> list[Tensor] | None:
    """The same in float64, which the network becomes for good; None for one that does not run so."""
    try:
        with float64_by_default():
            return outputs(in_float64(network), arguments_in_float64(tuple(args)))
    except Exception:  # it has another type written into it: what was computed in its own type decides alone
        return None


def own_rounding(own: Tensor, exact: Tensor) -> float:
    """The largest error of a float output beside the same in float64; 0 where that tells nothing."""
    if not own.is_floating_point() or own.shape != exact.shape:
        return 0.0
    error = (own.double() - exact.double()).abs()
    finite = error[torch.isfinite(error)]
    return float(finite.max()) if finite.numel() else 0.0


def output_types(graph: fx.Graph) -> list[torch.dtype]:
    """For each output tensor of a graph the coarsest float type that it is computed in.

    An output of float32 may be made of float16, whose rounding it has then. One that no float goes into is exact, as
    float64.
    """
    results = [leaf for leaf in tree_leaves(graph.output_node().args) if isinstance(leaf, fx.Node)]
    coarsest: dict[fx.Node, int] = {}
    order = list(TOLERANCE)
    for node in graph.nodes:
        own = [order.index(dtype) for dtype in _types(node) if dtype in TOLERANCE]
        coarsest[node] = min([*own, *(coarsest[source] for source in node.all_input_nodes), len(order) - 1])
    tensors = [node for node in results if isinstance(node.meta.get("val"), Tensor)]
    return [order[coarsest[node]] for node in tensors]


def _types(node: fx.Node) -> list[torch.dtype]:
    return [leaf.dtype for leaf in tree_leaves(node.meta.get("val")) if isinstance(leaf, Tensor)]


def relative_error(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """The largest of `relative_errors`."""
    return max(relative_errors(expected, got), default=0.0)


def relative_errors(expected: Sequence[Tensor], got: Sequence[Tensor]) -> list[float]:
    """For each output the largest difference, relative to the largest finite number expected of it.

    Infinite for all where the numbers of outputs differ, and for one where its shape does, where a whole number or an
    infinity is another one, or where what is got is no number.
    """
    if len(expected) != len(got):
        return [float("inf")] * max(len(expected), 1)
    return [_relative_error(a, b) for a, b in zip(expected, got, strict=True)]


def _relative_error(expected: Tensor, got: Tensor) -> float:
    if expected.shape != got.shape:
        return float("inf")
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0 if torch.equal(expected, got.to(expected.dtype)) else float("inf")
    finite = torch.isfinite(expected) & torch.isfinite(got)
    if not bool((finite | (expected == got)).all()):
        return float("inf")
    a, b = expected[finite], got[finite]
    if not a.numel():
        return 0.0
    scale = float(a.abs().max())
    wide = torch.complex128 if expected.is_complex() else torch.float64
    difference = float((a.to(wide) - b.to(wide)).abs().max())
    return difference / scale if scale > 0 else difference
