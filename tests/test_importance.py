"""Importance against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune import catalog
from edgeprune.errors import InputError
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph
from edgeprune.graph.read_dims import read_dims
from edgeprune.importance import BY_DATA, BY_WEIGHTS, counted_once, score
from tests.cases import CASES
from tests.nets import captured


@pytest.fixture
def two_layers() -> tuple[Program, ChannelGraph]:
    """Hidden unit 0 has weights (3, 4 | bias 0 | out 0), unit 1 has (1, 0 | bias 2 | out 2)."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
        net[0].bias.copy_(torch.tensor([0.0, 2.0]))
        net[2].weight.copy_(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
        net[2].bias.zero_()
    program = edgeprune.capture(net, torch.randn(2, 2))
    return program, edgeprune.analyze(program)


def test_l1(two_layers: tuple[Program, ChannelGraph]) -> None:
    (scores,) = score(*two_layers, "l1")
    np.testing.assert_allclose(scores, np.array([7.0, 5.0]) / 6.0)


def test_l2(two_layers: tuple[Program, ChannelGraph]) -> None:
    (scores,) = score(*two_layers, "l2")
    np.testing.assert_allclose(scores, np.array([5.0, 3.0]) / 4.0)


def test_taylor(two_layers: tuple[Program, ChannelGraph]) -> None:
    x, y = torch.tensor([[1.0, 1.0]]), torch.tensor([0])
    # hidden = (7, 3); logits = (6, 0); d loss / d logits = (p - 1, p') with p = 1 / (1 + e^-6)
    wrong = 1 - 1 / (1 + np.exp(-6.0))
    to_hidden = np.array([0.0, -2.0 * wrong])  # through the output weights (0, 0) and (2, 0)
    first = np.array([7.0, 1.0]) * to_hidden  # sum of g w over the incoming weights: x = 1
    bias = np.array([0.0, 2.0]) * to_hidden
    second = np.array([0.0, 3.0 * 2.0 * -wrong])  # g of the output weight is d logit times hidden
    (scores,) = score(*two_layers, "taylor", batches=[(x, y), (x, y)])
    np.testing.assert_allclose(scores, first**2 + bias**2 + second**2, rtol=1e-3, atol=1e-12)


def test_outgoing_counts_each_unit_once(two_layers: tuple[Program, ChannelGraph]) -> None:
    """The gradient of a gate on each: of a hidden unit that of its value, of an input that of what all weights read."""
    x, y = torch.tensor([[1.0, 1.0]]), torch.tensor([0])
    wrong = 1 - 1 / (1 + np.exp(-6.0))
    to_hidden = np.array([0.0, -2.0 * wrong])
    program, graph = two_layers
    (hidden,) = score(program, graph, "outgoing", batches=[(x, y), (x, y)])
    np.testing.assert_allclose(hidden, (np.array([7.0, 3.0]) * to_hidden) ** 2, rtol=1e-3, atol=1e-12)
    graph = edgeprune.analyze(program, inputs=True)
    features = score(program, graph, "outgoing", batches=[(x, y)])[[g.is_input for g in graph.groups].index(True)]
    np.testing.assert_allclose(features, np.array([1.0 * to_hidden[1], 0.0]) ** 2, rtol=1e-3, atol=1e-12)


class Gated(nn.Module):
    """A residual stage and a depthwise layer, with gates on what the next layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6)
        self.depth, self.point = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 6, 1)
        self.back, self.head = nn.ConvTranspose2d(6, 4, 2, 2), nn.Parameter(torch.randn(4, 3))

    def forward(self, x: torch.Tensor, stage: torch.Tensor | None = None, last: torch.Tensor | None = None):
        x = self.norm(self.first(x)).relu()
        y = self.depth(x)
        x = x + self.point(y if stage is None else y * stage.view(-1, 1, 1))
        x = self.back(x if stage is None else x * stage.view(-1, 1, 1)).mean((2, 3))
        return (x if last is None else x * last) @ self.head


def test_outgoing_is_the_squared_gradient_of_a_gate() -> None:
    torch.manual_seed(0)
    net = Gated().eval()
    program = edgeprune.capture(net, torch.randn(2, 2, 8, 8))
    graph = edgeprune.analyze(program)
    x, y = torch.randn(5, 2, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    gates = torch.ones(6, requires_grad=True), torch.ones(4, requires_grad=True)
    nn.functional.cross_entropy(net(x, *gates), y).backward()
    expected = {6: gates[0].grad.square().numpy(), 4: gates[1].grad.square().numpy()}
    for scores in score(program, graph, "outgoing", batches=[(x, y)]):
        np.testing.assert_allclose(scores, expected[len(scores)], rtol=1e-3, atol=1e-9)


def test_the_dims_that_weights_read_along() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows, self.columns = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(5, 6))
            self.letters, self.steps = nn.Parameter(torch.randn(5, 4)), nn.GRU(4, 7, batch_first=True)
            self.query, self.key = nn.Linear(7, 3), nn.Linear(7, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = (x @ self.rows).relu() @ self.columns.transpose(0, 1)
            x, _ = self.steps(torch.einsum("bti,io->bto", x.relu(), self.letters))
            return self.query(x) @ self.key(x).transpose(1, 2)

    graph = edgeprune.analyze(edgeprune.capture(Read(), torch.randn(2, 9, 8)), inputs=True)
    assert read_dims(graph.analysis) == {
        ("rows", 0),
        ("columns", 1),
        ("letters", 0),
        ("steps.weight_ih_l0", 1),
        ("steps.weight_hh_l0", 1),
        ("query.weight", 1),
        ("key.weight", 1),
    }
    units = {group.name: group for group in counted_once(graph, {"query.weight", "key.weight"}).groups}
    makers = {slot.name for group in units.values() for slot in group.slots if slot.dim == 0}
    assert makers == {"query.weight", "key.weight"}  # what queries and keys make of each other no weight reads


def test_taylor_leaves_the_program_alone(two_layers: tuple[Program, ChannelGraph]) -> None:
    score(*two_layers, "taylor", batches=[(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))])
    assert all(parameter.grad is None for parameter in two_layers[0].parameters())


def test_random_depends_on_the_seed_alone(two_layers: tuple[Program, ChannelGraph]) -> None:
    same, again, other = (score(*two_layers, "random", seed=seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(same, again) and not np.array_equal(same, other)
    assert ((same >= 0) & (same < 1)).all()


def test_taylor_needs_batches(two_layers: tuple[Program, ChannelGraph]) -> None:
    with pytest.raises(InputError, match="taylor needs real batches: expected at least one, got none"):
        score(*two_layers, "taylor")


def test_an_unknown_criterion_is_refused(two_layers: tuple[Program, ChannelGraph]) -> None:
    with pytest.raises(
        InputError,
        match="criterion: expected one of l1, l2, bn-scale, taylor, outgoing, lamp, fpgm, activation, random, got 'l3'",
    ):
        score(*two_layers, "l3")


@pytest.mark.parametrize("name", ["depth multiplier", "attention", "cnn input channels", "constant mask"])
def test_every_unit_has_a_score(name: str) -> None:
    program = captured(CASES[name].build(), *CASES[name].shapes)
    graph = edgeprune.analyze(program, inputs=CASES[name].label_inputs)
    for group, scores in zip(graph.groups, score(program, graph, "l2"), strict=True):
        assert scores.shape == (group.n_units,)
        assert (scores > 0).all()
        np.testing.assert_allclose(scores.mean(), 1.0)


def test_lamp(two_layers: tuple[Program, ChannelGraph]) -> None:
    (scores,) = score(*two_layers, "lamp")
    np.testing.assert_allclose(scores, [1.0, 9.0 / 34.0])  # squared norms 25 and 9


def test_lamp_gives_equal_units_equal_scores() -> None:
    program, graph = hidden_units([[2.0], [1.0], [1.0], [0.0]])
    (scores,) = score(program, graph, "lamp")
    np.testing.assert_allclose(scores, [1.0, 1 / 6, 1 / 6, 0.0])


def test_activation(two_layers: tuple[Program, ChannelGraph]) -> None:
    # hidden = (7, 3) and relu of (-7, 1) = (0, 1), as the second layer reads them
    batches = [(torch.tensor([[1.0, 1.0]]), torch.tensor([0])), (torch.tensor([[-1.0, -1.0]]), torch.tensor([0]))]
    (scores,) = score(*two_layers, "activation", batches=batches)
    np.testing.assert_allclose(scores, np.array([3.5, 2.0]) / 2.75)


def test_activation_of_channels_and_input_features() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, -2.0]).reshape(2, 1, 1, 1))
        net[0].bias.zero_()
    program = edgeprune.capture(net, torch.randn(2, 1, 2, 2))
    graph = edgeprune.analyze(program, inputs=True)
    x = torch.tensor([[[[1.0, 2.0], [-3.0, 0.0]]]])
    scores = dict(
        zip((g.name for g in graph.groups), score(program, graph, "activation", batches=[(x, x)]), strict=True)
    )
    np.testing.assert_allclose(scores["0"], np.array([3.0, 6.0]) / 4.5)  # sums of relu(x) and relu(-2 x)
    table = edgeprune.capture(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(2, 2))
    graph = edgeprune.analyze(table, inputs=True)
    inputs = next(g for g, group in enumerate(graph.groups) if group.is_input)
    x = torch.tensor([[1.0, -3.0]])
    np.testing.assert_allclose(score(table, graph, "activation", batches=[(x, x)])[inputs], [0.5, 1.5])


def hidden_units(rows: list[list[float]]) -> tuple[Program, ChannelGraph]:
    """A hidden layer with these weights, without biases; nothing of it is read."""
    net = nn.Sequential(nn.Linear(len(rows[0]), len(rows), bias=False), nn.ReLU(), nn.Linear(len(rows), 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor(rows))
        net[2].weight.zero_()
    program = edgeprune.capture(net, torch.randn(2, len(rows[0])))
    return program, edgeprune.analyze(program)


def test_fpgm_takes_what_lies_in_the_middle_for_replaceable() -> None:
    (scores,) = score(*hidden_units([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]]), "fpgm")
    np.testing.assert_allclose(scores, np.array([6.0, 5.0, 9.0]) * 3 / 20, atol=1e-6)


def batch_normed() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.ReLU())
    net = nn.Sequential(*net, nn.Flatten(), nn.Linear(32, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.5, -2.0, 0.5]))
    return net


def test_bn_scale_goes_by_batch_norm_and_else_by_the_norm() -> None:
    program = edgeprune.capture(batch_normed(), torch.randn(2, 1, 8, 8))
    graph = edgeprune.analyze(program)
    found, norms = score(program, graph, "bn-scale"), score(program, graph, "l2")
    names = [group.name for group in graph.groups]
    np.testing.assert_allclose(found[names.index("0")], [0.5, 2.0, 0.5])
    np.testing.assert_allclose(found[names.index("3")], norms[names.index("3")])


def test_bn_scale_needs_batch_norm(two_layers: tuple[Program, ChannelGraph]) -> None:
    with pytest.raises(InputError, match="bn-scale: expected a network with batch norm on its channels, got none"):
        score(*two_layers, "bn-scale")


@pytest.mark.parametrize("criterion", ["taylor", "outgoing", "activation"])
def test_what_needs_data_says_so(two_layers: tuple[Program, ChannelGraph], criterion: str) -> None:
    with pytest.raises(InputError, match=f"criterion {criterion} needs real batches: expected at least one, got none"):
        score(*two_layers, criterion)


def test_the_catalog_names_every_criterion() -> None:
    assert set(catalog.names("criterion")) == {*BY_WEIGHTS, *BY_DATA, "random"}
    assert {entry.name for entry in catalog.ENTRIES if entry.needs_data} == set(BY_DATA)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("criterion", catalog.names("criterion"))
@pytest.mark.parametrize("name", ["depth multiplier", "attention", "cnn input channels", "batch normed"])
def test_scores_follow_the_order_of_the_units(name: str, criterion: str) -> None:
    """Where the units of the network change places, so do their scores; and plans can be made of them."""
    if name == "batch normed":
        program = edgeprune.capture(batch_normed(), torch.randn(2, 1, 8, 8))
        graph, shape = edgeprune.analyze(program), (4, 1, 8, 8)
    else:
        program = captured(CASES[name].build(), *CASES[name].shapes)
        graph = edgeprune.analyze(program, inputs=CASES[name].label_inputs)
        shape = (4, *CASES[name].shapes[0])
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=next(program.parameters()).dtype)
    if criterion in BY_DATA and Program.adopt(program).module()(x).dim() != 2:
        pytest.skip("no logits")
    try:
        scores = score(program, graph, criterion, batches=[(x, torch.zeros(4, dtype=torch.int64))])
    except InputError as error:
        assert "batch norm" in str(error) or "reads or produces" in str(error)
        return
    for group, own in zip(graph.groups, scores, strict=True):
        assert own.shape == (group.n_units,) and np.isfinite(own).all() and (own >= 0).all()
    if criterion == "random":
        return
    tensors = program.state_dict
    group, own = max(zip(graph.groups, scores, strict=True), key=lambda pair: pair[0].n_units)
    reverse = torch.arange(group.n_units - 1, -1, -1)
    with torch.no_grad():
        for slot in group.slots:
            members = np.flatnonzero(slot.unit >= 0)
            spans = len(members) // group.n_units
            if slot.kind != "tensor" or len(members) != spans * group.n_units:
                continue
            places = members[np.argsort(slot.unit[members], kind="stable")].reshape(group.n_units, spans)
            values = tensors[slot.name].movedim(slot.dim, 0)
            values[places.ravel()] = values[places[reverse].ravel()].clone()
    if group.is_input:
        return
    again = score(program, graph, criterion, batches=[(x, torch.zeros(4, dtype=torch.int64))])
    place = [other.name for other in graph.groups].index(group.name)
    np.testing.assert_allclose(again[place], own[::-1], rtol=1e-4, atol=1e-6)
