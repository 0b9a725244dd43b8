"""Nodes of an exported graph as calls: arguments by schema name, symbolic sizes as the ints they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves, tree_map_only

from edgeprune.graph.call import Call, operator_name
from edgeprune.graph.labels import Value
from edgeprune.graph.sizes import size_hint


def schema_of(node: fx.Node) -> Any:
    """The operator's schema, or None for a plain Python function."""
    return getattr(node.target, "_schema", None)


def bind(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Call:
    """A node's call, with values in place of the nodes among its arguments."""
    args = fx.node.map_arg(node.args, value_of)
    kwargs = fx.node.map_arg(node.kwargs, value_of)
    schema = schema_of(node)
    bound: dict[str, Any] = {}
    if schema is None:
        bound = {str(position): value for position, value in enumerate(args)} | dict(kwargs)
    else:
        for position, argument in enumerate(schema.arguments):
            given = position < len(args)
            bound[argument.name] = args[position] if given else kwargs.get(argument.name, argument.default_value)
    return Call(node, operator_name(node.target), bound, shapes_of(node))


def run(node: fx.Node, args: Any) -> Any:
    """Run the node's operator on other arguments, `(args, kwargs)`."""
    target: Any = node.target
    with torch.no_grad():
        return target(*args[0], **args[1])


def spared(node: fx.Node, values: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
    """The values of a node's arguments, with copies of the program's own tensors that it writes to."""
    own = [target for target in mutated(node) if target.op == "placeholder"]
    return {**values, **{target: values[target].clone() for target in own}}


def computed(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """What a node gives on these values of its arguments, which stay as they are where they are the program's own."""
    return run(node, fx.node.map_arg((node.args, dict(node.kwargs)), spared(node, values).__getitem__))


def shapes_of(node: fx.Node) -> Any:
    """The output's shape, or the list of them."""
    val = node.meta.get("val")
    return shape_of(val) if isinstance(val, Tensor) else tree_map_only(Tensor, shape_of, val)


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """A fake tensor's shape with symbolic sizes as the ints that they stand for."""
    return tuple(size if type(size) is int else size_hint(size) for size in tensor.shape)


def free_sizes(node: fx.Node) -> list[int]:
    """The dims of a node's tensor whose size is free, or is made of free ones."""
    return [dim for dim, size in enumerate(node.meta["val"].shape) if not isinstance(size, int)]


def follows_sizes(node: fx.Node) -> bool:
    """Whether a constant is made of a free size, as `torch.arange(x.shape[1])` is: it is another one at each size."""
    return not isinstance(node.meta.get("val"), Tensor) or any(map(follows_sizes, node.all_input_nodes))


def is_shape(item: Any) -> bool:
    """Whether this is a shape, rather than a list of them."""
    return isinstance(item, tuple) and all(isinstance(n, int) for n in item)


def static_nodes(program: ExportedProgram) -> set[fx.Node]:
    """Nodes that depend on no input: parameters, buffers, constants, and what is made of them."""
    user_inputs = set(program.graph_signature.user_inputs)
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        is_tensor = node.op == "placeholder" and node.name not in user_inputs
        if is_tensor or (node.op == "call_function" and found.issuperset(node.all_input_nodes)):
            found.add(node)
    return found


def holds_tensor(val: Any) -> bool:
    """Whether a node returns a tensor."""
    return isinstance(val, Tensor) or any(isinstance(leaf, Tensor) for leaf in tree_leaves(val))


def holds_value(args: Any) -> bool:
    """Whether a labelled value is among (nested) arguments."""
    return any(isinstance(leaf, Value) for leaf in tree_leaves(args))


def mutated(node: fx.Node) -> list[fx.Node]:
    """The arguments that an in-place operator writes to."""
    schema = schema_of(node)
    if schema is None or not schema.is_mutable:
        return []
    found = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write and position < len(node.args):
            target = node.args[position]
            if isinstance(target, fx.Node):
                found.append(target)
    return found


def probe_zero(call: Call, pattern: tuple[bool, ...]) -> bool:
    """Run the operator on single numbers: zeros where `pattern` says so, two unlike numbers elsewhere."""
    masks = _masks(call)
    for number in (0.7, -1.3):
        probes = {
            id(value): _probe(0.0 if zero else number, id(value) in masks)
            for value, zero in zip(call.values, pattern, strict=True)
        }
        try:
            result = _run_on(call, probes)
        except (RuntimeError, IndexError, TypeError):
            return False  # it takes no single numbers: nothing is promised
        if bool(result.ne(0).any()):
            return False
    return True


def _run_on(call: Call, probes: dict[int, Tensor]) -> Tensor:
    """The operator's result on numbers in place of its values."""
    args = {name: _replaced(value, probes) for name, value in call.args.items()}
    positional = [argument.name for argument in schema_of(call.node).arguments if not argument.kwarg_only]
    keywords = {name: value for name, value in args.items() if name not in positional}
    result: Tensor = run(call.node, ([args[name] for name in positional], keywords))
    return result


def _masks(call: Call) -> set[int]:
    """The ids of the values that are bool."""
    nodes = tree_leaves(list(bind(call.node, lambda node: node).args.values()))
    values = tree_leaves(list(call.args.values()))
    pairs = [(node, value) for node, value in zip(nodes, values, strict=True) if isinstance(value, Value)]
    return {id(value) for node, value in pairs if node.meta["val"].dtype is torch.bool}


def _probe(number: float, is_mask: bool) -> Tensor:
    """A stand-in for a value; a mask that is not known to be zero is tried both ways."""
    return torch.tensor([number > 0]) if is_mask else torch.full((1,), number)


def _replaced(value: Any, probes: dict[int, Tensor]) -> Any:
    return tree_map_only(Value, lambda v: probes[id(v)], value)


def hashable(value: Any) -> Any:
    """Nested lists as nested tuples."""
    return tuple(hashable(v) for v in value) if isinstance(value, (list, tuple)) else value


def _nodes(graph: fx.Graph, op: str) -> list[fx.Node]:
    """The nodes of one kind, in the order of the graph."""
    return [node for node in graph.nodes if node.op == op]


def counterparts(program: ExportedProgram, edited: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Each call and each input of a program -> its node in the module made of it, where names may differ."""
    specs = program.graph_signature.input_specs
    user_inputs = {spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT}  # numbers among them too
    inputs = [node for node in _nodes(program.graph, "placeholder") if node.name in user_inputs]
    found = dict(zip(inputs, _nodes(edited, "placeholder"), strict=True))
    # In the module more may follow: writes to buffers.
    calls = zip(_nodes(program.graph, "call_function"), _nodes(edited, "call_function"), strict=False)
    for node, counterpart in calls:
        if node.target is not counterpart.target:
            raise AssertionError(f"{node.name} is not {counterpart.name}")
        found[node] = counterpart
    return found
