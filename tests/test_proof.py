"""The proof finds wrong cuts, and passes right ones for the stated reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import ProofError
from edgeprune.graph.capture import Program
from edgeprune.graph.decisions import Choice
from edgeprune.graph.precision import in_float64
from edgeprune.pruning.masked import masked
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.planner import make_plan
from tests.cases import CASES, IMAGE, TOKENS
from tests.nets import Cut, Net, captured, cut_randomly, random_keep, relative_error, residual, run, sample


def cut_of(name: str, dtype: torch.dtype = torch.float64) -> Cut:
    program = captured(CASES[name].build(), *CASES[name].shapes, dtype=dtype)
    return cut_randomly(program, edgeprune.analyze(program, inputs=CASES[name].label_inputs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_right_cut_passes(dtype: torch.dtype) -> None:
    assert cut_of("residual", dtype).error <= (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_wrong_weight_is_found(dtype: torch.dtype) -> None:
    cut = cut_of("residual", dtype)
    with torch.no_grad():
        cut.slim.state_dict["c.weight"][0, 0, 0, 0] += 1e-3
    with pytest.raises(ProofError, match=r"expected a relative error of at most 1e-\d+, got"):
        edgeprune.prove(cut.program, cut.slim, cut.plan)


def test_swapped_channels_are_found() -> None:
    cut = cut_of("cnn")
    with torch.no_grad():
        weight = cut.slim.state_dict["4.weight"]
        weight.copy_(weight.flip(1))
    with pytest.raises(ProofError, match="not the masked dense network"):
        edgeprune.prove(cut.program, cut.slim, cut.plan)


def test_a_network_that_is_not_finite_is_no_proof() -> None:
    cut = cut_of("cnn")
    with torch.no_grad():
        cut.slim.state_dict["4.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(ProofError, match="got inf"):
        edgeprune.prove(cut.program, cut.slim, cut.plan)


def test_a_network_that_divides_by_what_is_all_zero_is_told_so() -> None:
    net = Net(
        lambda m, x: m.last((h := m.first(x).relu()) / h.norm(dim=1, keepdim=True)),
        first=nn.Linear(4, 6),
        last=nn.Linear(6, 3),
    )
    program = captured(net, (4,))
    graph = edgeprune.analyze(program)
    plan = make_plan(program, graph, random_keep(graph, 0.2, seed=0))
    with pytest.raises(ProofError, match=r"gives NaN where the dense one does not: it has a division, .*epsilon"):
        edgeprune.prove(program, edgeprune.cut(program, plan, graph), plan)


def test_another_output_shape_is_found() -> None:
    cut = cut_of("residual")
    wider = residual()
    wider.head = torch.nn.Linear(10, 5)
    with pytest.raises(ProofError, match="got inf"):
        edgeprune.prove(cut.program, captured(wider, IMAGE), cut.plan)


def test_real_inputs_can_be_given() -> None:
    cut = cut_of("cnn")
    (x,) = sample((IMAGE,), 7)
    assert edgeprune.prove(cut.program, cut.slim, cut.plan, x.float()) <= 1e-10


def test_masked_is_dense_with_zeros() -> None:
    cut = cut_of("cnn")
    zeros = cut.program.module()
    for name, tensor in [*zeros.named_parameters(), *zeros.named_buffers()]:
        for dim, kept in cut.plan.tensors.get(name, {}).items():
            gone = [i for i in range(tensor.shape[dim]) if i not in kept]
            tensor.data.index_fill_(dim, torch.tensor(gone), 0)
    inputs = sample((IMAGE,), 4)
    assert relative_error(run(zeros, inputs), run(masked(cut.program, cut.plan), inputs)) <= 1e-12


def test_the_proof_leaves_the_programs_as_they_were() -> None:
    cut = cut_of("batch norm of the batch", torch.float32)
    before = {name: tensor.clone() for name, tensor in cut.program.state_dict.items()}
    edgeprune.prove(cut.program, cut.slim, cut.plan)
    in_float64(masked(cut.program, cut.plan)).train()
    for name, tensor in cut.program.state_dict.items():
        assert torch.equal(tensor, before[name]) and tensor.dtype == before[name].dtype


RENORMALISED = ("layer norm", "layer norm bare", "rms norm", "group norm of one", "transformer layer")


@pytest.mark.parametrize("name", RENORMALISED)
def test_statistics_are_taken_over_the_kept_units_in_the_reference_too(name: str) -> None:
    cut = cut_of(name)
    assert not cut.plan.exact
    assert cut.error <= 1e-10
    reference = masked(cut.program, cut.plan)
    assert run(reference, sample(CASES[name].shapes, 2))[0].shape[0] == 2


def test_an_exact_cut_needs_no_other_statistics() -> None:
    cut = cut_of("layer norm after")
    assert cut.error <= 1e-10
    heads = cut_of("attention")
    assert heads.plan.exact and heads.error <= 1e-10
    assert run(masked(heads.program, heads.plan), sample((TOKENS,), 2))


# -- what a proof must show -------------------------------------------------------------------------------------------


def encoder() -> Net:
    def forward(m: Any, ids: Tensor, mask: Tensor) -> Tensor:
        h, weights = m.b(m.a(m.e(ids)).relu()), mask[..., None].to(torch.float32)
        return (h * weights).sum(1) / weights.sum(1).clamp(min=1e-9)

    return Net(forward, e=nn.Embedding(50, 8), a=nn.Linear(8, 16), b=nn.Linear(16, 4))


IDS, MASK = torch.arange(12).reshape(2, 6) % 50, torch.ones(2, 6, dtype=torch.long)


def planned(net: nn.Module, inputs: Any) -> tuple[Program, PruningPlan, Program]:
    program = edgeprune.capture(net, inputs)
    plan = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.5, align=1)
    return program, plan, edgeprune.cut(program, plan)


def disturbed(slim: Program) -> Program:
    with torch.no_grad():
        for value in slim.state_dict.values():
            value.normal_()
    return slim


def test_tokens_reach_the_weights() -> None:
    program, plan, slim = planned(encoder(), (IDS, MASK))
    assert edgeprune.prove(program, slim, plan) <= 1e-5
    assert edgeprune.prove(program, slim, plan, (IDS, MASK)) <= 1e-5
    assert edgeprune.prove(program, slim, plan, {"inputs_1": MASK, "inputs_0": IDS}) <= 1e-5
    assert edgeprune.prove(program, slim, plan, IDS) <= 1e-5
    for inputs in (None, IDS, (IDS, MASK)):
        with pytest.raises(ProofError, match="not the masked dense network"):
            edgeprune.prove(program, disturbed(slim), plan, inputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((IDS, MASK * 0), "the output does not move when the weights that were sliced are changed"),
        ((IDS * 0, MASK), "the output does not depend on the inputs"),
        ((IDS + 50, MASK), "the dense network fails on the inputs"),
    ],
)
def test_inputs_that_show_nothing_are_no_proof(inputs: Any, message: str) -> None:
    program, plan, slim = planned(encoder(), (IDS, MASK))
    with pytest.raises(ProofError, match=f"no proof: .*{message}.* these were given"):
        edgeprune.prove(program, slim, plan, inputs)


def test_an_output_that_hides_its_head_is_named() -> None:
    net = Net(
        lambda m, x: {"scores": m.b(m.a(x).relu()), "boxes": m.c(m.a(x).relu()) * 0, "anchors": m.anchors * 1},
        a=nn.Linear(6, 16),
        b=nn.Linear(16, 4),
        c=nn.Linear(16, 4),
        anchors=nn.Parameter(torch.ones(5, 4)),
    )
    program, plan, slim = planned(net, torch.randn(2, 6))
    with pytest.raises(ProofError, match=r"output boxes does not move when .* \(c.weight\)"):
        edgeprune.prove(program, slim, plan)


def test_a_network_that_a_cut_makes_constant_is_proved_all_the_same() -> None:
    program = captured(CASES["transformer layer"].build(), *CASES["transformer layer"].shapes)
    graph = edgeprune.analyze(program)
    keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
    for group in graph.groups:
        keep[group.units[1:]] = False  # a layer norm over one unit gives its bias
    plan = make_plan(program, graph, keep)
    assert edgeprune.prove(program, edgeprune.cut(program, plan, graph), plan) <= 1e-10


# -- types and ties ---------------------------------------------------------------------------------------------------


def scoring(function: Any) -> Net:
    return Net(function, a=nn.Linear(6, 16), b=nn.Linear(16, 8))


OUTPUTS = {
    "class and scores": lambda m, x: (m.b(m.a(x).relu()).argmax(1), m.b(m.a(x).relu())),
    "class alone": lambda m, x: m.b(m.a(x).relu()).argmax(1),
    "top-k with ties": lambda m, x: m.b(m.a(x).relu()).relu().topk(6, 1),
    "sorted places": lambda m, x: m.b(m.a(x).relu()).relu().sort(1)[1],
    "truth values": lambda m, x: m.b(m.a(x).relu()) > 0,
    "infinities": lambda m, x: m.b(m.a(x).relu()).masked_fill(torch.arange(8) > 5, float("-inf")),
    "another type": lambda m, x: m.b(m.a(x).relu()).double(),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_of_every_type(name: str) -> None:
    torch.manual_seed(0)
    program, plan, slim = planned(scoring(OUTPUTS[name]), torch.randn(2, 6))
    assert edgeprune.prove(program, slim, plan) <= 1e-5
    with pytest.raises(ProofError, match="not the masked dense network"):
        edgeprune.prove(program, disturbed(slim), plan)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_told_from_a_small_error(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).to(dtype)
    program, plan, slim = planned(net, torch.randn(2, 8).to(dtype))
    assert edgeprune.prove(program, slim, plan) <= 1e-10
    with torch.no_grad():
        slim.state_dict["0.weight"][:, 0] += 2e-2  # far below what half precision rounds in sum
    with pytest.raises(ProofError, match="not the masked dense network"):
        edgeprune.prove(program, slim, plan)


def test_the_other_of_two_equal_choices_is_as_good() -> None:
    scores = torch.tensor([[0.0, 3.0, 3.0, 1.0]])
    choice = Choice(scores, 1, torch.tensor([[1, 2]]))
    assert choice.is_as_good(torch.tensor([[2, 1]]), 0.0)
    assert not choice.is_as_good(torch.tensor([[1, 3]]), 0.1)


def test_rows_that_differ_by_no_more_than_rounding_show_something_where_their_inputs_differ() -> None:
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.last(m.first(x).relu()) * 1e-7 + 1.0,
        first=nn.Linear(6, 32),
        last=nn.Linear(32, 64),
    ).eval()
    program = edgeprune.capture(net, torch.randn(4, 6))
    plan = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.5, align=1)
    slim, x = edgeprune.cut(program, plan), torch.randn(4, 6)
    assert (net(x) - net(x)[:1]).abs().max() < 2 * torch.finfo(torch.float32).eps * 2
    assert edgeprune.prove(program, slim, plan, inputs=(x,)) < 1e-5
    with pytest.raises(ProofError, match="not depend on the inputs"):
        edgeprune.prove(program, slim, plan, inputs=(x[:1].expand(4, 6),))


def faint() -> nn.Sequential:
    """A network that is as it was started, with weights so small that even in float64 nothing reaches its outputs."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), *(nn.Conv2d(16, 16, 1) for _ in range(12)), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(16 * 64, 4)).eval()
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.003)
    return net


