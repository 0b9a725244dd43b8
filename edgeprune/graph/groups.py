"""The network as channel groups: which units there are, where they live, and why the others are locked."""

from __future__ import annotations

import math
import operator as python_operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx
from torch.export import ExportedProgram

import edgeprune.graph.ops  # noqa: F401  (fills the operator table)
from edgeprune.errors import InputError
from edgeprune.graph import reasons
from edgeprune.graph.analysis import Analysis
from edgeprune.graph.binding import shape_of
from edgeprune.graph.call import operator_name
from edgeprune.graph.faults import public
from edgeprune.graph.findings import Source
from edgeprune.graph.garbage import no_collection
from edgeprune.graph.inputs import apply_rules, feature_grids
from edgeprune.graph.lines import source_line
from edgeprune.graph.precedents import Precedents, solve
from edgeprune.graph.prepare import prepared
from edgeprune.graph.rows import Rows, lookups_of, settled_rows
from edgeprune.graph.solve import Reason
from edgeprune.graph.tokens import Tokens
from edgeprune.records import Vocabulary
from edgeprune.settings import FeatureRules


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """Where the units of a group sit in one dim of a tensor.

    `unit` is int64 `(size of the dim,)`: the number of the unit that each index belongs to, -1 for none of this group.
    `kind` is "tensor" (a parameter or buffer, by its name in the state dict), "input", "state" (an input that an
    output feeds), "constant" or "broadcast". For an input `dim` is None and `unit` runs over its flattened elements.
    """

    kind: str
    name: str
    dim: int | None
    unit: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """Units of the same kind, each of which is removed from all slots at once or not at all.

    `units` are their labels, `(n_units,)`. `exact` is False where removal changes the statistics of a normalisation.
    `given` is bool `(n_units,)`, which of them stay, where that is said and not to be chosen: rows of a vocabulary.
    """

    name: str
    units: np.ndarray
    slots: tuple[Slot, ...]
    exact: bool
    given: np.ndarray | None = None

    @property
    def n_units(self) -> int:
        """How many units can be removed one by one."""
        return len(self.units)

    @property
    def is_input(self) -> bool:
        """Whether the units are input features."""
        return any(slot.kind == "input" for slot in self.slots)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that produce the units, by name."""
        names = (slot.name.rpartition(".")[0] for slot in self.slots if slot.kind == "tensor" and slot.dim == 0)
        return tuple(dict.fromkeys(name for name in names if name))

    @property
    def indices_per_unit(self) -> int:
        """How many channels one unit spans where it spans the fewest; widths are multiples of this."""
        return min(int(np.bincount(slot.unit[slot.unit >= 0], minlength=1).max()) for slot in self.slots)


@dataclass(frozen=True, slots=True, eq=False)
class LockedUnits:
    """Indices of one dim of a tensor that must stay, and why.

    `reason` begins with the operator; `where` is the user's source line if it is known; `remedy` is what would unlock
    them.
    """

    name: str
    dim: int
    indices: np.ndarray
    reason: str
    node: str
    where: str
    operator: str
    remedy: str

    @property
    def layer(self) -> str:
        """What holds the tensor: its layer, or itself where it stands alone."""
        return self.name.rpartition(".")[0] or self.name

    @property
    def shared_reason(self) -> str:
        """The reason in words that are the same for all tensors of a layer, where each has it in its own name."""
        own = f" of {self.name}"
        return f"{self.reason.removesuffix(own)} of the tensor" if self.reason.endswith(own) else self.reason


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGraph:
    """The result of the analysis of a program; depends on its graph alone, not on its weights.

    `feature_prices` `(n_features,)` are those of the rules, one input after the other: how much dearer a feature is
    than its arithmetic.
    """

    groups: tuple[ChannelGroup, ...]
    locked: tuple[LockedUnits, ...]
    analysis: Analysis
    rows: Rows = field(default_factory=Rows)
    feature_prices: tuple[float, ...] = ()

    @property
    def costs(self) -> dict[str, list[tuple[float, list[np.ndarray]]]]:
        """Node name -> the summands of its number of operations: a share, and the unit labels of each dim in it."""
        return {node.name: terms for node, terms in self.analysis.costs.items()}

    def slots(self) -> Iterator[tuple[ChannelGroup, Slot]]:
        """Every slot with its group."""
        for group in self.groups:
            for slot in group.slots:
                yield group, slot

    def group_numbers(self) -> np.ndarray:
        """Label -> number of its group, -1 for none, `(n_labels,)`."""
        numbers = np.full(len(self.analysis.solver.canonical), -1)
        for number, group in enumerate(self.groups):
            numbers[group.units] = number
        return numbers

    def features(self) -> tuple[int, list[np.ndarray]]:
        """How many input features cannot go, and for each group `(n_units,)` how many each unit has (0: no input).

        Features that nothing reads are left out.
        """
        units = np.concatenate([np.zeros(0, np.int64), *(grid.units for grid in feature_grids(self.analysis).values())])
        counts = np.bincount(units[units >= 0], minlength=len(self.analysis.solver.canonical))
        return int(counts[0]), [counts[group.units] for group in self.groups]

    @property
    def n_features(self) -> int | None:
        """How many input features there are, of all inputs; None where none of them can be removed."""
        fixed, sizes = self.features()
        return fixed + int(sum(size.sum() for size in sizes)) if any(group.is_input for group in self.groups) else None

    def price_factors(self) -> list[np.ndarray]:
        """For each group `(n_units,)` what the prices are multiplied with; the mean of features that go as one."""
        factors = np.ones(len(self.analysis.solver.canonical))
        if self.feature_prices:
            grids = feature_grids(self.analysis).values()
            units = np.concatenate([grid.units for grid in grids])
            units, prices = units[units >= 0], np.array(self.feature_prices)[units >= 0]
            counts = np.bincount(units, minlength=len(factors))
            factors = np.where(counts > 0, np.bincount(units, prices, len(factors)) / counts.clip(min=1), 1.0)
        return [factors[group.units] for group in self.groups]

    def labels(self, kind: str, name: str, dim: int | None) -> np.ndarray | None:
        """The units of every index of a tensor's dim, 0 where it is locked; None where the dim has no labels."""
        source = self.analysis.sources.get((kind, name, dim))
        return None if source is None else self.analysis.solver.canonical[source.ids]


