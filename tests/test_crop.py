"""The border that never matters, found on real images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.cli.app import main
from edgeprune.data import open_data
from edgeprune.records import DataSource
from edgeprune.search.crop import find_crop


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


def test_compress_tells_it_where_pixels_cannot_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cnn = str(Path(__file__).parents[1] / "models" / "digits_cnn.pt")
    options = ("--keep-macs", "0.6", "--finetune-epochs", "1", "--threads", "1")
    assert main(["compress", cnn, *options, "--out", str(tmp_path / "run"), "--json"]) == 0
    advice = json.loads(capsys.readouterr().out)["advice"]
    assert all("never matter" in text for text in advice)