def test_weights_that_swallow_the_inputs_are_made_larger_in_both_networks() -> None:
    net, x = faint(), torch.randn(2, 3, 8, 8)
    program, plan, slim = planned(net, x)
    exact, two = in_float64(faint()), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(*exact(two).split(1))
    assert edgeprune.prove(program, slim, plan) <= 1e-5
    assert edgeprune.prove(program, slim, plan, torch.randn(2, 3, 8, 8)) <= 1e-5
    with pytest.raises(ProofError, match="not depend on the inputs"):
        edgeprune.prove(program, slim, plan, torch.ones(2, 3, 8, 8))


def test_weights_that_are_tied_stay_so_as_they_are_made_larger() -> None:
    """Untied, each name would have units of its own, which the plan, rightly, does not cut one without the other."""
    torch.manual_seed(0)
    net = Net(
        lambda m, x: m.last(m.norm(m.first(x)) @ m.back.weight),
        first=nn.Linear(6, 12),
        norm=nn.RMSNorm(12),
        back=nn.Linear(6, 12, bias=False),
        last=nn.Linear(6, 4),
    )
    net.back.weight = net.first.weight
    nn.init.normal_(net.last.weight, std=1e-20)
    program, plan, slim = planned(net.double().eval(), torch.randn(2, 6, dtype=torch.float64))
    assert not plan.exact
    assert edgeprune.prove(program, slim, plan) <= 1e-10


