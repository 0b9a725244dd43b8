"""From a request to budgets: what is decided, and what of it is said to be assumed. No file, no network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeprune.commands.budgets import decide
from edgeprune.errors import InputError
from edgeprune.records import ACCURACY, Metric
from edgeprune.requests import CompressRequest
from edgeprune.search.candidate import Budgets
from edgeprune.tasks.budget import MaxDrop, is_within
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.units import LatencyLimit

TAYLOR, L2 = "--criterion taylor", "--criterion l2"
DROP = "--max-drop 1"
OF_FRONT = "--max-drop 1 (of the networks, the smallest within it is taken)"
KEEP = "--keep-macs 0.5 (there are no data to measure a drop on)"
OFF = "--input-features off (without data nothing tells what the inputs hold)"
OF_PART = "--input-features off (what a part takes comes from the rest of the network)"
AUTO = {"prune_features": True}

CASES: list[tuple[dict[str, Any], bool, dict[str, Any], tuple[str, ...]]] = [
    ({}, True, {"max_drop": MaxDrop(1.0), **AUTO}, (DROP,)),
    ({}, False, {"keep_macs": 0.5}, (KEEP, L2, OFF)),
    ({"keep_macs": 0.3}, True, {"keep_macs": 0.3, **AUTO}, ()),
    ({"keep_macs": 0.3, "max_drop": 0.0}, True, {"keep_macs": 0.3, "max_drop": MaxDrop(0.0), **AUTO}, ()),
    ({"max_latency": "0.5x"}, True, {"max_latency": LatencyLimit(ratio=0.5), **AUTO}, ()),
    ({"max_size": "2kB", "criterion": "l1"}, True, {"max_bytes": 2000, **AUTO}, ()),
    ({"input_features": "20"}, True, {"max_drop": MaxDrop(1.0), "n_features": 20}, (DROP,)),
    ({"input_features": "0.25"}, True, {"max_drop": MaxDrop(1.0), "feature_ratio": 0.25}, (DROP,)),
    ({"input_features": "1.0", "keep_macs": 1.0}, True, {"keep_macs": 1.0, "feature_ratio": 1.0}, ()),
    ({"input_features": "off"}, True, {"max_drop": MaxDrop(1.0)}, (DROP,)),
    ({"module": "backbone"}, True, {"max_drop": MaxDrop(1.0)}, (DROP, OF_PART)),
    ({"plan": "plan.json"}, False, AUTO, (L2,)),
    ({"plan": "plan.json"}, True, AUTO, (TAYLOR,)),
    ({"keep_macs": 0.3, "reconstruct": False}, True, {"keep_macs": 0.3, **AUTO}, (TAYLOR,)),
    ({"pareto": 3}, True, AUTO, (OF_FRONT,)),
    ({"pareto": 3, "max_drop": 2.0}, True, AUTO, ()),
    ({"pareto": 3, "keep_macs": 0.4}, False, {"keep_macs": 0.4}, (L2, OFF)),
]


@pytest.mark.parametrize(("asked", "has_data", "budgets", "assumed"), CASES)
def test_what_is_asked_becomes_budgets(
    asked: dict[str, Any], has_data: bool, budgets: dict[str, Any], assumed: tuple[str, ...]
) -> None:
    decision = decide(CompressRequest("model.pt", **asked), ACCURACY if has_data else None)
    assert decision.budgets == Budgets(**budgets)
    assert decision.assumed == assumed


def test_how_it_is_done_goes_beside_the_budgets() -> None:
    request = CompressRequest("m.pt", keep_macs=0.5, align=4, seed=7, leave=("fc",), max_finetunings=3, appliable=True)
    manner = decide(request, ACCURACY).manner
    assert (manner.align, manner.seed, manner.leave, manner.max_finetunings) == (4, 7, ("fc",), 3)
    ratios = decide(
        CompressRequest("m.pt", keep_macs=0.5, layer_ratios=("a.*=0.5", "b=1")), ACCURACY
    ).manner.layer_ratios
    assert ratios == {"a.*": 0.5, "b": 1.0}
    assert manner.appliable and manner.features and manner.compete
    held = decide(CompressRequest("m.pt", max_drop=1.0), ACCURACY).manner
    assert held.features and not held.compete  # a drop is there to hold the features up


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"keep_macs": 1.5}, r"--keep-macs: expected a share in \(0, 1\], got 1.5"),
        ({"layer_ratios": ("stem",)}, r"--layer-ratio: expected NAME=SHARE, such as layer1.\*=0.5, got 'stem'"),
        ({"allocation": "sensitivity"}, "--allocation sensitivity: expected data to measure losses on, got none"),
        ({"allocation": "predictor"}, "--allocation predictor: expected data to measure losses on, got none"),
        ({"allocation": "predictor", "plan": "p.json"}, "--allocation predictor: .*, got --plan p.json"),
        ({"allocation": "magic"}, "--allocation: expected one of greedy, sensitivity, predictor, got magic"),
        ({"allocation": "sensitivity", "plan": "p.json"}, "--allocation sensitivity: .*, got --plan p.json"),
        ({"prune_schedule": "agp"}, "--prune-schedule: expected one of one-shot, one-cycle, iterative, got agp"),
        (
            {"prune_schedule": "one-shot", "plan": "p.json"},
            "--prune-schedule one-shot: .*, got --plan p.json, which is",
        ),
        (
            {"prune_schedule": "one-cycle"},
            "--prune-schedule one-cycle: expected data to train on while it cuts, got none",
        ),
        (
            {"prune_schedule": "one-cycle", "keep_macs": 0.5, "finetune": "f.py:f"},
            "one-cycle: expected one training that goes on over all cuts, got --finetune f.py:f, which trains anew",
        ),
        ({"depth": True}, "--depth: expected data to judge blocks on, got none; give --data"),
        ({"depth": True, "plan": "p.json"}, "--depth: expected a choice of blocks, got --plan p.json"),
        ({"depth": True, "appliable": True}, "--depth: expected no --keep-equal-chunks, as a class .* runs all of its"),
        ({"layer_ratios": ("stem=0",)}, r"--layer-ratio: stem: expected a share in \(0, 1\], got 0.0"),
        ({"layer_ratios": ("stem=nan",)}, "expected NAME=SHARE, .* got 'stem=nan'"),
        ({"layer_ratios": ("a=1", "a=0.5")}, "--layer-ratio: expected each name once, got a twice"),
        ({"layer_ratios": ("a=1",), "plan": "p.json"}, "--layer-ratio: expected a choice .*, got --plan p.json"),
        ({"keep_macs": 0.0}, r"--keep-macs: expected a share in \(0, 1\], got 0.0"),
        ({"input_features": "0"}, "--input-features: expected auto, off, a count from 1 or a ratio .* got '0'"),
        ({"input_features": "1.5"}, "--input-features: expected auto"),
        ({"input_features": "some"}, "--input-features: expected auto"),
        ({"max_drop": 1.0}, "--max-drop: expected data to measure the drop on, got none; give --data"),
        ({"pareto": 1}, "--pareto: expected 2 to 20 networks, got 1"),
        ({"pareto": 3, "plan": "plan.json"}, "--pareto: expected no --plan, got plan.json"),
        ({"pareto": 3, "max_size": "1kB"}, "--pareto: expected no --max-size, got 1kB"),
        ({"pareto": 3, "max_latency": "1ms"}, "--pareto: expected no --max-latency, got 1ms"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decide(CompressRequest("model.pt", **asked), None)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "--prune-schedule one-cycle: expected a cost to come down to, --keep-macs, .*, got a drop alone"),
        ({"max_drop": 1.0}, "expected a cost to come down to, .* got a drop alone, which says when to stop"),
        (
            {"keep_macs": 0.5, "finetune_epochs": 1},
            "expected --finetune-epochs of at least 2, one after each cut, got 1",
        ),
        ({"pareto": 3, "finetune_epochs": 0}, "expected --finetune-epochs of at least 2, one after each cut, got 0"),
    ],
)
def test_a_schedule_needs_a_cost_and_one_cycle_a_training(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decide(CompressRequest("model.pt", prune_schedule="one-cycle", **asked), ACCURACY)


def test_a_schedule_goes_with_every_cost() -> None:
    for name in ("one-shot", "one-cycle", "iterative"):
        for cost in ({"keep_macs": 0.5}, {"max_latency": "0.5x"}, {"max_size": "2kB"}, {"pareto": 3}):
            assert decide(CompressRequest("model.pt", prune_schedule=name, **cost), ACCURACY).manner.features
    for name in ("one-shot", "iterative"):
        without = CompressRequest("model.pt", prune_schedule=name, finetune_epochs=0, keep_macs=0.5)
        assert decide(without, ACCURACY).budgets.keep_macs == 0.5
        assert decide(CompressRequest("model.pt", prune_schedule=name), None).budgets.keep_macs == 0.5


def test_a_share_of_the_features_becomes_a_count() -> None:
    asked = Budgets(feature_ratio=0.3)
    assert [asked.counted(n).n_features for n in (64, 10, 1, None, 0)] == [19, 3, 1, None, None]
    assert Budgets(n_features=5).counted(64) == Budgets(n_features=5)


def test_the_drop_has_one_rule() -> None:
    assert ACCURACY.drop(0.98, 0.97) > 1.0  # by rounding alone
    assert is_within(ACCURACY.drop(0.98, 0.97), 1.0)
    assert not is_within(1.0001, 1.0)
    assert is_within(-3.0, 0.0) and is_within(0.0, 0.0) and is_within(100.0, None)
    right = np.arange(360) % 10 > 0  # nine of ten
    assert CLASSIFICATION.standard_error(right, right) == pytest.approx(100 * (2 * 0.09 / 360) ** 0.5)


MAE = Metric("MAE", "mmol", 1.0, higher_is_better=False)


@pytest.mark.parametrize(
    ("metric", "asked", "drop", "said"),
    [
        (ACCURACY, None, MaxDrop(1.0), "--max-drop 1"),
        (MAE, None, MaxDrop(1.0, "%"), "--max-drop 1%"),
        (MAE, 250.0, MaxDrop(250.0), None),
        (MAE, "3 mmol", MaxDrop(3.0, "mmol"), None),
        (ACCURACY, "2%", MaxDrop(2.0, "%"), None),
    ],
)
def test_a_drop_counts_in_the_unit_of_the_metric(
    metric: Metric, asked: float | str | None, drop: MaxDrop, said: str | None
) -> None:
    decision = decide(CompressRequest("m.pt", max_drop=asked, criterion="l2"), metric)
    assert decision.budgets.max_drop == drop
    assert decision.assumed == ((said,) if said else ())


@pytest.mark.parametrize(
    ("metric", "asked", "message"),
    [
        (MAE, "3 points", "--max-drop: expected mmol or %, as MAE is measured in, got 'points'"),
        (ACCURACY, 101.0, r"--max-drop: expected accuracy points in \[0, 100\], got 101"),
        (MAE, "250%", "--max-drop: expected at most 100 % of what the dense network has, got 250%"),
    ],
)
def test_a_drop_that_the_metric_has_not_is_refused(metric: Metric, asked: float | str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decide(CompressRequest("m.pt", max_drop=asked), metric)
