"""What in a network depends on its inputs, and what its outputs depend on, element by element and weight by weight.

The graph is run on *marks*: 1 where an element depends on an input, 0 where it does not. For each kind of operator
stands one that adds up the marks of what it reads (see `marks`): a convolution the marks under its weights that are
not zero, an elementwise operator those of its operands. Such a sum can be differentiated, so the same graph run
backwards tells which elements have an influence on an output. Where no rule is known everything depends on everything:
never the other way round.
"""

from __future__ import annotations

import operator as python_operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from edgeprune.graph import binding
from edgeprune.graph.marks import Step, everything, has_rule, marks_of
from edgeprune.graph.randomness import draws


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
    run = _Run(program, args)
    with torch.enable_grad():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                run.placeholder(node)
            elif node.op == "call_function":
                run.call(node, watch)
            else:
                run.output(node)
    return run.found


class _Run:
    """One pass over a program."""

    def __init__(self, program: ExportedProgram, args: Iterable[Any]) -> None:
        self.found = Dependence()
        self._args = iter(args)
        self._tensors = {**program.constants, **program.state_dict}
        self._specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self._values: dict[fx.Node, Any] = {}
        self._marks: dict[fx.Node, Any] = {}  # as in-place operators left them

    def placeholder(self, node: fx.Node) -> None:
        """An input, which depends on itself, or a tensor of the program's, of which buffers stay as they are."""
        spec = self._specs[node.name]
        if spec.kind is InputKind.USER_INPUT:
            value = next(self._args)
            marks = torch.ones(value.shape, requires_grad=True) if isinstance(value, Tensor) else None
        else:
            value, marks = _copied(self._tensors[spec.target or ""]), None
        self._values[node] = value
        self._enter(node, marks)

    def call(self, node: fx.Node, watch: Callable[[Step], None]) -> None:
        """One operator, on values and on marks."""
        step = self._step(node)
        watch(step)
        self._values[node] = step.result
        marks, is_mixed = _marked(step)
        if is_mixed:
            self.found.mixed.add(node)
        self._enter(node, marks)
        for written in binding.mutated(node):
            self._marks[written] = marks

    def output(self, node: fx.Node) -> None:
        """What the program gives."""
        results = tree_leaves(fx.node.map_arg(node.args, self._marks.get))
        self.found.outputs = [mark for mark in results if isinstance(mark, Tensor)]

    def _enter(self, node: fx.Node, marks: Any) -> None:
        self._marks[node] = marks
        if marks is not None:
            self.found.marks[node] = marks

    def _step(self, node: fx.Node) -> Step:
        """A node as it is run; values and marks are those of before, which an in-place operator changes."""
        before = {written: _copied(self._values[written]) for written in binding.mutated(node)}
        call = binding.bind(node, lambda other: before.get(other, self._values[other]))
        marks = binding.bind(node, self._marks.__getitem__)
        args = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
        return Step(node, call, marks, binding.run(node, args))


def _copied(tensor: Any) -> Any:
    return tensor.detach().clone() if isinstance(tensor, Tensor) else tensor


def _marked(step: Step) -> tuple[Any, bool]:
    """The marks of a step's result, None for what is no tensor; and whether no rule looks into it."""
    if step.node.target is python_operator.getitem:
        container, index = step.marks.args.values()
        return None if container is None else container[index], False
    is_mixed = not has_rule(step)
    if any(step.is_computed(name) for name in step.marks.args):
        marks = marks_of(step)
        is_mixed = marks is None
        marks = everything(step) if is_mixed else marks
    else:  # made of parameters alone: it depends on no input, and what it has an influence on is to be found
        marks = tree_map(_unmarked, step.result)
    if draws(step.node.target, step.values.args):  # random numbers count as inputs
        ones = tree_map_only(Tensor, lambda t: torch.ones(t.shape, requires_grad=True), step.result)
        marks = tree_map(lambda one, mark: one if mark is None else one + mark, ones, marks)
    return tree_map_only(Tensor, _flagged, marks), is_mixed


def _flagged(marks: Tensor) -> Tensor:
    """Marks as 0 and 1; their influence is to be found, also of a weight that is only made as large as an input."""
    flags = _Flag.apply(marks)
    return flags if flags.requires_grad else flags.requires_grad_()


def _unmarked(result: Any) -> Tensor | None:
    is_float = isinstance(result, Tensor) and result.is_floating_point()
    return torch.zeros(result.shape, requires_grad=True) if is_float else None
