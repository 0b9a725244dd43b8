"""What in a network depends on its inputs, and what its outputs depend on, element by element and weight by weight.

The graph is run on *marks*: 1 where an element depends on an input, 0 where it does not. For each operator stands one
that adds up the marks of what it reads: a convolution the marks under its weights that are not zero, an elementwise
operator those of its operands. Such a sum can be differentiated, so the same graph run backwards tells which elements
have an influence on an output. Where no rule is known everything depends on everything: never the other way round.
"""

from __future__ import annotations

import operator as python_operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from edgeprune.graph import binding
from edgeprune.graph.call import Call

_Rule = Callable[["Step"], Any]
_CONVOLUTIONS = {
    "conv1d",
    "conv2d",
    "conv3d",
    "convolution",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
}
_FACTORS = {name: ("input", "weight") for name in ("linear", *_CONVOLUTIONS)} | {
    "matmul": ("self", "other"), "mm": ("self", "mat2"), "bmm": ("self", "mat2"), "mv": ("self", "vec"),
    "dot": ("self", "tensor"), "addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2"), "einsum": ("tensors",),
}  # fmt: skip
_ADDED = {"linear": "bias", "addmm": "self", "baddbmm": "self"} | dict.fromkeys(_CONVOLUTIONS, "bias")
_MOVES = {
    "permute", "transpose", "t", "numpy_T", "mT", "mH", "swapaxes", "swapdims", "movedim", "moveaxis", "squeeze",
    "unsqueeze", "flip", "flatten", "repeat", "tile", "channel_shuffle", "view", "reshape", "_unsafe_view", "unflatten",
    "slice", "narrow", "select", "unbind", "split", "split_with_sizes", "chunk", "tensor_split", "roll", "expand",
    "broadcast_to", "index_select", "pixel_shuffle", "pixel_unshuffle", "unfold", "repeat_interleave", "cat", "stack",
    "constant_pad_nd", "pad", "slice_scatter", "select_scatter", "index_copy", "tril", "triu", "diagonal",
}  # fmt: skip
_SAME = {
    "contiguous", "clone", "alias", "detach", "lift_fresh_copy", "to", "_to_copy", "float", "double", "half", "type_as",
}  # fmt: skip
_WINDOWS = re.compile(
    r"(max_pool|avg_pool|adaptive|_adaptive|upsample|_upsample|reflection_pad|replication_pad).*?(\d)d"
)
_POINTWISE = {
    "relu6", "hardswish", "selu", "log_sigmoid", "rsub", "true_divide", "divide", "multiply", "subtract", "masked_fill",
    "where", "clamp", "float_power", "square", "expm1", "softsign", "dropout", "feature_dropout", "alpha_dropout",
    "feature_alpha_dropout", "prelu",
}  # fmt: skip
_REDUCTIONS = {
    "sum", "nansum", "any", "mean", "amax", "amin", "max", "min", "var", "std", "prod", "logsumexp", "var_mean",
    "std_mean", "linalg_vector_norm", "norm",
}  # fmt: skip
_SPREAD_OVER_DIM = {"softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod"}


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


class _Flag(torch.autograd.Function):
    """0 and 1 for 0 and anything else, forward and backward: counts of paths would soon be too large."""

    @staticmethod
    def forward(ctx: Any, marks: Tensor) -> Tensor:
        return (marks != 0).to(torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return (gradients[0] != 0).to(torch.float32)


@dataclass(eq=False)
class Dependence:
    """The marks of every value of a program that was run once; `mixed` are the calls that no rule looks into."""

    marks: dict[fx.Node, Any] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)
    mixed: set[fx.Node] = field(default_factory=set)

    def influence(self) -> dict[fx.Node, Any]:
        """For every node that depends on an input bool tensors of its values' shapes: what an output depends on."""
        leaves = [leaf for marks in self.marks.values() for leaf in tree_leaves(marks) if isinstance(leaf, Tensor)]
        ends = [end.sum() for end in self.outputs]
        gradients: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if ends:
            gradients = torch.autograd.grad(torch.stack(ends).sum(), leaves, allow_unused=True)
        of_leaf = {id(leaf): gradient for leaf, gradient in zip(leaves, gradients, strict=True)}

        def seen(leaf: Tensor) -> Tensor:
            gradient = of_leaf[id(leaf)]
            return torch.zeros(leaf.shape, dtype=torch.bool) if gradient is None else gradient != 0

        return {node: tree_map_only(Tensor, seen, marks) for node, marks in self.marks.items()}


