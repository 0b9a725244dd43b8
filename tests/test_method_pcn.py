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
        ({"layers": ["0.2"]}, "layer '0.2': expected a linear layer of Sequential, got a ReLU"),
        ({"layers": ["fc"]}, "layer 'fc': expected a linear layer of Sequential, got none of that name"),
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
