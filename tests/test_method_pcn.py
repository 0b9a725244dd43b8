"""Principal components of a layer's input: exact with all of them, smaller with those that hold the variance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.data import normalize
from edgeprune.errors import InputError
from edgeprune.methods.pcn import LowRank, principal_components
from edgeprune.records import DataSource
from edgeprune.settings import TrainSettings
from edgeprune.training import evaluate, fit


@pytest.fixture(scope="module")
def batches(digits: DataSource) -> list[Tensor]:
    x = torch.stack([x for x, _ in digits.train])
    return list(normalize(x, digits.normalization).split(200))


@pytest.fixture(scope="module")
def module(digits: DataSource) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Dropout(0.1), nn.Linear(96, 64), nn.ReLU())
    net = nn.Sequential(net, nn.Linear(64, 10, bias=False))
    fit(net, digits, digits.normalization, TrainSettings(epochs=10, threads=1))
    return net


def parameters(module: nn.Module) -> int:
    return sum(param.numel() for param in module.parameters())


@pytest.mark.parametrize("kind", ["module", "program"])
def test_with_all_components_it_is_the_same_network(module: nn.Module, batches: list[Tensor], kind: str) -> None:
    network = module if kind == "module" else edgeprune.capture(module, batches[0][:2])
    before = [param.detach().clone() for param in module.parameters()]
    same, report = principal_components(network, batches, 1.0, layers=["0.1", "0.4", "1"])
    assert [(row.layer, row.n_inputs, row.n_components) for row in report] == [
        ("0.1", 64, 64),
        ("0.4", 96, 96),
        ("1", 64, 64),
    ]
    assert all(row.kept_variance == pytest.approx(1.0) for row in report)
    torch.testing.assert_close(same(batches[0]), module(batches[0]), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["module", "program"])
def test_the_components_that_hold_the_variance_make_it_smaller(
    module: nn.Module, digits: DataSource, batches: list[Tensor], kind: str
) -> None:
    network = module if kind == "module" else edgeprune.capture(module, batches[0][:2])
    small, report = principal_components(network, batches, 0.98)
    assert [row.layer for row in report] == ["0.1", "0.4"]  # the last layer would not become smaller
    assert all(0.98 <= row.kept_variance < 1 and row.n_components < 0.7 * row.n_inputs for row in report)
    assert parameters(small) < 0.9 * parameters(module)
    dense, slim = (evaluate(net, digits.test, digits.normalization).value for net in (module, small))
    assert dense - slim < 0.03
    program = edgeprune.capture(small, batches[0][:2])  # what ships
    torch.testing.assert_close(program.module()(batches[0]), small(batches[0]), rtol=1e-4, atol=1e-4)


def test_it_is_worked_out_as_by_hand() -> None:
    """Inputs on a line: one component, and the layer is the same on that line."""
    layer = nn.Linear(2, 3)
    direction, origin = torch.tensor([0.6, 0.8]), torch.tensor([1.0, -2.0])
    x = origin + torch.linspace(-1, 2, 20)[:, None] * direction
    net = nn.Sequential(layer)
    small, report = principal_components(net, [x], 0.99, layers=["0"])
    assert report == (LowRank("0", 2, 1, pytest.approx(1.0)),)
    basis = small[0][0].weight.detach()[0]
    torch.testing.assert_close(basis.abs(), direction)
    torch.testing.assert_close(small(x), net(x), rtol=1e-4, atol=1e-5)
    away = x + 3 * torch.tensor([-0.8, 0.6])  # what lies across is taken for its mean
    torch.testing.assert_close(small(away), net(x), rtol=1e-4, atol=1e-5)


def test_it_leaves_the_mode_and_the_hooks_alone(module: nn.Module, batches: list[Tensor]) -> None:
    module.train()
    small, _ = principal_components(module, batches, 0.9)
    assert module.training and module[0][3].training and small.training
    assert not module[0][1]._forward_pre_hooks and not small[0][1]._forward_pre_hooks
    module.eval()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_variance": 0.0}, r"keep_variance: expected a share in \(0, 1\], got 0.0"),
        ({"keep_variance": float("nan")}, r"keep_variance: expected a share in \(0, 1\], got nan"),
        (
            {"layers": ["0.2"]},
            "layer '0.2': expected a linear layer or a convolution of one group of Sequential, got a ReLU",
        ),
        (
            {"layers": ["fc"]},
            "layer 'fc': expected a linear layer or a convolution of one group of Sequential, got none of that name",
        ),
        ({"batches": []}, "expected at least one batch of real inputs, got none"),
    ],
)
def test_bad_input_is_refused(
    module: nn.Module, batches: list[Tensor], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        principal_components(module, **{"batches": batches, **arguments})


def test_a_layer_that_is_not_run_is_refused(batches: list[Tensor]) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.spare = nn.Linear(64, 10), nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1))

    with pytest.raises(InputError, match="layer 'spare': expected a layer that the network runs"):
        principal_components(Half(), batches, layers=["spare"])


# -- convolutions ------------------------------------------------------------------------------------------------------


class Convolutions(nn.Module):
    """Two of one group, strided and padded, one of two groups and a 1-D one; channels that come of few."""

    def __init__(self, padding: int | str = 1, mode: str = "zeros") -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 24, 1)
        self.first = nn.Conv2d(24, 16, 3, padding=padding, padding_mode=mode)
        self.halved = nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False)
        self.grouped = nn.Conv2d(16, 8, 3, groups=2)
        self.line = nn.Conv1d(8, 6, 3, padding=1, dilation=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.halved(torch.relu(self.first(self.mix(x)))))
        return self.line(self.grouped(x).flatten(2))


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    torch.manual_seed(2)
    return [2 + torch.randn(8, 4, 12, 12) for _ in range(3)]


@pytest.mark.parametrize("kind", ["module", "program"])
@pytest.mark.parametrize("padding", [0, 1, "same"])
def test_a_convolution_with_all_components_is_the_same(images: list[Tensor], kind: str, padding: int | str) -> None:
    torch.manual_seed(0)
    net = Convolutions(padding).eval()
    network = net if kind == "module" else edgeprune.capture(net, images[0][:2])
    same, report = principal_components(network, images, 1.0, layers=["first", "halved", "line"])
    assert [(row.layer, row.n_inputs, row.n_components) for row in report] == [
        ("first", 24, 24),
        ("halved", 16, 16),
        ("line", 8, 8),
    ]
    torch.testing.assert_close(same(images[0]), net(images[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_channels_that_come_of_few_lose_nothing_at_the_border_either(images: list[Tensor], mode: str) -> None:
    """24 channels are four mixed ones and a bias: four components and, where zeros come in, the mean make them up."""
    torch.manual_seed(0)
    net = Convolutions(1, mode).eval()
    small, (row,) = principal_components(net, images, 0.999999, layers=["first"])
    assert row.n_components == (5 if mode == "zeros" else 4)
    pair = small.get_submodule("first")
    assert [tuple(layer.weight.shape) for layer in pair] == [(row.n_components, 24, 1, 1), (16, row.n_components, 3, 3)]
    torch.testing.assert_close(small(images[1]), net(images[1]), rtol=1e-3, atol=1e-4)


def test_only_convolutions_that_become_smaller_are_taken(images: list[Tensor]) -> None:
    """Not the one of two groups, nor one whose projection before a stride costs more than it saves."""
    torch.manual_seed(0)
    net = Convolutions().eval()
    small, report = principal_components(net, images, 0.999999)
    assert [row.layer for row in report] == ["first"] and parameters(small) < parameters(net)
    program = edgeprune.capture(small, images[0][:2])
    torch.testing.assert_close(program.module()(images[0][:2]), small(images[0][:2]), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="layer 'grouped': expected .*, got a Conv2d of 2 groups"):
        principal_components(net, images, layers=["grouped"])
