"""Drawn inputs are ones that the network accepts, and given ones are told from what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import InputError
from edgeprune.export.contracts import write_contracts
from edgeprune.export.floatfile import open_float
from edgeprune.export.onnx import export_onnx
from edgeprune.export.onnxfile import samples_of_file
from edgeprune.export.parity import samples_of
from edgeprune.graph.capture import Program
from edgeprune.graph.drawn import drawn_leaves
from edgeprune.graph.indices import index_ranges
from edgeprune.graph.specs import InputSpec, batches_of, batches_of_one_size, exactly, fitted, input_specs
from edgeprune.records import ModelInfo
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


# --- one rule for what is given, whoever takes it


def takers(folder: Path) -> dict[str, Callable[[Any], object]]:
    """All that take a caller's inputs, for one small network: integers `(batch, 4)` in, floats out."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(9, 3), nn.Flatten(), nn.Linear(12, 2))
    program = edgeprune.capture(network, torch.ones(2, 4).long())
    plan = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.9)
    slim = edgeprune.cut(program, plan)
    path = folder / "net.onnx"
    export_onnx(program, path, simplify=False)
    return {
        "a program": lambda inputs: samples_of(program, inputs),
        "the proof": lambda inputs: edgeprune.prove(program, slim, plan, inputs),
        "a file": lambda inputs: samples_of_file(path, inputs),
        "a fixed batch": lambda inputs: samples_of_file(path, inputs, 4),
        "calibration": lambda inputs: open_float(path, inputs),
        "the contracts": lambda inputs: write_contracts(
            program, ModelInfo((4,)), folder / "out", inputs, simplify=False
        ),
    }


def test_whoever_takes_inputs_takes_and_refuses_the_same(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 9, (10, 4))
    read_only = ids.copy()
    read_only.flags.writeable = False
    fine = (ids, ids.astype(np.int32), ids.astype(">i8"), ids[::-1], read_only)
    bad = {
        "expected int64, got float32": ids.astype(np.float32),
        r"expected \(\*, 4\), got \(10, 3\)": ids[:, :3],
        r"expected \(\*, 4\), got \(0, 4\)": ids[:0],
        "expected int64, got <U1": np.full((10, 4), "a"),
    }
    for name, take in takers(tmp_path).items():
        for inputs in fine if name != "the contracts" else fine[2:3]:
            take(inputs)
        for message, inputs in bad.items():
            with pytest.raises(InputError, match=message):
                take(inputs)


def test_rows_go_in_batches_and_none_is_left_out() -> None:
    specs = (InputSpec("x", (None, 3), torch.float32), InputSpec("table", (5,), torch.float32))
    x, table = torch.arange(30.0).view(10, 3), torch.zeros(5)
    batches = list(batches_of((x, table), specs))
    assert [len(rows) for rows, _ in batches] == [10, 1, 3, 7] and all(t is table for _, t in batches)
    assert torch.equal(batches[0][0], x) and torch.equal(batches[3][0], x[:7])
    four = [rows for rows, _ in batches_of_one_size((x, table), specs, 4)]
    assert [len(rows) for rows in four] == [4, 4, 4] and torch.equal(torch.cat(four)[:10], x)
    assert torch.equal(four[2][2:], x[:2])  # filled from the start
    assert list(batches_of((table,), specs[1:])) == [(table,)]
    assert list(batches_of_one_size((table,), specs[1:], 4)) == [(table,)]
    large = InputSpec("x", (None, 2**21), torch.float32)
    assert [len(rows) for (rows,) in batches_of([torch.zeros(5, 2**21)], [large], sizes=())] == [2, 2, 1]


def test_what_data_hold_keeps_its_value_or_is_refused() -> None:
    floats = np.array([[0.0, 3.0, 255.0]], np.float32)
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.float64, torch.float16):
        taken = exactly(floats, InputSpec("x", (None, 3), dtype), "data")
        assert torch.from_numpy(taken).dtype == dtype and taken.tolist() == floats.tolist()
    for dtype, number in (
        (torch.int64, 0.5),
        (torch.uint8, 256.0),
        (torch.uint8, -1.0),
        (torch.bool, 2.0),
        (torch.int64, np.nan),
    ):
        with pytest.raises(InputError, match=r"data: x: expected numbers of \w+, got others, e\.g\. "):
            exactly(np.array([[1.0, number]], np.float32), InputSpec("x", (None, 2), dtype), "data")
    with pytest.raises(InputError, match="x: expected an input of a type that numpy has, got bfloat16"):
        exactly(floats, InputSpec("x", (None, 3), torch.bfloat16), "data")
