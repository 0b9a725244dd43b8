"""What makes a compress run the one that is resumed: the options, what the files behind them hold, and the data."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from edgeprune.commands.compress import compress
from edgeprune.commands.unfinished import identity, kept_and_asked
from edgeprune.data import open_data
from edgeprune.errors import BudgetError, EdgepruneError, InputError
from edgeprune.export.onnx import export_onnx
from edgeprune.formats.load import load
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import capture
from edgeprune.progress import Silent
from edgeprune.records import DataSource, ModelInfo
from edgeprune.requests import CompressRequest
from edgeprune.training.state import different

MODELS = Path(__file__).parents[1] / "models"
MODEL = load(MODELS / "digits_mlp.pt")
DATA = open_data("digits")


def told(request: CompressRequest, data: DataSource | None = DATA, threads: int | None = 1, **before: Any) -> str:
    """In what it differs from a plain run."""
    first = CompressRequest("m.pt", **before)
    return different(identity(first, MODEL, DATA, 1), identity(request, MODEL, data, threads))


def test_how_it_is_written_and_spoken_of_does_not_count() -> None:
    request = CompressRequest("m.pt", out="x", force=True, resume=True, command="edgeprune", threads=1)
    assert told(request) == ""


@pytest.mark.parametrize(
    ("asked", "difference"),
    [
        ({"seed": 3}, "seed: expected 0, got 3"),
        ({"keep_macs": 0.5}, "keep_macs: expected None, got 0.5"),
        ({"leave": ("fc",)}, "leave: expected []"),
    ],
    ids=str,
)
def test_every_other_option_counts(asked: dict[str, Any], difference: str) -> None:
    assert difference in told(CompressRequest("m.pt", **asked))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("keep_macs", "--keep-macs: the kept run has 0.5, this command says 0.4"),
        ("leave", "--keep-layer: the kept run has 0.5, this command says 0.4"),
        ("recipe ema", "--ema: the kept run has 0.5, this command says 0.4"),
        ("threads", "--threads: the kept run has 0.5, this command says 0.4"),
        ("processor", "processor: expected 0.4, got 0.5"),
    ],
)
def test_an_option_that_changed_is_told_as_it_is_typed(name: str, words: str) -> None:
    assert different({name: 0.4}, {name: 0.5}, kept_and_asked) == words
    if name != "processor":
        assert different({name: None}, {name: 0.5}, kept_and_asked) == words.replace("0.4", "nothing")


def test_threads_the_network_and_the_version_count() -> None:
    assert told(CompressRequest("m.pt"), threads=3) == "threads: expected 1, got 3"
    request = CompressRequest("m.pt")
    own = identity(request, MODEL, DATA, 1)
    other = identity(request, replace(MODEL, sha256="0" * 64), DATA, 1)
    assert different(own, other).startswith("network: expected ")
    assert {"version of edgeprune", "version of torch", "processor"} <= set(own)


def test_what_stands_in_a_file_counts_not_its_name_alone(tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text("def train(module): pass")
    request = CompressRequest("m.pt", finetune=f"{script}:train")
    first = identity(request, MODEL, None, 1)
    assert different(first, identity(request, MODEL, None, 1)) == ""
    script.write_text("def train(module): module.x = 1")
    assert different(first, identity(request, MODEL, None, 1)).startswith("file of finetune (mine.py): expected ")


def test_other_samples_count() -> None:
    x, y = torch.zeros(40, 1, 8, 8), torch.zeros(40, dtype=torch.int64)
    first = replace(DATA, val=TensorDataset(x, y))
    own = identity(CompressRequest("m.pt"), MODEL, first, 1)
    for other in (
        TensorDataset(x[:39], y[:39]),
        TensorDataset(x + 1, y),
        TensorDataset(x, y + 1),
    ):
        assert different(own, identity(CompressRequest("m.pt"), MODEL, replace(DATA, val=other), 1)).startswith(
            "samples: "
        )


class Augmented(Dataset[Any]):
    """Samples that are drawn anew each time, by generators of three kinds."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return torch.rand(1, 8, 8) + random.random() + np.random.rand(), 0  # noqa: NPY002, S311


def test_samples_that_are_drawn_at_random_do_not_count_and_the_generators_stay_as_they_were() -> None:
    data = replace(DATA, train=Augmented())
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    first = identity(CompressRequest("m.pt"), MODEL, data, 1)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # type: ignore[index]  # noqa: NPY002
    torch.rand(3), random.random()  # noqa: S311
    assert different(first, identity(CompressRequest("m.pt"), MODEL, data, 1)) == ""


# --- what fails at the start and at the end


class Told(Silent):
    """Keeps the stages and what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, title: str) -> None:
        self.lines.append(title)

    def say(self, message: str) -> None:
        self.lines.append(message)


class Bessel(nn.Module):
    """ONNX has no such function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.special.i0e(self.first(x.flatten(1))))


def test_what_onnx_cannot_express_is_refused_before_the_search(tmp_path: Path) -> None:
    program = capture(Bessel().eval(), torch.randn(2, 1, 8, 8))
    save_program(tmp_path / "net.pt2", program, ModelInfo((1, 8, 8)))
    asked = CompressRequest(str(tmp_path / "net.pt2"), "digits", str(tmp_path / "run"), keep_macs=0.5, threads=1)
    said = Told()
    with pytest.raises(InputError, match=r"^ONNX cannot express \S+; replace it in the model, or export the part"):
        compress(replace(asked, allow_chance=True), said)
    assert said.lines[-1] == "export the dense network", said.lines
    assert {path.name for path in tmp_path.iterdir()} == {"net.pt2"}


def unwritten(program: Any, info: ModelInfo, path: Path, **_: Any) -> Any:
    """What there is no file for: an opset that no runtime knows."""
    return export_onnx(program, path, opset=300)


@pytest.mark.parametrize(
    ("where", "fault", "error"),
    [("write_onnx", unwritten, InputError), ("is_held", lambda *_: False, BudgetError)],
    ids=["a file that cannot be written", "a busy machine"],
)
def test_what_fails_after_the_last_training_costs_none(
    where: str, fault: Any, error: type[EdgepruneError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = CompressRequest(
        str(MODELS / "digits_mlp.pt"), "digits", str(tmp_path / "run"), keep_macs=0.5, finetune_epochs=1, threads=1
    )

    whole, _ = compress(replace(asked, out=str(tmp_path / "whole")))
    with monkeypatch.context() as patch:
        patch.setattr(f"edgeprune.commands.outcome.{where}", fault)
        for resume in (False, True):
            said = Told()
            with pytest.raises(error):
                compress(replace(asked, resume=resume), said)
            assert "measure in onnxruntime" in said.lines
            assert said.lines[-1].endswith(
                "run.compressing holds what the search has come to; --resume goes on with it"
            )
            assert {path.name for path in tmp_path.iterdir()} == {"whole", "run.compressing"}
    monkeypatch.setattr(
        "edgeprune.search.datatrainer.DataTrainer.finetune", Mock(side_effect=AssertionError)
    )  # it is not trained again
    folder, _ = compress(replace(asked, resume=True))
    for name in ("plan.json", "slim.pt2"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "run"}
