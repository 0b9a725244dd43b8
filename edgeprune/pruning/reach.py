"""Whether a proof shows anything: the outputs must depend on the inputs, and move with the weights that were sliced."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves, tree_map

from edgeprune.graph import binding
from edgeprune.graph.capture import Program
from edgeprune.graph.comparison import outputs, relative_error
from edgeprune.graph.decisions import Recording, has_choices
from edgeprune.graph.memory import Memory
from edgeprune.graph.randomness import drawing
from edgeprune.graph.sizes import free_dims
from edgeprune.graph.specs import output_names
from edgeprune.graph.state import FromStart
from edgeprune.pruning.plan import PruningPlan

Arguments = tuple[Any, ...]

_TRIES = 3  # perturbations, where an output is whole numbers, which a small change may leave as they are
_FAR = 1e-2  # of the largest number: no rounding of float32
_ROUNDED = 2  # units in the last place of the largest number: rows of the same inputs may be so far apart
_SHOWN = 3


class Reach:
    """Asks of a slim network, run on samples, whether its sliced tensors can be seen in its outputs at all.

    Args:
        dense: the program that was cut.
        slim: what came of it.
        plan: what was sliced of it.
        network: `slim` as a module, whose reading of the sliced tensors is put under control here.
    """

    def __init__(
        self, dense: ExportedProgram, slim: ExportedProgram, plan: PruningPlan, network: fx.GraphModule
    ) -> None:
        self._dense, self._slim = dense, slim
        self._names = output_names(slim)
        sliced = [name for name, dims in plan.tensors.items() if dims]
        ancestry, noise = _Ancestry(slim), _Noise()
        self._draws = bool(drawing(slim.graph))
        self._from_inputs = ancestry.made_of(set(slim.graph_signature.user_inputs))
        targets = {str(spec.target): spec.arg.name for spec in slim.graph_signature.input_specs if spec.target}
        self._reached = {
            name: {place for place, made in enumerate(ancestry.made_of({targets[name]})) if made}
            for name in sliced
            if name in targets
        }
        self._noise = noise
        _disturb_as_read(network, {name for name, places in self._reached.items() if places}, self._noise)

    def doubt(self, network: FromStart, samples: Sequence[Arguments], results: Sequence[list[Tensor]]) -> str:
        """Why the samples show nothing of some sliced tensor; empty where they show something of all.

        Args:
            network: the slim network.
            samples: what it was run on, one after the other.
            results: its outputs for each.
        """
        if not any(self._reached.values()):
            return ""
        constant = self._constant(network, samples[0], results[0])
        moved = self._moved(network, samples, results)
        unseen = {
            name: places
            for name, places in self._reached.items()
            if places and not any(moved[place] and not constant[place] for place in places)
        }
        if not unseen:
            return ""
        places = sorted(set().union(*unseen.values()))
        shown = ", ".join(list(unseen)[:_SHOWN]) + (", ..." if len(unseen) > _SHOWN else "")
        dead = [place for place in places if not moved[place]]
        if dead:
            return f"{self._called(dead)} not move when the weights that were sliced are changed ({shown})"
        return f"{self._called(places)} not depend on the inputs, whatever the weights that were sliced are ({shown})"

    def _called(self, places: Sequence[int]) -> str:
        if len(self._names) == 1:
            return "the output does"
        names = ", ".join(self._names[place] for place in places)
        return f"outputs {names} do" if len(places) > 1 else f"output {names} does"

    # -- constant over the inputs --------------------------------------------------------------------------------------

    def _constant(self, network: FromStart, args: Arguments, results: list[Tensor]) -> list[bool]:
        """For each output whether it is the same for every row, though it is made of the inputs.

        Not where it is so for the weights' sake, which other weights show, nor for the cut's, which the dense network
        shows: then no inputs could tell more.
        """

        def own(given: Arguments) -> list[Tensor]:
            network.reset()
            return outputs(network.network, given)

        def shaken(given: Arguments) -> list[Tensor]:
            self._noise.shake(again=given is not args)
            try:
                return own(given)
            finally:
                self._noise.rest()

        constant = self._constant_by(own, args, results)
        if any(constant):
            others = self._constant_by(shaken, args, shaken(args))
            dense = Program.adopt(self._dense).frozen_module()
            before = self._constant_by(lambda given: outputs(dense, given), args, outputs(dense, args))
            constant = [all(each) for each in zip(constant, others, before, strict=True)]
        return constant

    def _constant_by(
        self, run: Callable[[Arguments], list[Tensor]], args: Arguments, results: list[Tensor]
    ) -> list[bool]:
        """For each output whether all rows are the same, and stay so to the last bit with the first one's inputs.

        A row is rounded by its place in the batch, so that equal ones may differ; and a network of many layers may make
        of other inputs what differs by no more than that.
        """
        same = self._same_in_all_rows(args, results)
        if any(same):
            alike = run(_first_row(self._slim, args, repeated=True))
            same = [near and _same(a, b) for near, a, b in zip(same, results, alike, strict=True)]
        return same

    def _same_in_all_rows(self, args: Arguments, results: list[Tensor]) -> list[bool]:
        """For each output whether all rows are the same but for their rounding, which may go by the row."""
        rows = _n_rows(self._slim, args)
        return [
            rows > 1
            and made
            and result.dim() > 0
            and len(result) == rows
            and relative_error([result[:1].expand_as(result)], [result]) <= _ROUNDED * _last_place(result)
            for made, result in zip(self._from_inputs, results, strict=True)
        ]

    # -- moved by the weights ------------------------------------------------------------------------------------------

    def _moved(self, network: FromStart, samples: Sequence[Arguments], results: Sequence[list[Tensor]]) -> list[bool]:
        """For each output whether it is another one with other sliced weights; one row is asked first."""
        wanted = set().union(*self._reached.values())
        moved = self._moved_far(network, samples[0], results[0])
        for _ in range(_TRIES):
            if all(moved[place] for place in wanted):
                break
            moved = [a or b for a, b in zip(moved, self._moved_on(network, samples), strict=True)]
        return moved

    def _moved_far(self, network: FromStart, args: Arguments, results: list[Tensor]) -> list[bool]:
        """For each output whether its first row is moved by more than another batch could round it."""
        if self._draws:  # one row draws others
            return [False] * len(results)
        network.reset()
        self._noise.shake()
        try:
            others = outputs(network.network, _first_row(self._slim, args))
        except Exception:  # a network may need several rows, e.g. to take statistics over them
            return [False] * len(results)
        finally:
            self._noise.rest()
        return [_is_far(a, b) for a, b in zip(results, others, strict=True)]

    def _moved_on(self, network: FromStart, samples: Sequence[Arguments]) -> list[bool]:
        before = list(self._seen(network, samples))
        self._noise.shake()
        after = list(self._seen(network, samples))
        self._noise.rest()
        moved = [False] * len(before[0][0])
        for (results, scores), (others, other_scores) in zip(before, after, strict=True):
            chosen = any(not _same(a, b) for a, b in zip(scores, other_scores, strict=True))
            for place, (a, b) in enumerate(zip(results, others, strict=True)):
                moved[place] |= not _same(a, b) or (chosen and not a.is_floating_point())
        return moved

    def _seen(self, network: FromStart, samples: Sequence[Arguments]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """The outputs for each sample, and what choices among them were made by."""
        network.reset()
        module = network.network
        for args in samples:
            if not (isinstance(module, fx.GraphModule) and has_choices(module)):
                yield outputs(module, args), []
                continue
            recording = Recording(module)
            yield outputs(recording, args), [choice.scores for choice in recording.choices.values()]


def _is_far(results: Tensor, others: Tensor) -> bool:
    """Whether the first rows of an output are clearly other ones; `others` are these rows."""
    if not (results.is_floating_point() and results.dim() and others.dim()):
        return False
    rows = results[: len(others)]
    return rows.shape == others.shape and relative_error([rows], [others]) > _FAR


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _last_place(result: Tensor) -> float:
    """A unit in the last place of 1 in a tensor's own type; 0 for whole numbers."""
    return torch.finfo(result.dtype).eps if result.is_floating_point() or result.is_complex() else 0.0


