"""The gate of a network at several widths: pooling and one linear layer, which pick the width by the input.

It reads the first layer of the narrowest width where that keeps the dims of the input (the stem of a network for
images), else the input itself. What it pools are means over a grid of 4 to 7 places along each dim, fewer where there
are not as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from edgeprune.errors import InputError
from edgeprune.graph.capture import Program, capture, example_inputs
from edgeprune.graph.sizes import input_values

_GRID = 4  # places at least along each dim that is pooled, where there are as many
_MOST_DIMS = 5  # batch, channels, and three to pool over
_POOLS: dict[int, Any] = {
    3: nn.functional.avg_pool1d,
    4: nn.functional.avg_pool2d,
    5: nn.functional.avg_pool3d,
}


class Pooled(nn.Module):
    """Features `(n, n_features)` of inputs `(n, ...)`: what the stem gives, or the input, as means over a grid."""

    def __init__(self, stem: nn.Module | None) -> None:
        super().__init__()
        self.stem = stem if stem is not None else nn.Identity()

    @classmethod
    def of(cls, narrowest: Program) -> Pooled:
        """What the gate reads, with the stem of the narrowest width where it has one."""
        return cls(stem_of(narrowest)).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Means over places; numbers without a place are taken as they are."""
        x = self.stem(x)
        if x.dim() in _POOLS:
            kernel = [max(1, size // _GRID) for size in x.shape[2:]]
            x = _POOLS[x.dim()](x, kernel)
        return x.flatten(1)


class Gate(nn.Module):
    """The number of a width, from wide to narrow, for each of `(n, ...)` inputs: int64 `(n,)`.

    The linear layer tells how well each width will do, less what it costs; the best one is picked.
    """

    def __init__(self, pooled: Pooled, linear: nn.Linear) -> None:
        super().__init__()
        self.pooled, self.linear = pooled, linear

    @classmethod
    def blank(cls, pooled: Pooled, programs: Sequence[Program]) -> Gate:
        """One for these widths that has learnt nothing, to count what it costs."""
        return cls(pooled, nn.Linear(n_features(pooled, programs[-1]), len(programs))).eval()

    def forward(self, x: Tensor) -> Tensor:
        """The width that is picked."""
        return self.linear(self.pooled(x)).argmax(dim=1)


def check_gated(program: Program) -> None:
    """Raise InputError for a network whose inputs no gate reads: several, of free sizes, or none of real numbers."""
    values = input_values(program)
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) != 1 or len(values) != 1:
        raise InputError(f"--gate: expected a network with one input, by which the width is picked, got {len(values)}")
    [value] = tensors
    if not value.dtype.is_floating_point:
        raise InputError(f"--gate: expected an input of real numbers to pool, got {str(value.dtype).split('.')[-1]}")
    if not 2 <= value.dim() <= _MOST_DIMS:
        raise InputError(
            f"--gate: expected an input with 1 to {_MOST_DIMS - 1} dims after the batch, got {value.dim() - 1}"
        )
    if not all(isinstance(size, int) for size in value.shape[1:]):
        raise InputError("--gate: expected inputs of one size, which a linear layer reads, got free ones")


def n_features(pooled: Pooled, like: Program) -> int:
    """How many numbers the linear layer reads."""
    with torch.no_grad():
        return int(pooled(*example_inputs(like)).shape[1])


def gate_program(gate: Gate, like: Program) -> Program:
    """The gate as a program that takes the inputs of a width."""
    [example] = example_inputs(like)
    return capture(gate, cast(Tensor, example))


def stem_of(program: Program) -> nn.Module | None:
    """The layers from the input to the second one with weights, or to where the way parts; None where there are none.

    They keep the number of dims, of which there are more than two: what follows a flattening is no stem.
    """
    module = program.frozen_module()
    [start] = [node for node in module.graph.nodes if node.op == "placeholder"]
    shapes = _Dims(module).of(example_inputs(program))
    last, found = start, None
    n_weighted = 0
    while (after := _only_user(last)) is not None and shapes.get(after) == shapes[start]:
        n_weighted += _has_weights(module, after)
        if n_weighted > 1:
            break
        last, found = after, after if n_weighted else found
    if found is None or shapes[start] not in _POOLS:
        return None
    return _until(module, found)


class _Dims(fx.Interpreter):
    """The number of dims of what each node gives."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.dims: dict[fx.Node, int] = {}

    def of(self, args: tuple[Any, ...]) -> dict[fx.Node, int]:
        """Of all nodes that give a tensor, on these inputs."""
        with torch.no_grad():
            self.run(*args)
        return self.dims

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.dims[n] = value.dim()
        return value


def _only_user(node: fx.Node) -> fx.Node | None:
    """The one operator that reads a value, but for those that ask for its sizes; None where it is not alone."""
    users = [user for user in node.users if "sym_size" not in str(user.target)]
    return users[0] if len(users) == 1 and users[0].op == "call_function" else None


def _has_weights(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an operator reads a parameter with more than one dim."""
    weights = dict(module.named_parameters(remove_duplicate=False))
    read = [weights.get(str(part.target)) for part in node.all_input_nodes if part.op == "get_attr"]
    return any(weight is not None and weight.dim() > 1 for weight in read)


def _until(module: fx.GraphModule, last: fx.Node) -> nn.Module:
    """The part of a module up to a node, with its own copies of nothing."""
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    needed = _needed_by(last)
    for node in module.graph.nodes:
        if node in needed or node.op == "placeholder":
            made[node] = graph.node_copy(node, lambda old: made[old])
    graph.output(made[last])
    return fx.GraphModule(module, graph).eval()


def _needed_by(last: fx.Node) -> set[fx.Node]:
    found, waiting = set[fx.Node](), [last]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found
