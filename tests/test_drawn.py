"""Drawn inputs are ones that the network accepts, and given ones are told from what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import InputError
from edgeprune.graph.capture import Program
from edgeprune.graph.drawn import drawn_leaves
from edgeprune.graph.indices import index_ranges
from edgeprune.graph.specs import fitted, input_specs
from tests.nets import Net


class Lookups(nn.Module):
    """Tokens, a table of classes with offsets, and the last place of every row."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.classes, self.head = nn.Embedding(100, 4), nn.Embedding(7, 4), nn.Linear(4, 3)
        self.register_buffer("offsets", torch.tensor([0, 10, 30]))

    def forward(self, ids: Tensor, table: Tensor, last: Tensor) -> Any:
        h = self.tokens(ids) + self.classes(table[:, :1].long())
        h = h + self.tokens(table[:, 1:] + self.offsets[1:]).sum(1, keepdim=True)
        return self.head(h.gather(1, (last - 1).view(-1, 1, 1).expand(-1, 1, 4))[:, 0])


def lookups() -> Program:
    return edgeprune.capture(
        Lookups(), (torch.zeros(2, 8).long(), torch.zeros(2, 3, dtype=torch.int32), torch.ones(2).long())
    )


def drawn(program: Program, batch: int = 64) -> list[Tensor]:
    return next(drawn_leaves(program, batch))


def test_indices_are_below_what_they_index_column_by_column() -> None:
    ranges = index_ranges(lookups())
    assert ranges["ids"].high.unique().tolist() == [100]
    assert ranges["table"].high[0].tolist() == [7, 90, 70]
    assert (ranges["last"].low.tolist(), ranges["last"].high.tolist()) == ([1, 1], [9, 9])


def test_indices_are_drawn_over_all_that_they_may_be() -> None:
    program = lookups()
    ids, table, last = drawn(program, 400)
    assert (int(ids.min()), int(ids.max())) == (0, 99)
    assert table.dtype == torch.int32 and table.amax(0).tolist() == [6, 89, 69]
    assert sorted(set(last.tolist())) == list(range(1, 9))
    with torch.no_grad():
        assert torch.isfinite(program.module()(ids, table, last)).all()


def masked_mean(m: Any, ids: Tensor, mask: Tensor) -> Tensor:
    weights = mask[..., None].to(torch.float32)
    return m.head(m.e(ids) * weights).sum(1) / weights.sum(1)


def with_mask(mask: Tensor) -> Program:
    return edgeprune.capture(
        Net(masked_mean, e=nn.Embedding(9, 4), head=nn.Linear(4, 2)), (torch.ones(2, 6).long(), mask)
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_masks_begin_with_ones_and_are_padded_after_them(dtype: torch.dtype) -> None:
    example = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]).to(dtype)
    _, mask = drawn(with_mask(example))
    assert mask.dtype == dtype and mask[:, 0].all()
    assert (mask.int().diff(dim=1) <= 0).all() and len(set(mask.sum(1).tolist())) > 3


def test_masks_that_are_padded_on_the_left_stay_so() -> None:
    _, mask = drawn(with_mask(torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])))
    assert {tuple(row) for row in mask.tolist()} == {(0, 0, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1)}


def test_a_mask_without_an_example_has_both_kinds_in_every_row() -> None:
    program = with_mask(torch.ones(2, 6).long())
    program.example_inputs = None
    _, mask = drawn(program)
    assert ((mask.sum(1) > 0) & (mask.sum(1) < 6)).all()


def test_floats_are_as_in_an_example_without_negative_ones() -> None:
    net = Net(lambda m, x: m.a(x.log()), a=nn.Linear(4, 2))
    assert (drawn(edgeprune.capture(net, torch.rand(2, 4) + 0.5))[0] >= 0.5).all()
    assert (drawn(edgeprune.capture(net, torch.randn(2, 4)))[0] < 0).any()
    assert (drawn(edgeprune.capture(net, torch.ones(2, 4)))[0] < 0).any()


def test_the_slim_program_knows_the_example_of_the_dense_one() -> None:
    program = with_mask(torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]))
    slim = edgeprune.cut(program, edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.5, align=1))
    assert not drawn(slim)[1][:, 0].all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.ones(2, 6).long(),), r"expected 2 arrays \(inputs_0, inputs_1\), got 1"),
        ((torch.ones(2, 6).long(), torch.ones(2, 5).long()), r"inputs_1: expected \(\*, 6\), got \(2, 5\)"),
        ((torch.ones(2, 6), torch.ones(2, 6).long()), "inputs_0: expected int64, got float32"),
        (
            (torch.ones(2, 6).long(), torch.ones(3, 6).long()),
            "expected as many rows of each input, got 2 of inputs_0, 3",
        ),
        ({"inputs_0": torch.ones(2, 6).long(), "mask": 1}, "expected inputs_0, inputs_1, got inputs_0, mask"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^these: {message}"):
        fitted(input_specs(with_mask(torch.ones(2, 6).long())), given, "these")


def test_inputs_by_name_come_in_the_program_s_order() -> None:
    ids, mask = torch.ones(2, 6).long(), torch.zeros(2, 6).long()
    specs = input_specs(with_mask(torch.ones(2, 6).long()))
    assert [int(t.sum()) for t in fitted(specs, {"inputs_1": mask, "inputs_0": ids}, "these")] == [12, 0]