def explore(
    program: ExportedProgram, args: Iterable[Any], watch: Callable[[Step], None] = lambda step: None
) -> Dependence:
    """Run a program on real values and on marks.

    Args:
        program: without writes that hide, see `prepare`.
        args: its inputs as a flat list; what they hold has no effect on what is found.
        watch: sees every call before its result is marked.
    """
    given = iter(args)
    tensors = {**program.constants, **program.state_dict}
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    values: dict[fx.Node, Any] = {}
    current: dict[fx.Node, Any] = {}  # marks as in-place operators left them
    first: dict[fx.Node, Any] = {}  # marks as the nodes themselves gave them
    found = Dependence()
    with torch.enable_grad():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                spec = specs[node.name]
                is_input = spec.kind is InputKind.USER_INPUT
                value = next(given) if is_input else _own(tensors[spec.target or ""])
                marked = is_input and isinstance(value, Tensor)
                values[node] = value
                first[node] = current[node] = torch.ones(value.shape, requires_grad=True) if marked else None
            elif node.op == "call_function":
                step = _run(node, values, current)
                watch(step)
                values[node], marks = step.result, _marked(step)
                if _rule(step) is _everything:
                    found.mixed.add(node)
                first[node] = current[node] = marks
                for written in binding.mutated(node):
                    current[written] = marks
            else:
                results = tree_leaves(fx.node.map_arg(node.args, current.get))
                found.outputs = [mark for mark in results if isinstance(mark, Tensor)]
    found.marks = {node: mark for node, mark in first.items() if mark is not None}
    return found


def _own(tensor: Any) -> Any:
    """A copy: the program's buffers stay as they are."""
    return tensor.detach().clone() if isinstance(tensor, Tensor) else tensor


def _run(node: fx.Node, values: dict[fx.Node, Any], marks: dict[fx.Node, Any]) -> Step:
    call, marked = binding.bind(node, values.__getitem__), binding.bind(node, marks.__getitem__)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    # The marks are those of before the call: an in-place operator changes the values, not them.
    return Step(node, call, marked, binding.run(node, (args, kwargs)))


def _marked(step: Step) -> Any:
    """The marks of a step's result; None for what is no tensor."""
    if step.node.target is python_operator.getitem:
        container, index = step.marks.args.values()
        return None if container is None else container[index]
    if any(step.is_computed(name) for name in step.marks.args):
        marks = _rule(step)(step)
    else:  # made of parameters alone: it depends on no input, and what it has an influence on is to be found
        marks = tree_map(_unmarked, step.result)
    if _draws(step):  # random numbers count as inputs
        ones = tree_map_only(Tensor, lambda t: torch.ones(t.shape, requires_grad=True), step.result)
        marks = tree_map(lambda one, mark: one if mark is None else one + mark, ones, marks)
    return tree_map_only(Tensor, _Flag.apply, marks)


def _unmarked(result: Any) -> Tensor | None:
    is_float = isinstance(result, Tensor) and result.is_floating_point()
    return torch.zeros(result.shape, requires_grad=True) if is_float else None


def _draws(step: Step) -> bool:
    """Whether the result holds random numbers."""
    if torch.Tag.nondeterministic_seeded not in getattr(step.node.target, "tags", ()):
        return False
    off = {"train": False, "training": False, "dropout_p": 0.0, "dropout": 0.0}
    switches = [name for name in off if name in step.values.args]
    return not switches or any(step.values[name] != off[name] for name in switches[:1])


def _rule(step: Step) -> _Rule:
    name = step.name
    if name in _FACTORS:
        return _product
    for names, rule in _RULES:
        if name in names:
            return rule
    if _WINDOWS.match(name):
        return _windows
    return _elementwise if torch.Tag.pointwise in getattr(step.node.target, "tags", ()) else _everything


# -- the rules --------------------------------------------------------------------------------------------------------


def _everything(step: Step) -> Any:
    """Every element may depend on every element."""
    reads = [leaf for leaf in tree_leaves(list(step.marks.args.values())) if isinstance(leaf, Tensor)]
    total = torch.stack([mark.sum() for mark in reads]).sum()
    return tree_map_only(Tensor, lambda t: total.expand(t.shape), step.result)


def _same(step: Step) -> Tensor:
    return step.mark(next(iter(step.values.args)))


