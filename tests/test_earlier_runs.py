"""What version 0.1.0 wrote stays readable: its plan.json is replayed, its run.json is read, to the last number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeprune.commands.preparing import prepare
from edgeprune.progress import Silent
from edgeprune.pruning.plan import read_plan
from edgeprune.report.html import render
from edgeprune.requests import CompressRequest
from edgeprune.results import FeatureCount, FrontPoint
from edgeprune.runrecord import run_from_json

RUN = Path(__file__).parent / "data" / "run-0.1.0"
MODEL = Path(__file__).parents[1] / "models" / "digits_mlp.pt"


@pytest.mark.usefixtures("one_thread")
def test_a_plan_is_replayed(tmp_path: Path) -> None:
    recorded = run_from_json((RUN / "run.json").read_text())
    request = CompressRequest(
        str(MODEL), plan=str(RUN / "plan.json"), out=str(tmp_path / "run"), finetune_epochs=0, keep_macs=0.4
    )
    job = prepare(request, Silent())
    found = job.strategy.search(job.step, job.budgets)
    [slim] = found.networks
    assert slim.plan is not None
    assert slim.plan.to_json() == (RUN / "plan.json").read_text()
    assert (found.dense.macs, slim.macs, slim.n_features) == (recorded.dense.macs, recorded.slim.macs, 20)
    assert found.dense.val_value == pytest.approx(recorded.dense.val_value, abs=0.01)
    assert slim.proof_error < 1e-5


def test_a_plan_says_what_was_kept() -> None:
    plan = read_plan(RUN / "plan.json")
    document = json.loads((RUN / "plan.json").read_text())
    assert plan.to_json() == (RUN / "plan.json").read_text()
    assert plan.source_sha256 == document["source_sha256"]
    [features] = plan.inputs.values()
    assert (features.size, len(features.keep)) == (64, 20)
    assert [group.after for group in plan.groups] == [group["after"] for group in document["groups"]]


def test_a_run_is_read() -> None:
    text = (RUN / "run.json").read_text()
    run, document = run_from_json(text), json.loads(text)
    assert run.versions["edgeprune"] == "0.1.0"
    assert (run.asked["pareto"], run.asked["input_features"]) == (2, "20")
    assert run.model["path"] == "models/digits_mlp.pt"
    assert run.slim.test_value == document["slim"]["test_accuracy"]
    assert run.accuracy is not None
    assert run.accuracy.drop_points == document["accuracy"]["drop_points"]
    assert [step.val_value for step in run.steps] == [step["val_accuracy"] for step in document["steps"]]
    assert [type(point) for point in run.front] == [FrontPoint] * 2
    assert [point.val_value for point in run.front] == [point["val_accuracy"] for point in document["front"]]
    assert run.selection[-1] == FeatureCount(*document["selection"][-1].values())
    assert run.features is not None
    assert run.features.keep == next(iter(read_plan(RUN / "plan.json").inputs.values())).keep
    assert "digits_mlp" in render(run)
