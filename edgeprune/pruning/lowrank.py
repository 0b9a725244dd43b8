"""Layers of low rank: a linear layer or 1x1 convolution becomes two, with fewer channels in between.

`y = W x + b` becomes `y = B (A x) + b` with `B = U` and `A = U' W`, where the columns of `U` are the directions that
the outputs `W x` of real inputs lie along most: of all pairs of that rank the one that is nearest on those inputs. It
is the singular value decomposition of `W C^(1/2)`, with the inputs' second moments `C` (Chen et al., DRONE: Data-aware
Low-rank Compression for Large NLP Models, NeurIPS 2021; Yuan et al., ASVD, arXiv 2312.05821, scales by the inputs
likewise). Without inputs `C` is the identity, and it is that of `W`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgeprune.errors import PlanError
from edgeprune.formats.digests import digest
from edgeprune.graph.binding import bind
from edgeprune.graph.call import operator_name
from edgeprune.graph.capture import Program, own_tensors, reexport_like
from edgeprune.graph.lift import Unlifted
from edgeprune.graph.names import split_names
from edgeprune.graph.prepare import prepared
from edgeprune.pruning.editable import editable, forget
from edgeprune.pruning.plan import PlannedSplit, PruningPlan

_aten = torch.ops.aten
_LAYERS: Mapping[str, Any] = {
    "linear": _aten.linear.default,
    "conv1d": _aten.conv1d.default,
    "conv2d": _aten.conv2d.default,
    "conv3d": _aten.conv3d.default,
}
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A layer that may be split: the name of its weight, and its channels out and in."""

    weight: str
    n_out: int
    n_in: int

    @property
    def worth(self) -> int:
        """The highest rank at which two layers have fewer weights than one; 0 where none has."""
        return (self.n_out * self.n_in - 1) // (self.n_out + self.n_in)


def dense_layers(program: ExportedProgram) -> tuple[DenseLayer, ...]:
    """The layers that may be split: linear ones and 1x1 convolutions in one group, with a weight of their own."""
    module = editable(program)
    return tuple(
        DenseLayer(name, *_tensor(module, name).shape[:2]) for name in layer_nodes(module.graph, _own_weights(module))
    )


def layer_nodes(graph: fx.Graph, weights: Mapping[str, Tensor]) -> dict[str, fx.Node]:
    """The calls of linear layers and 1x1 convolutions that alone read one of these weights, by its name."""
    found = {}
    readers = Counter(str(node.target) for node in graph.find_nodes(op="get_attr") for _ in node.users)
    for node in graph.nodes:
        if node.op != "call_function" or operator_name(node.target) not in _LAYERS:
            continue
        call = bind(node, lambda value: value)
        read = call["weight"]
        name = str(read.target) if isinstance(read, fx.Node) and read.op == "get_attr" else ""
        if name in weights and readers[name] == 1 and call.get("groups") in (None, 1) and _is_dense(weights[name]):
            found[name] = node
    return found


def _is_dense(weight: Tensor) -> bool:
    """Whether a weight `(n_out, n_in, ...)` has no kernel but of one."""
    return weight.dim() >= 2 and weight.numel() == weight.shape[0] * weight.shape[1]


def plan_splits(program: ExportedProgram, splits: Sequence[PlannedSplit]) -> PruningPlan:
    """The plan that splits layers of a program, and nothing else."""
    return PruningPlan(digest(program), {}, splits=tuple(splits))


def split(
    program: ExportedProgram, splits: Sequence[PlannedSplit], directions: Mapping[str, Tensor] | None = None
) -> Program:
    """The program with some layers in two; their biases stay, and a stride or padding is that of the first.

    Args:
        program: left as it is.
        splits: which layers, with so many channels in between each.
        directions: by the weight's name the directions `(n_out, n)` that a layer's outputs lie along, orthonormal, the
            first the most; for others those of the weight itself.

    Raises:
        PlanError: the program has no such layer, or the rank is above what its weight can have.
    """
    if not splits:
        return Program.adopt(program)
    ready, module = prepared(program), editable(program)
    nodes = layer_nodes(module.graph, _own_weights(module))
    for one in splits:
        node = nodes.get(one.weight)
        if node is None:
            shown = ", ".join(list(nodes)[:_SHOWN]) or "none"
            raise PlanError(f"the plan splits {one.weight!r}: expected a dense layer's own weight such as {shown}")
        weight = _tensor(module, one.weight)
        if one.rank > min(weight.shape[:2]):
            raise PlanError(
                f"the plan splits {one.weight!r} at rank {one.rank}: expected one that fits shape {tuple(weight.shape)}"
            )
        known = (directions or {}).get(one.weight)
        _split_in_two(module, node, one, factors(weight, one.rank, known))
    forget(module, [one.weight for one in splits])
    own_tensors(module)
    return reexport_like(module, ready)


