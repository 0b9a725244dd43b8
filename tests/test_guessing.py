"""A network that is no better than guessing is refused by compress, export --int8 and validate, whatever its task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from edgeprune.cli.app import app
from edgeprune.commands.preparing import Job, prepare
from edgeprune.errors import InputError
from edgeprune.formats.save import save_checkpoint
from edgeprune.graph.capture import capture
from edgeprune.progress import Silent
from edgeprune.records import IDENTITY, ModelInfo
from edgeprune.requests import CompressRequest


def linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Sequential:
    """Rows times a matrix, in two layers, so that channels can go."""
    net = nn.Sequential(nn.Linear(weight.shape[1], 2 * len(weight)), nn.ReLU(), nn.Linear(2 * len(weight), len(weight)))
    eye = torch.eye(len(weight))
    with torch.no_grad():
        net[0].weight.copy_(torch.cat([weight, -weight]))
        net[0].bias.copy_(torch.cat([bias, -bias]))
        net[2].weight.copy_(torch.cat([eye, -eye], dim=1))
        net[2].bias.zero_()
    return net


def pixels(first: float) -> nn.Sequential:
    """Which of two classes a pixel has: by its sign, and more of class 0 by so much."""
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        for part in net.parameters():
            part.zero_()
        net[0].weight[:, 0, 0, 0] = torch.tensor([1.0, -1.0, 1.0, -1.0])
        net[2].weight[:, :, 0, 0] = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]])
        net[2].bias[0] = first
    return net


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and networks for them: of values that were trained on scaled inputs, of flags and of masks."""
    folder, rng = tmp_path_factory.mktemp("guessing"), np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    images = rng.normal(size=(300, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "values.npz", x=50 * x + 200, y=x[:, 0] + 2 * x[:, 1])
    np.savez(folder / "flags.npz", x=x, y=(x[:, :3] > 1).astype(int))
    np.savez(folder / "masks.npz", x=images, y=(images[:, 0] > 0.5).astype(np.uint8))
    weight = torch.zeros(1, 6)
    weight[0, :2] = torch.tensor([1.0, 2.0])
    first = torch.eye(3, 6)
    nets = {
        "values": linear(weight, torch.zeros(1)),
        "flags": linear(first, torch.full((3,), -1.0)),
        "against": linear(-first, torch.ones(3)),
        "masks": pixels(1.0),
        "constant": pixels(100.0),
    }
    for name, net in nets.items():
        shape = (1, 8, 8) if name in ("masks", "constant") else (6,)
        program = capture(net.eval(), torch.randn(2, *shape))
        save_checkpoint(folder / f"{name}.pt2", program, ModelInfo(shape, normalization=IDENTITY))
    return folder


def refusal(*command: str) -> str:
    found = CliRunner().invoke(app, list(command))
    assert found.exit_code == 2, found.output
    return " ".join(found.output.split())


def prepared(place: Path, model: str, data: str, **asked: object) -> Job:
    quick = {"keep_macs": 0.5, "input_features": "off", "align": 1, "threads": 1, "out": str(place / "none")}
    return prepare(CompressRequest(str(place / f"{model}.pt2"), data=data, **{**quick, **asked}), Silent())


@pytest.mark.parametrize(
    ("model", "data", "task", "said"),
    [
        ("values", "values", "regression", "got R2 -"),
        ("against", "flags", "multilabel", "got mAP "),
        ("constant", "masks", "segmentation", "got mIoU "),
    ],
)
def test_no_better_than_a_guess_is_refused(place: Path, model: str, data: str, task: str, said: str) -> None:
    source = f"npz:{place / data}.npz"
    asked = ("--data", source, "--task", task, "--threads", "1")
    line = refusal(
        "compress", str(place / f"{model}.pt2"), *asked, "--keep-macs", "0.5", "--input-features", "off",
        "--align", "1", "--out", str(place / "run"), "--normalize", "none",
    )  # fmt: skip
    assert "expected the network to do better than guessing, " + said in line
    with pytest.raises(InputError, match="where one answer for all has"):  # the line is cut short by long paths
        prepared(place, model, source, task=task, normalize="none")
    assert prepared(place, model, source, task=task, normalize="none", allow_chance=True).task.name == task


def test_the_normalisation_that_does_better_is_told(place: Path) -> None:
    source = f"npz:{place / 'values.npz'}"
    with pytest.raises(Exception, match="; --normalize data makes it R2 0.9"):
        prepared(place, "values", source, task="regression")
    assert prepared(place, "values", source, task="regression", normalize="data").task.name == "regression"


@pytest.mark.parametrize(("model", "task"), [("flags", "multilabel"), ("masks", "segmentation")])
def test_what_does_better_passes(place: Path, model: str, task: str) -> None:
    assert prepared(place, model, f"npz:{place / model}.npz", task=task).task.name == task


def test_validate_and_int8_refuse_it_too(place: Path) -> None:
    data = ("--data", f"npz:{place / 'flags.npz'}", "--task", "multilabel")
    out = str(place / "files")
    line = refusal("export", str(place / "against.pt2"), *data, "--int8", "--out", out)
    assert "expected the network to do better than guessing, got mAP" in line
    done = CliRunner().invoke(app, ["export", str(place / "against.pt2"), *data, "--onnx", "--out", out, "--force"])
    assert done.exit_code == 0, done.output
    file = str(place / "files" / "against.onnx")
    assert "expected the network to do better than guessing, got mAP" in refusal("validate", file, file, *data)
