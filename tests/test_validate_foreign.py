"""Files of others beside what was made of them: raw inputs, a batch that the file states, other types of numbers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from edgeprune.cli.app import app
from edgeprune.data import batches, open_data

KINDS = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "uint8": torch.uint8}


class Raw(nn.Module):
    """Takes pixels as they are, of any type, and scales them inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.float() / 16)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network as files of several kinds, by PyTorch's older exporter."""
    folder = tmp_path_factory.mktemp("foreign")
    torch.manual_seed(0)
    net = Raw()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    x, y = next(batches(open_data("digits").train, 1000))
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    free: dict[str, Any] = {"dynamic_axes": {"pixels": {0: "n"}}}
    for name, kind in KINDS.items():
        written(net, x[:2].to(kind), folder / f"{name}.onnx", **free)
    written(net, x[:1], folder / "one.onnx")
    written(net, x[:8], folder / "eight.onnx")
    return folder


def written(net: nn.Module, x: Tensor, path: Path, **options: Any) -> None:
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(net.eval(), (x,), path, dynamo=False, input_names=["pixels"], **options)


def called(*arguments: object, code: int = 0) -> str:
    found = CliRunner().invoke(app, [*map(str, arguments)])
    assert found.exit_code == code, found.output
    return found.stdout if code == 0 else found.stderr


def slim_of(place: Path, name: str) -> Path:
    """The file that is made of one of them, with fewer pixels."""
    out = place / f"run-{name}"
    if not out.exists():
        asked = ("--keep-macs", "0.6", "--finetune-epochs", "0", "--threads", "1", "--data", "digits")
        called("compress", place / f"{name}.onnx", *asked, "--out", out)
        called("export", "--onnx", out / "slim.pt2", "--out", out)
    return out / "slim.onnx"


@pytest.mark.parametrize("name", ["float32", "uint8"])
def test_a_file_is_compared_with_what_was_made_of_it(place: Path, name: str) -> None:
    """The slim file states how the pixels that it keeps are scaled, which is not what the whole file takes."""
    files = (place / f"{name}.onnx", slim_of(place, name))
    found = json.loads(called("validate", *files, "--data", "digits", "--runs", "10", "--json"))
    assert found["accuracy"]["dense"] > 0.85 and abs(found["accuracy"]["drop_points"]) < 4


@pytest.mark.parametrize(("name", "size"), [("one", 1), ("eight", 8), ("float64", 1), ("float16", 1)])
def test_the_same_network_in_another_form_answers_alike(place: Path, name: str, size: int) -> None:
    files = (place / f"{name}.onnx", place / "float32.onnx")
    asked = ("--data", "digits", "--runs", "10", "--batch-size", size, "--json")
    found = json.loads(called("validate", *files, *asked))
    assert found["accuracy"]["drop_points"] == 0 and found["accuracy"]["n_samples"] == 359
    assert found["parity"] < 1e-2


def test_the_batch_that_a_file_states_is_the_one_that_is_timed(place: Path) -> None:
    said = called("validate", place / "eight.onnx", place / "float32.onnx", "--data", "digits", code=2)
    assert "eight.onnx: --batch-size: expected 8, as the file states, got 1" in said