@public("analyze")
@no_collection()
def analyze(  # noqa: PLR0913 - a network, what of it may go, and what is known of it
    program: ExportedProgram,
    inputs: bool = False,
    attention: str = "heads",
    rules: FeatureRules | None = None,
    state: Mapping[str, str] | None = None,
    vocabularies: Mapping[str, Vocabulary] | None = None,
    precedents: Precedents | None = None,
) -> ChannelGraph:
    """Find the channel groups of an exported program by label propagation.

    Args:
        program: as `capture` returns it.
        inputs: whether input features are units too.
        attention: "heads" removes whole attention heads, "head-dim" the same channels of every head.
        rules: input features that are always kept, and ones that only go together; with `inputs` only.
        state: inputs that take what an output gave in the run before, e.g. `{"h": "h_out"}`: a unit of both is one,
            and the slim network takes and gives a narrower state.
        vocabularies: the ids that stay of token inputs, as `vocabularies` makes them of lists; a plan cuts the others'
            rows out of the tables.
        precedents: what was settled before, where layers leave something to choose.

    Raises:
        InputError: `attention` is neither, or the rules name features that the network has not, or `state` names what
            is no pair of one shape, or rows of a vocabulary cannot go.

    Example:
        >>> graph = edgeprune.analyze(program)
        >>> [(group.name, group.n_units) for group in graph.groups]
    """
    if attention not in ("heads", "head-dim"):
        raise InputError(f"attention: expected heads or head-dim, got {attention!r}")
    ready = prepared(program)
    lookups = lookups_of(Tokens(ready), vocabularies) if vocabularies else {}
    free_rows = [lookup.node for each in lookups.values() for lookup in each]
    analysis = Analysis(ready, inputs=inputs, attention=attention, state=state, free_rows=free_rows)
    solve(analysis, precedents or Precedents())
    if inputs and rules is not None:
        apply_rules(analysis, rules)
    rows = settled_rows(analysis, lookups, vocabularies) if vocabularies else Rows()
    canonical = analysis.solver.canonical
    groups = (_given(group, rows) for group in _groups(analysis, canonical, analysis.renormalised))
    prices = rules.prices if inputs and rules is not None else ()
    return ChannelGraph(tuple(groups), tuple(_locked(analysis, canonical)), analysis, rows, prices)


def _given(group: ChannelGroup, rows: Rows) -> ChannelGroup:
    """The group, with which of its units stay where they are rows of a vocabulary."""
    if not np.isin(group.units, rows.units).any():
        return group
    gone = rows.units[~rows.kept]
    return replace(group, name=f"rows of {group.name}", given=np.isin(group.units, gone, invert=True))


