"""Targets that are not of the outputs' shape: every command that judges says so before any work, with both shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import edgeprune
from edgeprune.cli.app import app

N = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 4)).astype(np.float32)
    np.savez(folder / "values.npz", x=x, y=rng.normal(size=(N, 2)))
    np.savez(folder / "flags.npz", x=x, y=rng.integers(0, 2, (N, 3)))
    np.savez(folder / "column.npz", x=x, y=rng.normal(size=(N, 1)))
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    torch.export.save(edgeprune.capture(net, torch.randn(2, 4)), folder / "net.pt2")
    return folder


def run(place: Path, data: str, *arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, [*arguments, "--data", f"npz:{place / data}.npz"])
    return found.exit_code, " ".join(found.output.split())


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("data", "wanted"), [("values", "(batch, 2)"), ("flags", "(batch, 3)")])
@pytest.mark.parametrize("command", ["export --onnx", "export --int8", "compress", "validate"])
def test_both_shapes_are_said(place: Path, command: str, data: str, wanted: str) -> None:
    name, *options = command.split()
    model = [str(place / "net.pt2")] * (2 if name == "validate" else 1)
    out = [] if name == "validate" else ["--out", str(place / "out")]
    code, told = run(place, data, name, *model, *options, *out)
    assert code == 2, told
    assert f"expected outputs like the targets, {wanted}, got (" in told and ", 1) float32" in told
    assert not (place / "out").exists()


def test_what_fits_is_exported(place: Path) -> None:
    code, told = run(place, "column", "export", "--onnx", str(place / "net.pt2"), "--out", str(place / "fits"))
    assert code == 0 and (place / "fits" / "net.onnx").is_file(), told