def test_a_wrong_weight_is_found_though_it_swallows_the_inputs() -> None:
    program, plan, slim = planned(faint(), torch.randn(2, 3, 8, 8))
    with torch.no_grad():
        weight = slim.state_dict["6.weight"]
        weight.copy_(weight.flip(1))
    with pytest.raises(ProofError, match="not the masked dense network"):
        edgeprune.prove(program, slim, plan)


def test_what_float32_rounds_away_is_told_by_float64_and_the_weights_are_asked_all_the_same() -> None:
    """A variance as a mean of squares less a squared mean loses four digits of seven."""

    class Variance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 64), nn.Linear(64, 64)
            nn.init.constant_(self.two.bias, 300.0)

        def forward(self, x: Tensor) -> Tensor:
            x = self.two(self.one(x).relu())
            return x.square().mean(1, keepdim=True) - x.mean(1, keepdim=True).square()

    torch.manual_seed(0)
    program = edgeprune.capture(Variance().eval(), torch.randn(4, 6))
    plan = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.5, align=1)
    slim = edgeprune.cut(program, plan)
    assert edgeprune.prove(program, slim, plan) < 1e-1  # of float32; float64 has told it apart
    assert {p.dtype for p in program.parameters()} == {p.dtype for p in slim.parameters()} == {torch.float32}
