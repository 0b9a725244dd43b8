"""Batch norm's running statistics, estimated again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeprune.data import batches, normalize
from edgeprune.errors import InputError
from edgeprune.graph.capture import capture
from edgeprune.records import DataSource, Normalization
from edgeprune.settings import TrainSettings
from edgeprune.training import evaluate, fit, recalibrate


def net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(dropout),
        nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    ).eval()  # fmt: skip


def expected_statistics(module: nn.Module, data: DataSource, n_batches: int) -> dict[str, torch.Tensor]:
    """What PyTorch's own cumulative average gives, in train mode with momentum None."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
    with torch.no_grad():
        for number, (x, _) in enumerate(batches(data.train, 128, shuffle=True, seed=0)):
            if number < n_batches:
                module(normalize(x, data.normalization))
    return {name: value for name, value in module.state_dict().items() if "running" in name}


@pytest.mark.parametrize("exported", [False, True])
def test_statistics_are_the_mean_over_the_batches(digits, exported):
    expected = expected_statistics(net(), digits, 4)
    module = capture(net(0.5), torch.zeros(2, 1, 8, 8)).module() if exported else net(0.5)
    before = {name: value.clone() for name, value in module.state_dict().items() if "running" not in name}
    assert recalibrate(module, digits, digits.normalization, n_batches=4) == 2
    after = module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not module.training


def test_it_mends_what_only_the_statistics_were_wrong_about(digits):
    module = net()
    fit(module, digits, digits.normalization, TrainSettings(epochs=8, threads=1))
    good = evaluate(module, digits.test, digits.normalization).value
    with torch.no_grad():
        module[0].weight.mul_(torch.linspace(0.05, 8, 16).reshape(-1, 1, 1, 1))  # batch norm makes up for it
    spoilt = evaluate(module, digits.test, digits.normalization).value
    recalibrate(module, digits, digits.normalization)
    mended = evaluate(module, digits.test, digits.normalization).value
    assert spoilt < good - 0.05 and mended > good - 0.03


def test_a_network_without_batch_norm_is_left_alone(digits):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.LayerNorm(10)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert recalibrate(module, digits, digits.normalization) == 0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items()) and module.training


def test_what_cannot_be_estimated_changes_nothing(digits):
    module = net()
    before = module[1].running_mean.clone()
    with pytest.raises(InputError, match="expected at least 1 batch, got 0"):
        recalibrate(module, digits, digits.normalization, n_batches=0)
    with pytest.raises(InputError, match="expected finite inputs of batch norm 0, got NaN or infinity"):
        recalibrate(module, digits, Normalization((float("nan"),), (1.0,)))
    assert torch.equal(module[1].running_mean, before)