def factors(weight: Tensor, rank: int, directions: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The weights `(rank, n_in, ...)` and `(n_out, rank, ...)` of the two layers, each with the same part of the size.

    Args:
        weight: `(n_out, n_in, ...)`, with kernels of one.
        directions: as `split` takes them.
    """
    matrix = weight.detach().flatten(1).double()
    known = principal(matrix) if directions is None else directions
    up = known[:, :rank].to(matrix)
    down = up.mT @ matrix
    size = down.norm(dim=1).sqrt()
    size = torch.where(size > 0, size, 1.0)
    ones = [1] * (weight.dim() - 2)
    narrow, wide = down / size[:, None], up * size
    return tuple(part.to(weight.dtype).reshape(*part.shape, *ones) for part in (narrow, wide))  # type: ignore[return-value]


def principal(matrix: Tensor) -> Tensor:
    """The left singular vectors of a matrix, `(n_rows, n)`, the greatest first, the largest number of each above 0."""
    vectors = torch.linalg.svd(matrix, full_matrices=False).U
    largest = vectors.abs().argmax(0)
    return vectors * vectors[largest, torch.arange(vectors.shape[1])].sign()


def joined(program: ExportedProgram, splits: Sequence[PlannedSplit]) -> Program:
    """The program with the product of both layers in place of the two, for each split.

    Raises:
        PlanError: it has no such two layers.
    """
    ready, module = prepared(program), editable(program)
    nodes = layer_nodes(module.graph, _own_weights(module))
    gone: list[str] = []
    for one in splits:
        names = split_names(one.weight)
        down, up = (nodes.get(name) for name in names)
        if down is None or up is None or up.args[0] is not down or len(down.users) != 1:
            raise PlanError(f"expected {one.weight!r} in two layers, {names[0]!r} and {names[1]!r}, got none such")
        halves = {name: _tensor(module, name).detach() for name in names}
        read = _reading(module, up, one.weight, product(halves, one).to(halves[names[0]].dtype))
        _call(module.graph, up, down.target, _arguments(down, read, bind(up, lambda value: value)["bias"]))
        module.graph.erase_node(down)
        gone += names
    forget(module, gone)
    own_tensors(module)
    return reexport_like(module, ready)


def product(tensors: Mapping[str, Tensor], one: PlannedSplit) -> Tensor:
    """What the weights of the two layers that a split made come to together, float64 `(n_out, n_in, ...)`."""
    down, up = (tensors[name].detach().double() for name in split_names(one.weight))
    whole = up.flatten(1) @ down.flatten(1)
    return whole.reshape(*whole.shape, *down.shape[2:])


def with_products(program: ExportedProgram, whole: ExportedProgram, plan: PruningPlan) -> Program:
    """A dense program whose layers that were split have, where they are kept, the weights of the `joined` one."""
    tensors = {}
    for one in plan.splits:
        before, kept = program.state_dict[one.weight].detach().clone(), plan.tensors.get(one.weight, {})
        rows, columns = (torch.tensor(kept.get(dim, range(before.shape[dim]))) for dim in (0, 1))
        before[rows[:, None], columns] = whole.state_dict[one.weight].detach()
        tensors[one.weight] = nn.Parameter(before)
    return Program.adopt(program).with_tensors(tensors)


# -- in a graph -------------------------------------------------------------------------------------------------------


def _own_weights(module: fx.GraphModule | Unlifted) -> dict[str, Tensor]:
    """The parameters that are tied to no other, and whose two halves can be called as they are."""
    named = dict(module.named_parameters(remove_duplicate=False))
    uses = Counter(tensor.data_ptr() for tensor in named.values())
    taken = {name for name, _ in (*module.named_modules(), *module.named_buffers())} | named.keys()
    halves = {name: [half.rpartition(".")[0] for half in split_names(name)] for name in named}
    return {
        name: tensor
        for name, tensor in named.items()
        if uses[tensor.data_ptr()] == 1 and tensor.is_floating_point() and not taken & set(halves[name])
    }


def _split_in_two(
    module: fx.GraphModule | Unlifted, node: fx.Node, one: PlannedSplit, weights: tuple[Tensor, Tensor]
) -> None:
    down, up = split_names(one.weight)
    bias = bind(node, lambda value: value)["bias"]
    narrow = _reading(module, node, down, weights[0])
    wide = _reading(module, node, up, weights[1])
    with module.graph.inserting_before(node):
        between = module.graph.call_function(node.target, _arguments(node, narrow, None))  # type: ignore[arg-type]
    between.meta = {name: value for name, value in node.meta.items() if name not in ("val", "tensor_meta")}
    _call(module.graph, node, _LAYERS[operator_name(node.target)], (between, wide, bias))


def _arguments(node: fx.Node, weight: fx.Node, bias: fx.Node | None) -> tuple[Any, ...]:
    """The arguments of a layer with another weight and bias."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {**dict(zip((argument.name for argument in schema), node.args, strict=False)), **node.kwargs}
    given |= {"weight": weight, "bias": bias}
    n_given = max(place for place, argument in enumerate(schema, 1) if argument.name in given)
    return tuple(given.get(argument.name, argument.default_value) for argument in schema[:n_given])


def _call(graph: fx.Graph, place: fx.Node, target: Any, arguments: tuple[Any, ...]) -> None:
    """Let a call stand in the place of another."""
    with graph.inserting_before(place):
        made = graph.call_function(target, arguments)
    made.meta = dict(place.meta)
    place.replace_all_uses_with(made)
    graph.erase_node(place)


def _reading(module: fx.GraphModule | Unlifted, before: fx.Node, name: str, tensor: Tensor) -> fx.Node:
    """A node that reads a new parameter of the module."""
    *owners, attribute = name.split(".")
    owner: nn.Module = module
    for step in owners:
        if step not in owner._modules:
            owner.add_module(step, nn.Module())
        owner = owner.get_submodule(step)
    owner.register_parameter(attribute, nn.Parameter(tensor))
    with module.graph.inserting_before(before):
        return module.graph.get_attr(name)


def _tensor(module: nn.Module, name: str) -> Tensor:
    owner, _, attribute = name.rpartition(".")
    found = getattr(module.get_submodule(owner) if owner else module, attribute)
    assert isinstance(found, Tensor)
    return found
