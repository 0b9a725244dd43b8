"""One figure for the bytes of a network's ONNX file: what compress holds to a budget is what export writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.commands.onnxfile import draft, stated_of
from edgeprune.export.front import Preprocessing, numbers_of
from edgeprune.export.metadata import metadata_of, normalization_in
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import capture
from edgeprune.pipeline import compress, export
from edgeprune.records import ModelInfo, Normalization
from edgeprune.requests import CompressRequest, ExportRequest

N_COLUMNS = 200
RAW = np.random.default_rng(0).normal(3, 2, (300, N_COLUMNS)).astype(np.float32)


def scaled(raw: np.ndarray) -> Normalization:
    return Normalization(tuple(raw.mean(0, np.float64)), tuple(raw.std(0, dtype=np.float64)))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of a table whose file states its mean and std, and the table."""
    folder = tmp_path_factory.mktemp("bytes")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(N_COLUMNS, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    info = ModelInfo((N_COLUMNS,), normalization=scaled(RAW), classes=("low", "middle", "high"))
    save_program(folder / "net.pt2", capture(net, torch.randn(2, N_COLUMNS)), info)
    x = (RAW - RAW.mean(0)) / RAW.std(0)
    np.savez(folder / "d.npz", x=RAW, y=net(torch.from_numpy(x)).argmax(1).numpy())
    return folder / "net.pt2", folder / "d.npz"


def ran(given: tuple[Path, Path], out: Path, **asked: Any) -> dict[str, Any]:
    model, data = given
    compress(
        CompressRequest(
            model=str(model), data=f"npz:{data}", out=str(out), finetune_epochs=0, allow_chance=True, **asked
        )
    )
    run: dict[str, Any] = json.loads((out / "run.json").read_text())
    return run


def written(model: Path, out: Path, name: str) -> int:
    export(ExportRequest(model=str(model), out=str(out), force=True))
    return (out / name).stat().st_size


@pytest.mark.parametrize(("features", "name"), [("off", "slim.onnx"), ("0.5", "full.onnx")])
def test_a_size_is_held_and_told_of_the_file_that_export_writes(
    features: str, name: str, given: tuple[Path, Path], tmp_path: Path
) -> None:
    run = ran(given, tmp_path / "run", max_size="24kB", input_features=features)
    exported = written(tmp_path / "run" / "slim.pt2", tmp_path / "run", name)
    assert run["slim"]["onnx_bytes"] == exported <= 24_000
    assert run["dense"]["onnx_bytes"] == written(given[0], tmp_path / "dense", "net.onnx")


def test_every_network_of_a_front_is_told_by_its_file(given: tuple[Path, Path], tmp_path: Path) -> None:
    run = ran(given, tmp_path / "run", pareto=2, input_features="off")
    for point in run["front"]:
        slim = tmp_path / "run" / point["folder"] / "slim.pt2"
        assert point["size_bytes"] == written(slim, tmp_path / "exported", "slim.onnx")


def test_a_draft_says_of_itself_what_the_file_does(tmp_path: Path) -> None:
    program, info = capture(nn.Linear(N_COLUMNS, 3).eval(), torch.randn(2, N_COLUMNS)), ModelInfo((N_COLUMNS,))
    sizes = []
    for own in (info, ModelInfo((N_COLUMNS,), normalization=scaled(RAW))):
        draft(own, program, tmp_path / "draft.onnx")
        sizes.append((tmp_path / "draft.onnx").stat().st_size)
    stated = stated_of(program, own)
    assert sizes[1] - sizes[0] >= len(stated["edgeprune.normalization"])


# --- numbers


def test_numbers_are_told_short_and_read_back_to_the_same_float32() -> None:
    own = scaled(RAW)
    text = metadata_of(ModelInfo((N_COLUMNS,)), "full", Preprocessing((N_COLUMNS,), own))["edgeprune.normalization"]
    read = normalization_in({"edgeprune.normalization": text}, "net.onnx")
    assert read is not None
    for got, want in ((read.mean, own.mean), (read.std, own.std)):
        np.testing.assert_array_equal(np.float32(got), np.float32(want))
    assert len(text) < 0.65 * len(json.dumps(numbers_of(own)))


@pytest.mark.parametrize("mean", [1.7e9 + 0.123, 1e300, 0.0, -1e-310])
def test_numbers_that_a_float32_does_not_hold_keep_their_digits(mean: float) -> None:
    own = Normalization((mean, 0.5), (1.0, 1e-60))
    text = metadata_of(ModelInfo((2,)), "full", Preprocessing((2,), own))["edgeprune.normalization"]
    read = normalization_in({"edgeprune.normalization": text}, "net.onnx")
    assert read is not None and read.std == own.std
    assert read.mean[0] == pytest.approx(mean, rel=0, abs=1e-6) and read.mean[1] == 0.5
