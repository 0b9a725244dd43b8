"""scripts/coverage on tiny networks: what it measures, what it refuses, what it writes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("timm:test_resnet", "torchvision:quantized_resnet18")


def coverage(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the script as a developer does."""
    command = [sys.executable, str(ROOT / "scripts" / "coverage"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The .jsonl of a network that goes and of one that is refused, and the run that made it."""
    path = tmp_path_factory.mktemp("coverage") / "records.jsonl"
    return path, coverage(*NAMES, "--jobs", 2, "--out", path)


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import a module of the package beside the scripts."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield lambda name: importlib.import_module(f"measure.{name}")


def records(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> record."""
    return {record["name"]: record for record in map(json.loads, path.read_text().splitlines())}


def test_a_network_is_taken_through_every_stage(measured: tuple[Path, Any]) -> None:
    """test_resnet: half of the MACs, proof, float64, ONNX, times, memory."""
    path, run = measured
    record = records(path)["timm:test_resnet"]
    assert run.returncode == 0, run.stdout + run.stderr
    assert record["status"] == "slim" and "reason" not in record
    assert record["plan"] == "half" and record["macs"][1] <= 0.5 * record["macs"][0]
    assert record["slim_parameters"][1] < record["slim_parameters"][0] == record["parameters"]
    assert record["output_channels"] == 1000 and record["prunable_share"] == 1.0
    assert record["proof_error"] <= 1e-5 and record["double_error"] <= 1e-10 and record["onnx_error"] <= 1e-3
    assert record["applied"] == "yes"
    assert record["masked_distance"] > 0.05  # the check is not vacuous
    assert set(record["seconds"]) >= {"capture", "analyze", "plan", "cut", "prove", "onnx"}
    assert record["peak_bytes"] > 1e8


def test_a_quantised_network_is_refused_with_the_reason(measured: tuple[Path, Any]) -> None:
    """Refused at capture, not failed."""
    record = records(measured[0])["torchvision:quantized_resnet18"]
    assert record["status"] == "refused" and record["stage"] == "capture"
    assert "quantised" in record["reason"] and str(ROOT) not in record["reason"]


def test_the_summary_is_made_from_the_records(measured: tuple[Path, Any], tmp_path: Path) -> None:
    """A row for each network, the refusal with its reason, and no place of this machine."""
    assert coverage("--summary", "--out", measured[0], "--docs", tmp_path).returncode == 0
    page = (tmp_path / "COVERAGE.md").read_text()
    document = json.loads((tmp_path / "results" / "coverage.json").read_text())
    assert "| test_resnet |" in page and "| torchvision:quantized_resnet18 | refused | capture |" in page
    assert document["summary"]["all"]["slim"] == 1 and document["summary"]["all"]["refused"] == 1
    assert len(document["quantized_left_out"]) == 12
    assert document["versions"]["timm"] and str(ROOT) not in json.dumps(document)


@pytest.mark.sweep
def test_slow_ones_are_timed_again_alone(measured: tuple[Path, Any], tmp_path: Path) -> None:
    path = tmp_path / "again.jsonl"
    path.write_text(measured[0].read_text())
    before = records(path)["timm:test_resnet"]
    run = coverage("--retime", 0, "--out", path, "--docs", tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    after = records(path)["timm:test_resnet"]
    assert after["timed_alone"] is True
    stages = ("capture", "analyze", "plan", "cut")
    assert sum(after["seconds"][s] for s in stages) <= sum(before["seconds"][s] for s in stages)
    unchanged = {"seconds", "timed_alone"}
    assert {k: v for k, v in after.items() if k not in unchanged} == {k: v for k, v in before.items() if k != "seconds"}
    assert "test_resnet" in (tmp_path / "COVERAGE.md").read_text()


def test_the_time_limit_is_a_failure_that_says_so(tmp_path: Path) -> None:
    """A process that is stopped leaves a record, and the exit code tells."""
    run = coverage("timm:test_vit", "--time-limit", 0.2, "--out", tmp_path / "records.jsonl")
    record = records(tmp_path / "records.jsonl")["timm:test_vit"]
    assert run.returncode == 1
    assert record["status"] == "failed" and record["reason"] == "not done within 0.2 s"


def test_every_module_of_timm_is_listed(measure: Any) -> None:
    """A new module of timm is told by this test; torchvision's lists are taken as they are."""
    networks = measure("networks")  # before timm: it makes torchvision importable
    import timm

    listed = {network.family.partition("/")[0] for network in networks.timm_networks()}
    assert listed == set(timm.list_modules())
    sources = [network.source for network in networks.torchvision_networks()]
    assert len(sources) >= 104 and len(set(sources)) == 5


def test_nothing_is_left_constant(measure: Any) -> None:
    """Layer scales about 1, other affine parameters spread, zeroed weights random, statistics random."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 8))
    model.gamma = nn.Parameter(torch.full((8,), 1e-6))
    nn.init.zeros_(model[2].weight)
    measure("networks").randomize(model)
    assert (model.gamma >= 0.5).all()
    for tensor in (*model.parameters(), model[1].running_mean, model[1].running_var):
        assert tensor.std() > 0.02
    assert (model[1].running_var > 0).all()


def test_exponents_of_times_over_nodes(measure: Any) -> None:
    """Times that grow with the square of the nodes have the exponent 2."""
    grown = [
        {
            "network": "net", "nodes": n, "seconds": dict.fromkeys(("capture", "analyze", "plan", "cut"), n**2 / 1e6),
            "peak_bytes": {"cut": n * 1000},
        }
        for n in (100, 200, 400)
    ]  # fmt: skip
    found = measure("depth").exponents(grown)["net"]
    assert found["analyze"] == {"fit": 2.0, "last": 2.0} and found["memory"]["fit"] == 1.0
