"""One pass over the graph on labels, repeated until nothing changes."""

from __future__ import annotations

import itertools
import math
import operator as python_operator
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves, tree_map_only

from edgeprune.errors import CaptureError
from edgeprune.graph import binding, reasons
from edgeprune.graph.call import Call
from edgeprune.graph.einsum import Operand, unify
from edgeprune.graph.findings import Finding, Hint, Source, chosen, constant, reason_at, same_objects, same_result
from edgeprune.graph.labels import Layer, Value, core, pack, vectors, without_overlaps
from edgeprune.graph.ops.movement import lock_all
from edgeprune.graph.ops.registry import Kind, Operator, kind_of, lookup
from edgeprune.graph.randomness import made_of_draws
from edgeprune.graph.reasons import Cause
from edgeprune.graph.sizes import size_hint
from edgeprune.graph.solve import Reason, Solver
from edgeprune.graph.sources import Sources, unit_sizes
from edgeprune.graph.state import state_partners
from edgeprune.graph.tensors import Tensors, is_inexact


class Analysis:
    """Labels of every value of a program, and the equalities between them."""

    def __init__(
        self,
        program: ExportedProgram,
        *,
        inputs: bool,
        attention: str,
        state: Mapping[str, str] | None = None,
        free_rows: Collection[fx.Node] = (),
    ) -> None:
        self.program = program
        self.state = dict(state or {})
        self._partners = state_partners(program, self.state)
        self.label_inputs = inputs
        self.attention = attention
        self.possible: Callable[[Tensor], Sequence[int]] = lambda labels: range(labels.dim())
        self.solver = Solver()
        self._sources = Sources(self.solver)
        self.env: dict[fx.Node, Any] = {}
        self.settled = False
        self._findings: dict[fx.Node, Finding] = {}
        self._finding = Finding((), False)
        self._node: fx.Node | None = None
        self._zero_probes: dict[Any, bool] = {}
        self._graph_inputs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self.tensors = Tensors(program)
        self._static = binding.static_nodes(program)
        self._drawn = made_of_draws(program.graph)
        self._free_rows = frozenset(free_rows)

    # -- solving ---------------------------------------------------------------------------------------------------

    def solve(self) -> None:
        """Run passes until no rule finds anything new: forced unions first, free choices last."""
        while True:
            self.run_pass()
            if self.solver.merge():
                continue
            if self._resolve(self._hints()) or self._resolve(self._conflicts()):
                continue
            if self.settled and not self._lock_unresolved() and not self._lock_whole_dims():
                return
            self.settled = True  # from here on a reduction over units that do not read zero locks them

    def run_pass(self) -> None:
        """Propagate labels through the whole graph once; what depends on nothing that changed is kept."""
        self._sources.begin_pass()
        self.env = {}
        for node in self.program.graph.nodes:
            self._node = node
            if node.op == "placeholder":
                self.env[node] = self._placeholder(node)
            elif node.op == "call_function":
                self.env[node] = self._call(node)
            elif node.op == "output":
                self._output(node)
            else:
                raise CaptureError(f"{node.name}: expected a program of operators alone, got one with branches")

    def _hints(self) -> list[Hint]:
        """What calls prefer, strong preferences first."""
        hints = [hint for finding in self._findings.values() for hint in finding.hints]
        return sorted(hints, key=lambda hint: not hint.strong)

    def _conflicts(self) -> list[Tensor]:
        """Labels that vary along several dims still."""
        return [labels for finding in self._findings.values() for labels in finding.conflicts]

    def _resolve(self, items: Sequence[Hint] | Sequence[Tensor]) -> bool:
        """Settle along which one dim each layer varies; layers that share units wait for the next pass."""
        touched = np.zeros(self.solver.n_ids, dtype=bool)
        for item in items:
            labels = item.labels if isinstance(item, Hint) else item
            units = np.unique(labels.numpy())
            units = units[units > 0]
            if touched[units].any():
                continue
            touched[units] = True
            keep = chosen(labels, self.possible(labels), item.keep if isinstance(item, Hint) else None)
            for dim in range(labels.dim()):
                if dim != keep:
                    self._unite(labels, labels.narrow(dim, 0, 1), reasons.WHOLE_SLICES)
        return self.solver.merge()

    def _lock_unresolved(self) -> bool:
        """Lock the inputs of the first call whose result is still pending when nothing else is left to find."""
        for node, call in self.calls.items():
            results = tree_leaves(self.env[node])
            if any(layer.pending for value in results if isinstance(value, Value) for layer in value.layers):
                self._node = node
                for value in call.values:
                    for layer in value.layers:
                        self.lock(layer, reasons.NOT_FOLLOWED)
                return self.solver.merge()
        return False

    def _lock_whole_dims(self) -> bool:
        """Lock units that are all there is along a dim of some tensor: a cut would leave nothing of it."""
        canonical = self.solver.canonical
        for source in self.sources.values():
            labels = canonical[source.ids]
            if source.kind == "tensor" and labels[0] > 0 and (labels == labels[0]).all():
                cause = reasons.whole_tensor(source.dim, source.name)
                reason = Reason(cause.text, self.tensors.reader(source.name), cause.remedy)
                self.solver.lock(torch.from_numpy(labels[:1]), reason)
        return self.solver.merge()

    # -- what was found --------------------------------------------------------------------------------------------

    @property
    def sources(self) -> dict[tuple[str, str, int | None], Source]:
        """What hands out units, by kind, name and dim."""
        return self._sources.found

    @property
    def calls(self) -> dict[fx.Node, Call]:
        """Every call on labelled values, in the order of the graph."""
        return {node: finding.call for node, finding in self._findings.items() if finding.call is not None}

    @property
    def costs(self) -> dict[fx.Node, list[tuple[float, list[np.ndarray]]]]:
        """For each node the summands of its cost: a share and the labels of the dims that it is proportional to."""
        return {node: finding.cost() for node, finding in self._findings.items() if finding.factors}

    @property
    def renormalised(self) -> np.ndarray:
        """Units whose removal changes the statistics of a normalisation."""
        found = [units for finding in self._findings.values() for units in finding.renormalised]
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found]))

    # -- what rules call -------------------------------------------------------------------------------------------

    def unite(self, left: Tensor, right: Tensor) -> None:
        """The units of both are removed together or not at all."""
        self._unite(left, right, reasons.LOCKED_PARTNER)

    def lock(self, layer: Layer, told: Cause | str) -> None:
        """No unit of this layer may be removed; see `reasons` for the causes, a text completes "OPERATOR ..."."""
        self.solver.lock(core(layer), self._reason(told))

    def fix(self, layer: Layer, dim: int, told: Cause | str) -> None:
        """The layer must not vary along `dim`: units along it alone are locked, others are united along it."""
        if layer.pending or dim not in layer.dims:
            return
        if layer.dims == (dim,):
            self.lock(layer, told)
            return
        labels = core(layer)
        self._unite(labels, labels.narrow(layer.dims.index(dim), 0, 1), told)

    def look_up(self, layer: Layer, dim: int, told: Cause | str) -> None:
        """As `fix`, but where it is said which of the rows that the present call looks up stay."""
        if layer.dims != (dim,) or self._node not in self._free_rows:
            self.fix(layer, dim, told)

    def prefer(self, layer: Layer, dim: int, strong: bool = False) -> None:
        """Where nothing forces it otherwise, this layer should vary along `dim` alone."""
        if not self.is_undecided(layer) and not layer.pending and len(layer.dims) > 1:
            self._finding.hints.append(Hint(core(layer), layer.dims.index(dim), strong))

    def choose_later(self, layers: Sequence[Layer]) -> None:
        """Along which dim these layers vary is left to other calls, and else to the number of units."""
        self._finding.undecided = tuple(layers)
        self._finding.conflicts.extend(core(layer) for layer in layers if not layer.pending)

    def is_undecided(self, layer: Layer) -> bool:
        """Whether the present call leaves it to others along which dim this layer varies."""
        return any(layer is other for other in self._finding.undecided)

    def value(self, shape: Sequence[int], layers: Sequence[Layer]) -> Value:
        """A rule's result: layers that label nothing are dropped, and one that does not vary is locked."""
        kept = []
        for layer in layers if math.prod(shape) else ():
            dims = layer.dims
            if dims:
                if len(dims) > 1 or bool((core(layer) != 0).any()):
                    kept.append(layer)
            elif layer.labels.numel() and int(layer.labels.reshape(-1)[0]) > 0:
                is_input = self._node is not None and self._node.op == "placeholder"
                self.lock(layer, reasons.ONE_UNIT if is_input else reasons.SINGLE_UNIT)
        return Value(tuple(shape), tuple(without_overlaps(kept)))

    def source(self, kind: str, name: str, dim: int | None, count: int) -> Tensor:
        """The present labels of a source, `(count,)`; handed out when it is first met."""
        return self._sources.labels(kind, name, dim, count)

    def reads_zero(self, call: Call, pattern: tuple[bool, ...]) -> bool:
        """Whether a pointwise call gives 0 where the operands marked in `pattern` are 0, whatever the others are."""
        others = tuple((name, binding.hashable(v)) for name, v in call.args.items() if not binding.holds_value(v))
        key = (call.node.target, others, pattern)
        if key not in self._zero_probes:
            self._zero_probes[key] = binding.probe_zero(call, pattern)
        return self._zero_probes[key]

    def mark_renormalised(self, layer: Layer) -> None:
        """Removing these units changes the statistics of a normalisation."""
        self._finding.renormalised.append(np.unique(core(layer).numpy()))

    def add_factors(self, layers: Sequence[Layer]) -> None:
        """The cost of the present node is proportional to the kept share of each of these layers."""
        self._finding.factors.extend(vectors(layers))

    def add_term(self, share: float, layers: Sequence[Layer]) -> None:
        """A share of the present node's cost is proportional to the kept share of each of these layers alone."""
        self._finding.terms.append((share, vectors(layers)))

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _placeholder(self, node: fx.Node) -> Any:
        spec = self._graph_inputs[node.name]
        val = node.meta.get("val")
        if not isinstance(val, Tensor):
            return size_hint(val)
        shape = binding.shape_of(val)
        if spec.kind == InputKind.USER_INPUT:
            return self._user_input(node.name, val, shape)
        name = self.tensors.first_name(spec.target or "")
        tensor = self.tensors[name]
        if not node.users:
            return Value(shape)
        if not is_inexact(tensor):
            return self._sources.remembered("tensor", name, (), lambda _: Value(shape, const=tensor))
        return self._sources.labelled("tensor", name, val.shape, Value(shape))

    def _user_input(self, name: str, val: Tensor, shape: tuple[int, ...]) -> Value:
        """An input's elements are units of their own; rules unite those that only go together.

        Where sizes are free, the indices of the first dim of a fixed one (channels, columns, sensors) are the units.
        """
        if name in self.state:
            return self._sources.labelled("state", name, val.shape, Value(shape))
        labelled = any(isinstance(size, int) for size in val.shape[1:]) and val.is_floating_point()
        if not self.label_inputs or not labelled:
            return self._sources.remembered("input", name, (), lambda _: Value(shape, raw=True))
        units = unit_sizes(val.shape[1:])

        def build(labels: list[Tensor]) -> Value:
            layer = pack(labels[0].reshape(1, *units).expand(shape), zero=False)
            return Value(shape, self.value(shape, [layer]).layers, raw=True)  # one unit alone cannot go

        return self._sources.remembered("input", name, ((None, math.prod(units)),), build)

    def _operand(self, node: fx.Node) -> Any:
        """A node's value; a constant that is no table of indices as one that can be sliced."""
        value = self.env[node]
        if not isinstance(value, Value) or value.const is None:
            return value
        alike = node.op == "call_function" and kind_of(self._node.target) is Kind.POINTWISE  # type: ignore[union-attr]
        return self.constant(node) if alike or is_inexact(value.const) else value

    def constant(self, node: fx.Node) -> Value:
        """A computed constant that can be sliced like a parameter: along all dims, integers where they repeat."""
        value = self.env[node]
        varies = () if is_inexact(value.const) else pack(value.const, zero=False).dims
        sizes = [None if d in varies else size for d, size in enumerate(node.meta["val"].shape)]
        return self._sources.labelled("constant", node.name, sizes, value)

    def _call(self, node: fx.Node) -> Any:
        if node.target is python_operator.getitem:
            container, index = node.args
            return self.env[container][index]  # type: ignore[index]
        arguments = node.all_input_nodes
        inputs = tuple(self._operand(n) for n in arguments)
        known = self._findings.get(node)
        if known is None or known.settled != self.settled or not same_objects(known.inputs, inputs):
            before = known
            known = self._findings[node] = self._finding = Finding(inputs, self.settled)
            known.result = self._evaluate(node, [self.env[n] for n in arguments])
            if before is not None and same_result(before.result, known.result):
                known.result = before.result  # the very same object: what depends on it need not be looked at again
        for written in binding.mutated(node):
            self.env[written] = known.result
        return known.result

    def _evaluate(self, node: fx.Node, inputs: list[Any]) -> Any:
        """The node's value: computed where it holds only sizes or constants, else by its operator's rule."""
        values = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Value)]
        if not values and not node.users:
            return None  # an assertion on sizes
        if values and not binding.holds_tensor(node.meta.get("val")):
            return size_hint(node.meta.get("val"))  # a size, or an assertion
        if all(value.const is not None for value in values):
            known = {n: tree_map_only(Value, lambda v: v.const, self.env[n]) for n in node.all_input_nodes}
            return constant(binding.computed(node, known), node in self._drawn)
        return self._by_rule(node)

    def _by_rule(self, node: fx.Node) -> Any:
        """The result of a call on labelled values."""
        call = self._finding.call = binding.bind(node, self._operand)
        entry = lookup(node.target, call.name)
        raw = self._raw_operand(call, entry)
        if raw is not None and entry is not None and not entry.moves:
            return self._mapped(call, raw)
        if raw is None:
            self._leave_raw(call)
        result = lock_all(self, call, reasons.NO_RULE) if entry is None else entry.rule(self, call)  # never guess
        return self._checked(result, raw)

    def _raw_operand(self, call: Call, entry: Operator | None) -> Value | None:
        """The operand that a call leaves *raw*, because it moves an input's elements or maps them one by one."""
        raws = [value for value in call.values if value.raw]
        keeps = entry is not None and len(raws) == 1 and self._keeps_raw(call, entry, raws[0])
        return raws[0] if keeps else None

    def _keeps_raw(self, call: Call, entry: Operator, raw: Value) -> bool:
        nodes = call.node.all_input_nodes
        others = {n: value for n in nodes if isinstance(value := self.env[n], Value) and not value.raw}
        if entry.moves:
            return call.input.raw and all(value.const is not None for value in others.values())
        return entry.kind is Kind.POINTWISE and call.shape == raw.shape and self._static.issuperset(others)

    def _leave_raw(self, call: Call) -> None:
        """An input that leaves its raw part must be rectangular: it is gathered there along one dim of fixed size."""
        for value in call.values:
            self._collect_conflicts(value)
        for node in call.node.all_input_nodes:
            value = self.env[node]
            if isinstance(value, Value) and value.raw:
                for layer, dim in itertools.product(value.layers, binding.free_sizes(node)):
                    self.fix(layer, dim, reasons.FREE_SIZE)

    def _mapped(self, call: Call, raw: Value) -> Value:
        """An element-wise function of an input; what else goes in (a mean for each pixel) meets the whole input."""
        for value in call.values:
            if value is not raw:
                for layer in value.layers:
                    self.lock(layer, reasons.WHOLE_INPUT)
        return Value(call.shape, tuple(Layer(layer.labels, False) for layer in raw.layers), raw=True)

    def _checked(self, result: Any, raw: Value | None) -> Any:
        """Note which layers of the result still vary along several dims, and that it is raw unless units are new."""
        if isinstance(result, Value):
            if raw is not None and (raw.layers or not result.layers):
                return Value(result.shape, result.layers, result.const, raw=True)
            self._collect_conflicts(result)
            return result
        return [self._checked(part, raw) if isinstance(part, Value) else part for part in result]

    def _collect_conflicts(self, value: Value) -> None:
        for layer in value.layers:
            if len(layer.dims) > 1 and not layer.pending:
                self._finding.conflicts.append(core(layer))

    def _output(self, node: fx.Node) -> None:
        """What goes out is locked, but for a state, whose units are those of what comes in again."""
        self._finding = Finding((), self.settled)
        for position, result in enumerate(tree_leaves(node.args)):
            for value in tree_leaves(self.env[result]) if isinstance(result, fx.Node) else ():
                if isinstance(value, Value) and position in self._partners:
                    letters = tuple(f"d{dim}" for dim in range(len(value.shape)))
                    partner = self.env[self._partners[position]]
                    unify(self, [Operand(value, letters), Operand(partner, letters)])
                elif isinstance(value, Value):
                    for layer in value.layers:
                        self.lock(layer, reasons.OUTPUT)

    def _unite(self, left: Tensor, right: Tensor, told: Cause | str) -> None:
        self.solver.unite(left, right, self._reason(told))

    def _reason(self, told: Cause | str) -> Reason:
        assert self._node is not None
        return reason_at(self._node, told)