def _n_rows(program: ExportedProgram, args: Arguments) -> int:
    sizes = [len(leaf) for leaf, free in zip(tree_leaves(args), free_dims(program), strict=True) if 0 in free]
    return sizes[0] if sizes else 0


def _first_row(program: ExportedProgram, args: Arguments, repeated: bool = False) -> Arguments:
    """The first row of what has rows; `repeated` as often as there were rows."""
    free = iter(free_dims(program))

    def first(leaf: Any) -> Any:
        if 0 not in next(free):
            return leaf
        return leaf[:1].expand_as(leaf).contiguous() if repeated else leaf[:1]

    return tuple(tree_map(first, args))


# -- by the graph -----------------------------------------------------------------------------------------------------


class _Ancestry:
    """For each output of a program the nodes that it is made of, over several runs where there is a state."""

    def __init__(self, program: ExportedProgram) -> None:
        self._sources: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        memory = Memory(program)
        for node in program.graph.nodes:
            memory.add(node)
            if node.op != "call_function" or not binding.holds_tensor(node.meta.get("val")):
                continue  # a size is made of sizes
            self._sources[node] += node.all_input_nodes
            for target in binding.mutated(node):
                self._sources[target].append(node)
                self._sources[memory.roots[target]].append(node)
        leaves = tree_leaves(program.graph.output_node().args)
        results = [leaf for leaf in leaves if isinstance(leaf, fx.Node) and isinstance(leaf.meta.get("val"), Tensor)]
        self._made_of = [self._behind(node) for node in results]

    def made_of(self, names: Collection[str]) -> list[bool]:
        """For each output whether one of the placeholders that are named goes into it."""
        return [any(node.name in names for node in behind if node.op == "placeholder") for behind in self._made_of]

    def _behind(self, node: fx.Node) -> set[fx.Node]:
        found, pending = {node}, [node]
        while pending:
            new = [source for source in self._sources[pending.pop()] if source not in found]
            found.update(new)
            pending += new
        return found


