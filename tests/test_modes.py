"""The code of a module that follows `.train()` and `.eval()` is made once for each mode."""

from __future__ import annotations

import copy

import torch
from torch import nn

import edgeprune
from edgeprune.graph.trainable import TrainableModule


def module() -> TrainableModule:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    made = edgeprune.capture(net, torch.randn(2, 6)).module()
    assert isinstance(made, TrainableModule)
    return made


def test_each_mode_is_compiled_once() -> None:
    net = module()
    codes = [(type(net.train(mode)).forward, net.code) for mode in (True, False, True, False)]
    assert codes[0] == codes[2] and codes[1] == codes[3]
    assert codes[0][0] is not codes[1][0] and "True" in codes[0][1] and "True" not in codes[1][1]


def test_it_trains_and_evaluates_as_it_says() -> None:
    net, x = module(), torch.randn(16, 6)
    expected = net(x)
    for _ in range(2):
        assert not torch.equal(net.train()(x), net(x))  # the dropout
    net.load_state_dict(module().state_dict())  # the statistics
    assert torch.equal(net.eval()(x), expected)


def test_an_edited_graph_gets_code_of_its_own() -> None:
    net, x = module(), torch.randn(4, 6)
    net.train()
    before = net.eval()(x)
    (relu,) = net.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    relu.target = torch.ops.aten.neg.default
    net.train()
    assert not torch.equal(net.eval()(x), before)
    relu.target = torch.ops.aten.relu.default
    net.train()
    assert torch.equal(net.eval()(x), before)


def test_a_copy_has_its_own_mode() -> None:
    net, x = module(), torch.randn(4, 6)
    net.train()
    expected = net.eval()(x)
    other = copy.deepcopy(net).train()
    assert torch.equal(net(x), expected) and not torch.equal(other(x), other(x))


def test_a_batch_norm_that_never_learns_statistics_trains_by_those_that_it_has() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=0.0), nn.ReLU(), nn.Linear(8, 3))
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(1, 4)
    made, x = edgeprune.capture(net, torch.randn(2, 6)).module(), torch.randn(16, 6)
    expected = made(x)
    made.train()
    trained = made(x)
    assert torch.equal(trained, expected)
    trained.sum().backward()
    assert made.get_parameter("1.weight").grad is not None
    assert torch.equal(made.get_buffer("1.running_mean"), net[1].running_mean)
