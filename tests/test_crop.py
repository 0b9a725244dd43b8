"""The border that never matters, found on real images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.cli.app import main
from edgeprune.data import open_data
from edgeprune.records import DataSource
from edgeprune.search.crop import find_crop
from edgeprune.search.windows import Windows, first_windows, unneeded_patches, unread


@pytest.fixture(scope="module")
def data() -> DataSource:
    return open_data("digits")


class Middle(nn.Module):
    """Looks at rows 2 to 6 and columns 1 to 4 of an image of 8 by 8."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 10, (5, 4), bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x[:, :, 2:7, 1:5]).flatten(1)


def test_what_the_network_does_not_read_is_offered(data: DataSource) -> None:
    crop = find_crop(Middle(), data, data.normalization)
    assert crop is not None
    assert crop.top >= 2
    assert crop.bottom >= 1
    assert crop.left >= 1
    assert crop.right >= 3
    assert "at the top" in str(crop)


def test_a_network_that_reads_its_border_has_no_crop(data: DataSource) -> None:
    class Corners(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[:, 0, 0, 3], x[:, 0, 7, 4], x[:, 0, 3, 0], x[:, 0, 4, 7]], dim=1)

    noisy = torch.from_numpy(np.random.default_rng(0).normal(size=(500, 1, 8, 8)).astype(np.float32))
    split = torch.utils.data.TensorDataset(noisy, torch.zeros(500, dtype=torch.int64))
    assert find_crop(Corners(), replace(data, val=split), data.normalization) is None


@pytest.mark.parametrize(("count", "alike"), [(50, False), (300, True)], ids=["few images", "one answer to all"])
def test_nothing_is_concluded_from_what_tells_nothing(data: DataSource, count: int, alike: bool) -> None:
    class Deaf(Middle):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0 + torch.arange(10.0)

    few = replace(data, val=torch.utils.data.Subset(data.val, range(count)))
    module = Deaf() if alike else Middle()
    assert find_crop(module, few, data.normalization) is None
    patches = (Deaf() if alike else Patches()).eval()
    windows = windows_of(Patches())
    assert windows is not None and unneeded_patches(patches, windows, few, data.normalization) is None


class Patches(nn.Module):
    """Four patches of 3 x 3 of an image of 8 by 8, of which the one at the lower right does not count."""

    def __init__(self, stride: int = 4, kernel: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(1, 6, kernel, stride=stride)
        self.head = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed((x - 0.5) * 2).flatten(2).transpose(1, 2)
        return self.head(tokens[:, :3].tanh().mean(1))


def windows_of(net: nn.Module) -> Windows | None:
    return first_windows(edgeprune.capture(net, torch.zeros(2, 1, 8, 8)).frozen_module())


def test_rows_between_windows_and_patches_that_do_not_count_are_told(data: DataSource) -> None:
    windows = windows_of(Patches())
    assert windows is not None and windows.n_patches == 4
    assert str(unread(windows)) == (
        "leave out 2 of 8 rows (3, 7) and 2 of 8 columns (3, 7): the first layer looks at 3 x 3 pixels in steps of "
        "4 x 4 and never reads these"
    )
    numbers = windows.patches()
    assert numbers[0].tolist() == [0, 0, 0, -1, 1, 1, 1, -1] and int(numbers[5, 5]) == 3
    found = unneeded_patches(Patches(), windows, data, data.normalization)
    assert found is not None and found.startswith("fill ") and "they cannot be cut out of the network" in found
    assert "(numbers 3, row by row" in found or ", 3, row by row" in found or "-3, row by row" in found


def test_patches_that_all_count_are_left_alone(data: DataSource) -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(1, 1, 4, stride=4, bias=False)
            nn.init.ones_(self.embed.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.embed(x).flatten(1)  # which patch is the brightest

    noisy = torch.from_numpy(np.random.default_rng(0).normal(size=(500, 1, 8, 8)).astype(np.float32))
    split = torch.utils.data.TensorDataset(noisy, torch.zeros(500, dtype=torch.int64))
    windows = windows_of(Sums())
    assert windows is not None and unread(windows) is None
    assert unneeded_patches(Sums(), windows, replace(data, val=split), data.normalization) is None


def test_windows_that_overlap_have_no_patches_and_may_leave_rows_unread(data: DataSource) -> None:
    windows = windows_of(Patches(stride=2))
    assert windows is not None and windows.n_patches == 0
    assert unread(windows) is not None and "1 of 8 rows (7)" in str(unread(windows))
    assert unneeded_patches(Patches(stride=2), windows, data, data.normalization) is None
    padded = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(64, 10))
    covering = windows_of(padded)
    assert covering is not None and unread(covering) is None


def test_networks_without_a_strided_first_layer_have_no_windows() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Conv2d(1, 4, 4, stride=4), nn.Conv2d(1, 4, 4, stride=4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x) + self.other(x)

    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    assert windows_of(Twice()) is None and windows_of(plain) is None
    assert windows_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))) is None


def test_compress_tells_it_where_pixels_cannot_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cnn = str(Path(__file__).parents[1] / "models" / "digits_cnn.pt")
    options = ("--keep-macs", "0.6", "--finetune-epochs", "1", "--threads", "1")
    assert main(["compress", cnn, *options, "--out", str(tmp_path / "run"), "--json"]) == 0
    advice = json.loads(capsys.readouterr().out)["advice"]
    assert all("never matter" in text for text in advice)
