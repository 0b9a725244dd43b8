"""Dead units go without any change of the output."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import PlanError
from edgeprune.graph.capture import Program
from edgeprune.graph.comparison import outputs, relative_error
from edgeprune.pruning.compose import compose
from edgeprune.pruning.folding import has_zeros
from edgeprune.pruning.plan import PruningPlan
from tests import cases, cases_attention, cases_functions, cases_layers, cases_more, cases_recurrent
from tests.nets import Case, Net, captured, parameter, sample

ALL: dict[str, Case] = {
    f"{module.__name__.partition('_')[2] or 'ops'}: {name}": case
    for module in (cases, cases_attention, cases_functions, cases_layers, cases_more, cases_recurrent)
    for name, case in module.CASES.items()
}


def with_zeros(program: Program, seed: int = 0, share: float = 0.3) -> Program:
    """Rows, columns and single numbers of the parameters set to zero at random."""
    generator = torch.Generator().manual_seed(seed)
    module = program.own_module()
    with torch.no_grad():
        for parameter in module.parameters():
            for dim in range(min(parameter.dim(), 2)):
                gone = torch.rand(parameter.shape[dim], generator=generator) < share / (dim + 1)
                parameter.index_fill_(dim, gone.nonzero().flatten(), 0)
    return program.with_tensors(dict(module.named_parameters(remove_duplicate=False)))


def without_dead(program: Program, inputs: bool = False) -> tuple[Program, PruningPlan, Program]:
    """The folded program, the plan without dead units, and what it leaves."""
    plan = edgeprune.plan_dead(program, inputs=inputs)
    assert plan is not None
    slim = edgeprune.cut(program, plan)
    edgeprune.prove(program, slim, plan)
    return edgeprune.fold(program), plan, slim


def removed(plan: PruningPlan) -> dict[str, int]:
    return {group.name: group.before - group.after for group in plan.groups if group.after < group.before}


def check(name: str) -> None:
    case = ALL[name]
    program = with_zeros(captured(case.build(), *case.shapes))
    inputs = sample(case.shapes, 5)
    expected = outputs(program.module(), inputs)
    if any(not torch.isfinite(t).all() for t in expected):
        pytest.skip("zeros make it divide by zero")
    assert relative_error(expected, outputs(edgeprune.fold(program).module(), inputs)) <= 1e-10
    plan = edgeprune.plan_dead(program, case.label_inputs)
    if plan is not None:
        assert relative_error(expected, outputs(edgeprune.cut(program, plan).module(), inputs)) <= 1e-10


@pytest.mark.sampled(25)
@pytest.mark.parametrize("name", ALL)
def test_nothing_changes(name: str) -> None:
    check(name)


def test_constants_go_into_the_next_bias() -> None:
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.Sigmoid(), nn.Linear(12, 3))
    program = captured(net, (6,))
    program = changed(program, lambda tensors: tensors["0.weight"][:5].zero_())
    folded, plan, slim = without_dead(program)
    assert removed(plan) == {"0": 5}
    assert (folded.state_dict["2.weight"][:, :5] == 0).all()
    assert same(program, folded, (6,)) and same(program, slim, (6,))


def test_a_weight_that_is_made_as_large_as_an_input_has_an_influence() -> None:
    net = Net(
        lambda m, x: m.b(m.a(x).relu() * m.scale.expand_as(m.a(x))),
        a=nn.Linear(6, 8),
        b=nn.Linear(8, 3),
        scale=parameter(8),
    )
    program = changed(captured(net, (6,)), lambda tensors: tensors["scale"][2:4].zero_())
    _, plan, slim = without_dead(program)
    assert removed(plan) == {"scale": 2} and same(program, slim, (6,)), "one unit with that of layer a"


def test_dead_units_are_tracked_back_to_the_input() -> None:
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    program = changed(captured(net, (6,)), kill_path)
    _, plan, slim = without_dead(program, inputs=True)
    assert removed(plan) == {"2": 2, "0": 4, "input input": 1}
    assert plan.inputs["input"].keep == (0, 1, 2, 4, 5)
    assert same(program, slim, (6,))


def kill_path(tensors: dict[str, Tensor]) -> None:
    """Two units of the last hidden layer are not read; four of the first feed them alone, and one input those alone."""
    tensors["4.weight"][:, 3:5] = 0
    others = [unit for unit in range(8) if unit not in (3, 4)]
    tensors["2.weight"][others, 6:10] = 0
    kept = [unit for unit in range(16) if unit not in range(6, 10)]
    tensors["0.weight"][kept, 3] = 0


def test_padding_keeps_constants_other_than_zero() -> None:
    def net(padding: int) -> nn.Module:
        body = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=padding)]
        return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))

    def kill(tensors: dict[str, Tensor]) -> None:
        tensors["0.weight"][:4] = 0
        tensors["1.bias"][:4] = torch.tensor([0.7, 0.5, -0.2, -3.0])  # two are positive and pass the ReLU
        tensors["1.running_mean"][:4] = 0

    for padding, n_removed in ((0, 4), (1, 2)):
        program = changed(captured(net(padding), (3, 9, 9)), kill)
        _, plan, slim = without_dead(program)
        assert removed(plan) == {"0": n_removed}
        assert same(program, slim, (3, 9, 9))


@pytest.mark.parametrize("norm", [True, False], ids=["batch norm behind", "nothing behind"])
def test_a_layer_without_a_bias(norm: bool) -> None:
    behind: nn.Module = nn.BatchNorm2d(6) if norm else nn.SiLU()
    body = [nn.Conv2d(3, 8, 1), nn.SiLU(), nn.Conv2d(8, 6, 3, bias=False), behind, nn.AdaptiveAvgPool2d(1)]
    net = nn.Sequential(*body, nn.Flatten(), nn.Linear(6, 2))
    program = changed(captured(net, (3, 5, 5)), lambda tensors: tensors["0.weight"][2:5].zero_())
    folded, plan, slim = without_dead(program)
    assert removed(plan) == {"0": 3}
    assert ("2.bias" in folded.state_dict) is not norm
    assert same(program, folded, (3, 5, 5)) and same(program, slim, (3, 5, 5))
    module = slim.module().train()
    module(torch.randn(4, 3, 5, 5, dtype=torch.float64)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_units_of_a_residual_stream_go_where_all_of_their_layers_are_zero() -> None:
    def kill(tensors: dict[str, Tensor]) -> None:
        for name in ("stem.weight", "stem.bias", "branch.weight", "branch.bias"):
            tensors[name][:3] = 0
        tensors["branch.weight"][5] = 0  # the stem's part of unit 5 stays

    net = Net(
        lambda m, x: m.head(m.stem(x) + m.branch(m.stem(x).relu())),
        stem=nn.Linear(4, 8),
        branch=nn.Linear(8, 8),
        head=nn.Linear(8, 2),
    )
    program = changed(captured(net, (4,)), kill)
    _, plan, slim = without_dead(program)
    assert removed(plan) == {"stem": 3}
    assert same(program, slim, (4,))


def test_something_is_left_of_a_layer_that_is_all_zero() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    program = changed(captured(net, (6,)), lambda tensors: tensors["0.weight"].zero_())
    _, plan, slim = without_dead(program)
    assert removed(plan) == {"0": 7}
    assert same(program, slim, (6,))


def test_tied_weights_are_left_alone() -> None:
    net = Net(
        lambda m, x: m.head(m.twice(m.twice(m.first(x)).relu())),
        first=nn.Linear(4, 6),
        twice=nn.Linear(6, 6),
        head=nn.Linear(6, 2),
    )
    program = changed(captured(net, (4,)), lambda tensors: tensors["first.weight"][:3].zero_())
    assert edgeprune.plan_dead(program) is None  # both uses would need the same constants


def test_a_network_without_zeros_is_returned_as_it_is() -> None:
    program = captured(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (6,))
    assert edgeprune.fold(program) is program
    assert edgeprune.plan_dead(program) is None


def test_biases_of_zero_make_nothing_dead() -> None:
    fresh = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    nn.init.zeros_(fresh[4].bias)
    program = edgeprune.capture(fresh, torch.randn(2, 3, 8, 8))
    assert not has_zeros(program)
    with torch.no_grad():
        fresh[1].weight[3] = 0
    assert has_zeros(edgeprune.capture(fresh, torch.randn(2, 3, 8, 8)))


def test_a_plan_can_be_replayed_from_its_file() -> None:
    net = nn.Sequential(nn.Linear(6, 16), nn.Sigmoid(), nn.Linear(16, 3))
    program = changed(captured(net, (6,)), lambda tensors: tensors["0.weight"][:5].zero_())
    _, plan, slim = without_dead(program)
    again = PruningPlan.from_json(plan.to_json())
    assert again == plan and again.folded
    assert same(slim, edgeprune.cut(program, again), (6,))
    with pytest.raises(PlanError, match="folded: expected true or false, got 'yes'"):
        PruningPlan.from_json(plan.to_json().replace('"folded": true', '"folded": "yes"'))


def test_channels_go_on_from_what_is_left() -> None:
    net = nn.Sequential(nn.Linear(6, 16), nn.Sigmoid(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    program = changed(captured(net, (6,)), lambda tensors: tensors["0.weight"][:5].zero_())
    _, first, slim = without_dead(program)
    second = edgeprune.plan(slim, edgeprune.analyze(slim), keep_macs=0.5, align=1)
    both = compose(first, second)
    smaller = edgeprune.cut(program, both)
    assert edgeprune.prove(program, smaller, both) <= 1e-10
    assert same(edgeprune.cut(slim, second), smaller, (6,))


def changed(program: Program, change: Callable[[dict[str, Tensor]], object]) -> Program:
    """The program with other numbers in some of its tensors."""
    module = program.own_module()
    tensors: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        change(tensors)
    return program.with_tensors(tensors)


def same(one: Program, other: Program, shape: tuple[int, ...]) -> bool:
    (x,) = sample((shape,), 5)
    return relative_error(outputs(one.module(), (x,)), outputs(other.module(), (x,))) <= 1e-12


def test_a_batch_norm_over_another_dim_does_not_take_the_shift() -> None:
    """As many positions as channels: the batch norm behind the layer is over the positions."""
    net = nn.Sequential(nn.Linear(5, 6), nn.Sigmoid(), nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4))
    program = captured(net, (4, 5))
    program = changed(program, lambda tensors: tensors["0.weight"][:3].zero_())
    inputs = sample(((4, 5),), 3)
    expected = outputs(program.module(), inputs)
    assert relative_error(expected, outputs(edgeprune.fold(program).module(), inputs)) <= 1e-10
