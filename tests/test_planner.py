"""Plans meet the budget, tightly, and say what stood in the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.cost.macs import macs
from edgeprune.errors import BudgetError, InputError, PlanError
from edgeprune.graph.capture import Program
from edgeprune.importance import score
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.planner import make_plan
from tests.cases import CASES, IMAGE, TOKENS
from tests.nets import Net, captured, cnn, image_mlp, mlp, residual


def wide() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 4, 1)
    )


def planned(
    module: nn.Module, *shapes: tuple[int, ...], inputs: bool = False, **options: Any
) -> tuple[Program, PruningPlan]:
    program = captured(module, *shapes)
    return program, edgeprune.plan(program, edgeprune.analyze(program, inputs=inputs), **options)


@pytest.mark.parametrize("keep_macs", [0.9, 0.5, 0.2])
def test_the_budget_is_met_tightly(keep_macs: float) -> None:
    program, plan = planned(wide(), IMAGE, keep_macs=keep_macs, align=1)
    share = macs(edgeprune.cut(program, plan)) / macs(program)
    assert keep_macs - 0.06 < share <= keep_macs


@pytest.mark.parametrize("align", [4, 8, 16])
def test_widths_are_aligned(align: int) -> None:
    program, plan = planned(wide(), IMAGE, keep_macs=0.4, align=align)
    assert all(group.after % align == 0 and group.after > 0 for group in plan.groups)
    assert macs(edgeprune.cut(program, plan)) <= 0.4 * macs(program)


def test_heads_are_aligned_by_their_channels() -> None:
    net = Net(lambda m, x: m.out(m.mha(x, x, x, need_weights=False)[0]), out=nn.Linear(32, 4),
              mha=nn.MultiheadAttention(32, 8, batch_first=True))  # fmt: skip
    _, plan = planned(net, (6, 32), keep_macs=0.6, align=8)
    (heads,) = [group for group in plan.groups if group.before == 8]
    assert heads.after < 8 and heads.after * 4 % 8 == 0


def test_narrow_layers_are_not_held_to_the_alignment() -> None:
    _, plan = planned(mlp(), (8,), keep_macs=0.5, align=16)
    assert all(0 < group.after < group.before for group in plan.groups)


def test_the_least_important_units_go_first() -> None:
    net = cnn()
    program = captured(net, IMAGE)
    graph = edgeprune.analyze(program)
    plan = edgeprune.plan(program, graph, keep_macs=0.5, align=1)
    for group, scores in zip(graph.groups, score(program, graph, "l2"), strict=True):
        (slot,) = [slot for slot in group.slots if slot.name == f"{group.name}.weight"]
        kept = set(slot.unit[list(plan.tensors.get(slot.name, {}).get(0, range(len(slot.unit))))].tolist())
        removed = set(range(group.n_units)) - kept
        assert not removed or max(scores[list(removed)]) <= min(scores[list(kept)])


def test_exact_only_leaves_renormalised_units_alone() -> None:
    net = Net(lambda m, x: m.out(m.n(m.b(m.a(x).relu()))), a=nn.Linear(5, 16), b=nn.Linear(16, 16),
              n=nn.LayerNorm(16), out=nn.Linear(16, 4))  # fmt: skip
    _, plan = planned(net, TOKENS, keep_macs=0.7, align=1, exact_only=True)
    assert plan.exact and any(group.after < group.before for group in plan.groups)
    assert all(group.after == group.before for group in plan.groups if not group.exact)
    _, loose = planned(net, TOKENS, keep_macs=0.2, align=1)
    assert not loose.exact


def test_exact_only_can_make_a_budget_impossible() -> None:
    with pytest.raises(BudgetError):
        planned(CASES["layer norm"].build(), TOKENS, keep_macs=0.5, align=1, exact_only=True)


@pytest.mark.parametrize("n_features", [1, 7, 15, 16])
def test_the_number_of_features_is_met(n_features: int) -> None:
    _, plan = planned(image_mlp(), (1, 4, 4), inputs=True, keep_macs=None, n_features=n_features)
    (group,) = [group for group in plan.groups if group.name == "input input"]
    assert group.after == n_features
    assert all(other.after == other.before for other in plan.groups if other is not group)
    assert (plan.inputs == {}) if n_features == 16 else (len(plan.inputs["input"].keep) == n_features)


def test_features_compete_with_channels_where_no_number_is_given() -> None:
    program, plan = planned(image_mlp(), (1, 4, 4), inputs=True, keep_macs=0.3)
    assert all(group.after < group.before for group in plan.groups)
    assert macs(edgeprune.cut(program, plan)) <= 0.3 * macs(program)


def test_taylor_needs_batches() -> None:
    with pytest.raises(InputError, match="batches"):
        planned(mlp(), (8,), criterion="taylor")


def test_taylor_prunes_by_the_effect_for_each_mac() -> None:
    batches = [(torch.randn(16, 8, dtype=torch.float64), torch.randint(3, (16,)))]
    program, plan = planned(mlp(), (8,), criterion="taylor", batches=batches, keep_macs=0.4, align=1)
    assert macs(edgeprune.cut(program, plan)) <= 0.4 * macs(program)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_macs": 0.0}, r"keep_macs: expected a share in \(0, 1\], got 0.0"),
        ({"keep_macs": 1.5}, "got 1.5"),
        ({"keep_macs": float("nan")}, "got nan"),
        ({"align": 0}, "align: expected a whole number from 1, got 0"),
        ({"n_features": 3}, "input features: the network has none"),
    ],
)
def test_bad_numbers_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        planned(cnn(), IMAGE, **options)


@pytest.mark.parametrize("n_features", [0, 17])
def test_a_number_of_features_that_there_is_not_is_refused(n_features: int) -> None:
    with pytest.raises(InputError, match=f"expected to keep 1 to 16, got {n_features}"):
        planned(image_mlp(), (1, 4, 4), inputs=True, keep_macs=None, n_features=n_features)


def test_an_impossible_budget_names_what_stood_in_the_way() -> None:
    message = (
        r"0.01 of the MACs cannot be met: expected at most [\d,]+, got no lower than [\d,]+ MACs; in the way: "
        r"groups.*stem.*; locked: head \(output is the model's output\)$"
    )
    with pytest.raises(BudgetError, match=message):
        planned(residual(), IMAGE, keep_macs=0.01, align=4)


def test_nothing_to_prune_names_the_locks() -> None:
    with pytest.raises(BudgetError, match=r"least width \(none\); locked: .*weight \(output is the model's output\)"):
        planned(nn.Linear(4, 3), (4,), keep_macs=0.5)


def test_keeping_everything_is_a_plan_too() -> None:
    program, plan = planned(cnn(), IMAGE, keep_macs=1.0)
    assert plan.tensors == {} and plan.exact
    assert edgeprune.prove(program, edgeprune.cut(program, plan), plan) == 0.0


def test_no_part_of_a_fused_layer_is_emptied() -> None:
    """One half of a layer feeds a narrow branch whose units are all worth little."""
    net = Net(lambda m, x: m.a(m.first(x)[:, :4].relu()) + m.b(m.first(x)[:, 4:].relu()), first=nn.Linear(6, 16),
              a=nn.Linear(4, 3), b=nn.Linear(12, 3))  # fmt: skip
    program = captured(net, (6,))
    with torch.no_grad():
        program.state_dict["first.weight"][:4] *= 1e-3
        program.state_dict["a.weight"] *= 1e-3
        program.state_dict["first.bias"][:4] *= 1e-3
    plan = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.15, align=1)
    assert len(plan.tensors["a.weight"][1]) == 1
    assert edgeprune.prove(program, edgeprune.cut(program, plan), plan) <= 1e-10


def test_a_plan_that_leaves_nothing_is_refused() -> None:
    program = captured(mlp(), (8,))
    graph = edgeprune.analyze(program)
    keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
    keep[graph.groups[0].units] = False
    with pytest.raises(PlanError, match=r"nothing would be left of dim 0 of '0\.weight'"):
        make_plan(program, graph, keep)


def narrow() -> nn.Module:
    """As wide as a small residual network's stages."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 96, 1), nn.ReLU(), nn.Conv2d(96, 4, 1),
    )  # fmt: skip


