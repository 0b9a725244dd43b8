"""Plans as JSON, and what is refused when one is read or applied."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgeprune
from edgeprune.errors import PlanError
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph
from edgeprune.pruning.plan import PruningPlan, read_plan
from tests.cases import CASES, IMAGE
from tests.nets import captured, image_mlp, mlp, residual


@pytest.fixture(scope="module")
def made() -> tuple[Program, ChannelGraph, PruningPlan]:
    program = captured(residual(), IMAGE)
    graph = edgeprune.analyze(program)
    return program, graph, edgeprune.plan(program, graph, keep_macs=0.5, align=1)


def changed(plan: PruningPlan, change: Callable[[dict[str, Any]], None]) -> PruningPlan:
    document = json.loads(plan.to_json())
    change(document)
    return PruningPlan.from_json(json.dumps(document))


def test_a_plan_survives_json(made: tuple[Program, ChannelGraph, PruningPlan], tmp_path: Path) -> None:
    plan = made[2]
    assert PruningPlan.from_json(plan.to_json()) == plan
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert read_plan(tmp_path / "plan.json") == plan


def test_a_plan_with_inputs_survives_json() -> None:
    program = captured(image_mlp(), (1, 4, 4))
    plan = edgeprune.plan(program, edgeprune.analyze(program, inputs=True), keep_macs=0.5, n_features=5)
    again = PruningPlan.from_json(plan.to_json())
    assert again == plan and len(again.inputs["input"].keep) == 5


def test_the_document_is_what_the_contract_says(made: tuple[Program, ChannelGraph, PruningPlan]) -> None:
    document = json.loads(made[2].to_json())
    assert document["format"] == "edgeprune-plan/1"
    assert set(document) == {"format", "source_sha256", "tensors", "inputs", "groups"}
    assert document["tensors"]["stem.weight"].keys() == {"0"}
    assert document["tensors"]["a.weight"].keys() == {"0", "1"}
    assert all(set(group) == {"name", "before", "after", "exact"} for group in document["groups"])


def test_a_plan_replays_to_the_same_network(made: tuple[Program, ChannelGraph, PruningPlan]) -> None:
    program, graph, plan = made
    one = edgeprune.cut(program, plan, graph)
    other = edgeprune.cut(program, PruningPlan.from_json(plan.to_json()))
    assert {n: t.tolist() for n, t in one.state_dict.items()} == {n: t.tolist() for n, t in other.state_dict.items()}


BAD_DOCUMENTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "format": (lambda d: d.update(format="other/1"), r"format: expected 'edgeprune-plan/1', got 'other/1'"),
    "sha256": (lambda d: d.update(source_sha256=None), "source_sha256: expected a string"),
    "unsorted": (lambda d: d["tensors"]["a.weight"].update({"0": [2, 1]}), "ascending indices, got 2 before 1"),
    "doubled": (lambda d: d["tensors"]["a.weight"].update({"0": [1, 1]}), "ascending indices, got 1 before 1"),
    "empty": (lambda d: d["tensors"]["a.weight"].update({"0": []}), r"\['0'\] keeps nothing"),
    "negative": (lambda d: d["tensors"]["a.weight"].update({"0": [-1, 2]}), "whole numbers from 0"),
    "fraction": (lambda d: d["tensors"]["a.weight"].update({"0": [0.5]}), "whole numbers from 0"),
    "true": (lambda d: d["tensors"]["a.weight"].update({"0": [True]}), "whole numbers from 0"),
    "dim": (lambda d: d["tensors"]["a.weight"].update({"x": [1]}), "expected a dim as a number, got 'x'"),
    "tensors": (lambda d: d.update(tensors=[]), "tensors: expected an object, got list"),
    "indices": (lambda d: d["tensors"]["a.weight"].update({"0": 3}), "expected a list, got int"),
    "long dim": (lambda d: d["tensors"]["a.weight"].update({"0" * 5000: [1]}), "expected a dim as a number"),
    "huge index": (lambda d: d["tensors"]["a.weight"].update({"0": [1, 2**63]}), "whole numbers from 0"),
    "groups": (lambda d: d.update(groups=[{"name": "a"}]), "expected name, before, after and exact"),
    "group's width": (
        lambda d: d.update(groups=[{"name": "a", "before": 1.5, "after": 1, "exact": True}]),
        "expected name, before, after and exact",
    ),
    "input size": (lambda d: d.update(inputs={"x": {"size": 0, "keep": [0]}}), "whole number from 1, got 0"),
    "input index": (lambda d: d.update(inputs={"x": {"size": 3, "keep": [3]}}), "indices below 3, got 3"),
    "input dim": (lambda d: d.update(inputs={"x": {"size": 3, "keep": [0], "dim": 0}}), "a dim from 1 or null, got 0"),
}


@pytest.mark.parametrize("name", BAD_DOCUMENTS)
def test_a_bad_document_is_refused(made: tuple[Program, ChannelGraph, PruningPlan], name: str) -> None:
    change, message = BAD_DOCUMENTS[name]
    with pytest.raises(PlanError, match=message):
        changed(made[2], change)


@pytest.mark.parametrize("text", ["", "[1", "[" * 100_000, "null", "Infinity", "[1e400]", "[" + "9" * 5000 + "]"])
def test_what_is_not_a_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="plan"):
        PruningPlan.from_json(text)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"plan\.json: expected a plan\.json, got nothing there"):
        read_plan(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match=r"plan\.json: the plan: expected a JSON document, got no UTF-8 text"):
        read_plan(tmp_path / "plan.json")


def without(indices: list[int]) -> Callable[[dict[str, Any]], None]:
    return lambda d: d["tensors"]["head.weight"].update({"0": indices})


UNFIT: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "another model": (lambda d: d.update(source_sha256="0" * 64), "made for another model: expected source_sha256"),
    "unknown tensor": (lambda d: d["tensors"].update({"nope": {"0": [0]}}), "slices 'nope', which the model does not"),
    "unknown dim": (lambda d: d["tensors"]["a.weight"].update({"4": [0]}), "index 0 of dim 4 of 'a.weight'"),
    "out of range": (lambda d: d["tensors"]["a.weight"].update({"0": [0, 6]}), "index 6 of dim 0 of 'a.weight'"),
    "locked output": (without([0, 2, 3]), "removes index 1 of dim 0 of 'head.weight', which is locked"),
    "kernel offset": (lambda d: d["tensors"]["a.weight"].update({"2": [0, 1]}), "index 2 of dim 2 of 'a.weight'"),
    "broken coupling": (
        lambda d: d["tensors"]["b.weight"].update({"0": list(range(8))}),
        r"of dim 0 of 'b.weight' but removes it elsewhere in group 'stem'.*goes together with",
    ),
    "half of a coupling": (lambda d: d["tensors"].pop("a.bias"), "dim 0 of 'a.bias' but removes it elsewhere"),
    "unknown input": (lambda d: d.update(inputs={"z": {"size": 3, "keep": [0]}}), "input 'z', of which"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_plan_that_does_not_fit_the_model_is_refused(
    made: tuple[Program, ChannelGraph, PruningPlan], name: str
) -> None:
    change, message = UNFIT[name]
    with pytest.raises(PlanError, match=message):
        edgeprune.cut(made[0], changed(made[2], change))


def test_a_plan_for_an_input_of_another_size_is_refused() -> None:
    program = captured(mlp(), (8,))
    plan = edgeprune.plan(program, edgeprune.analyze(program, inputs=True), keep_macs=None, n_features=5)
    bad = changed(plan, lambda d: d["inputs"]["input"].update(size=16))
    with pytest.raises(PlanError, match="16 features over .* of input 'input': expected .*8"):
        edgeprune.cut(program, bad)


def test_a_plan_that_drops_a_feature_but_keeps_its_column_is_refused() -> None:
    program = captured(mlp(), (8,))
    plan = edgeprune.plan(program, edgeprune.analyze(program, inputs=True), keep_macs=None, n_features=5)
    bad = changed(plan, lambda d: d["tensors"].pop("0.weight"))
    with pytest.raises(PlanError, match=r"'0.weight' but removes it elsewhere in group 'input input': it"):
        edgeprune.cut(program, bad)


def test_every_name_of_a_tied_weight_is_listed() -> None:
    program = captured(CASES["shared"].build(), *CASES["shared"].shapes)
    plan = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.5, align=1)
    assert plan.tensors["a.weight"] == plan.tensors["b.weight"]
