"""The invariant: for any keep-set, slim(x) = dense with the removed channels zeroed (x)."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeprune
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.planner import make_plan
from tests.cases import CASES
from tests.nets import Cut, captured, distance

NAMES = ("residual", "concatenation", "channel shuffle", "fused attention", "whole groups", "slices",
         "mean over channels", "transformer layer", "image mlp inputs", "squeeze-excite")  # fmt: skip


@cache
def analysed(name: str) -> tuple[Program, ChannelGraph]:
    program = captured(CASES[name].build(), *CASES[name].shapes)
    return program, edgeprune.analyze(program, inputs=CASES[name].label_inputs)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_slim_is_masked_dense_for_any_keep_set(name: str, data: st.DataObject) -> None:
    program, graph = analysed(name)
    keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
    for group in graph.groups:
        stays = data.draw(st.lists(st.booleans(), min_size=group.n_units, max_size=group.n_units))
        stays[data.draw(st.integers(0, group.n_units - 1))] = True
        keep[group.units] = stays
    plan = make_plan(program, graph, keep)
    slim = edgeprune.cut(program, plan, graph)
    error = edgeprune.prove(program, slim, plan)
    assert error <= 1e-10
    assert distance(Cut(program, graph, plan, slim, error), CASES[name].shapes, batch=3)[0] <= 1e-10
    assert PruningPlan.from_json(plan.to_json()) == plan
