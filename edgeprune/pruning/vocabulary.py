"""Ids numbered anew: a slim program takes the old ids, which it numbers by a table, or the new ones, without it.

What a lookup picks with becomes new numbers all the way from the input; whatever else reads the ids gets the old ones
back, from a table of as many as are kept. A comparison with a number becomes one with that number's own new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map

from edgeprune.errors import InputError
from edgeprune.graph.call import operator_name
from edgeprune.graph.edit import Edit
from edgeprune.graph.names import NUMBERS, OLD_IDS, UNKNOWN
from edgeprune.graph.prepare import prepared
from edgeprune.graph.rows import checked_ids, lookups_of
from edgeprune.graph.specs import input_specs
from edgeprune.graph.tokens import Tokens, new_numbers, only_kept
from edgeprune.records import Vocabulary

_aten = torch.ops.aten
_EQUALITIES = {_aten.eq.Scalar, _aten.ne.Scalar}
_NONE = -1  # the new number of an id that none of the kept ones is
_SIZES = {_aten.sym_size.int, _aten.sym_numel.default}
_CHECKS = {_aten._assert_tensor_metadata.default}


def vocabularies(
    program: ExportedProgram, ids: Mapping[str, Iterable[int]], unknown: Mapping[str, int] | None = None
) -> dict[str, Vocabulary]:
    """The ids that are to stay of token inputs, for `analyze(program, vocabularies=...)`.

    Args:
        program: the dense program.
        ids: by input, every id once, in any order; see `used_ids` for those that arrays hold.
        unknown: by input, the id that stands for all that are cut, which is kept too. Without one they are an error.

    Raises:
        InputError: an input is no token input; there are no ids, or one is doubled or is none of its tables'; something
            else reads these.

    Example:
        >>> kept = edgeprune.vocabularies(program, {"ids": edgeprune.used_ids("ids", [train, val])}, {"ids": 100})
        >>> graph = edgeprune.analyze(program, vocabularies=kept)
    """
    tokens, unknown = Tokens(prepared(program)), unknown or {}
    for name in unknown.keys() - ids.keys():
        raise InputError(f"unknown id: expected one for an input whose ids are given ({', '.join(ids)}), got {name!r}")
    found = {}
    for name, given in ids.items():
        keep = set(checked_ids(name, given if isinstance(given, Tensor) else list(given)))
        stands_for = unknown.get(name)
        if stands_for is not None:
            keep.update(checked_ids(name, [stands_for]))
        size = tokens.bounds(name)[1] if name in tokens.inputs else 0
        found[name] = Vocabulary(size, tuple(sorted(keep)), stands_for)
    lookups_of(tokens, found)
    return found


# -- surgery ----------------------------------------------------------------------------------------------------------


def number_anew(edit: Edit, kept: Mapping[str, Vocabulary]) -> None:
    """Let the graph under surgery number the ids of these inputs anew."""
    if kept:
        _Renumbering(edit, kept).run()
        edit.module.graph.lint()


class _Renumbering:
    """One graph, in which the inputs' `_new` numbers go where their own were."""

    def __init__(self, edit: Edit, kept: Mapping[str, Vocabulary]) -> None:
        self._edit, self._kept = edit, kept
        self._program = edit.analysis.program
        self._tokens = Tokens(self._program)
        self._inputs = {
            n: edit.counterpart(n) for n in self._program.graph.nodes if n.op == "placeholder" and n.name in kept
        }
        self._new: dict[fx.Node, fx.Node] = {}

    def run(self) -> None:
        graph = self._edit.module.graph
        for node, placeholder in self._inputs.items():
            self._new[node] = self._numbered(node.name, placeholder)
        for lookup in self._tokens.lookups.values():
            if lookup.inputs and set(lookup.inputs) <= self._kept.keys():
                reader, index = self._edit.counterpart(lookup.node), self._edit.counterpart(lookup.index)
                reader.replace_input_with(index, self._renumbered(lookup.index))
        for node in self._program.graph.nodes:
            self._compare_anew(node)
        self._drop_checks()
        graph.eliminate_dead_code()
        for node, placeholder in self._inputs.items():
            self._restore(node, placeholder)

    def _numbered(self, name: str, placeholder: fx.Node) -> fx.Node:
        """The new numbers of an input's ids, in its own type."""
        one = self._kept[name]
        buffer = NUMBERS + name + ("" if one.unknown is None else f"{UNKNOWN}{one.unknown}")
        return self._looked_up(buffer, new_numbers(one), placeholder, placeholder.next)

    def _looked_up(self, buffer: str, table: Tensor, index: fx.Node, before: fx.Node) -> fx.Node:
        graph = self._edit.module.graph
        with graph.inserting_before(before):
            read = self._edit.buffer(buffer, table.to(index.meta["val"].dtype))
            node = graph.call_function(_aten.index.Tensor, (read, [index]))
        node.meta["val"] = index.meta["val"]
        return node

    def _renumbered(self, node: fx.Node) -> fx.Node:
        """What a followed node gives, of new numbers: the same moves of them, without what is added."""
        if node not in self._new:
            sources = [source for source in node.all_input_nodes if self._tokens.walk.follows(source)]
            if operator_name(node.target) in ("add", "sub"):
                self._new[node] = self._renumbered(sources[0])
            else:
                mine = self._edit.counterpart(node)
                instead = {self._edit.counterpart(source): self._renumbered(source) for source in sources}
                with self._edit.module.graph.inserting_after(mine):
                    self._new[node] = self._edit.module.graph.node_copy(mine, lambda n: instead.get(n, n))
        return self._new[node]

    def _compare_anew(self, node: fx.Node) -> None:
        """Let `ids == 3` ask for the new number of 3, which is none where 3 is cut."""
        if node.target not in _EQUALITIES or not self._tokens.walk.follows(node.args[0]):  # type: ignore[arg-type]
            return
        inputs, shifts = self._tokens.walk.made_of(node.args[0])  # type: ignore[arg-type]
        if len(inputs) != 1 or len(shifts) != 1 or inputs[0] not in self._kept or self._tokens.spreads(node.args[0]):  # type: ignore[arg-type]
            return
        mine, keep = self._edit.counterpart(node), self._kept[inputs[0]].keep
        asked = node.args[1] - shifts[0]  # type: ignore[operator]
        mine.args = (self._renumbered(node.args[0]), keep.index(asked) if asked in keep else _NONE)  # type: ignore[arg-type]

    def _drop_checks(self) -> None:
        """Take out what the exporter puts before a conversion: it would hold what nothing else reads."""
        graph = self._edit.module.graph
        followed = {self._edit.counterpart(n) for n in self._program.graph.nodes if self._tokens.walk.follows(n)}
        for node in list(graph.nodes):
            if node.target in _CHECKS and not followed.isdisjoint(node.all_input_nodes):
                graph.erase_node(node)

    def _restore(self, node: fx.Node, placeholder: fx.Node) -> None:
        """Give the old ids to whatever else reads them."""
        new = self._new[node]
        readers = [user for user in placeholder.users if user is not new and user.target not in _SIZES]
        if not readers:
            return
        old = self._looked_up(OLD_IDS + node.name, torch.tensor(self._kept[node.name].keep), new, new.next)
        for user in readers:
            user.replace_input_with(placeholder, old)


# -- inputs -----------------------------------------------------------------------------------------------------------


def with_kept_ids(program: ExportedProgram, args: tuple[Any, ...], kept: Mapping[str, Vocabulary]) -> tuple[Any, ...]:
    """Arguments of a program in which ids that are cut have become kept ones."""
    names = iter([spec.name for spec in input_specs(program)])

    def within(leaf: Any) -> Any:
        one = kept.get(next(names)) if isinstance(leaf, Tensor) else None
        return leaf if one is None else only_kept(leaf, one)

    changed: tuple[Any, ...] = tree_map(within, args)
    return changed
