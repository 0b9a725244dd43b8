"""How marks pass through each kind of operator: which elements of a result depend on which of what is read.

A mark is a float, 0 where an element depends on nothing and more where it does, added up over what is read. A rule
gives the marks of a result, or None where it cannot look into a call: then everything depends on everything, never the
other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

from edgeprune.graph.call import Call
from edgeprune.graph.ops.reduction import n_window_dims
from edgeprune.graph.ops.registry import Kind, kind_of

Rule = Callable[["Step"], Any]
_INDICES = {"index", "indices", "repeats", "tensor_indices_or_sections"}  # arguments that tell where elements go


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One node as it is run: its call on real values, on marks (None for parameters and the like), and the result."""

    node: fx.Node
    values: Call
    marks: Call
    result: Any

    @property
    def name(self) -> str:
        """The operator's name."""
        return self.values.name

    def mark(self, name: str) -> Tensor:
        """The marks of an argument; zeros for a parameter."""
        found, value = self.marks.get(name), self.values[name]
        return found if isinstance(found, Tensor) else torch.zeros(value.shape)

    def is_computed(self, name: str) -> bool:
        """Whether an argument is the result of another call, or an input."""
        return any(isinstance(leaf, Tensor) for leaf in tree_leaves(self.marks.get(name)))

    def depends(self, name: str) -> bool:
        """Whether an argument depends on an input anywhere."""
        marks = tree_leaves(self.marks.get(name))
        return any(isinstance(mark, Tensor) and bool((mark != 0).any()) for mark in marks)


def marks_of(step: Step) -> Any:
    """The marks of a step's result by the rule of its operator's kind; None where no rule looks into it."""
    rule = _rule(step)
    return None if rule is None else rule(step)


def has_rule(step: Step) -> bool:
    """Whether there is a rule for operators of this kind."""
    return _rule(step) is not None


def _rule(step: Step) -> Rule | None:
    kind = kind_of(step.node.target)
    return None if kind is None else RULES[kind]


def everything(step: Step) -> Any:
    """Every element may depend on every element."""
    reads = [leaf for leaf in tree_leaves(list(step.marks.args.values())) if isinstance(leaf, Tensor)]
    total = torch.stack([mark.sum() for mark in reads]).sum()
    return tree_map_only(Tensor, lambda t: total.expand(t.shape), step.result)


# -- elements that move -----------------------------------------------------------------------------------------------


def _same(step: Step) -> Tensor:
    return step.mark(next(iter(step.values.args)))


def _overwritten(step: Step) -> Tensor:
    return step.mark("src").expand(step.result.shape)


def _moved(step: Step) -> Any:
    """Marks go where the elements go: the operator itself runs on them, unless places are computed."""
    values = step.values.args
    if any(step.is_computed(name) for name in _INDICES & values.keys()) or any(map(_is_complex, tree_leaves(values))):
        return None
    shown = {name: _shown(value, step.marks.get(name)) for name, value in values.items() if name not in _INDICES}
    if "value" in values:  # the number that a padding adds depends on nothing
        shown["value"] = 0.0
    return call_with(step, {**values, **shown})


