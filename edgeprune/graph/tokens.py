"""Token inputs: whole numbers that look up rows of tables, which are features of the input like pixels of another.

A lookup counts where every number that it picks with is an input's own, moved about perhaps, or such a number with one
constant added. What else reads the ids (a mask, a count of words) needs the old ones, and gets them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from edgeprune.graph import binding
from edgeprune.graph.call import operator_name
from edgeprune.graph.indices import IndexWalk, Pick
from edgeprune.graph.lines import source_line
from edgeprune.graph.names import CUT_ID, NUMBERS, UNKNOWN
from edgeprune.graph.ops.registry import Kind, kind_of
from edgeprune.records import Vocabulary

_aten = torch.ops.aten
_BY_ROW = (Kind.POINTWISE, Kind.MOVE, Kind.COPY, Kind.CONVERSION, Kind.LINEAR, Kind.PRODUCT)  # what keeps rows apart
_SHIFTS = ("add", "sub")


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """A node that looks up rows of `table`: number `id + shift` for every id of the `inputs`."""

    node: fx.Node
    index: fx.Node
    table: fx.Node
    inputs: tuple[str, ...]
    shift: int
    tables: tuple[str, ...]

    @property
    def called(self) -> str:
        """The table by the tensors that it is made of."""
        return ", ".join(map(repr, self.tables)) or "a constant"

    @property
    def n_rows(self) -> int:
        """How many rows the table has."""
        return binding.shape_of(self.table.meta["val"])[0]


class Tokens:
    """The token inputs of a program and their lookups; `walk` knows what still holds an input's own numbers.

    `others` says of every other input of whole numbers why it is none.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.walk = IndexWalk(program)
        self.ranges = self.walk.ranges()
        self.static = binding.static_nodes(program)
        self._tensors = {**program.constants, **program.state_dict}
        specs = program.graph_signature.input_specs
        self._targets = {spec.arg.name: str(spec.target) for spec in specs if spec.target}
        self.lookups: dict[fx.Node, Lookup] = {}
        self._doubts: dict[str, str] = {}
        for pick in self.walk.picks():
            table = _table(pick.node, pick.index)
            if table is None or not table.meta["val"].is_floating_point():
                continue
            doubt = self._doubt(table, pick)
            if doubt:
                self._doubts.update(dict.fromkeys(self._behind(pick.index), doubt))
            else:
                self.lookups[pick.node] = Lookup(
                    pick.node, pick.index, table, pick.inputs, pick.shifts[0], self._tensors_of(table)
                )

    @property
    def inputs(self) -> tuple[str, ...]:
        """The token inputs, in order."""
        found = {name for lookup in self.lookups.values() for name in lookup.inputs}
        return tuple(name for name in self.ranges if name in found)

    def of(self, name: str) -> list[Lookup]:
        """The lookups by an input."""
        return [lookup for lookup in self.lookups.values() if name in lookup.inputs]

    def bounds(self, name: str) -> tuple[int, int]:
        """The least id that every table of a token input has a row for, and the first that one of them has none for."""
        found = self.of(name)
        return max(0, *(-lookup.shift for lookup in found)), min(lookup.n_rows - lookup.shift for lookup in found)

    def why_not(self, name: str) -> str:
        """Why an input is no token input."""
        if name not in self.ranges:
            return "it is no input of whole numbers"
        if numbered(self.program, name) is not None:
            return "its vocabulary has been cut already; cut the dense network instead"
        return self._doubts.get(name) or self._lost(name) or "no table of floats is looked up by its numbers"

    def _doubt(self, table: fx.Node, pick: Pick) -> str:
        """Why new ids cannot be looked up where the old ones were."""
        index = pick.index
        if table not in self.static:
            name = operator_name(table.target) if table.op == "call_function" else "an input"
            return f"the table that they look up is made anew by {name}{_at(pick.node)}"
        if not pick.inputs:
            return f"its ids are joined with other numbers before a lookup{_at(index)}"
        if len(pick.shifts) > 1:
            return f"another number is added to its ids at another place before a lookup{_at(index)}"
        if self.spreads(index):
            return f"its ids are repeated by a sum before a lookup{_at(index)}"
        return ""

    def spreads(self, node: fx.Node) -> bool:
        """Whether a sum on the way to a followed node repeats the ids, as what is added is larger."""
        calls = (one for one in self._chain(node) if one.op == "call_function")
        sums = (one for one in calls if operator_name(one.target) in _SHIFTS)
        return any(_sizes(one) not in map(_sizes, self._followed(one)) for one in sums)

    def _tensors_of(self, table: fx.Node) -> tuple[str, ...]:
        """The tensors that a table is made of, by name."""
        return tuple(self._targets[node.name] for node in self._ancestors(table) if node.name in self._targets)

    def _chain(self, node: fx.Node) -> set[fx.Node]:
        """The nodes between the inputs and a followed node, both included."""
        found, waiting = {node}, [node]
        while waiting:
            new = [source for source in self._followed(waiting.pop()) if source not in found]
            found.update(new)
            waiting += new
        return found

    def _followed(self, node: fx.Node) -> list[fx.Node]:
        return [source for source in node.all_input_nodes if self.walk.follows(source)]

    def _behind(self, index: fx.Node) -> list[str]:
        """The names of the inputs that go into a followed node."""
        return [node.name for node in self._chain(index) if node.op == "placeholder"]

    def _lost(self, name: str) -> str:
        """The operator by which ids reach a lookup without being followed, where there is one."""
        made = {node for node in self.program.graph.nodes if node.op == "placeholder" and node.name == name}
        for node in self.program.graph.nodes:
            if node.op != "call_function" or made.isdisjoint(node.all_input_nodes):
                continue
            for index in made.intersection(node.all_input_nodes):
                if _table(node, index) in self.static:
                    lost = self._first_not_followed(index, made)
                    return f"its ids reach a lookup by {operator_name(lost.target)}, which changes them{_at(lost)}"
            made.add(node)
        return ""

    def _first_not_followed(self, index: fx.Node, made: Collection[fx.Node]) -> fx.Node:
        """On the way to an index, the operator that loses what inputs it is made of; the last one that takes ids."""
        behind = [node for node in self._ancestors(index) if node in made and not self.walk.follows(node)]
        return next((node for node in reversed(behind) if self._followed(node)), behind[0])

    def _ancestors(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that a node is made of, it included, in the order of the graph."""
        found, waiting = {node}, [node]
        while waiting:
            new = [source for source in waiting.pop().all_input_nodes if source not in found]
            found.update(new)
            waiting += new
        return [one for one in self.program.graph.nodes if one in found]

    def other_reader(self, lookup: Lookup, lookups: Collection[Lookup]) -> str:
        """What reads a lookup's table otherwise than row by row for one of `lookups`; empty where nothing does."""
        tables = {other.node: other.table for other in lookups}
        sources = [node for node in self._ancestors(lookup.table) if node.op == "placeholder"]
        waiting = [*self._same_tensors(sources), lookup.table]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            for user in node.users:
                if user in seen or tables.get(user) is node:
                    continue
                if not self._keeps_rows(user):
                    name = "the output" if user.op == "output" else operator_name(user.target)
                    return f"{name}{_at(user)}"
                seen.add(user)
                waiting.append(user)
        return ""

    def _keeps_rows(self, node: fx.Node) -> bool:
        """Whether a node makes a table of a table, with the rows apart."""
        return node in self.static and kind_of(node.target) in _BY_ROW

    def _same_tensors(self, placeholders: list[fx.Node]) -> list[fx.Node]:
        """Every placeholder of the same tensors: tied ones have several."""
        memory = set(map(self._memory, placeholders)) - {0}
        every = self.program.graph.find_nodes(op="placeholder")
        return [node for node in every if self._memory(node) in memory]

    def _memory(self, node: fx.Node) -> int:
        """Where the tensor of a placeholder lies; 0 for an input."""
        tensor = self._tensors.get(self._targets.get(node.name, ""))
        return tensor.data_ptr() if isinstance(tensor, Tensor) else 0


def _table(node: fx.Node, index: fx.Node) -> fx.Node | None:
    """The tensor of which `node` picks whole rows by `index`, or None."""
    find = _TABLES.get(operator_name(node.target)) if node.op == "call_function" else None
    return None if find is None else find(binding.bind(node, lambda other: other).args, index)


def _table_of_embedding(args: Mapping[str, Any], index: fx.Node) -> fx.Node | None:
    return args["weight"] if args["indices"] is index else None


def _table_of_selection(args: Mapping[str, Any], index: fx.Node) -> fx.Node | None:
    is_row = args["index"] is index and args["dim"] % len(_sizes(args["self"])) == 0
    return args["self"] if is_row else None


def _table_of_indexing(args: Mapping[str, Any], index: fx.Node) -> fx.Node | None:
    first, *others = args["indices"]
    is_row = first is index and not any(others) and index.meta["val"].dtype is not torch.bool
    return args["self"] if is_row else None


_TABLES: dict[str, Callable[[Mapping[str, Any], fx.Node], fx.Node | None]] = {
    **dict.fromkeys(("embedding", "embedding_bag", "_embedding_bag"), _table_of_embedding),
    "index_select": _table_of_selection,
    "index": _table_of_indexing,
}


def _sizes(node: fx.Node) -> tuple[int, ...]:
    return binding.shape_of(node.meta["val"])


def _at(node: fx.Node) -> str:
    line = source_line(node)
    return f" ({line})" if line else ""


# -- what a program that was cut knows --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Numbered:
    """Where a program numbers the ids of an input anew: the node, and the buffer with the new number of every id."""

    node: fx.Node
    buffer: str
    unknown: int | None


def numbered(program: ExportedProgram | fx.GraphModule, name: str) -> Numbered | None:
    """Where the ids of input `name` are numbered anew; None where all of them are kept."""
    buffers = _buffer_names(program)
    inputs = program.graph.find_nodes(op="placeholder")
    placeholder = next((node for node in inputs if name in (node.name, str(node.target))), None)
    for user in placeholder.users if placeholder is not None else ():
        if user.target is not _aten.index.Tensor or not isinstance(user.args[0], fx.Node):
            continue
        buffer = buffers.get(user.args[0].name, str(user.args[0].target))
        start, _, unknown = buffer.removeprefix(NUMBERS + name).partition(UNKNOWN)
        if buffer.startswith(NUMBERS + name) and not start:
            return Numbered(user, buffer, int(unknown) if unknown.isdecimal() else None)
    return None


def _buffer_names(program: ExportedProgram | fx.GraphModule) -> dict[str, str]:
    """The buffers by the names of the nodes that read them; a module's nodes name them themselves."""
    if isinstance(program, fx.GraphModule):
        return {}
    return {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.target}


def kept_vocabularies(program: ExportedProgram) -> dict[str, Vocabulary]:
    """The ids that a program keeps of every token input whose vocabulary was cut."""
    tensors = {**program.constants, **program.state_dict}
    found = {}
    for name in program.graph_signature.user_inputs:
        one = numbered(program, name) if isinstance(name, str) else None
        if one is not None:
            found[name] = _vocabulary(tensors[one.buffer], one.unknown)
    return found


def _vocabulary(numbers: Tensor, unknown: int | None) -> Vocabulary:
    """The ids that have a new number, in its order; one number stands for the unknown id and all that were cut."""
    new = numbers.tolist()
    shared = None if unknown is None else new[unknown]
    keep = (old for old, n in enumerate(new) if n != CUT_ID and (n != shared or old == unknown))
    return Vocabulary(len(new), tuple(keep), unknown)


def new_numbers(vocabulary: Vocabulary) -> Tensor:
    """The new number of every old id, int64 `(size,)`."""
    keep = torch.tensor(vocabulary.keep)
    numbers = torch.full((vocabulary.size,), CUT_ID)
    numbers[keep] = torch.arange(len(keep))
    if vocabulary.unknown is not None:
        numbers[numbers == CUT_ID] = numbers[vocabulary.unknown].clone()
    return numbers


def only_kept(ids: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Ids of which those that are cut have become kept ones, spread over all."""
    keep = torch.tensor(vocabulary.keep, dtype=ids.dtype)
    return torch.where(torch.isin(ids, keep), ids, keep[(ids.long() % len(keep))])


def with_numbers(vocabularies: Mapping[str, Vocabulary], inputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Arrays or tensors by name with the new numbers in place of the old ids."""
    for name, value in inputs.items():
        known = vocabularies.get(name)
        numbers = None if known is None else new_numbers(known)
        if numbers is None:
            yield name, value
        elif isinstance(value, Tensor):
            yield name, numbers[value.long()].to(value.dtype)
        else:
            yield name, numbers.numpy()[value].astype(value.dtype)
