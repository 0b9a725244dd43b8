"""What depends on what, by the kind of each operator: nothing that depends on something is missed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import edgeprune
from edgeprune.graph import marks
from edgeprune.graph.capture import example_inputs
from edgeprune.graph.dependence import explore
from edgeprune.graph.ops.registry import Kind, operator, operators
from edgeprune.graph.prepare import prepared
from tests.nets import Net, parameter

aten = torch.ops.aten
INDEX = torch.tensor([2, 0])
# On x (batch, 4, 4) of a network: what an operator gives, and how many of its results depend on one element of x.
LOCAL = {
    "concat": lambda x: aten.concat.default([x, x.detach() * 2], 1),
    "fliplr": lambda x: x.transpose(0, 1).fliplr().transpose(0, 1),
    "flipud": lambda x: x.transpose(0, 1).flipud().transpose(0, 1),
    "adjoint": lambda x: x.adjoint(),
    "hsplit": lambda x: x.hsplit(2)[0],
    "rot90": lambda x: x.rot90(1, (1, 2)),
    "view_as": lambda x: x.view_as(x + 1),
    "expand_as": lambda x: x[:, :1].expand_as(x),
    "index": lambda x: x[:, INDEX],
    "gather": lambda x: x.gather(1, torch.tensor([[[1, 0, 3, 2]]]).expand(x.shape[0], 1, 4)),
    "glu": lambda x: F.glu(x, 1),
    "im2col": lambda x: F.unfold(x.unsqueeze(1), 2),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.5, 0.0, 0.1, 0.2])),
    "copy": lambda x: torch.zeros(4, 4).expand(x.shape[0], 4, 4).clone().copy_(x),
    "addmv": lambda x: torch.addmv(x[0, 0], x[0], torch.tensor([1.0, 0, 0, 2])),
    "bilinear": lambda x: F.bilinear(x, x.flip(1), torch.eye(4).unsqueeze(0)),
    "group norm": lambda x: F.group_norm(x, 2),
    "median": lambda x: x.median(1).values,
    "kthvalue": lambda x: x.kthvalue(2, 1, True).values,
    "topk": lambda x: x.topk(3, 1).values,
    "sort": lambda x: x.sort(2).values,
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "softmax": lambda x: x.softmax(2),
    "in place": lambda x: torch.ones(4, 4).expand(x.shape[0], 4, 4).clone().mul_(x),
}  # fmt: skip
# Here everything depends on everything: what no rule looks into.
GLOBAL = {
    "computed index": lambda x: x.index_select(1, x[0, 0].argsort()),
    "computed repeats": lambda x: x.repeat_interleave(x[0, 0].argsort(), 1, output_size=6),
    "cdist": lambda x: torch.cdist(x, x),
    "zeros_like": lambda x: x + torch.zeros_like(x),
    "scatter": lambda x: x.scatter(1, torch.zeros(1, 1, 4, dtype=torch.int64).expand(x.shape[0], 1, 4), x[:, 1:2]),
}


def pattern(results: list[Tensor], x: Tensor) -> list[Tensor]:
    """For each result `(n_results, n_elements)`: which elements of x it depends on."""
    rows = []
    for result in results:
        gradients = [
            torch.autograd.grad(value, x, retain_graph=True, allow_unused=True)[0] if value.requires_grad else None
            for value in result.reshape(-1)
        ]
        rows.append(torch.stack([torch.zeros(x.numel()) if g is None else g.reshape(-1) for g in gradients]) != 0)
    return rows


@pytest.fixture(scope="module")
def patterns() -> dict[str, tuple[Tensor, Tensor]]:
    """What each function's results depend on: by the rules, and by the gradients at two places."""
    functions = {**LOCAL, **GLOBAL}
    net = Net(lambda m, x: tuple(function(x) for function in functions.values()), unused=parameter(1))
    x = torch.linspace(-2, 3, 32).reshape(2, 4, 4)[:, torch.tensor([2, 0, 3, 1])]
    program = prepared(edgeprune.capture(net, x, dynamic_batch=False))
    found = explore(program, tree_leaves(example_inputs(program)))
    (start,) = [mark for node, mark in found.marks.items() if node.op == "placeholder"]
    by_rule = pattern(found.outputs, start)
    by_gradient = [torch.zeros_like(one) for one in by_rule]
    for values in (x, x.flip(0, 1, 2) * 0.7):
        leaf = values.clone().requires_grad_()
        results = pattern(list(net(leaf)), leaf)
        by_gradient = [one | other for one, other in zip(by_gradient, results, strict=True)]
    return dict(zip(functions, zip(by_rule, by_gradient, strict=True), strict=True))


@pytest.mark.parametrize("name", [*LOCAL, *GLOBAL])
def test_no_dependence_is_missed(name: str, patterns: dict[str, tuple[Tensor, Tensor]]) -> None:
    by_rule, by_gradient = patterns[name]
    assert by_gradient.any()
    assert not (by_gradient & ~by_rule).any()


@pytest.mark.parametrize("name", LOCAL)
def test_what_stays_apart_is_told_apart(name: str, patterns: dict[str, tuple[Tensor, Tensor]]) -> None:
    by_rule, _ = patterns[name]
    assert not by_rule.all()


@pytest.mark.parametrize("name", GLOBAL)
def test_what_no_rule_looks_into_depends_on_everything(name: str, patterns: dict[str, tuple[Tensor, Tensor]]) -> None:
    by_rule, _ = patterns[name]
    assert by_rule.any(1).all()


def test_every_kind_has_its_place_among_the_rules() -> None:
    assert set(marks.RULES) == set(Kind) == {entry.kind for entry in operators().values()}


def test_an_operator_without_a_kind_is_not_entered() -> None:
    with pytest.raises(TypeError, match="kind"):
        operator("an_operator_of_this_test")(lambda analysis, call: None)  # type: ignore[call-arg]
    assert "an_operator_of_this_test" not in operators()
