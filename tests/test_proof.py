"""The proof finds wrong cuts, and passes right ones for the stated reason."""

from __future__ import annotations

import pytest
import torch

import edgeprune
from edgeprune.errors import ProofError
from edgeprune.graph.precision import in_float64
from edgeprune.proof import masked
from tests.cases import CASES, IMAGE, TOKENS
from tests.nets import Cut, captured, cut_randomly, relative_error, residual, run, sample


def cut_of(name: str, dtype: torch.dtype = torch.float64) -> Cut:
    program = captured(CASES[name].build(), *CASES[name].shapes, dtype=dtype)
    return cut_randomly(program, edgeprune.analyze(program, inputs=CASES[name].label_inputs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_right_cut_passes(dtype: torch.dtype) -> None:
    assert cut_of("residual", dtype).error <= (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_wrong_weight_is_found(dtype: torch.dtype) -> None:
    cut = cut_of("residual", dtype)
    with torch.no_grad():
        cut.slim.state_dict["c.weight"][0, 0, 0, 0] += 1e-3
    with pytest.raises(ProofError, match=r"expected a relative error of at most 1e-\d+, got"):
        edgeprune.prove(cut.program, cut.slim, cut.plan)


def test_swapped_channels_are_found() -> None:
    cut = cut_of("cnn")
    with torch.no_grad():
        weight = cut.slim.state_dict["4.weight"]
        weight.copy_(weight.flip(1))
    with pytest.raises(ProofError, match="not the masked dense network"):
        edgeprune.prove(cut.program, cut.slim, cut.plan)


def test_a_network_that_is_not_finite_is_no_proof() -> None:
    cut = cut_of("cnn")
    with torch.no_grad():
        cut.slim.state_dict["4.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(ProofError, match="got inf"):
        edgeprune.prove(cut.program, cut.slim, cut.plan)


def test_another_output_shape_is_found() -> None:
    cut = cut_of("residual")
    wider = residual()
    wider.head = torch.nn.Linear(10, 5)
    with pytest.raises(ProofError, match="got inf"):
        edgeprune.prove(cut.program, captured(wider, IMAGE), cut.plan)


def test_real_inputs_can_be_given() -> None:
    cut = cut_of("cnn")
    (x,) = sample((IMAGE,), 7)
    assert edgeprune.prove(cut.program, cut.slim, cut.plan, x.float()) <= 1e-10


def test_masked_is_dense_with_zeros() -> None:
    cut = cut_of("cnn")
    zeros = cut.program.module()
    for name, tensor in [*zeros.named_parameters(), *zeros.named_buffers()]:
        for dim, kept in cut.plan.tensors.get(name, {}).items():
            gone = [i for i in range(tensor.shape[dim]) if i not in kept]
            tensor.data.index_fill_(dim, torch.tensor(gone), 0)
    inputs = sample((IMAGE,), 4)
    assert relative_error(run(zeros, inputs), run(masked(cut.program, cut.plan), inputs)) <= 1e-12


def test_the_proof_leaves_the_programs_as_they_were() -> None:
    cut = cut_of("batch norm of the batch", torch.float32)
    before = {name: tensor.clone() for name, tensor in cut.program.state_dict.items()}
    edgeprune.prove(cut.program, cut.slim, cut.plan)
    in_float64(masked(cut.program, cut.plan)).train()
    for name, tensor in cut.program.state_dict.items():
        assert torch.equal(tensor, before[name]) and tensor.dtype == before[name].dtype


RENORMALISED = ("layer norm", "layer norm bare", "rms norm", "group norm of one", "transformer layer")


@pytest.mark.parametrize("name", RENORMALISED)
def test_statistics_are_taken_over_the_kept_units_in_the_reference_too(name: str) -> None:
    cut = cut_of(name)
    assert not cut.plan.exact
    assert cut.error <= 1e-10
    reference = masked(cut.program, cut.plan)
    assert run(reference, sample(CASES[name].shapes, 2))[0].shape[0] == 2


def test_an_exact_cut_needs_no_other_statistics() -> None:
    cut = cut_of("layer norm after")
    assert cut.error <= 1e-10
    heads = cut_of("attention")
    assert heads.plan.exact and heads.error <= 1e-10
    assert run(masked(heads.program, heads.plan), sample((TOKENS,), 2))
