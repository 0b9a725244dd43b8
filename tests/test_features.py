"""Reading the gathered input features of a program, and the program that takes only those."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import InputError
from edgeprune.graph.capture import Program, capture
from edgeprune.pruning.slim_inputs import gathered, gathered_inputs, slim_contract
from edgeprune.records import InputFeatures


class Gathering(nn.Module):
    """`steps` stands between the input and the gather along `dim`; `tail` comes after."""

    def __init__(self, keep: list[int], tail: nn.Module, dim: int = 1) -> None:
        super().__init__()
        self.register_buffer("edgeprune_keep_x", torch.tensor(keep))
        self.tail = tail
        self.dim = dim

    def steps(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(torch.index_select(self.steps(x), self.dim, self.edgeprune_keep_x))


class FlattenFirst(Gathering):
    def steps(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class ScaledView(Gathering):
    def steps(self, x: Tensor) -> Tensor:
        return (x.view(x.size(0), -1) / 16 - 0.5) * 2.0


class Permuted(Gathering):
    def steps(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1)


class Cropped(Gathering):
    def steps(self, x: Tensor) -> Tensor:
        return x[:, :, 1:-1, 1:-1].flatten(1)


class Converted(Gathering):
    def steps(self, x: Tensor) -> Tensor:
        return x.to(torch.float64).to(torch.float32).squeeze(1)


class TwoBranches(nn.Module):
    """One input, gathered in three places: in two orders, and from a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edgeprune_keep_x", torch.tensor([4, 0, 2]))
        self.register_buffer("edgeprune_keep_x_1", torch.tensor([0, 2, 5]))
        self.register_buffer("edgeprune_keep_x_2", torch.tensor([0, 2, 4, 5]))
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(torch.index_select(x, 1, self.edgeprune_keep_x))
        b = self.b(torch.index_select(x * 2, 1, self.edgeprune_keep_x_1))
        return a + b + self.c(torch.index_select(x, -1, self.edgeprune_keep_x_2))


class TwoInputs(nn.Module):
    """Both inputs are gathered, under their own names."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edgeprune_keep_u", torch.tensor([1, 2]))
        self.register_buffer("edgeprune_keep_v", torch.tensor([0, 3]))
        self.f = nn.Linear(4, 2)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        u = torch.index_select(u, 1, self.edgeprune_keep_u)
        return self.f(torch.cat([u, torch.index_select(v.flatten(1), 1, self.edgeprune_keep_v)], 1))


def agree(program: Program, slim: Program, x: Tensor, kept: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(slim.module()(kept), program.module()(x), rtol=1e-6, atol=1e-6)


def test_columns_of_a_table() -> None:
    program = capture(Gathering([1, 3, 4], nn.Linear(3, 2)), torch.randn(2, 6))
    x = torch.randn(5, 6)
    assert gathered(program) == InputFeatures(6, (1, 3, 4), 1)
    slim = slim_contract(program)
    agree(program, slim, x, x[:, [1, 3, 4]])
    assert not [name for name in slim.state_dict if name.startswith("edgeprune_")]
    assert "edgeprune_keep_x" in program.state_dict


def test_pixels_behind_a_flatten_run_at_any_batch() -> None:
    keep = [0, 5, 9, 30, 63]
    program = capture(FlattenFirst(keep, nn.Linear(5, 3)), torch.randn(2, 1, 8, 8))
    assert gathered(program) == InputFeatures(64, tuple(keep), None)
    slim = slim_contract(program)
    for n in (1, 3, 7):
        x = torch.randn(n, 1, 8, 8)
        agree(program, slim, x, x.flatten(1)[:, keep])


def test_pointwise_steps_before_the_gather_are_kept() -> None:
    keep = [2, 3, 17]
    program = capture(ScaledView(keep, nn.Linear(3, 3)), torch.randn(2, 2, 3, 3))
    assert gathered(program) == InputFeatures(18, tuple(keep), None)
    x = torch.randn(4, 2, 3, 3)
    agree(program, slim_contract(program), x, x.flatten(1)[:, keep])


@pytest.mark.parametrize("keep", [[0, 4, 7, 17], [17, 0, 4, 7]])
def test_permuted_features_are_numbered_in_the_input(keep: list[int]) -> None:
    program = capture(Permuted(keep, nn.Linear(4, 3)), torch.randn(2, 2, 3, 3))
    labels = torch.arange(18).view(2, 3, 3).permute(1, 2, 0).flatten()[keep]
    ascending = sorted(labels.tolist())
    assert gathered(program) == InputFeatures(18, tuple(ascending), None)
    x = torch.randn(4, 2, 3, 3)
    agree(program, slim_contract(program), x, x.flatten(1)[:, ascending])


def test_cropped_image_numbers_the_whole_image() -> None:
    program = capture(Cropped([0, 3], nn.Linear(2, 3)), torch.randn(2, 1, 4, 4))
    assert gathered(program) == InputFeatures(16, (5, 10), None)
    x = torch.randn(3, 1, 4, 4)
    agree(program, slim_contract(program), x, x.flatten(1)[:, [5, 10]])


def test_channels_of_a_convolution() -> None:
    program = capture(Gathering([0, 2], nn.Conv2d(2, 4, 3)), torch.randn(2, 3, 5, 5))
    assert gathered(program) == InputFeatures(3, (0, 2), 1)
    slim = slim_contract(program)
    x = torch.randn(3, 3, 5, 5)
    agree(program, slim, x, x[:, [0, 2]])


def test_channels_out_of_order_are_put_in_order_inside() -> None:
    program = capture(Gathering([2, 0], nn.Conv1d(2, 4, 3)), torch.randn(2, 3, 5))
    assert gathered(program) == InputFeatures(3, (0, 2), 1)
    x = torch.randn(3, 3, 5)
    agree(program, slim_contract(program), x, x[:, [0, 2]])


def test_image_columns_behind_a_conversion_stay_columns() -> None:
    program = capture(Converted([1, 3], nn.Linear(2, 3), dim=2), torch.randn(2, 1, 2, 4))
    assert gathered(program) == InputFeatures(4, (1, 3), 3)
    x = torch.randn(3, 1, 2, 4)
    agree(program, slim_contract(program), x, x[..., [1, 3]])


def test_each_branch_reorders_for_itself() -> None:
    program = capture(TwoBranches(), torch.randn(2, 6))
    assert gathered(program) == InputFeatures(6, (0, 2, 4, 5), 1)
    slim = slim_contract(program)
    x = torch.randn(3, 6)
    agree(program, slim, x, x[:, [0, 2, 4, 5]])
    # The third branch takes the kept columns as they come: no index for it.
    assert sum(name.startswith("edgeprune_order") for name in slim.state_dict) == 2


def test_two_inputs_are_read_one_by_one() -> None:
    program = capture(TwoInputs(), (torch.randn(2, 3), torch.randn(2, 2, 2)))
    assert gathered(program) is None
    assert gathered_inputs(program) == {"u": InputFeatures(3, (1, 2), 1), "v": InputFeatures(4, (0, 3), None)}
    slim = slim_contract(program)
    u, v = torch.randn(3, 3), torch.randn(3, 2, 2)
    with torch.no_grad():
        want = program.module()(u, v)
        torch.testing.assert_close(slim.module()(u[:, 1:], v.flatten(1)[:, [0, 3]]), want)


class BuiltinName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("edgeprune_keep_input", torch.tensor([0, 2]))

    def forward(self, input: Tensor) -> Tensor:
        return torch.index_select(input.flatten(1), 1, self.edgeprune_keep_input) * 2


def test_input_named_as_a_builtin() -> None:
    program = capture(BuiltinName(), torch.randn(2, 2, 2))
    assert gathered_inputs(program) == {"input": InputFeatures(4, (0, 2), None)}
    x = torch.randn(3, 2, 2)
    agree(program, slim_contract(program), x, x.flatten(1)[:, [0, 2]])


def test_slim_program_trains() -> None:
    program = capture(FlattenFirst([1, 2], nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))), torch.randn(2, 1, 2, 2))
    module = slim_contract(program).module().train()
    module(torch.randn(8, 2)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


class Resized(nn.Module):
    """Takes an image of any size, and gives scores of that size: its height and width are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        small = torch.relu(self.a(nn.functional.max_pool2d((x - 0.5) * 2, 2)))
        return nn.functional.interpolate(self.b(small), size=x.shape[2:])