def _is_complex(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_complex()


def _shown(value: Any, mark: Any) -> Any:
    """An argument with marks in place of its tensors."""
    if isinstance(value, (list, tuple)):
        return [_shown(v, None if mark is None else mark[k]) for k, v in enumerate(value)]
    if not isinstance(value, Tensor):
        return value
    return mark.clone() if isinstance(mark, Tensor) else torch.zeros(value.shape)  # an in-place form may change it


def call_with(step: Step, args: dict[str, Any]) -> Any:
    """The step's operator on other arguments."""
    target: Any = step.node.target
    schema = target._schema.arguments
    positional = [args[a.name] for a in schema if not a.kwarg_only]
    return target(*positional, **{a.name: args[a.name] for a in schema if a.kwarg_only and a.name != "dtype"})


# -- element by element -----------------------------------------------------------------------------------------------


def _elementwise(step: Step) -> Any:
    """The marks of all operands; a factor that depends on no input and is zero takes those of the others away."""
    if not isinstance(step.result, Tensor):
        return None
    total = torch.zeros(step.result.shape)
    operands = {name: value for name, value in step.values.args.items() if isinstance(value, Tensor)}
    for name in operands:
        if step.is_computed(name):
            total = total + _beside_factors(step, name, operands)
    return total


def _beside_factors(step: Step, name: str, operands: Iterable[str]) -> Tensor:
    """An operand's marks, under what may be other than zero of its partners in a product."""
    mark = step.mark(name)
    if step.name in ("mul", "multiply"):
        for other in operands:
            mark = mark * _possible(step, other) if other != name else mark
    return mark


def _possible(step: Step, name: str) -> Tensor:
    """Where a factor may be other than zero."""
    return torch.ones(step.values[name].shape) if step.depends(name) else flags(step.values[name])


def _channelwise(step: Step) -> Tensor:
    """Each element with the parameter of its channel."""
    mark, weight = step.mark("self"), step.mark("weight")
    return mark + weight.reshape(-1, *[1] * (mark.dim() - 2)) if step.is_computed("weight") else mark


def _gated(step: Step) -> Any:
    """Each half's elements with the other's at the same places."""
    one, other = step.mark("self").chunk(2, step.values["dim"])
    return one + other


def flags(value: Tensor) -> Tensor:
    """1 where a tensor is not zero."""
    return (value != 0).to(torch.float32)


# -- sums of products -------------------------------------------------------------------------------------------------


def _product(step: Step) -> Any:
    """A product that is linear in each factor: the marks of each, under what is not zero of the others."""
    names, summand = _factors(step)
    values, marks = _leaves(step.values, names), _leaves(step.marks, names)
    possible = [_flags_of(value, mark) for value, mark in zip(values, marks, strict=True)]
    total = torch.zeros(step.result.shape)
    for k, mark in enumerate(marks):
        if isinstance(mark, Tensor):
            total = total + _multiplied(step, [*possible[:k], mark, *possible[k + 1 :]])
    return total + step.mark(summand) if summand and step.is_computed(summand) else total


def _factors(step: Step) -> tuple[list[str], str | None]:
    """The arguments that are multiplied, and the one that is added: a bias, or what `beta` scales."""
    names = [name for name, value in step.values.args.items() if any(isinstance(v, Tensor) for v in tree_leaves(value))]
    summand = "self" if "beta" in step.values.args else "bias"
    return [name for name in names if name != summand], summand if summand in names else None


def _leaves(call: Call, names: Iterable[str]) -> list[Any]:
    """The tensors under some names; one of them may hold a list."""
    values = [call.get(name) for name in names]
    return [v for value in values for v in (value if isinstance(value, (list, tuple)) else (value,))]


def _flags_of(value: Tensor, mark: Tensor | None) -> Tensor:
    """Where a factor may be other than zero; one that depends on an input may be anywhere."""
    known = mark is None or not bool((mark != 0).any())
    return flags(value) if known else torch.ones(value.shape)


def _multiplied(step: Step, factors: list[Tensor]) -> Any:
    """The product of other factors, nothing added."""
    names, summand = _factors(step)
    args: dict[str, Any] = dict(step.values.args)
    is_list = isinstance(args[names[0]], (list, tuple))
    args.update({names[0]: factors} if is_list else dict(zip(names, factors, strict=True)))
    if summand:
        args[summand] = None if summand == "bias" else torch.zeros(())
    return call_with(step, args | {name: 1 for name in ("alpha", "beta") if name in args})


def _attention(step: Step) -> Any:
    """The channels of the values stay apart; which positions they come from depends on all of queries and keys."""
    q, k, v = (step.mark(name) for name in ("query", "key", "value"))
    if step.is_computed("attn_mask") or q.shape[:-2] != v.shape[:-2]:
        return None
    weights = q.sum((-2, -1), keepdim=True) + k.sum((-2, -1), keepdim=True)
    return (weights + v.sum(-2, keepdim=True)).expand(step.result.shape)


# -- over whole dims --------------------------------------------------------------------------------------------------


def _over(mark: Tensor, dims: Iterable[int], shape: torch.Size) -> Tensor:
    """Everything along some dims depends on all of it."""
    dims = [d % mark.dim() for d in dims]
    return (mark.sum(dims, keepdim=True) if dims else mark).expand(shape)


def _windows(step: Step) -> Any:
    """Positions are mixed, channels are not."""
    mark = step.mark(next(iter(step.values.args)))
    mixed = mark.sum(list(range(-n_window_dims(step.name), 0)), keepdim=True)
    return tree_map_only(Tensor, lambda t: mixed.expand(t.shape), step.result)


def _transformed(step: Step) -> Tensor:
    return _over(step.mark("self"), step.values["dim"], step.result.shape)


def _paired(step: Step) -> Tensor:
    mark = step.mark("self")
    return mark.sum(-1) if step.result.is_complex() else mark.unsqueeze(-1).expand(step.result.shape)


def _along_dim(step: Step) -> Any:
    mark = step.mark(next(iter(step.values.args)))
    mixed = mark.sum(step.values["dim"], keepdim=True) if mark.dim() else mark
    return tree_map_only(Tensor, lambda t: mixed.expand(t.shape), step.result)


def _reduced(step: Step) -> Any:
    """A reduction reads all along its dims."""
    mark = step.mark(next(iter(step.values.args)))
    dims = step.values.get("dim")
    if isinstance(step.values.get("other"), Tensor):
        return _elementwise(step)  # the larger of two tensors
    chosen = [dims] if isinstance(dims, int) else list(dims) if dims else list(range(mark.dim()))
    kept = mark.sum(chosen, keepdim=bool(step.values.get("keepdim", False)))
    return tree_map_only(Tensor, lambda t: kept.expand(t.shape), step.result)


def _normalised(step: Step) -> Any:
    """Over what the statistics are taken of, by the arguments that tell it."""
    computed = any(step.is_computed(name) for name in ("weight", "bias", "running_mean", "running_var"))
    if computed or not isinstance(step.result, Tensor):
        return None
    if "normalized_shape" in step.values.args:
        mark = step.mark("input")
        return _over(mark, range(-len(step.values["normalized_shape"]), 0), mark.shape)
    if "num_groups" in step.values.args:
        return _group_norm(step)
    return _batch_norm(step)


def _group_norm(step: Step) -> Tensor:
    mark = step.mark("input")
    grouped = mark.reshape(len(mark), step.values["num_groups"], -1)
    return _over(grouped, [2], grouped.shape).reshape(mark.shape) * _scales(step)


def _batch_norm(step: Step) -> Tensor:
    mark = step.mark("input") * _scales(step)
    if step.values.get("training") or step.values.get("use_input_stats"):
        mark = _over(mark, [d for d in range(mark.dim()) if d != 1], mark.shape)
    return mark


def _scales(step: Step) -> Tensor:
    """Where the scale of a channel is not zero, to be multiplied with the input."""
    weight = step.values.get("weight")
    ones = [1] * (step.values["input"].dim() - 2)
    return flags(weight).reshape(-1, *ones) if isinstance(weight, Tensor) else torch.ones(1)


# Every kind is here: one that no rule looks into is said to be so.
RULES: dict[Kind, Rule | None] = {
    Kind.MOVE: _moved,
    Kind.COPY: _same,
    Kind.CONVERSION: _same,
    Kind.JOIN: _moved,
    Kind.OVERWRITE: _overwritten,
    Kind.ASSEMBLY: _moved,
    Kind.POINTWISE: _elementwise,
    Kind.CHANNELWISE: _channelwise,
    Kind.GATE: _gated,
    Kind.LINEAR: _product,
    Kind.PRODUCT: _product,
    Kind.CONVOLUTION: _product,
    Kind.ATTENTION: _attention,
    Kind.DISTANCE: None,
    Kind.NORMALISATION: _normalised,
    Kind.REDUCTION: _reduced,
    Kind.SCAN: _along_dim,
    Kind.WINDOW: _windows,
    Kind.TRANSFORM: _transformed,
    Kind.PAIR: _paired,
    Kind.WEIGHT_NORM: None,
    Kind.LOOKUP: None,
    Kind.RECURRENT: None,
    Kind.CONSTANT: None,  # its number may be a size that is free
    Kind.CHECK: None,
}