def _moved(step: Step) -> Any:
    """Marks go where the elements go."""

    def shown(value: Any, mark: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [shown(v, None if mark is None else mark[k]) for k, v in enumerate(value)]
        if not isinstance(value, Tensor):
            return value
        if isinstance(mark, Tensor):
            return mark.clone()  # an in-place form may change it
        return torch.zeros(value.shape) if value.is_floating_point() else value

    args = {name: shown(value, step.marks.get(name)) for name, value in step.values.args.items()}
    if step.name in ("constant_pad_nd", "pad"):
        args["value"] = 0.0 if step.name == "constant_pad_nd" else None
    return _call(step, args)


def _call(step: Step, args: dict[str, Any]) -> Any:
    """The step's operator on other arguments."""
    target: Any = step.node.target
    schema = target._schema.arguments
    positional = [args[a.name] for a in schema if not a.kwarg_only]
    return target(*positional, **{a.name: args[a.name] for a in schema if a.kwarg_only and a.name != "dtype"})


def _elementwise(step: Step) -> Tensor:
    """The marks of all operands; a factor that depends on no input and is zero takes those of the others away."""
    total = torch.zeros(step.result.shape)
    operands = {name: value for name, value in step.values.args.items() if isinstance(value, Tensor)}
    for name in operands:
        if step.is_computed(name):
            mark = step.mark(name)
            if step.name in ("mul", "multiply"):
                for other in operands:
                    mark = mark * _possible(step, other) if other != name else mark
            total = total + mark
    return total


def _possible(step: Step, name: str) -> Tensor:
    """Where a factor may be other than zero."""
    return torch.ones(step.values[name].shape) if step.depends(name) else _flags(step.values[name])


def _product(step: Step) -> Tensor:
    """A product that is linear in each factor: the marks of each, under what is not zero of the others."""
    names = _FACTORS[step.name]
    if names == ("tensors",):
        values, marks = list(step.values["tensors"]), list(step.marks["tensors"])
    else:
        values, marks = [step.values[n] for n in names], [step.marks.get(n) for n in names]
    fixed = [mark is None or not bool((mark != 0).any()) for mark in marks]
    shown = [_flags(v) if known else torch.ones(v.shape) for v, known in zip(values, fixed, strict=True)]
    total = torch.zeros(step.result.shape)
    for k, mark in enumerate(marks):
        if isinstance(mark, Tensor):
            total = total + _factored(step, names, [*shown[:k], mark, *shown[k + 1 :]])
    added = _ADDED.get(step.name)
    return total + step.mark(added) if added and step.is_computed(added) else total


def _factored(step: Step, names: tuple[str, ...], factors: list[Tensor]) -> Any:
    args: dict[str, Any] = dict(step.values.args)
    args.update({"tensors": factors} if names == ("tensors",) else dict(zip(names, factors, strict=True)))
    added = _ADDED.get(step.name)
    if added:
        args[added] = None if added == "bias" else torch.zeros(())
    return _call(step, args | {name: 1 for name in ("alpha", "beta") if name in args})


def _flags(value: Tensor) -> Tensor:
    return (value != 0).to(torch.float32)


def _over(mark: Tensor, dims: Iterable[int], shape: torch.Size) -> Tensor:
    """Everything along some dims depends on all of it."""
    dims = [d % mark.dim() for d in dims]
    return (mark.sum(dims, keepdim=True) if dims else mark).expand(shape)


def _windows(step: Step) -> Any:
    """Positions are mixed, channels are not."""
    found = _WINDOWS.match(step.name)
    assert found is not None
    mark = step.mark(next(iter(step.values.args)))
    mixed = mark.sum(list(range(-int(found[2]), 0)), keepdim=True)
    return tree_map_only(Tensor, lambda t: mixed.expand(t.shape), step.result)


def _along_dim(step: Step) -> Tensor:
    mark = step.mark(next(iter(step.values.args)))
    return _over(mark, [step.values["dim"]], mark.shape)


def _reduced(step: Step) -> Any:
    """A reduction reads all along its dims."""
    mark = step.mark(next(iter(step.values.args)))
    dims = step.values.get("dim")
    if any(isinstance(value, Tensor) for name, value in step.values.args.items() if name == "other"):
        return _elementwise(step)  # the larger of two tensors
    chosen = [dims] if isinstance(dims, int) else list(dims) if dims else list(range(mark.dim()))
    kept = mark.sum(chosen, keepdim=bool(step.values.get("keepdim", False)))
    return tree_map_only(Tensor, lambda t: kept.expand(t.shape), step.result)


def _batch_norm(step: Step) -> Any:
    mark, weight = step.mark("input"), step.values.get("weight")
    if step.is_computed("weight") or step.is_computed("bias"):
        return _everything(step)
    if isinstance(weight, Tensor):
        mark = mark * _flags(weight).reshape(-1, *[1] * (mark.dim() - 2))
    if step.values.get("training") or step.values.get("use_input_stats"):
        mark = _over(mark, [d for d in range(mark.dim()) if d != 1], mark.shape)
    return mark


def _layer_norm(step: Step) -> Any:
    if step.is_computed("weight") or step.is_computed("bias"):
        return _everything(step)
    mark = step.mark("input")
    return _over(mark, range(-len(step.values["normalized_shape"]), 0), mark.shape)


def _attention(step: Step) -> Any:
    """The channels of the values stay apart; which positions they come from depends on all of queries and keys."""
    q, k, v = (step.mark(name) for name in ("query", "key", "value"))
    if step.is_computed("attn_mask") or q.shape[:-2] != v.shape[:-2]:
        return _everything(step)
    weights = q.sum((-2, -1), keepdim=True) + k.sum((-2, -1), keepdim=True)
    return (weights + v.sum(-2, keepdim=True)).expand(step.result.shape)


_RULES: tuple[tuple[set[str], _Rule], ...] = (
    (_SAME, _same),
    (_MOVES, _moved),
    (_REDUCTIONS, _reduced),
    (_SPREAD_OVER_DIM, _along_dim),
    ({"batch_norm", "instance_norm"}, _batch_norm),
    ({"layer_norm", "rms_norm"}, _layer_norm),
    ({"scaled_dot_product_attention"}, _attention),
    (_POINTWISE, _elementwise),
)