class Columns(nn.Module):
    """Sequences of any length, whose channels come last once they are in the network."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x.permute(0, 2, 1))))


def two_inputs_left(model: nn.Module, *shape: int) -> tuple[Program, InputFeatures]:
    program = edgeprune.capture(model, torch.randn(2, *shape), dynamic_size=True)
    graph = edgeprune.analyze(program, inputs=True)
    plan = edgeprune.plan(program, graph, keep_macs=0.9, n_features=2, align=1)
    slim = edgeprune.cut(program, plan, graph)
    edgeprune.prove(program, slim, plan)
    return slim, plan.inputs["x"]


def test_channels_of_an_image_of_free_size() -> None:
    slim, planned = two_inputs_left(Resized(), 3, 8, 8)
    features = gathered(slim)
    assert features == planned and features.dim == 1 and features.size == 3
    only = slim_contract(slim)
    for height, width in ((8, 8), (10, 16)):
        x = torch.randn(3, 3, height, width)
        agree(slim, only, x, x[:, list(features.keep)])


def test_channels_of_a_sequence_of_free_length_that_are_moved() -> None:
    slim, planned = two_inputs_left(Columns(), 4, 6)
    features = gathered(slim)
    assert features == planned and features.dim == 1 and features.size == 4
    only = slim_contract(slim)
    for length in (6, 11):
        x = torch.randn(3, 4, length)
        agree(slim, only, x, x[:, list(features.keep)])


class UsedBeside(Gathering):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.sum(1, keepdim=True)


class OtherIndex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor([0, 1]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.index_select(x, 1, self.index)


class MixedSamples(Gathering):
    def steps(self, x: Tensor) -> Tensor:
        return x.flip(0)


@pytest.mark.parametrize(
    "model", [nn.Linear(4, 2), OtherIndex(), UsedBeside([0, 1], nn.Linear(2, 2)), MixedSamples([0, 1], nn.Identity())]
)
def test_what_cannot_be_read_is_not_guessed(model: nn.Module) -> None:
    program = capture(model, torch.randn(2, 4))
    assert gathered(program) is None
    with pytest.raises(InputError, match="gathers no input features"):
        slim_contract(program)
