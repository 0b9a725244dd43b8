"""What an analysis keeps: where labels start, and what each node's rule made of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from edgeprune.graph.call import Call, operator_name
from edgeprune.graph.labels import Layer, Value
from edgeprune.graph.reasons import Cause, cause_of
from edgeprune.graph.solve import Reason, count_units


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Where labels start: one dim of a parameter, buffer or constant, or the elements of a graph input.

    `name` is the name in the state dict (or of the input, or of the node of the constant or broadcast); `dim` is None
    for an input.
    `ids` are the labels that were handed out, in the order of the elements.
    """

    kind: str  # "tensor", "input", "state", "constant" or "broadcast"
    name: str
    dim: int | None
    ids: np.ndarray

    @property
    def follows(self) -> bool:
        """Whether it is as wide as what it meets: a constant or a broadcast."""
        return self.kind in ("constant", "broadcast")


@dataclass(frozen=True, slots=True, eq=False)
class Hint:
    """A layer that varies along several dims, and along which of them it had better vary alone.

    A `strong` hint (heads of an attention) goes before others (channels that all heads share a factor for).
    """

    labels: Tensor
    keep: int
    strong: bool = False


@dataclass(slots=True, eq=False)
class Finding:
    """What a node's rule made of its inputs; it stands until they change.

    `factors`: the node's cost is proportional to the kept share of each of these labels; where it is a sum, `terms`
    holds the share of each summand and the labels that it is proportional to. `renormalised`: units whose removal
    changes the statistics of a normalisation. `hints`, `conflicts`: layers that still vary along several dims; the
    node gives no hints for `undecided` ones.
    """

    inputs: tuple[Any, ...]
    settled: bool
    call: Call | None = None
    result: Any = None
    factors: list[np.ndarray] = field(default_factory=list)
    terms: list[tuple[float, list[np.ndarray]]] = field(default_factory=list)
    renormalised: list[np.ndarray] = field(default_factory=list)
    hints: list[Hint] = field(default_factory=list)
    undecided: tuple[Layer, ...] = ()
    conflicts: list[Tensor] = field(default_factory=list)

    def cost(self) -> list[tuple[float, list[np.ndarray]]]:
        """The summands of the node's cost: the share of each and the labels that it is proportional to."""
        return self.terms or [(1.0, self.factors)]


def same_objects(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Whether nothing changed: the very same values, equal numbers."""
    return all(a is b or (not isinstance(a, (Value, list)) and a == b) for a, b in zip(left, right, strict=True))


def same_result(left: Any, right: Any) -> bool:
    """Whether two results are the same to every rule."""
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_result, left, right))
    return isinstance(left, Value) and isinstance(right, Value) and left.same_as(right)


def chosen(labels: Tensor, dims: Sequence[int], preferred: int | None = None) -> int:
    """Along which of some dims labels are to vary alone: the preferred one, else the one with the most units."""
    if preferred is not None and preferred in dims:
        return preferred
    counts = [count_units(labels.numpy(), dim) for dim in dims]
    return dims[int(np.argmax([0 if count == 1 else count for count in counts]))]


def constant(result: Any, is_drawn: bool) -> Any:
    """What a node of sizes or constants alone gives; whole numbers that are drawn are other ones in each run."""

    def held(tensor: Tensor) -> Value:
        is_known = tensor.is_floating_point() or not is_drawn
        return Value(tuple(tensor.shape), const=tensor if is_known else None)

    return tree_map_only(Tensor, held, result)


def reason_at(node: fx.Node, told: Cause | str) -> Reason:
    """Why a node locks or couples units, e.g. "output is the model's output"."""
    name = operator_name(node.target) if node.op == "call_function" else node.name
    cause = cause_of(told)
    return Reason(f"{name} {cause.text}", node.name, cause.remedy)
