"""Several widths of a network, planned one within the other; its units are sorted so that each is the first of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeprune.errors import InputError
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph, analyze
from edgeprune.progress import Progress
from edgeprune.pruning.choosing import Pruning
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.planner import make_plan
from edgeprune.pruning.surgery import cut
from edgeprune.search.cutter import Cutter
from edgeprune.search.landing import Shares
from edgeprune.widths.nested import NestedWidths, relative
from edgeprune.widths.sorting import sort_units


class _Further:
    """Chooses the widths of one network after the other, each on from the one before."""

    def __init__(self) -> None:
        self._counts: np.ndarray | None = None

    def __call__(self, pruning: Pruning, features: bool) -> None:
        """As `Pruning.run`, from the widths that the network before came to."""
        chooser = pruning.chooser
        if self._counts is not None:
            chooser.counts[:] = np.minimum(chooser.counts, self._counts)
            pruning.left = [limit.model.cost(chooser.counts) for limit in pruning.limits]
        pruning.run(features)
        self._counts = chooser.counts.copy()


def planned_widths(cutter: Cutter, shares: Sequence[float]) -> list[PruningPlan]:
    """Plans that keep at most these falling shares of the dense MACs, each keeping units of the one before.

    Raises:
        InputError: two of them are the same network.
        BudgetError: one cannot be built.
    """
    further, found = _Further(), list[PruningPlan]()
    for number, share in enumerate(shares):
        plan = cutter.planned(cutter.dense, Shares(macs=share), allocate=further)
        if found and plan.tensors == found[-1].tensors:
            raise InputError(
                f"--widths {share:g}: expected a narrower network than that of {shares[number - 1]:g}, got the same "
                "one; with --align 1 widths are as fine as they can be"
            )
        found.append(plan)
    return found


def nested_widths(cutter: Cutter, planned: Sequence[PruningPlan], progress: Progress) -> tuple[NestedWidths, float]:
    """The dense network's planned widths, its units in the order of importance, and the largest error of a proof.

    Raises:
        ProofError: a cut gives something else than the dense network without what is cut.
    """
    dense, graph = cutter.dense.program, cutter.graph
    whole = make_plan(dense, graph, np.ones(len(graph.analysis.solver.canonical), dtype=bool))
    orders = [np.asarray(order)[::-1] for order in cutter.chooser().orders]
    found = sort_units(dense, graph, orders, lambda program: cutter.proved(dense, program, whole))
    if found.left:
        progress.say(f"units that are no equals stay in their order: {', '.join(found.left)}")
    plans = [found.moved(plan) for plan in planned]
    ready = analyze(found.program, attention=cutter.manner.attention)
    programs = [_cut(found.program, plan, ready) for plan in plans]
    cuts = zip(programs, plans, strict=True)
    errors = [cutter.proved(found.program, program, plan) for program, plan in cuts if plan.tensors]
    within = tuple(relative(plan, plans[0], programs[0]) for plan in plans[1:])
    return NestedWidths(tuple(programs), within), max(found.error, *errors)


def _cut(program: Program, plan: PruningPlan, graph: ChannelGraph) -> Program:
    """The program itself where nothing goes."""
    return cut(program, plan, graph) if plan.tensors else program