# -- other weights ----------------------------------------------------------------------------------------------------


class _Noise:
    """Hands tensors on as they are, or changed at random while it shakes."""

    def __init__(self) -> None:
        self._generator: torch.Generator | None = None
        self._seed = 0

    def shake(self, again: bool = False) -> None:
        """From now on tensors are changed, otherwise each time; or `again` as the last time."""
        self._seed += not again
        self._generator = torch.Generator().manual_seed(self._seed)

    def rest(self) -> None:
        """From now on tensors are as they are."""
        self._generator = None

    def __call__(self, tensor: Tensor) -> Tensor:
        """Every number another one of about the same size; none gets below zero where none is."""
        if self._generator is None or not tensor.is_floating_point():
            return tensor
        noise = torch.rand(tensor.shape, generator=self._generator).to(tensor.dtype)
        if bool((tensor >= 0).all()) and bool(tensor.any()):
            return tensor * (0.5 + noise)
        size = tensor.abs().mean()
        return tensor + (noise - 0.5) * (size if bool(size > 0) else 1.0)


def _disturb_as_read(network: fx.GraphModule, names: set[str], noise: _Noise) -> None:
    """Each tensor is changed where it is read: changed copies of all of them would be as large as the network."""
    for node in network.graph.find_nodes(op="get_attr"):
        users = [user for user in node.users if node not in binding.mutated(user)] if node.target in names else []
        for user in users:
            with network.graph.inserting_before(user):
                read = network.graph.call_function(_disturbing(noise), (node,))
            read.meta = dict(node.meta)
            user.replace_input_with(node, read)
    network.recompile()


def _disturbing(noise: _Noise) -> Callable[[Tensor], Tensor]:
    def disturbing(tensor: Tensor) -> Tensor:
        return noise(tensor)

    return disturbing
