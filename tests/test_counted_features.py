"""What a count of input features counts: the dim that a network tells apart, which is told, or refused as another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.commands.preparing import prepare
from edgeprune.data import open_data
from edgeprune.data.featuredims import check_counts, said_of_counts
from edgeprune.errors import InputError
from edgeprune.graph.inputs import FeatureGrid, feature_grids
from edgeprune.progress import Silent
from edgeprune.requests import CompressRequest
from edgeprune.settings import TrainSettings
from edgeprune.training.channels import channel_graph

STEPS, SENSORS = 20, 6
NAMES = ("gyroscope", "temperature", "humidity", "pressure", "light", "gas")


class MixesSteps(nn.Module):
    """A layer over the steps of each sensor, as DLinear and one half of a TSMixer have it."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.head = nn.Linear(STEPS, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.steps(x.transpose(1, 2))).mean(1))


class Mixer(nn.Module):
    """Layers over steps and over sensors in turn, with residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.sensors = nn.Linear(STEPS, STEPS), nn.Linear(SENSORS, SENSORS)
        self.head = nn.Linear(STEPS * SENSORS, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.relu(self.steps(x.transpose(1, 2)).transpose(1, 2))
        return self.head((x + torch.relu(self.sensors(x))).flatten(1))


class Both(nn.Module):
    """Layers over steps and over sensors side by side: no feature can go without all others."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.sensors, self.head = nn.Linear(STEPS, 8), nn.Linear(SENSORS, 8), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.steps(x.transpose(1, 2)).mean(1), self.sensors(x).mean(1)], 1))


class MixesSensors(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(SENSORS, 8), nn.Tanh(), nn.Flatten(), nn.Linear(8 * STEPS, 3))


class Flat(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(STEPS * SENSORS, 8), nn.ReLU(), nn.Linear(8, 3))


def grids_of(net: nn.Module) -> dict[str, FeatureGrid]:
    program = edgeprune.capture(net.eval(), torch.randn(2, STEPS, SENSORS))
    return feature_grids(edgeprune.analyze(program, inputs=True).analysis)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("counted")
    x = np.random.default_rng(0).normal(size=(90, STEPS, SENSORS)).astype(np.float32)
    np.savez(folder / "plain.npz", x=x, y=np.arange(90) % 3)
    np.savez(folder / "named.npz", x=x, y=np.arange(90) % 3, feature_names=np.array(NAMES))
    return folder


@pytest.mark.parametrize("net", [MixesSteps, Mixer])
def test_steps_are_no_sensors(net: Any, place: Path) -> None:
    grids = grids_of(net())
    assert [grid.told_dim for grid in grids.values()] == [1]
    for spec in ("named.npz", "plain.npz?features=last"):
        data = open_data(f"npz:{place / spec}")
        with pytest.raises(
            InputError,
            match=r"--input-features 3: expected a network that tells features along dim 2 of x \(20, 6\) apart, "
            r"as data .*, got one that tells the 20 along dim 1 apart; to count those, leave the names",
        ):
            check_counts(data, grids, "--input-features 3")
        [said] = said_of_counts(data, grids, "--input-features auto")
        assert said.endswith("apart, not those along dim 2 that the data say")
    data = open_data(f"npz:{place / 'plain.npz'}")
    check_counts(data, grids, "--input-features 3")
    assert said_of_counts(data, grids, "--input-features 3") == (
        "--input-features 3 counts the 20 along dim 1 of x (20, 6), which the network tells apart",
    )


def test_what_is_clear_is_not_told(place: Path) -> None:
    data = open_data(f"npz:{place / 'named.npz'}")
    sensors = grids_of(MixesSensors())
    check_counts(data, sensors, "")
    assert said_of_counts(data, sensors, "") == ()
    assert said_of_counts(open_data("digits"), grids_of(Flat()), "") == (), "pixels of an image"
    assert said_of_counts(data, grids_of(Both()), "") == (), "none can go"


def test_single_numbers_are_told(place: Path) -> None:
    data, grids = open_data(f"npz:{place / 'named.npz'}"), grids_of(Flat())
    check_counts(data, grids, "")
    told = "--input-features 3 counts the 120 single numbers of x (20, 6), which the network tells apart"
    assert said_of_counts(data, grids, "--input-features 3") == (told,)


def prepared(place: Path, net: nn.Module, data: str, features: str) -> tuple[str, ...]:
    torch.export.save(edgeprune.capture(net.eval(), torch.randn(2, STEPS, SENSORS)), place / "net.pt2")
    request = CompressRequest(
        str(place / "net.pt2"), data=f"npz:{place / data}", out=str(place / "run"), input_features=features,
        keep_macs=0.5, finetune_epochs=0, allow_chance=True, normalize="none", threads=1, align=1,
    )  # fmt: skip
    return prepare(request, Silent()).assumed


def test_compress_tells_it_or_refuses(place: Path) -> None:
    counted = "counts the 20 along dim 1 of x (20, 6), which the network tells apart"
    assert f"--input-features 3 {counted}" in prepared(place, MixesSteps(), "plain.npz", "3")
    with pytest.raises(InputError, match=r"--input-features 0\.5: expected a network that tells features along dim 2"):
        prepared(place, MixesSteps(), "named.npz", "0.5")
    told = prepared(place, MixesSteps(), "named.npz", "auto")
    assert f"--input-features auto {counted}, not those along dim 2 that the data say" in told
    assert not any("counts" in text for text in prepared(place, MixesSensors(), "named.npz", "3"))
    assert not any("counts" in text for text in prepared(place, MixesSteps(), "plain.npz", "auto"))


def test_a_training_that_selects_features_refuses_it_too(place: Path) -> None:
    settings = TrainSettings(method="feature-selection", options={"n_features": 3})
    named = open_data(f"npz:{place / 'named.npz'}")
    with pytest.raises(InputError, match=r"n_features=3: expected a network that tells features along dim 2 of x"):
        channel_graph(MixesSteps(), named, settings)
    assert channel_graph(MixesSensors(), named, settings) is not None
