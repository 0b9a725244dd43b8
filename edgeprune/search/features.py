"""Fewer input features: chosen while the network is trained, or by their scores where it is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import fx

from edgeprune.cost.macs import macs
from edgeprune.formats.digests import digest
from edgeprune.graph.capture import Program, reexport_like
from edgeprune.importance import score
from edgeprune.pruning.plan import compose
from edgeprune.pruning.planner import make_plan
from edgeprune.pruning.surgery import cut
from edgeprune.search.attempts import FEATURE_EFFORT, while_it_holds
from edgeprune.search.candidate import Budgets, Candidate
from edgeprune.search.landing import Shares
from edgeprune.search.step import Step, kept_features

_FACTOR = 0.5  # share of the features that one step keeps
_SELECTION = 2  # how many times as long as a finetuning it is trained while features are chosen
_SHARE = 0.5  # of the accuracy budget may go into dropping input features; channels need the rest


def down_to_features(step: Step, budgets: Budgets, start: Candidate) -> Candidate:
    """Remove features until as many are left as are asked for; the drop is judged at the end."""
    wanted, best = budgets.n_features, start
    assert wanted is not None
    while best.n_features is not None and best.n_features > wanted:
        least = wanted if step.trains else max(wanted, int(best.n_features * _FACTOR))
        best = step.rescued(_with_features(step, best, least), _half_of(budgets.max_drop), rounds=1)
        step.record(best, accepted=True)
    return best


def fewest_features(step: Step, budgets: Budgets, start: Candidate) -> Candidate:
    """Remove features for as long as half of the accuracy budget lasts."""

    def fewer(best: Candidate, factor: float) -> Candidate | None:
        if best.n_features is None or best.n_features <= step.least_features:
            return None
        if not step.effort.affords(_SELECTION, FEATURE_EFFORT):
            return None
        wanted = min(best.n_features - 1, int(best.n_features * factor))
        return _with_features(step, best, max(step.least_features, wanted))

    return while_it_holds(step, start, fewer, _half_of(budgets.max_drop), _FACTOR)


def _half_of(max_drop: float | None) -> float | None:
    return None if max_drop is None else _SHARE * max_drop


def _with_features(step: Step, best: Candidate, n_features: int) -> Candidate:
    """The network with fewer features."""
    if not step.trains:
        return step.tried(best, Shares(), n_features)
    trained = _selected(step, best, n_features)
    graph = step.analyzed(trained)
    keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
    for group, scores in zip(graph.groups, score(trained, graph, "l1"), strict=True):
        if group.is_input:
            keep[group.units[scores == 0]] = False
    chosen = make_plan(trained, graph, keep)
    slim = cut(trained, chosen, graph)
    error = max(step.proved(trained, slim, chosen), best.proof_error)
    same = replace(chosen, source_sha256=digest(best.program))  # the untrained network, which it is to be replayed on
    plan = same if best.plan is None else compose(best.plan, same)
    assert step.trainer is not None
    accuracy = step.trainer.value(slim.frozen_module())
    return Candidate(slim, plan, macs(slim), kept_features(best, plan), accuracy, error)


def _selected(step: Step, best: Candidate, n_features: int) -> Program:
    """Train while the features become ever fewer; the weights that read the others are zero."""
    assert step.trainer is not None
    step.progress.stage(f"step {len(step.records) + 1}: train down to {n_features} input features")
    step.effort.take(_SELECTION)
    module, graph = best.program.own_module(), step.graph_of(best)
    step.selection += step.trainer.select(module, graph, n_features, _SELECTION)
    assert isinstance(module, fx.GraphModule)
    return reexport_like(module, best.program)
