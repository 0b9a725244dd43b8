"""A Pruner over networks that write to their own buffers: counters, running means and states of the step before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from tests.nets import Net

WIDTH = 16


def counter(m: Any, x: Tensor) -> Tensor:
    m.count.add_(1)
    return m.b(m.a(x).relu())


def told(m: Any, x: Tensor) -> Tensor:
    m.times.add_(1)
    return m.b(m.a(x).relu()) * (1 + 0.1 * m.times)


def running_mean(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).relu()
    with torch.no_grad():
        m.state.mul_(0.9).add_(0.1 * h.mean(0, keepdim=True))
    return m.b(h - m.state)


def assigned(m: Any, x: Tensor) -> Tensor:
    h = (m.a(x) + m.r(m.state)).tanh()
    m.state = h.detach().mean(0, keepdim=True)
    return m.b(h)


def ring(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).relu()
    m.rows[0] = h.detach().mean(0)
    return m.b(h + m.rows.sum(0))


FORWARDS = [counter, told, running_mean, assigned, ring]


def net(forward: Callable[..., Tensor]) -> nn.Module:
    torch.manual_seed(0)
    model = Net(forward, a=nn.Linear(8, WIDTH), r=nn.Linear(WIDTH, WIDTH), b=nn.Linear(WIDTH, 4))
    model.register_buffer("count", torch.zeros((), dtype=torch.long))
    model.register_buffer("times", torch.zeros(()), persistent=False)
    model.register_buffer("state", torch.zeros(1, WIDTH))
    model.register_buffer("rows", torch.zeros(3, WIDTH))
    return model


X = torch.linspace(-1, 1, 32).reshape(4, 8)


def train(module: nn.Module) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        module(X).square().sum().backward()
        optimizer.step()


def pruner_of(model: nn.Module, **choices: Any) -> edgeprune.Pruner:
    return edgeprune.Pruner(model, X, keep_macs=0.5, steps=2, align=1, **choices)


@pytest.mark.parametrize("forward", FORWARDS)
def test_what_the_loop_wrote_to_buffers_comes_with_the_weights(forward: Callable[..., Tensor]) -> None:
    model = net(forward)
    pruner = pruner_of(model)
    for module in pruner:
        train(module)
    slim = pruner.program.module()
    pruner.apply_to(model)
    model.eval()
    for _ in range(3):
        assert torch.allclose(model(X), slim(X), atol=1e-6)


def test_runs_are_counted_once_each() -> None:
    pruner = pruner_of(net(counter))
    for module in pruner:
        train(module)
    assert pruner.program.state_dict["count"] == 6


@pytest.mark.parametrize("forward", FORWARDS)
def test_ones_own_class_is_shrunk_with_its_state(forward: Callable[..., Tensor]) -> None:
    model = net(forward)
    pruner = pruner_of(model, appliable=True)
    for _ in range(2):
        pruner.shrink(model)
        train(model)
    pruner.take(model)
    assert pruner.program.state_dict["a.weight"].shape[0] == model.get_parameter("a.weight").shape[0] < WIDTH


@pytest.mark.parametrize("forward", [counter, assigned])
def test_a_loop_over_a_state_goes_on(forward: Callable[..., Tensor]) -> None:
    pruner = pruner_of(net(forward))
    train(next(pruner))
    others = pruner_of(net(forward))
    others.load_state_dict(pruner.state_dict())
    assert torch.equal(next(others)(X), pruner.program.module()(X))
    train(next(others))
    resumed = pruner_of(net(forward))
    resumed.load_state_dict(others.state_dict())


@pytest.mark.parametrize("forward", FORWARDS)
def test_looking_at_a_network_runs_nothing_of_it(forward: Callable[..., Tensor]) -> None:
    program = edgeprune.capture(net(forward), X)
    before = {name: tensor.clone() for name, tensor in {**program.state_dict, **program.constants}.items()}
    graph = edgeprune.analyze(program)
    plan = edgeprune.plan(program, graph, keep_macs=0.5, align=1)
    edgeprune.prove(program, edgeprune.cut(program, plan, graph), plan)
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in {**program.state_dict, **program.constants}.items()
    )


def test_the_gradients_of_a_state_are_those_of_the_class() -> None:
    model = net(running_mean)
    module: Any = edgeprune.capture(model, X).module()
    for _ in range(2):
        for network in (model, module):
            network.zero_grad()
            network(X).square().sum().backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("r."):
            assert torch.allclose(parameter.grad, module.get_parameter(name).grad, atol=1e-6), name
