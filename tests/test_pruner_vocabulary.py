"""A Pruner cuts the rows of ids that are not used, with its first step, and what comes of it says which are kept."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.cost.macs import macs
from edgeprune.errors import ApplyError, InputError
from edgeprune.export.onnx import export_onnx
from edgeprune.formats.load import load
from edgeprune.graph.tokens import kept_vocabularies
from edgeprune.integrations.inplace import InPlace
from edgeprune.pruner.ids import KeptIds
from edgeprune.pruner.measuring import file_feed
from edgeprune.pruning.plan import PruningPlan
from edgeprune.records import Vocabulary
from edgeprune.runrecord import run_from_json

N_IDS = 40
KEEP = (0, 3, 4, 5, 11, 30)


class Words(nn.Module):
    """Ids and a table come in; the words are looked up, and 0 is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.numbers = nn.Embedding(N_IDS, 16, padding_idx=0), nn.Linear(6, 16)
        self.mix, self.head = nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        words = (self.words(ids) * (ids != 0).unsqueeze(-1)).sum(1)
        return self.head(torch.relu(self.mix(torch.cat([torch.relu(words), torch.relu(self.numbers(numbers))], 1))))


def words(seed: int = 0) -> Words:
    torch.manual_seed(seed)
    return Words()


def inputs(ids: tuple[int, ...] = tuple(range(N_IDS)), n: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(0, len(ids), (n, 5), generator=generator)
    return torch.tensor(ids)[places], torch.randn(n, 6, generator=generator)


def pruner_of(model: nn.Module, **choices: Any) -> edgeprune.Pruner:
    asked = {"vocabularies": {"ids": list(KEEP)}, "keep_macs": 0.5, "steps": 2, "align": 1}
    return edgeprune.Pruner(model, inputs(), **{**asked, **choices})


def learn(module: nn.Module, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for seed in range(steps):
        optimizer.zero_grad()
        module(*inputs(KEEP, seed=seed)).square().sum().backward()
        optimizer.step()


def test_the_rows_go_with_the_first_step_and_the_channels_go_on() -> None:
    model = words()
    pruner = pruner_of(model)
    dense, shapes = pruner.program, []
    for module in pruner:
        shapes.append(tuple(module.get_parameter("words.weight").shape))
        learn(module)
        with pytest.raises(IndexError):
            module(*inputs((1,)))
    assert [rows for rows, _ in shapes] == [len(KEEP)] * 2 and shapes[1][1] < 16
    assert kept_vocabularies(pruner.program)["ids"].keep == KEEP
    assert macs(pruner.program) / macs(dense) <= 0.5
    assert pruner.plan is not None
    assert pruner.plan.vocabularies["ids"].tables == {"words.weight": 0}
    replayed = edgeprune.cut(dense, pruner.plan)
    assert edgeprune.prove(dense, replayed, pruner.plan) <= 1e-5
    assert {n: t.shape for n, t in replayed.state_dict.items()} == {
        n: t.shape for n, t in pruner.program.state_dict.items()
    }
    assert tuple(model.words.weight.shape) == (N_IDS, 16)


def test_ids_alone_are_one_step_that_changes_no_answer() -> None:
    model = words()
    pruner = edgeprune.Pruner(model, inputs(), vocabularies={"ids": torch.tensor(KEEP)})
    dense = macs(pruner.program)
    [module] = list(pruner)
    given = inputs(KEEP)
    torch.testing.assert_close(module.eval()(*given), model(*given))
    assert macs(pruner.program) == dense


@pytest.mark.parametrize("ids", [list(KEEP), set(KEEP), np.array(KEEP), torch.tensor(KEEP), iter(KEEP)], ids=type)
def test_ids_come_in_any_order_and_form(ids: Any) -> None:
    assert KeptIds.asked({"ids": ids}, None).texts == {"vocabularies": ["ids=0,3-5,11,30"]}


def test_an_unknown_id_stands_for_those_that_are_cut() -> None:
    model = words()
    pruner = edgeprune.Pruner(model, inputs(), vocabularies={"ids": KEEP}, unknown_ids={"ids": 7})
    [module] = list(pruner)
    ids, numbers = inputs()
    known = torch.where(torch.isin(ids, torch.tensor([*KEEP, 7])), ids, 7)
    assert not torch.equal(ids, known)
    torch.testing.assert_close(module.eval()(ids, numbers), model(known, numbers))


def test_the_steps_are_what_a_plan_with_these_ids_chooses() -> None:
    model = words()
    program = edgeprune.capture(model, inputs())
    graph = edgeprune.analyze(program, vocabularies=edgeprune.vocabularies(program, {"ids": KEEP}))
    pruner = pruner_of(model, steps=1)
    list(pruner)
    assert pruner.plan == edgeprune.plan(program, graph, 0.5, align=1)


def test_gradients_score_the_channels_and_the_optimizer_loses_the_rows() -> None:
    pruner = pruner_of(words(), criterion="taylor", steps=1)
    optimizer = torch.optim.Adam(pruner.module.parameters())
    pruner.module(*inputs(KEEP)).square().sum().backward()
    pruner.observe()
    optimizer.step()
    module = next(pruner)
    moved = pruner.migrate(optimizer)
    assert moved.afresh == () and "words.weight" in moved.carried
    table = module.get_parameter("words.weight")
    assert optimizer.state[table]["exp_avg"].shape == table.shape and table.shape[0] == len(KEEP)


def test_a_share_of_the_columns_is_no_share_of_the_rows() -> None:
    pruner = pruner_of(words(), keep_macs=1.0, layer_ratios={"words": 0.5}, steps=2)
    shapes = [tuple(module.get_parameter("words.weight").shape) for module in pruner]
    assert shapes == [(len(KEEP), 11), (len(KEEP), 8)]
    left = pruner_of(words(), leave=["words"], steps=1)
    assert [tuple(m.get_parameter("words.weight").shape) for m in left] == [(len(KEEP), 16)]


def test_a_size_counts_the_rows(tmp_path: Path) -> None:
    """They are 2 of the dense file's 9 kB; the channels make up for what is missing alone."""
    pruner = edgeprune.Pruner(words(), inputs(), vocabularies={"ids": KEEP}, max_size=6600, steps=1, align=1)
    [module] = list(pruner)
    assert module.get_parameter("words.weight").shape[0] == len(KEEP)
    assert module.get_parameter("mix.weight").shape[0] >= 24
    assert export_onnx(pruner.program, tmp_path / "slim.onnx").size_bytes <= 6600


def test_the_run_folder_tells_the_ids_as_compress_does(tmp_path: Path) -> None:
    pruner = pruner_of(words(), unknown_ids={"ids": 7})
    for module in pruner:
        learn(module)
    out = tmp_path / "run"
    pruner.save(out)
    plan = PruningPlan.from_json((out / "plan.json").read_text())
    assert plan == pruner.plan and plan.vocabularies["ids"].keep == (0, 3, 4, 5, 7, 11, 30)
    record = run_from_json((out / "run.json").read_text())
    [told] = record.vocabularies
    width = module.get_parameter("words.weight").shape[1]
    assert (told.input, told.n_ids, told.n_kept, told.unknown, told.tables) == ("ids", N_IDS, 7, 7, ("words.weight",))
    assert (told.dense_bytes, told.slim_bytes) == (4 * 16 * N_IDS, 4 * width * 7)
    assert record.asked["vocabularies"] == ["ids=0,3-5,11,30"] and record.asked["unknown_ids"] == ["ids=7"]
    assert "vocabularies=['ids=0,3-5,11,30']" in record.command
    assert record.slim.onnx_bytes < record.dense.onnx_bytes and record.proof_error <= 1e-5
    page = (out / "report.html").read_text()
    assert "Ids of ids" in page
    given = inputs()
    torch.testing.assert_close(load(out / "slim.pt2").program.module()(*given), module.eval()(*given))
    assert kept_vocabularies(load(out / "slim.pt2").program)["ids"] == Vocabulary(N_IDS, (0, 3, 4, 5, 7, 11, 30), 7)


def test_a_loop_that_was_cut_off_goes_on_with_the_same_ids() -> None:
    whole = pruner_of(words())
    for module in whole:
        learn(module)
    begun = pruner_of(words())
    dense = begun.state_dict()
    learn(next(begun))
    file = io.BytesIO()
    torch.save(begun.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = pruner_of(words(5))
    resumed.load_state_dict(dense)
    assert next(resumed).get_parameter("words.weight").shape[0] == len(KEEP)
    resumed.load_state_dict(state)
    assert kept_vocabularies(resumed.program)["ids"].keep == KEEP
    next(resumed)
    learn(next(resumed))
    assert resumed.plan == whole.plan
    assert all(torch.equal(resumed.program.state_dict[name], t) for name, t in whole.program.state_dict.items())
    with pytest.raises(
        InputError, match=r"options of the state, vocabularies \['ids=0,3-5,11,30'\], got \['ids=0-3'\]"
    ):
        pruner_of(words(), vocabularies={"ids": range(4)}).load_state_dict(state)


def test_a_class_takes_the_new_ids() -> None:
    model = words()
    pruner = pruner_of(model, steps=1, appliable=True)
    [module] = list(pruner)
    ids, numbers = inputs(KEEP)
    want = module.eval()(ids, numbers)
    with pytest.raises(ApplyError, match="numbers the ids of input 'ids' anew, .* apply edgeprune.slim_contract"):
        pruner.apply_to(model)
    edgeprune.slim_contract(pruner.program).apply_to(model)
    torch.testing.assert_close(model(torch.searchsorted(torch.tensor(KEEP), ids), numbers), want)


def test_files_are_timed_on_ids_that_are_kept() -> None:
    program = edgeprune.capture(words(), inputs())
    kept = edgeprune.vocabularies(program, {"ids": KEEP})
    assert set(file_feed(program, kept)["ids"].ravel().tolist()) <= set(KEEP)
    assert not set(file_feed(program, {})["ids"].ravel().tolist()) <= set(KEEP)


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"vocabularies": {"x": [3]}}, r"expected an input whose ids look up the rows of a table \(ids\), got 'x'"),
        ({"vocabularies": {"numbers": [3]}}, r"vocabulary of 'numbers': .* \(ids\), got 'numbers': "),
        ({"vocabularies": {"ids": [3, N_IDS]}}, f"vocabulary of 'ids': expected ids from 0 to 39, got {N_IDS}"),
        ({"vocabularies": {"ids": [-1]}}, "vocabulary of 'ids': expected ids from 0, got -1"),
        ({"vocabularies": {"ids": [3, 3]}}, "expected every id once, got 3 2 times"),
        ({"vocabularies": {"ids": []}}, "expected a list of at least one id, got none"),
        ({"vocabularies": {"ids": [0.5]}}, "expected whole numbers, got 0.5"),
        ({"vocabularies": {"ids": [True] * N_IDS}}, "expected whole numbers, got True"),
        ({"vocabularies": {"ids": "used"}}, "expected a list of ids, got 'used'"),
        ({"vocabularies": {"ids": 3}}, "expected a list of ids, got 3"),
        ({"vocabularies": {"ids": None}}, "expected a list of ids, got None"),
        ({"vocabularies": {"ids": torch.tensor(3)}}, r"expected a list of .*ids?, got "),
        ({"vocabularies": {"ids": [[3], [4, 5]]}}, "expected a list of ids, got a list"),
        ({"vocabularies": [3]}, r"vocabularies: expected a dict by the names of inputs, got \[3\]"),
        ({"unknown_ids": {"ids": N_IDS}}, "vocabulary of 'ids': expected ids from 0 to 39, got 40"),
        ({"unknown_ids": {"ids": "7"}}, "unknown_ids: ids: expected a whole number from 0, got '7'"),
        ({"unknown_ids": {"x": 7}}, r"unknown id: expected one for an input whose ids are given \(ids\), got 'x'"),
        (
            {"unknown_ids": {"ids": 7}, "vocabularies": None},
            "unknown_ids: expected vocabularies={'ids': ids}, got none",
        ),
        ({"vocabularies": {}, "keep_macs": None}, "Pruner: expected a budget, .* or vocabularies, got none"),
    ],
)
def test_ids_that_make_no_sense_are_refused_in_one_line(choices: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        pruner_of(words(), **choices)
    assert "\n" not in str(caught.value)


def test_a_class_that_shrinks_in_place_keeps_its_ids() -> None:
    model = words()
    with pytest.raises(InputError, match="shrink: expected a Pruner without vocabularies"):
        pruner_of(model, appliable=True).shrink(model)
    assert model.words.num_embeddings == N_IDS
    with pytest.raises(InputError, match="PruningCallback: vocabularies: expected none"):
        InPlace(inputs(), (1,), None, None, {"keep_macs": 0.5, "vocabularies": {"ids": KEEP}})