@pytest.mark.parametrize("keep_macs", [0.8, 0.5])
def test_narrow_layers_have_finer_widths_where_nobody_says_the_alignment(keep_macs: float) -> None:
    _, plan = planned(narrow(), IMAGE, keep_macs=keep_macs)
    steps = {16: 2, 32: 4, 64: 8, 96: 8}
    assert all(group.after % steps[group.before] == 0 for group in plan.groups)
    assert any(group.after % 8 for group in plan.groups)
    assert plan.aligned is None


def small() -> nn.Module:
    """A layer that multiples of 8 cannot cut, and one that they can cut once."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 1)
    )


@pytest.mark.parametrize(("keep_macs", "aligned"), [(0.6, None), (0.35, 4), (0.15, 2), (0.05, 1)])
def test_an_alignment_gives_way_to_a_budget(keep_macs: float, aligned: int | None) -> None:
    program, plan = planned(small(), IMAGE, keep_macs=keep_macs, align=8)
    assert plan.aligned == aligned
    assert all(group.after % (aligned or 8) == 0 for group in plan.groups)
    assert macs(edgeprune.cut(program, plan)) <= keep_macs * macs(program)
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert ('"aligned"' in plan.to_json()) is (aligned is not None)


def test_a_budget_that_no_width_meets_is_refused_for_what_stands_in_the_way() -> None:
    with pytest.raises(BudgetError, match=r"0.001 of the MACs cannot be met: .* groups at their least width \(0, 2\)"):
        planned(small(), IMAGE, keep_macs=0.001, align=8)


def test_layers_are_held_by_name_and_by_pattern() -> None:
    _, plan = planned(narrow(), IMAGE, keep_macs=0.8, leave=["0", "[24]"])
    assert [group.before - group.after > 0 for group in plan.groups] == [False, False, False, True]
    with pytest.raises(BudgetError, match=r"least width \(6\); held: 2, 4, 0; locked: 8"):
        planned(narrow(), IMAGE, keep_macs=0.1, leave=["0", "[24]"])


@pytest.mark.parametrize("align", [None, 8, 1])
def test_a_layer_keeps_the_share_that_is_said(align: int | None) -> None:
    program, plan = planned(narrow(), IMAGE, keep_macs=0.3, align=align, layer_ratios={"2": 0.3, "6": 1.0})
    widths = {group.name: group.after for group in plan.groups}
    assert (widths["2"], widths["6"]) == (10, 96)
    assert widths["0"] < 16 or widths["4"] < 64  # the others make up for it
    assert macs(edgeprune.cut(program, plan)) <= 0.3 * macs(program)


def test_a_share_needs_no_budget_and_leaves_a_unit() -> None:
    program, plan = planned(narrow(), IMAGE, keep_macs=None, layer_ratios={"4": 0.001, "[02]": 0.5})
    assert [group.after for group in plan.groups] == [8, 16, 1, 96]
    slim = edgeprune.cut(program, plan)
    assert edgeprune.prove(program, slim, plan) <= 1e-10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leave": ["steem"]}, r"leave: expected the name of a layer .*, got 'steem'; did you mean 'stem'\?"),
        ({"layer_ratios": {"nothing.*": 0.5}}, r"layer_ratios: expected the name of a layer .*, got 'nothing\.\*'"),
        ({"leave": ["head"]}, "leave: expected a layer whose channels may go, got 'head', which is locked: output is"),
        ({"layer_ratios": {"head": 0.5}}, "layer_ratios: .*'head', which is locked: output is the model's output"),
        ({"layer_ratios": {"stem": 0.0}}, r"layer_ratios: stem: expected a share in \(0, 1\], got 0.0"),
        ({"layer_ratios": {"stem": float("nan")}}, "got nan"),
        ({"layer_ratios": {"stem": True}}, "got True"),
        ({"layer_ratios": {"stem": 0.5, "*": 0.25}}, "'\\*': expected one share for each group .*, got 0.25 and 0.5"),
        ({"layer_ratios": {"stem": 0.5}, "leave": ["st*"]}, "got 0.5 and the whole of it for stem"),
    ],
)
def test_layers_that_cannot_be_held_so_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        planned(residual(), IMAGE, keep_macs=0.9, **options)
    assert "\n" not in str(refused.value)


def test_input_features_are_no_layer() -> None:
    with pytest.raises(InputError, match="expected a layer, got 'input input', which stands for input"):
        planned(image_mlp(), (1, 4, 4), inputs=True, layer_ratios={"input input": 0.5})
