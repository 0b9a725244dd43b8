"""Random numbers that a network draws as it runs, in eval mode too: where, and the same ones for two networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

from edgeprune.errors import ProofError
from edgeprune.graph import binding
from edgeprune.graph.call import operator_name
from edgeprune.graph.lines import source_line
from edgeprune.graph.ops.registry import Kind, kind_of

_OFF = (("train", False), ("training", False), ("dropout_p", 0.0), ("dropout", 0.0))


def draws(target: Any, args: Mapping[str, Any]) -> bool:
    """Whether an operator draws random numbers with these arguments, by the names of its schema."""
    if torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()):
        return False
    return next((bool(args[name] != off) for name, off in _OFF if name in args), True)


def drawing(graph: fx.Graph) -> list[fx.Node]:
    """The nodes of a graph that draw random numbers as it is, in its order."""
    calls = [node for node in graph.nodes if node.op == "call_function"]
    return [node for node in calls if draws(node.target, binding.bind(node, lambda value: value).args)]


def made_of_draws(graph: fx.Graph) -> set[fx.Node]:
    """The nodes of a graph whose values random numbers have a part in."""
    found = set(drawing(graph))
    for node in graph.nodes:
        if found and not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def told_of(node: fx.Node) -> str:
    """What is said of a node that draws, e.g. "the network draws random numbers as it runs (dropout at net.py:7)"."""
    line = source_line(node)
    return f"the network draws random numbers as it runs ({operator_name(node.target)}{f' at {line}' if line else ''})"


def share_draws(one: fx.GraphModule, other: fx.GraphModule) -> None:
    """Let two networks draw the same random numbers whenever they run, both in place.

    Every operator draws by a seed of its own. Along dims of which one network has less the numbers are the same
    throughout, so that what is left of them does not depend on which units are.

    Raises:
        ProofError: they do not draw alike, or an operator draws what cannot be had in another shape.
    """
    pairs = [drawing(one.graph), drawing(other.graph)]
    names = [[operator_name(node.target) for node in nodes] for nodes in pairs]
    if names[0] != names[1]:
        raise _refused(max(pairs, key=len)[0], "the other network draws others")
    for number, nodes in enumerate(zip(*pairs, strict=True)):
        dims = _cut_dims(*nodes)
        for node in nodes:
            node.target = _seeded(node.target, number, dims)
    if pairs[0]:
        one.recompile()
        other.recompile()


def _cut_dims(node: fx.Node, other: fx.Node) -> list[int]:
    """The dims of a result of which one of both networks has less."""
    shape, narrow = binding.shapes_of(node), binding.shapes_of(other)
    if shape == narrow:
        return []
    if kind_of(node.target) is not Kind.POINTWISE or len(shape) != len(narrow):
        raise _refused(node, "others where units are cut")
    rank = len(shape)  # counted from the end, as operands are broadcast
    return [dim - rank for dim, sizes in enumerate(zip(shape, narrow, strict=True)) if sizes[0] != sizes[1]]


def _refused(node: fx.Node, why: str) -> ProofError:
    return ProofError(
        f"no proof: {told_of(node)}, {why}, so that two networks cannot be compared: let it draw none in eval mode, "
        "e.g. dropout with training=self.training, or take the part before it"
    )


def _seeded(target: Any, number: int, dims: Sequence[int]) -> Callable[..., Any]:
    """An operator that draws by a seed of its own, along `dims` the same numbers everywhere."""

    def drawn(*args: Any, **kwargs: Any) -> Any:
        with torch.random.fork_rng([]):
            return _along(dims, args, kwargs)

    def _along(left: Sequence[int], args: Any, kwargs: Any) -> Any:
        if not left:
            torch.manual_seed(number)
            return target(*args, **kwargs)
        dim, *others = left
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim() >= -dim]
        n = max(tensor.shape[dim] for tensor in tensors)
        parts = []
        for place in range(n):
            own = tree_map_only(Tensor, partial(_at, dim=dim, place=place, n=n), (args, kwargs))
            parts.append(_along(others, *own))
        return args[0] if target._schema.is_mutable else torch.cat(parts, dim)

    drawn.__name__ = operator_name(target)
    return drawn


def _at(tensor: Tensor, dim: int, place: int, n: int) -> Tensor:
    """One place along a dim of `n`; what is spread over it stays whole."""
    return tensor.narrow(dim, place, 1) if tensor.dim() >= -dim and tensor.shape[dim] == n else tensor
