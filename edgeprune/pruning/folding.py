"""Dead units: ones that give the same number whatever the input is, and ones that nothing reads.

A unit whose incoming weights are all zero gives a constant. What the next layer makes of it is added to that layer's
bias, and its weights on the unit become zero: then nothing reads the unit any more, and it can go without any change
of the output. (Induced Feature Selection by Structured Pruning, "tracking back"; constants included.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from edgeprune.graph import binding
from edgeprune.graph.call import Call
from edgeprune.graph.capture import Program, example_inputs, reexport_like
from edgeprune.graph.dependence import explore
from edgeprune.graph.faults import public
from edgeprune.graph.groups import ChannelGraph
from edgeprune.graph.labels import Value, core
from edgeprune.graph.marks import Step
from edgeprune.graph.ops.contraction import is_transposed
from edgeprune.graph.ops.registry import Kind, kind_of
from edgeprune.graph.prepare import prepared


@dataclass(frozen=True, slots=True, eq=False)
class _Constants:
    """What one layer reads that is the same for every input: `fixed` bool `(n_inputs,)`, `values` `(n_inputs,)`."""

    node: str
    fixed: Tensor
    values: Tensor


@public("fold")
def fold(program: ExportedProgram) -> Program:
    """The same network with all constants that its layers read folded into their biases, and their weights zero.

    Linear layers, and convolutions without padding, take any constant. A padded one sees zeros beside it at the border,
    so that it takes constants of zero alone; a transposed one takes none. A layer without a bias passes the shift to
    the batch norm behind it, or gets a bias.

    Returns the same object where nothing is constant. The output differs by rounding at most.
    """
    dense = program if isinstance(program, Program) else Program.adopt(program)
    if not has_zeros(dense):
        return dense
    found: list[_Constants] = []

    ready = prepared(dense)
    static = binding.static_nodes(ready)  # tables computed from parameters alone are left to training

    def look(step: Step) -> None:
        constants = _constants(step, static)
        if constants is not None:
            found.append(constants)

    explore(ready, tree_leaves(example_inputs(ready)), look)
    if not found:
        return dense
    module = dense.editable_module()
    counterparts = {node.name: other for node, other in binding.counterparts(dense, module.graph).items()}
    layers = _Layers(module)
    changed = [layers.fold(counterparts[one.node], one) for one in found if one.node in counterparts]
    if not any(changed):
        return dense
    return reexport_like(module, dense) if layers.has_new_bias else dense.with_tensors(layers.tensors)


def alive(graph: ChannelGraph) -> np.ndarray:
    """Bool `(n_labels,)`: the units that have an influence on an output, and everything that is no unit."""
    ready = graph.analysis.program
    dependence = explore(ready, tree_leaves(example_inputs(ready)))
    influence = dependence.influence()
    canonical = graph.analysis.solver.canonical
    keep = np.ones(len(canonical), dtype=bool)
    for group in graph.groups:
        keep[group.units] = False
    for node, flags in influence.items():
        for value, flag in zip(_values(graph, node), tree_leaves(flags), strict=False):
            for units in _read(value, flag):
                keep[canonical[units]] = True
    for node in graph.analysis.calls:
        shown = [argument for argument in node.all_input_nodes if argument in influence]
        own = [argument for argument in node.all_input_nodes if argument not in influence]
        if node not in dependence.mixed:
            shown.append(node)
        # Units that are summed over between parameters, or fed back within a call: no value shows whether they matter.
        keep[canonical[np.setdiff1d(_units(graph, own), _units(graph, shown))]] = True
    return keep


def is_constant(program: ExportedProgram) -> bool:
    """Whether no output depends on an input."""
    ready = prepared(program)
    dependence = explore(ready, tree_leaves(example_inputs(ready)))
    return not any(bool(end.any()) for end in dependence.outputs)


def _values(graph: ChannelGraph, node: fx.Node) -> list[Value]:
    return [value for value in tree_leaves(graph.analysis.env.get(node)) if isinstance(value, Value)]


def _units(graph: ChannelGraph, nodes: list[fx.Node]) -> np.ndarray:
    layers = [layer for node in nodes for value in _values(graph, node) for layer in value.layers]
    found = [np.unique(core(layer).numpy()) for layer in layers]
    return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found]))


def _read(value: Value, flag: object) -> Iterator[np.ndarray]:
    """The units of a value of which an element is flagged."""
    for layer in value.layers:
        if isinstance(flag, Tensor):
            others = [d for d in range(flag.dim()) if d not in layer.dims]
            seen = flag.any(dim=others) if others else flag
            yield np.unique(core(layer)[seen].numpy())
        else:
            yield np.zeros(0, dtype=np.int64)


def has_zeros(program: ExportedProgram) -> bool:
    """Whether any index of any dim of any parameter is all zero, without which nothing can be dead.

    What is only added, a bias, can be zero without anything being dead: so many a network starts.
    """
    names = program.graph_signature.inputs_to_parameters
    placeholders = (node for node in program.graph.nodes if node.name in names)
    parameters = (program.state_dict[names[node.name]] for node in placeholders if not _is_bias(node))
    return any(
        bool((tensor.detach() == 0).all(dim=[d for d in range(tensor.dim()) if d != dim]).any())
        if tensor.dim() > 1
        else bool((tensor.detach() == 0).any())
        for tensor in parameters
        for dim in range(min(tensor.dim(), 2))
    )


def _is_bias(parameter: fx.Node) -> bool:
    """Whether operators read a parameter as their bias alone."""
    calls = [binding.bind(user, lambda node: node).args for user in parameter.users]
    readings = [name for args in calls for name, value in args.items() if parameter in tree_leaves(value)]
    return set(readings) == {"bias"}


def _takes_constants(call: Call) -> bool:
    """Whether it is a layer whose inputs are folded: one that is linear in them, and no transposed convolution."""
    kind = kind_of(call.node.target)
    return kind is Kind.LINEAR or (kind is Kind.CONVOLUTION and not is_transposed(call))


def _n_spatial(weight: Tensor) -> int:
    return max(weight.dim() - 2, 0)


def _constants(step: Step, static: set[fx.Node]) -> _Constants | None:
    """The inputs of a linear layer or a convolution that are constant over samples and positions."""
    if not _takes_constants(step.values):
        return None
    if step.is_computed("weight") or binding.bind(step.node, lambda node: node)["input"] in static:
        return None
    value, mark = step.values["input"], step.mark("input")
    dim = value.dim() - 1 - _n_spatial(step.values["weight"])
    lines, marks = (t.detach().movedim(dim, 0).reshape(value.shape[dim], -1) for t in (value, mark))
    fixed = (marks == 0).all(1) & (lines == lines[:, :1]).all(1)
    return _Constants(step.node.name, fixed, lines[:, 0].clone()) if bool(fixed.any()) else None


class _Layers:
    """The layers of a module under change, each with its own weight."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        buffers = module.named_buffers(remove_duplicate=False)
        self.tensors = {**dict(module.named_parameters(remove_duplicate=False)), **dict(buffers)}
        readers = [node for node in module.graph.nodes if node.op == "get_attr"]
        self.uses = Counter(id(self.tensors.get(str(node.target))) for node in readers for _ in node.users)
        self.has_new_bias = False

    def fold(self, node: fx.Node, constants: _Constants) -> bool:
        """Fold constants into one layer; whether it changed."""
        call = binding.bind(node, lambda n: n)
        weight = self._own(call["weight"])
        if weight is None or not _takes_constants(call):
            return False
        groups = call.get("groups", 1)
        takes = constants.fixed & ((constants.values == 0) | _sees_no_border(call.args, weight))
        columns = _by_output(takes, weight, groups)
        if not bool((weight.detach()[columns.expand_as(weight)] != 0).any()):
            return False
        numbers = _by_output(constants.values.double() * takes, weight, groups)
        shift = (weight.detach().double() * numbers).flatten(1).sum(1)
        if bool((shift != 0).any()) and not self._add(node, call["bias"], str(call["weight"].target), shift):
            return False
        with torch.no_grad():
            weight.masked_fill_(columns, 0)
        return True

    def _own(self, node: object) -> nn.Parameter | None:
        """The parameter that a node reads, if nothing else reads it."""
        tensor = self.tensors.get(str(node.target)) if isinstance(node, fx.Node) and node.op == "get_attr" else None
        return tensor if isinstance(tensor, nn.Parameter) and self.uses[id(tensor)] == 1 else None

    def _add(self, node: fx.Node, bias: fx.Node | None, weight: str, shift: Tensor) -> bool:
        """Add to what a layer gives, `(n_outputs,)`: to its bias, in the batch norm behind it, or to a new bias."""
        if bias is not None:
            tensor = self._own(bias)
            if tensor is None:
                return False
            _shift(tensor, shift)
            return True
        mean = self._mean_behind(node, self.tensors[weight])
        if mean is not None:
            _shift(mean, -shift)
            return True
        return self._new_bias(node, weight, shift)

    def _mean_behind(self, node: fx.Node, weight: Tensor) -> Tensor | None:
        """The running mean of a batch norm that alone reads the layer, whose outputs are its channels: dim 1."""
        user = next(iter(node.users))
        has_channels = node.meta["val"].dim() - _n_spatial(weight) == 2
        if len(node.users) > 1 or not has_channels or kind_of(user.target) is not Kind.NORMALISATION:
            return None
        call = binding.bind(user, lambda n: n)
        mean = call.get("running_mean")
        by_batch = call.get("training") or call.get("use_input_stats")
        if by_batch or not isinstance(mean, fx.Node) or mean.op != "get_attr":
            return None
        tensor = self.tensors.get(str(mean.target))
        return tensor if tensor is not None and self.uses[id(tensor)] == 1 else None

    def _new_bias(self, node: fx.Node, weight: str, shift: Tensor) -> bool:
        owner, _, attribute = weight.rpartition(".")
        layer = self.module.get_submodule(owner) if owner else self.module
        if attribute != "weight" or hasattr(layer, "bias"):
            return False
        layer.bias = nn.Parameter(shift.to(self.tensors[weight].dtype))
        self.has_new_bias = True
        with self.module.graph.inserting_before(node):
            read = self.module.graph.get_attr(f"{owner}.bias" if owner else "bias")
        if len(node.args) > 2:
            node.update_arg(2, read)
        else:
            node.update_kwarg("bias", read)
        return True


def _shift(tensor: Tensor, by: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(tensor.double() + by)


def _by_output(inputs: Tensor, weight: Tensor, groups: int) -> Tensor:
    """A number for each input, laid out over a weight `(n_outputs, n_inputs / groups, ...)`."""
    per_group = inputs.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
    return per_group.reshape(*per_group.shape, *[1] * (weight.dim() - 2))


def _sees_no_border(args: dict[str, object], weight: Tensor) -> bool:
    """Whether every position of the result sees inputs alone, no padding."""
    padding = args.get("padding", 0)
    if isinstance(padding, str):
        return padding == "valid" or all(size == 1 for size in weight.shape[2:])
    return all(size == 0 for size in (padding if isinstance(padding, (list, tuple)) else [padding]))
