"""One pass over the graph on labels, repeated until nothing changes."""

from __future__ import annotations

import operator as python_operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from edgeprune.graph.capture import size_hint
from edgeprune.graph.labels import Layer, Value, core, pack, pending_labels, spread
from edgeprune.graph.ops.registry import Call, Operator, lookup, operator_name
from edgeprune.graph.solve import Reason, Solver, count_units


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Where labels start: one dim of a parameter, buffer or constant, or the elements of a graph input.

    `name` is the name in the state dict (or of the input, or of the constant's node); `dim` is None for an input.
    `ids` are the labels that were handed out, in the order of the elements.
    """

    kind: str  # "tensor", "input" or "constant"
    name: str
    dim: int | None
    ids: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Hint:
    """A layer that varies along several dims, and along which of them it had better vary alone."""

    labels: Tensor
    keep: int


class Analysis:
    """Labels of every value of a program, and the equalities between them."""

    def __init__(self, program: ExportedProgram, *, inputs: bool, attention: str) -> None:
        self.program = program
        self.label_inputs = inputs
        self.attention = attention
        self.solver = Solver()
        self.sources: dict[tuple[str, str, int | None], Source] = {}
        self.env: dict[fx.Node, Any] = {}
        self.calls: dict[fx.Node, Call] = {}
        self.settled = False
        self.renormalised: list[np.ndarray] = []
        self.factors: dict[fx.Node, list[np.ndarray]] = {}
        self._hints: list[Hint] = []
        self._conflicts: list[Tensor] = []
        self._canonical = np.zeros(1, dtype=np.int64)
        self._node: fx.Node | None = None
        self._zero_probes: dict[Any, bool] = {}
        self._graph_inputs = _graph_inputs(program)
        self._tensors = {**program.constants, **program.state_dict}
        self._aliases = _first_name_of_each_storage(self._tensors)

    # -- solving ---------------------------------------------------------------------------------------------------

    def solve(self) -> None:
        """Run passes until no rule finds anything new: forced unions first, free choices last."""
        while True:
            self.run_pass()
            if self.solver.merge():
                continue
            if self._resolve(self._hints, _hinted):
                continue
            if self._resolve(self._conflicts, _with_most_units):
                continue
            if self.settled and not self._lock_unresolved():
                return
            self.settled = True  # from here on a reduction over units that do not read zero locks them

    def run_pass(self) -> None:
        """Propagate labels through the whole graph once."""
        self._canonical = self.solver.canonical
        self.env, self.calls, self.factors = {}, {}, {}
        self._hints, self._conflicts, self.renormalised = [], [], []
        for node in self.program.graph.nodes:
            self._node = node
            if node.op == "placeholder":
                self.env[node] = self._placeholder(node)
            elif node.op == "call_function":
                self.env[node] = self._call(node)
            elif node.op == "output":
                self._output(node)
            else:
                raise AssertionError(f"exported graphs hold no {node.op} nodes")

    def _resolve(self, pending: Sequence[Any], choose: Callable[[Any], tuple[Tensor, int]]) -> bool:
        """Settle along which single dim each unresolved layer varies; layers that share units wait for the next pass."""
        touched = np.zeros(len(self._canonical), dtype=bool)
        for item in pending:
            labels, keep = choose(item)
            units = np.unique(labels.numpy())
            units = units[units > 0]
            if touched[units].any():
                continue
            touched[units] = True
            for dim in range(labels.dim()):
                if dim != keep:
                    self._unite(labels, labels.narrow(dim, 0, 1), "a unit must fill whole slices along one dim")
        return self.solver.merge()

    def _lock_unresolved(self) -> bool:
        """Lock the inputs of the first call whose result is still pending when nothing else is left to find."""
        for node, call in self.calls.items():
            results = torch.utils._pytree.tree_leaves(self.env[node])
            if any(layer.pending for value in results if isinstance(value, Value) for layer in value.layers):
                self._node = node
                for value in call.values:
                    for layer in value.layers:
                        self.lock(layer, "mixes units in a way that is not followed")
                return self.solver.merge()
        return False

    # -- what rules call -------------------------------------------------------------------------------------------

    def unite(self, left: Tensor, right: Tensor) -> None:
        """The units of both are removed together or not at all."""
        self._unite(left, right, "works on units together with ones that are locked")

    def lock(self, layer: Layer, message: str) -> None:
        """No unit of this layer may be removed; `message` completes "OPERATOR ...", e.g. "mixes channels"."""
        self.solver.lock(core(layer), self._reason(message))

    def fix(self, layer: Layer, dim: int, message: str) -> None:
        """The layer must not vary along `dim`: units that vary along it alone are locked, others are united along it."""
        if layer.pending or dim not in layer.dims:
            return
        if layer.dims == (dim,):
            self.lock(layer, message)
            return
        labels = core(layer)
        self._unite(labels, labels.narrow(layer.dims.index(dim), 0, 1), message)

    def prefer(self, layer: Layer, dim: int) -> None:
        """Where nothing forces it otherwise, this layer should vary along `dim` alone."""
        if not layer.pending and len(layer.dims) > 1:
            self._hints.append(Hint(core(layer), layer.dims.index(dim)))

    def value(self, shape: Sequence[int], layers: Sequence[Layer]) -> Value:
        """A rule's result: layers that label nothing are dropped, and one that does not vary is locked."""
        kept = []
        for layer in layers:
            dims = layer.dims
            if dims:
                if len(dims) > 1 or bool((core(layer) != 0).any()):
                    kept.append(layer)
            elif layer.labels.numel() and int(layer.labels.reshape(-1)[0]) > 0:
                self.solver.lock(layer.labels.reshape(-1)[:1], self._reason("takes a single unit out of its dim"))
        return Value(tuple(shape), tuple(without_overlaps(kept)))

    def aliases(self, name: str) -> list[str]:
        """Every name that the tensor `name` goes by; tied weights have several."""
        return [other for other, first in self._aliases.items() if first == name]

    def source(self, kind: str, name: str, dim: int | None, count: int) -> Tensor:
        """The present labels of a source, `(count,)`; handed out when it is first met."""
        key = (kind, name, dim)
        if key not in self.sources:
            self.sources[key] = Source(kind, name, dim, self.solver.fresh(count))
            self._canonical = np.concatenate([self._canonical, self.sources[key].ids])
        return torch.from_numpy(self._canonical[self.sources[key].ids])

    def rank(self, name: str) -> int:
        """The number of dims of a parameter, buffer or constant tensor; 0 for what is none."""
        tensor = self._tensors.get(name)
        return tensor.dim() if isinstance(tensor, Tensor) else 0

    def reads_zero(self, call: Call, pattern: tuple[bool, ...]) -> bool:
        """Whether a pointwise call gives 0 where the operands marked in `pattern` are 0, whatever the others are."""
        others = tuple((name, _hashable(v)) for name, v in call.args.items() if not _holds_value(v))
        key = (call.node.target, others, pattern)
        if key not in self._zero_probes:
            self._zero_probes[key] = _probe_zero(call, pattern)
        return self._zero_probes[key]

    def mark_renormalised(self, layer: Layer) -> None:
        """Removing these units changes the statistics of a normalisation."""
        self.renormalised.append(np.unique(core(layer).numpy()))

    def add_factors(self, layers: Sequence[Layer]) -> None:
        """The cost of the present node is proportional to the kept share of each of these layers."""
        assert self._node is not None
        vectors = [core(layer).numpy() for layer in layers if len(layer.dims) == 1 and not layer.pending]
        self.factors.setdefault(self._node, []).extend(vectors)

    def _labelled(self, node: fx.Node) -> Any:
        """A node's value; a float constant gets a label on every dim, so that it can be sliced like a parameter."""
        value = self.env[node]
        if not isinstance(value, Value) or value.const is None or not value.const.is_floating_point():
            return value
        sizes = node.meta["val"].shape
        return Value(value.shape, self._dim_layers("constant", node.name, sizes, value.shape), value.const)

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _placeholder(self, node: fx.Node) -> Any:
        spec = self._graph_inputs[node.name]
        val = node.meta.get("val")
        if not isinstance(val, Tensor):
            return size_hint(val)
        shape = shape_of(val)
        if spec.kind == InputKind.USER_INPUT:
            return self._user_input(node.name, val, shape)
        name = self._aliases.get(spec.target, spec.target)
        tensor = self._tensors[name]
        if not tensor.is_floating_point():
            return Value(shape, const=tensor)
        if not node.users:
            return Value(shape)
        return Value(shape, self._dim_layers("tensor", name, val.shape, shape))

    def _dim_layers(self, kind: str, name: str, sizes: Sequence[Any], shape: tuple[int, ...]) -> tuple[Layer, ...]:
        """One layer a dim, with a unit for each index; dims of symbolic size and of size 1 have none."""
        layers = []
        for dim, size in enumerate(sizes):
            if isinstance(size, int) and size > 1:
                layers.append(pack(spread(self.source(kind, name, dim, size), (dim,), shape), zero=True))
        return tuple(layer for layer in layers if layer.dims)

    def _user_input(self, name: str, val: Tensor, shape: tuple[int, ...]) -> Value:
        """An input's elements are units of their own; rules unite those that only go together."""
        fixed_size = all(isinstance(size, int) for size in val.shape[1:])
        if not self.label_inputs or not val.is_floating_point() or val.dim() < 2 or not fixed_size:
            return Value(shape, raw=True)
        count = int(np.prod(shape[1:]))
        labels = self.source("input", name, None, count).reshape(1, *shape[1:]).expand(shape)
        return Value(shape, (pack(labels, zero=False),), raw=True)

    def _call(self, node: fx.Node) -> Any:
        if node.target is python_operator.getitem:
            container, index = node.args
            return self.env[container][index]
        args = fx.node.map_arg((node.args, node.kwargs), lambda n: self.env[n])
        if not _holds_value(args):
            return self._compute(node, args)
        if not _holds_tensor(node.meta.get("val")):
            return size_hint(node.meta.get("val"))  # a size, or an assertion
        call = self._bind(node, args)
        if all(value.const is not None for value in call.values):
            return self._fold(call, args)
        entry = lookup(node.target, call.name)
        call = self._bind(node, fx.node.map_arg((node.args, node.kwargs), self._labelled))
        if not _stays_raw(call, entry):
            for value in call.values:
                self._collect_conflicts(value)  # an input that leaves its raw part must be rectangular
        self.calls[node] = call
        result = self._unknown(call) if entry is None else entry.rule(self, call)
        result = self._checked(call, entry, result)
        for mutated in _mutated(node):
            self.env[mutated] = result
        return result

    def _compute(self, node: fx.Node, args: Any) -> Any:
        """A node without tensor arguments: sizes, or a constant."""
        result = node.target(*args[0], **args[1])
        return Value(tuple(result.shape), const=result) if isinstance(result, Tensor) else result

    def _fold(self, call: Call, args: Any) -> Any:
        """A node of constants alone is a constant."""
        plain = torch.utils._pytree.tree_map_only(Value, lambda v: v.const, args)
        with torch.no_grad():
            result = call.node.target(*plain[0], **plain[1])
        return torch.utils._pytree.tree_map_only(Tensor, lambda t: Value(tuple(t.shape), const=t), result)

    def _bind(self, node: fx.Node, args: Any) -> Call:
        bound: dict[str, Any] = {}
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            bound = dict(enumerate(args[0])) | args[1]  # type: ignore[assignment]
        else:
            for position, argument in enumerate(schema.arguments):
                if position < len(args[0]):
                    bound[argument.name] = args[0][position]
                else:
                    bound[argument.name] = args[1].get(argument.name, argument.default_value)
        val = node.meta.get("val")
        shapes = torch.utils._pytree.tree_map_only(Tensor, shape_of, val)
        return Call(node, operator_name(node.target), bound, shapes)

    def _checked(self, call: Call, entry: Operator | None, result: Any) -> Any:
        """Note which layers of the result still vary along several dims, and whether it is still raw."""
        if isinstance(result, Value):
            if _stays_raw(call, entry):
                return Value(result.shape, result.layers, result.const, raw=True)
            self._collect_conflicts(result)
            return result
        results = [self._checked(call, entry, part) if isinstance(part, Value) else part for part in result]
        return results

    def _collect_conflicts(self, value: Value) -> None:
        for layer in value.layers:
            if len(layer.dims) > 1 and not layer.pending:
                self._conflicts.append(core(layer))

    def _unknown(self, call: Call) -> Any:
        """An operator without a rule: never guess."""
        for value in call.values:
            for layer in value.layers:
                self.lock(layer, "has no rule")
        return torch.utils._pytree.tree_map_only(tuple, lambda s: Value(s), call.shape, is_leaf=_is_shape)

    def _output(self, node: fx.Node) -> None:
        def lock(value: Any) -> Any:
            if isinstance(value, Value):
                for layer in value.layers:
                    self.lock(layer, "is the model's output")
            return None

        fx.node.map_arg(node.args, lambda n: torch.utils._pytree.tree_map(lock, self.env[n]))

    def _unite(self, left: Tensor, right: Tensor, message: str) -> None:
        self.solver.unite(left, right, self._reason(message))

    def _reason(self, message: str) -> Reason:
        node = self._node
        assert node is not None
        name = (
            "output" if node.op == "output" else operator_name(node.target) if node.op == "call_function" else node.name
        )
        return Reason(f"{name} {message}", node.name)


def _stays_raw(call: Call, entry: Operator | None) -> bool:
    """Whether the call moves an input's elements or maps them one by one, and so leaves it *raw*."""
    moves = entry is not None and (entry.moves or entry is lookup(None, "pointwise"))
    others = call.values[1:]
    indices_or_numbers = all(
        v.const is not None and (v.const.numel() == 1 or not v.const.is_floating_point()) for v in others
    )
    return moves and call.input.raw and indices_or_numbers


def _hinted(hint: Hint) -> tuple[Tensor, int]:
    return hint.labels, hint.keep


def _with_most_units(labels: Tensor) -> tuple[Tensor, int]:
    array = labels.numpy()
    counts = [count_units(array, dim) for dim in range(array.ndim)]
    return labels, int(np.argmax([0 if count == 1 else count for count in counts]))


def _graph_inputs(program: ExportedProgram) -> dict[str, Any]:
    return {spec.arg.name: spec for spec in program.graph_signature.input_specs}


def _first_name_of_each_storage(tensors: dict[str, Any]) -> dict[str, str]:
    """Name -> the first name that the same memory goes by; tied weights export under several."""
    first: dict[Any, str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.numel():
            key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
            aliases[name] = first.setdefault(key, name)
    return aliases


def _mutated(node: fx.Node) -> list[fx.Node]:
    """The arguments that an in-place operator writes to."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    found = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write and position < len(node.args):
            target = node.args[position]
            if isinstance(target, fx.Node):
                found.append(target)
    return found


def _holds_value(args: Any) -> bool:
    return any(isinstance(leaf, Value) for leaf in torch.utils._pytree.tree_leaves(args))


def _holds_tensor(val: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in torch.utils._pytree.tree_leaves(val))


def _is_shape(item: Any) -> bool:
    return isinstance(item, tuple) and all(isinstance(n, int) for n in item)


def _hashable(value: Any) -> Any:
    return tuple(_hashable(v) for v in value) if isinstance(value, (list, tuple)) else value


def _probe_zero(call: Call, pattern: tuple[bool, ...]) -> bool:
    """Run the operator on single numbers: zeros where `pattern` says so, two unlike numbers elsewhere."""
    values = call.values
    for number in (0.7, -1.3):
        probes = {
            id(value): torch.zeros(1) if zero else torch.full((1,), number)
            for value, zero in zip(values, pattern, strict=True)
        }
        args = torch.utils._pytree.tree_map_only(Value, lambda v, p=probes: p[id(v)], call.args)
        names = [argument.name for argument in call.node.target._schema.arguments if not argument.kwarg_only]
        kwargs = {name: value for name, value in args.items() if name not in names}
        try:
            result = call.node.target(*(args[name] for name in names), **kwargs)
        except (RuntimeError, IndexError, TypeError):
            return False  # it takes no single numbers: nothing is promised
        if bool(result.ne(0).any()):
            return False
    return True


def without_overlaps(layers: Sequence[Layer]) -> list[Layer]:
    """Layers over different but overlapping dims describe the same units, not resolved yet: pending over all of them."""
    result: list[Layer] = []
    for layer in layers:
        clash = next((y for y in result if y.dims != layer.dims and set(y.dims) & set(layer.dims)), None)
        if clash is None:
            result.append(layer)
            continue
        dims = tuple(sorted(set(clash.dims) | set(layer.dims)))
        shape = tuple(layer.labels.shape)
        pending = Layer(spread(pending_labels(tuple(shape[d] for d in dims)), dims, shape), zero=False)
        result = without_overlaps([y for y in result if y is not clash] + [pending])
    return result


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """A fake tensor's shape with symbolic sizes as the ints that they stand for."""
    return tuple(size_hint(size) for size in tensor.shape)
