"""Runs that several end-to-end tests look at; each is made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import CNN, MLP, QUICK, done


@dataclass(frozen=True)
class Run:
    """A finished run: the folder it was started in, its run folder, and what `--json` printed."""

    place: Path
    folder: Path
    document: Any


def _compressed(place: Path, *arguments: str) -> Run:
    result = done(place, "compress", *arguments, "--out", "run", "--json")
    return Run(place, place / "run", result.json)


@pytest.fixture(scope="session")
def mlp_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The digits MLP at the figures that the README states."""
    budgets = "--data digits --input-features 32 --keep-macs 0.15 --max-drop 1.0 --threads 1".split()
    return _compressed(tmp_path_factory.mktemp("mlp"), MLP, *budgets)


@pytest.fixture(scope="session")
def cnn_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The digits CNN at the figures that the README states."""
    budgets = "--data digits --keep-macs 0.3 --max-drop 1.0 --finetune-epochs 10 --threads 1".split()
    return _compressed(tmp_path_factory.mktemp("cnn"), CNN, *budgets)


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The digits MLP with 20 features at about half the MACs, hardly finetuned."""
    return _compressed(tmp_path_factory.mktemp("quick"), MLP, *QUICK, "--input-features", "20")


@pytest.fixture(scope="session")
def exported(mlp_run: Run) -> Path:
    """The folder with dense.onnx's export beside the slim contracts of `mlp_run`."""
    done(mlp_run.place, "export", "--onnx", "run/slim.pt2")
    done(mlp_run.place, "export", "--onnx", MLP, "--out", "dense")
    return mlp_run.place
