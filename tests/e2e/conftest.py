"""Runs that several end-to-end tests look at; each is made once."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import CNN, MLP, QUICK, done
from filelock import FileLock


@dataclass(frozen=True)
class Run:
    """A finished run: the folder it was started in, its run folder, and what `--json` printed."""

    place: Path
    folder: Path
    document: Any


def _compressed(factory: pytest.TempPathFactory, name: str, *arguments: str) -> Run:
    """The run of the first process of this session that asks for it; nobody writes into it afterwards."""
    base = factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    document = place.with_suffix(".json")
    with FileLock(place.with_suffix(".lock")):
        if not document.exists():
            place.mkdir()
            printed = done(place, "compress", *arguments, "--out", "run", "--json").out
            document.write_text(printed)
    return Run(place, place / "run", json.loads(document.read_text()))


@pytest.fixture(scope="session")
def mlp_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The digits MLP at the figures that the README states."""
    budgets = (
        "--data digits --input-features 32 --keep-macs 0.15 --max-drop 1.0 --finetune-epochs 20 --threads 1".split()
    )
    return _compressed(tmp_path_factory, "mlp", MLP, *budgets)


@pytest.fixture(scope="session")
def cnn_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The digits CNN at the figures that the README states."""
    budgets = "--data digits --keep-macs 0.3 --max-drop 1.0 --align 8".split()
    training = "--finetune-epochs 10 --no-reconstruct --threads 1".split()
    return _compressed(tmp_path_factory, "cnn", CNN, *budgets, *training)


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The digits MLP with 20 features at about half the MACs, hardly finetuned."""
    return _compressed(tmp_path_factory, "quick", MLP, *QUICK, "--input-features", "20")


@pytest.fixture(scope="session")
def exported(mlp_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with dense.onnx's export beside a copy of `mlp_run` and its slim contracts."""
    place = tmp_path_factory.mktemp("exported")
    shutil.copytree(mlp_run.folder, place / "run")
    done(place, "export", "--onnx", "run/slim.pt2")
    done(place, "export", "--onnx", MLP, "--out", "dense")
    return place