def _groups(analysis: Analysis, canonical: np.ndarray, renormalised: np.ndarray) -> Iterator[ChannelGroup]:
    """Units that one layer produces together form a group, with everything that is coupled to them."""
    sources = list(analysis.sources.values())
    labels = [canonical[source.ids] for source in sources]
    units, places = _occurrences(labels)
    if not len(units):
        return
    group_of = _components(units, places, np.array([_is_producer(analysis, source) for source in sources]))
    inputs = [place for place, source in enumerate(sources) if source.kind == "input"]  # features that nothing reads
    order = np.argsort(group_of, kind="stable")
    for mine in np.split(order, np.flatnonzero(np.diff(group_of[order])) + 1):
        where = np.unique(places[mine]).tolist()
        if all(sources[place].follows for place in where):
            continue
        members = np.unique(units[mine])
        if any(sources[place].kind == "input" for place in where):
            members = members[np.isin(members, units[mine][np.isin(places[mine], inputs, invert=True)])]
        if not len(members):
            continue
        slots = tuple(_slot(sources[place], labels[place], members) for place in where)
        yield ChannelGroup(_group_name(slots), members, slots, not np.isin(members, renormalised).any())


def _components(units: np.ndarray, places: np.ndarray, is_producer: np.ndarray) -> np.ndarray:
    """For each pair of a unit and a place the number of its group: of what shares a place that produces it."""
    names, number = np.unique(units, return_inverse=True)
    produced = is_producer[places]
    homeless = ~np.isin(number, number[produced])  # columns of a table, say: together with what shares a place
    joins = produced | homeless
    edges = (number[joins], len(names) + places[joins])
    size = len(names) + len(is_producer)
    _, component = connected_components(coo_array((np.ones(len(edges[0])), edges), shape=(size, size)), directed=False)
    return np.asarray(component[number])


def _occurrences(labels: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of a unit and the number of a source that it lives in, `(n_pairs,)` each."""
    found = [np.unique(vector[vector > 0]) for vector in labels]
    places = [np.full(len(units), place) for place, units in enumerate(found)]
    empty = np.zeros(0, dtype=np.int64)
    return np.concatenate([empty, *found]), np.concatenate([empty, *places]).astype(np.int64)


def _is_producer(analysis: Analysis, source: Source) -> bool:
    """Whether the source is the output dim of a layer, or an input."""
    if source.kind == "state":
        return False
    return source.kind == "input" or (source.dim == 0 and analysis.tensors.rank(source.name) > 1)


def _slot(source: Source, labels: np.ndarray, units: np.ndarray) -> Slot:
    position = np.searchsorted(units, labels)
    position[position == len(units)] = 0
    unit = np.where((labels > 0) & (units[position] == labels), position, -1)
    return Slot(source.kind, source.name, source.dim, unit)


def _group_name(slots: tuple[Slot, ...]) -> str:
    """After the input, or the layer that produces the units (dim 0 of a weight), or else the first place."""
    for slot in slots:
        if slot.kind == "input":
            return f"input {slot.name}"
    producers = [slot.name for slot in slots if slot.dim == 0 and slot.kind == "tensor"]
    name = (producers or [slot.name for slot in slots])[0]
    layer, _, attribute = name.rpartition(".")
    several = attribute.startswith("weight_") and "_l" in attribute  # an LSTM holds the weights of all its layers
    return name if several else layer or name


def _locked(analysis: Analysis, canonical: np.ndarray) -> Iterator[LockedUnits]:
    """Locked indices by tensor, dim and reason. Dims that are never channels (kernel offsets) are left out."""
    solver = analysis.solver
    nodes = {node.name: node for node in analysis.program.graph.nodes}
    for source in analysis.sources.values():
        if source.follows:
            continue
        why = solver.reason[solver.component[source.ids]]
        for index in np.unique(why[why >= 0]):
            reason = solver.reasons[index]
            node = nodes[reason.node]
            operator = operator_name(node.target) if node.op == "call_function" else node.op
            indices, where = np.flatnonzero(why == index), source_line(node)
            yield LockedUnits(
                source.name, source.dim or 0, indices, reason.message, node.name, where, operator, _remedy(reason, node)
            )


def _remedy(reason: Reason, node: fx.Node) -> str:
    """What would unlock units; nothing would, where the operator that locks them makes what the model returns."""
    over_all = reason.remedy in (reasons.NORMALISED.remedy, reasons.ALL_UNITS.remedy)
    return reasons.OUTPUT.remedy if over_all and _is_returned(node) else reason.remedy


def _is_returned(node: fx.Node) -> bool:
    """Whether the model returns what an operator gives, or the same elements rearranged or changed one by one."""
    waiting = [node]
    while waiting:
        made = waiting.pop()
        for user in made.users:
            if user.op == "output":
                return True
            keeps = len(user.all_input_nodes) == 1 and _n_elements(user) == _n_elements(made) > 0
            if user.target is python_operator.getitem or keeps:
                waiting.append(user)
    return False


def _n_elements(node: fx.Node) -> int:
    """How many elements a node gives; 0 where it gives several tensors."""
    value = node.meta.get("val")
    return math.prod(shape_of(value)) if isinstance(value, Tensor) else 0


__all__ = ["ChannelGraph", "ChannelGroup", "LockedUnits", "Reason", "Slot", "analyze", "source_line"]
