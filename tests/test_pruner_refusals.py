"""What a Pruner refuses, each in one line: options, modules that are not the one it handed out, states of others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune.errors import ApplyError, InputError
from tests.test_pruner import Several, images, net, pruner_of, same_outputs, train


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"keep_macs": None}, "Pruner: expected a budget"),
        ({"keep_macs": 0}, "keep_macs: expected a share in"),
        ({"keep_macs": "half"}, "keep_macs: expected a share in"),
        ({"keep_latency": 2.0}, "keep_latency: expected a share in"),
        ({"keep_latency": "5 days"}, "keep_latency: expected one of the units"),
        ({"max_size": 0}, "max_size: expected a whole number from 1"),
        ({"max_size": "5 apples"}, "max_size: expected one of the units"),
        ({"max_ram": -1}, "max_ram: expected a whole number from 1"),
        ({"max_ram": "5"}, "max_ram: expected"),
        ({"steps": 0}, "steps: expected a whole number from 1, got 0"),
        ({"steps": True}, "steps: expected a whole number from 1"),
        ({"schedule": "wild"}, "schedule: expected one of geometric, linear, cubic"),
        ({"schedule": (0.5, 0.4, 1)}, "schedule: expected .* rising from above 0 to 1"),
        ({"schedule": (0.2, 0.4, 1)}, "steps and schedule: expected as many of both, got 2 steps and 3"),
        ({"criterion": "activation"}, "criterion: expected one of the weights, or taylor"),
        ({"criterion": "best"}, "criterion: expected one of"),
        ({"align": 0}, "align: expected a whole number from 1"),
        ({"attention": "none"}, "attention: expected one of heads, head-dim"),
        ({"input_features": 0}, "input_features: expected auto, off, a count"),
        ({"input_features": 5}, "input features: expected to keep 1 to 3, got 5"),
        ({"leave": 3}, "leave: expected the names of layers or groups in a list, got 3"),
        ({"leave": "first"}, "leave: expected the names of layers or groups in a list"),
        ({"leave": ["missing"]}, "leave: expected the name of a layer or a group"),
        ({"device": "missing.json"}, "missing.json"),
        ({"threads": 0}, "threads: expected a whole number from 1"),
    ],
)
def test_options_that_are_wrong_are_refused_in_one_line(choices: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        pruner_of(net(), **choices)
    assert "\n" not in str(caught.value)


# -- modules that are not the one --


def replaced_layer(module: nn.Module) -> None:
    module.get_submodule("head").weight = nn.Parameter(torch.randn(9, 9))


def lost(module: nn.Module) -> None:
    del module.get_submodule("head").bias


def broken(module: nn.Module) -> None:
    nn.init.constant_(module.get_parameter("head.bias"), float("nan"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [(replaced_layer, r"head.weight \[9, 9\] instead of"), (lost, "missing head.bias"), (broken, "NaN in head.bias")],
)
def test_a_module_that_is_another_now_is_refused(change: Callable[[nn.Module], None], expected: str) -> None:
    pruner = pruner_of(net())
    change(next(pruner))
    with pytest.raises(InputError, match=expected):
        next(pruner)


def test_a_copy_that_was_trained_in_its_place_is_not_overlooked() -> None:
    pruner = pruner_of(net())
    copied = copy.deepcopy(next(pruner))
    train(copied)
    with pytest.raises(InputError, match=r"a copy that was trained in its place; hand it back by pruner.take\(copy\)"):
        next(pruner)
    pruner.take(copied)
    assert same_outputs(pruner.program.module(), copied, images())
    assert len(list(pruner)) == 1


def test_a_module_of_an_earlier_step_or_of_another_pruner_is_refused() -> None:
    pruner = pruner_of(net(), schedule=(0.999, 1))
    earlier = next(pruner)
    next(pruner)
    for stranger in (earlier, next(pruner_of(net()))):
        with pytest.raises(InputError, match="got a module of an earlier step or of another program"):
            pruner.take(stranger)
    with pytest.raises(InputError, match="with_weights: expected a module that this program's"):
        pruner.take(nn.Linear(3, 4))
    with pytest.raises(InputError, match="Pruner: expected an nn.Module, got a str"):
        pruner.take("net")  # type: ignore[arg-type]


def test_what_is_compiled_is_unwrapped_or_refused() -> None:
    model = net()
    pruner = pruner_of(torch.compile(model, backend="eager"))
    next(pruner)
    pruner.apply_to(model)
    part = net()
    part.second = torch.compile(part.second, backend="eager")
    inside = net()
    inside.compile(backend="eager")
    for compiled, where in ((part, "its part 'second' is"), (inside, "it is")):
        with pytest.raises(InputError, match=f"expected a module that is not compiled, got a Net: {where}"):
            pruner_of(compiled)
    with pytest.raises(InputError, match="Pruner: expected an nn.Module, got a str"):
        pruner_of("net")  # type: ignore[arg-type]


def test_another_network_does_not_take_the_result() -> None:
    pruner = pruner_of(net())
    next(pruner)
    with pytest.raises(ApplyError):
        pruner.apply_to(Several())


# -- states that are not of this Pruner --


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": "other"}, "expected the state of a Pruner"),
        ({"asked": '{"keep_macs": 0.3}'}, "expected a Pruner with the options of the state"),
        ({"weights": {}}, "weights: expected the tensors of this network, got no "),
        ({"plan": 3}, "plan: expected another value, got a int"),
        ({"records": [[0.5]]}, "expected a whole state of a Pruner, got a damaged one"),
        ({"observed": {}}, "expected a whole state of a Pruner, got a damaged one"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change: dict[str, Any], expected: str) -> None:
    pruner = pruner_of(net())
    with pytest.raises(InputError, match=expected):
        pruner.load_state_dict({**pruner.state_dict(), **change})


def test_the_state_of_another_network_is_refused() -> None:
    with pytest.raises(InputError, match="dense: 'first.weight': expected"):
        pruner_of(net()).load_state_dict(pruner_of(net(width=8)).state_dict())
