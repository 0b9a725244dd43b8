"""Operators that choose by comparing numbers (argmax, top-k, sort): where two are as good, rounding decides.

A network that picks the other of two equal numbers is not wrong. `Recording` runs a network and keeps what it chose
from; `Following` runs another one that chooses as the first did wherever its own choice is as good.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from edgeprune.graph.call import operator_name

_aten = torch.ops.aten
_OF_INDICES = {"argmax", "argmin", "argsort"}  # these give indices alone, the others values before them
_AS_IT_IS = {"to", "_to_copy", "clone", "contiguous", "detach", "alias"}
_CHOOSING = {"topk", "sort", "max", "min", "kthvalue", "median", "nanmedian", "cummax", "cummin"} | _OF_INDICES


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What an operator chose: `indices` along `dim` of `scores`; of the flattened ones where `dim` is None."""

    scores: Tensor
    dim: int | None
    indices: Tensor

    def picked(self, indices: Tensor) -> Tensor:
        """The scores at other indices of the same shape, in that shape."""
        if self.dim is None or not self.scores.dim():
            return self.scores.reshape(-1)[indices]
        reduced = indices.dim() < self.scores.dim()
        wide = indices.unsqueeze(self.dim) if reduced else indices
        found = self.scores.gather(self.dim, wide)
        return found.squeeze(self.dim) if reduced else found

    def is_as_good(self, indices: Tensor, tolerance: float) -> bool:
        """Whether other indices choose the same scores, but for a difference of `tolerance` of the largest."""
        if indices.shape != self.indices.shape:
            return False
        a, b = self.picked(self.indices).double(), self.picked(indices).double()
        scale = float(self.scores[torch.isfinite(self.scores)].abs().max()) if self.scores.numel() else 0.0
        return bool(((a == b) | ((a - b).abs() <= tolerance * scale)).all())


def is_choice(node: fx.Node) -> bool:
    """Whether a node's operator gives indices of what it chose."""
    if node.op != "call_function" or operator_name(node.target) not in _CHOOSING:
        return False
    return any(isinstance(v, Tensor) and v.dtype == torch.int64 for v in tree_leaves(node.meta.get("val")))


def has_choices(network: fx.GraphModule) -> bool:
    """Whether a network chooses at all."""
    return any(map(is_choice, network.graph.nodes))


def chosen_outputs(graph: fx.Graph) -> list[fx.Node | None]:
    """For each output tensor of a graph the choice that its indices come from; None for another output."""
    leaves = [leaf for leaf in tree_leaves(graph.output_node().args) if isinstance(leaf, fx.Node)]
    return [_chooser(leaf) for leaf in leaves if isinstance(leaf.meta.get("val"), Tensor)]


def _chooser(node: fx.Node) -> fx.Node | None:
    while operator_name(node.target) in _AS_IT_IS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    if node.target is operator.getitem and node.args[1] == 1:
        node = node.args[0]  # type: ignore[assignment]
    elif operator_name(node.target) not in _OF_INDICES:
        return None
    return node if is_choice(node) else None


class Recording(fx.Interpreter):
    """Runs a network; `choices` are what its operators chose, in the order of the graph."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.choices: dict[fx.Node, Choice] = {}

    def __call__(self, *args: Any) -> Any:
        """The network's result."""
        return self.run(*args, enable_io_processing=True)

    def run_node(self, n: fx.Node) -> Any:
        """One operator."""
        result = super().run_node(n)
        if is_choice(n):
            self.choices[n] = _choice(n, self.fetch_args_kwargs_from_env(n), result)
        return result


class Following(Recording):
    """Runs a network that chooses as another one did, wherever its own choice is as good by the other one's scores."""

    def __init__(self, network: fx.GraphModule, others: Sequence[Choice], tolerance: float) -> None:
        super().__init__(network)
        self._others, self._tolerance = list(others), tolerance

    def run_node(self, n: fx.Node) -> Any:
        """One operator; a choice is the other network's where it may be."""
        result = super().run_node(n)
        if n not in self.choices or not self._others:
            return result
        own, other = self.choices[n], self._others.pop(0)
        if own.scores.shape != other.scores.shape or not other.is_as_good(own.indices, self._tolerance):
            return result
        if isinstance(result, Tensor):
            return other.indices
        return (own.picked(other.indices), other.indices)


def _choice(node: fx.Node, given: tuple[tuple[Any, ...], dict[str, Any]], result: Any) -> Choice:
    args, kwargs = given
    target: Any = node.target
    names = [argument.name for argument in target._schema.arguments]
    defaults = {argument.name: argument.default_value for argument in target._schema.arguments}
    bound = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
    indices = result if isinstance(result, Tensor) else result[1]
    return Choice(bound["self"], bound.get("dim"), indices)
