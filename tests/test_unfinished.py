"""What makes a compress run the one that is resumed: the options, what the files behind them hold, and the data."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from edgeprune.commands.unfinished import identity
from edgeprune.data import open_data
from edgeprune.formats.load import load
from edgeprune.records import DataSource
from edgeprune.requests import CompressRequest
from edgeprune.training.state import different

MODEL = load(Path(__file__).parents[1] / "models" / "digits_mlp.pt")
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
