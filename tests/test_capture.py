"""Capture: a module becomes an exported program with a dynamic batch that can be trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import CaptureError
from edgeprune.graph.capture import Program, example_inputs
from edgeprune.graph.writes import functional
from tests.cases import CASES, IMAGE
from tests.nets import Net, captured, cnn, mlp, sample


def targets(program: Any) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_batch_is_dynamic_whatever_the_example_had(batch: int) -> None:
    model = cnn().eval()
    program = edgeprune.capture(model, torch.randn(batch, *IMAGE))
    for size in (1, 3):
        x = torch.randn(size, *IMAGE)
        torch.testing.assert_close(program.module()(x), model(x))


def test_the_model_is_left_as_it_was() -> None:
    model = cnn().train()
    model[1].eval()
    edgeprune.capture(model, torch.randn(2, *IMAGE))
    assert model.training and model[0].training and not model[1].training


def test_batch_norm_and_dropout_follow_the_mode() -> None:
    module = edgeprune.capture(cnn(), torch.randn(2, *IMAGE)).module()
    x = torch.randn(8, *IMAGE)
    assert torch.equal(module(x), module(x))
    before = module.state_dict()["1.running_mean"].clone()
    module.train()
    assert not torch.equal(module(x), module(x))
    assert not torch.equal(module.state_dict()["1.running_mean"], before)
    module.eval()
    assert torch.equal(module(x), module(x))


def test_flags_that_were_on_stay_on() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    module = edgeprune.capture(net, torch.randn(2, *IMAGE)).module().train().eval()
    x = torch.randn(4, *IMAGE)
    torch.testing.assert_close(module(x), net(x))


def test_a_flag_left_at_its_default_is_found() -> None:
    module = edgeprune.capture(nn.Sequential(nn.Linear(4, 4), nn.RReLU()), torch.randn(2, 4)).module().train()
    x = torch.randn(6, 4)
    assert not torch.equal(module(x), module(x))


def test_a_module_is_a_copy() -> None:
    program = captured(mlp(), (8,))
    module = program.module()
    with torch.no_grad():
        module.get_parameter("0.weight").zero_()
    assert bool(program.state_dict["0.weight"].any())


def test_adopting_copies_nothing() -> None:
    program = torch.export.export(mlp(), (torch.randn(2, 8),))
    adopted = Program.adopt(program)
    assert adopted.state_dict is program.state_dict and type(program) is not Program


def test_example_inputs_have_the_captured_shapes() -> None:
    program = captured(CASES["two inputs"].build(), (5,), (4,))
    shapes = [tuple(value.shape) for value in example_inputs(program)]
    assert shapes == [(2, 5), (2, 4)]
    assert all(value.dtype == torch.float64 for value in example_inputs(program))


def test_keyword_arguments_are_refused() -> None:
    program = torch.export.export(Keyword(), (torch.randn(2, 3),), {"scale": torch.ones(2, 3)})
    with pytest.raises(CaptureError, match="keyword arguments"):
        example_inputs(program)


class Keyword(nn.Module):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale


def test_only_writes_that_hide_are_made_functional() -> None:
    assert functional(program := captured(CASES["in place"].build(), IMAGE)) is program
    assert functional(program := captured(CASES["constant mask"].build(), IMAGE)) is program
    written = captured(CASES["writes into views"].build(), IMAGE)
    assert any("copy_" in target for target in targets(written))
    assert not any("copy_" in target for target in targets(functional(written)))


def test_constants_that_are_written_to_are_made_functional() -> None:
    net = Net(lambda m, x: (torch.zeros(4, dtype=x.dtype).expand(x.shape[0], 4).clone().copy_(x)) * 2)
    program = captured(net, (4,))
    (x,) = sample(((4,),), 3)
    torch.testing.assert_close(functional(program).module()(x), x * 2)


def test_an_in_place_operator_on_a_view_that_nothing_else_reads_is_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5, inplace=True))
    program = captured(net, IMAGE)
    assert functional(program) is program


def test_a_view_that_is_read_after_the_whole_changed_is_made_functional() -> None:
    program = captured(Net(lambda m, x: write_behind_the_back(x)), (4,))
    (x,) = sample(((4,),), 3)
    assert functional(program) is not program
    torch.testing.assert_close(functional(program).module()(x), x.clamp(min=0)[:, :2] * 2)


def write_behind_the_back(x: Tensor) -> Tensor:
    whole = x * 1
    part = whole[:, :2]
    whole.relu_()
    return part * 2


def test_a_functional_program_still_trains() -> None:
    net = Net(lambda m, x: zero_first_row(m.norm(m.a(x))), a=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4))
    program = Program.adopt(functional(captured(net, IMAGE)))
    module = program.module().train()
    before = module.state_dict()["norm.running_mean"].clone()
    module(*sample((IMAGE,), 4))
    assert not torch.equal(module.state_dict()["norm.running_mean"], before)


def slices_of_slices(x: Tensor) -> Tensor:
    y = (x * 2).relu_()
    early, part = y[:, 1:3], y[:, :, 1:]
    part[:, 2].mul_(3.0)
    y[:, 1, 0] = 5.0
    part[:, :, 0].copy_(x[:, :, 0])
    return early.sum(1) + y[:, 3] + torch.cat([part.sum(1), early[:, 0, :1]], 1)


@pytest.mark.parametrize("write", [slices_of_slices, lambda x: write_through_a_view(x * 1)])
def test_functional_programs_compute_the_same(write: Any) -> None:
    program = captured(Net(lambda m, x: write(x)), (4, 6))
    (x,) = sample(((4, 6),), 3)
    changed = functional(program)
    assert changed is not program
    assert not any("_." in target.replace("aten.", "", 1) for target in targets(changed))
    torch.testing.assert_close(changed.module()(x), program.module()(x))
    torch.testing.assert_close(changed.module()(x), write(x.clone()))


def write_through_a_view(x: Tensor) -> Tensor:
    x.view(x.shape[0], 24)[:, 3:9] += 1.0
    return x * x


def zero_first_row(x: Tensor) -> Tensor:
    y = x * 2
    y[:, :, 0] = x[:, :, 1]
    return y
