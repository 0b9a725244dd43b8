"""What an analysis reads instead of the program: known operators, and nothing that is not read."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.graph.prepare import prepared
from tests import cases_attention, cases_functions, cases_layers, cases_more
from tests.cases import TOKENS, tokens
from tests.cases_more import later, token
from tests.nets import captured, cut_randomly, sample

CASES = {**cases_more.CASES, **cases_attention.CASES, **cases_layers.CASES, **cases_functions.CASES}


def operators(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def test_what_has_no_rule_is_taken_apart() -> None:
    case = CASES["cosine similarity"]
    program = captured(case.build(), *case.shapes)
    assert "aten.cosine_similarity.default" in operators(program)
    found = operators(prepared(program))
    assert "aten.cosine_similarity.default" not in found
    assert "aten.linear.default" in found  # what has a rule stays whole
    slim = cut_randomly(program, edgeprune.analyze(program)).slim
    assert not any(name.endswith("native_batch_norm") for name in operators(slim))


def test_a_known_program_is_left_as_it_is() -> None:
    program = captured(tokens(lambda m, x: m.norm(x).relu(), norm=nn.LayerNorm(8)), TOKENS)
    assert prepared(program) is program


def test_batch_norm_is_trainable_after_taking_apart() -> None:
    case = token(lambda m, x: torch.hstack([m.n(x.mT).mT, x]), after=8, n=later(nn.BatchNorm1d, 8))
    program = captured(case.build(), *case.shapes)
    slim = cut_randomly(program, edgeprune.analyze(program)).slim.module()
    before = slim.get_buffer("n.running_mean").clone()
    slim.train()(*sample(case.shapes, 4))
    assert not torch.equal(slim.get_buffer("n.running_mean"), before)


def test_what_nothing_reads_locks_nothing() -> None:
    case = CASES["mha, with weights"]
    program = captured(case.build(), *case.shapes)
    heads = [group for group in edgeprune.analyze(program).groups if group.name == "mha"]
    assert [group.n_units for group in heads] == [4]  # the mean over the heads' weights is not read


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["cosine similarity", "index a 2d index", "weight norm", "max unpool", "tril",
                                  "bilinear", "mha, padding mask", "scatter"])  # fmt: skip
def test_onnx(name: str, tmp_path: Path) -> None:
    program = captured(CASES[name].build(), *CASES[name].shapes, dtype=torch.float32)
    slim = cut_randomly(program, edgeprune.analyze(program)).slim
    assert edgeprune.export_onnx(slim, tmp_path / "slim.onnx").parity < 1e-4


def test_cut_twice() -> None:
    program = captured(CASES["index a 2d index"].build(), *CASES["index a 2d index"].shapes)
    first = cut_randomly(program, edgeprune.analyze(program)).slim
    second = cut_randomly(first, edgeprune.analyze(first), seed=3)
    assert second.error <= 1e-10


def test_a_program_is_taken_apart_once_as_long_as_its_tensors_are_the_same() -> None:
    case = CASES["cosine similarity"]
    program = captured(case.build(), *case.shapes)
    ready = prepared(program)
    assert prepared(program) is ready
    name = next(iter(program.state_dict))
    with torch.no_grad():
        program.state_dict[name].mul_(2)  # the numbers are shared
    assert torch.equal(prepared(program).state_dict[name], program.state_dict[name])
    program.state_dict[name] = nn.Parameter(program.state_dict[name] * 2)
    assert prepared(program) is not ready
    assert torch.equal(prepared(program).state_dict[name], program.state_dict[name])


def test_what_was_taken_apart_does_not_keep_its_program() -> None:
    case = CASES["cosine similarity"]
    program = captured(case.build(), *case.shapes)
    ready, gone = prepared(program), weakref.ref(program)
    del program
    gc.collect()
    assert gone() is None
    assert ready.state_dict
