"""Vocabularies: rows of tables that the ids in use never look up go, and what is left gives the very same outputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import edgeprune
from edgeprune import compat  # noqa: F401  (torchvision can be imported after it)
from edgeprune.errors import ApplyError, InputError, PlanError, ProofError
from edgeprune.graph.capture import Program
from edgeprune.graph.tokens import kept_vocabularies, with_numbers
from edgeprune.pruning.plan import PruningPlan
from tests.nets import Net
from tests.token_nets import GOOD, KEEP, REFUSED, SIZE, example, text

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def captured(net: nn.Module, n_inputs: int, dtype: torch.dtype = torch.int64) -> Program:
    return edgeprune.capture(net, example(n_inputs, dtype))


def names(program: Program) -> list[str]:
    return [str(name) for name in program.graph_signature.user_inputs]


def trimmed(
    program: Program, keep: dict[str, list[int]], unknown: dict[str, int] | None = None, **options: float
) -> tuple[PruningPlan, Program]:
    """The plan that keeps these ids, read back from its JSON, and the proved cut by it."""
    kept = edgeprune.vocabularies(program, keep, unknown)
    graph = edgeprune.analyze(program, vocabularies=kept)
    plan = edgeprune.plan(program, graph, **{"keep_macs": None, "align": 1, **options})
    assert PruningPlan.from_json(plan.to_json()) == plan
    slim = edgeprune.cut(program, PruningPlan.from_json(plan.to_json()))
    assert edgeprune.prove(program, slim, plan) <= 1e-10
    return plan, slim


def drawn(ids: tuple[int, ...] | list[int], n_inputs: int, dtype: torch.dtype = torch.int64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.tensor(ids)[torch.randint(len(ids), (4, 6), generator=generator)].to(dtype) for _ in range(n_inputs)]


CASES = [(name, torch.int64) for name in GOOD]
CASES += [(name, torch.int32) for name in ("indexing", "positions")]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_the_rows_of_unused_ids_go_and_the_others_give_the_same(name: str, dtype: torch.dtype) -> None:
    build, n_inputs, per_id = GOOD[name]
    net = build()
    program = captured(net, n_inputs, dtype)
    plan, slim = trimmed(program, {each: list(KEEP) for each in names(program)})
    ids = drawn(KEEP, n_inputs, dtype)
    want = net(*ids)
    torch.testing.assert_close(slim.module()(*ids), want, **EXACT)
    contract = edgeprune.slim_contract(slim)
    kept = kept_vocabularies(slim)
    assert {each: one.keep for each, one in kept.items()} == dict.fromkeys(names(program), KEEP)
    new = dict(with_numbers(kept, dict(zip(names(program), ids, strict=True))))
    assert max(int(each.max()) for each in new.values()) < len(KEEP)
    torch.testing.assert_close(contract.module()(*new.values()), want, **EXACT)
    n_rows = {
        tensor.shape for key, tensor in slim.state_dict.items() if key in next(iter(plan.vocabularies.values())).tables
    }
    assert all(len(KEEP) in shape for shape in n_rows) and n_rows
    assert sum(t.numel() for t in _floats(program)) - sum(t.numel() for t in _floats(slim)) >= per_id * (
        SIZE - len(KEEP)
    )


def _floats(program: Program) -> list[Tensor]:
    floats = {t.data_ptr(): t for t in program.state_dict.values() if t.is_floating_point()}
    return list(floats.values())


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", REFUSED)
def test_a_vocabulary_that_cannot_be_cut_is_refused_with_the_reason(name: str) -> None:
    build, reason = REFUSED[name]
    program = captured(build().double(), 1)
    with pytest.raises(InputError, match=reason) as error:
        edgeprune.analyze(program, vocabularies=edgeprune.vocabularies(program, {"inputs_0": list(KEEP)}))
    assert "\n" not in str(error.value)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("unknown", [3, 5])
@pytest.mark.parametrize("name", ["embedding", "positions", "the largest id"])
def test_an_unknown_id_stands_for_all_that_are_cut(name: str, unknown: int) -> None:
    """Everywhere: what is no lookup sees the unknown id too."""
    net = GOOD[name][0]()
    program = captured(net, 1)
    plan, slim = trimmed(program, {"inputs_0": list(KEEP)}, {"inputs_0": unknown})
    keep = torch.tensor(plan.vocabularies["inputs_0"].keep)
    assert set(keep.tolist()) == {*KEEP, unknown}
    ids = torch.arange(SIZE).repeat(3)[: 8 * 6].reshape(8, 6)
    want = net(torch.where(torch.isin(ids, keep), ids, unknown))
    torch.testing.assert_close(slim.module()(ids), want, **EXACT)
    assert kept_vocabularies(slim)["inputs_0"] == replace(plan.vocabularies["inputs_0"], tables={})


def test_an_id_that_was_cut_is_an_error_where_nothing_stands_for_it() -> None:
    program = captured(text(lambda m, ids: m.emb(ids)), 1)
    plan, slim = trimmed(program, {"inputs_0": [0, 3]})
    with pytest.raises(IndexError, match="out of range|out of bounds"):
        slim.module()(torch.full((2, 6), 2))
    with pytest.raises(InputError, match="inputs of the proof: inputs_0: expected ids that the plan keeps, got 2"):
        edgeprune.prove(program, slim, plan, torch.full((2, 6), 2))
    assert edgeprune.prove(program, slim, plan, torch.tensor([[0, 3] * 3, [3, 3, 0] * 2])) <= 1e-10


def test_the_proof_sees_a_wrong_row() -> None:
    program = captured(text(lambda m, ids: m.emb(ids)), 1)
    plan, slim = trimmed(program, {"inputs_0": list(KEEP)})
    with torch.no_grad():
        slim.state_dict["emb.weight"][2, 1] += 1
    with pytest.raises(ProofError, match="the slim network is not the masked dense network"):
        edgeprune.prove(program, slim, plan)


def test_inputs_with_a_table_in_common_keep_what_either_asks_for() -> None:
    program = captured(GOOD["a shared table"][0](), 2)
    plan, slim = trimmed(program, {"inputs_0": [2, 5], "inputs_1": [0, 5, 9]})
    assert {one.keep for one in plan.vocabularies.values()} == {(0, 2, 5, 9)}
    assert slim.state_dict["emb.weight"].shape == (4, 8)
    with pytest.raises(InputError, match="the rows of 'emb.weight' must stay, as the table is also read by embedding"):
        edgeprune.vocabularies(program, {"inputs_0": [2, 5]})


def test_every_input_has_ids_of_its_own_where_the_tables_are_two() -> None:
    net = GOOD["two vocabularies"][0]()
    program = captured(net, 2)
    _, slim = trimmed(program, {"inputs_1": [29, 4]})
    assert slim.state_dict["emb.weight"].shape == (SIZE, 8)
    assert slim.state_dict["other.weight"].shape == (2, 8)
    ids = [*drawn(list(range(SIZE)), 1), *drawn([4, 29], 1)]
    torch.testing.assert_close(slim.module()(*ids), net(*ids), **EXACT)


def test_padding_is_numbered_anew_and_channels_go_too() -> None:
    program = captured(text(lambda m, ids: m.emb(ids)), 1)
    plan, slim = trimmed(program, {"inputs_0": [0, 1, 9]}, keep_macs=0.5)
    assert slim.state_dict["emb.weight"].shape[0] == 3 and slim.state_dict["emb.weight"].shape[1] < 8
    [lookup] = [node for node in slim.graph.nodes if node.target is torch.ops.aten.embedding.default]
    assert lookup.args[2] == 1  # the row of id 1
    _, without = trimmed(program, {"inputs_0": [0, 9]})
    [lookup] = [node for node in without.graph.nodes if node.target is torch.ops.aten.embedding.default]
    assert lookup.args[2] == -1
    assert plan.exact


def test_a_comparison_is_numbered_anew_without_a_table_of_old_ids() -> None:
    program = captured(text(lambda m, ids: m.emb(ids) * (ids != 1).unsqueeze(-1)), 1)
    _, slim = trimmed(program, {"inputs_0": [0, 1, 9]})
    assert not [name for name in slim.state_dict if "old_ids" in name]
    program = captured(text(lambda m, ids: m.emb(ids) * (ids > 1).unsqueeze(-1)), 1)
    _, slim = trimmed(program, {"inputs_0": [0, 1, 9]})
    assert [tuple(slim.state_dict[name].shape) for name in slim.state_dict if "old_ids" in name] == [(3,)]


def test_a_vocabulary_is_cut_once() -> None:
    program = captured(text(lambda m, ids: m.emb(ids)), 1)
    _, slim = trimmed(program, {"inputs_0": list(KEEP)})
    with pytest.raises(InputError, match="its vocabulary has been cut already"):
        edgeprune.vocabularies(slim, {"inputs_0": [1, 3]})
    graph = edgeprune.analyze(slim)
    again = edgeprune.plan(slim, graph, 0.5, align=1)
    assert edgeprune.prove(slim, edgeprune.cut(slim, again, graph), again) <= 1e-10


def test_all_ids_are_no_cut() -> None:
    program = captured(text(lambda m, ids: m.emb(ids)), 1)
    plan, slim = trimmed(program, {"inputs_0": list(range(SIZE))}, keep_macs=0.5)
    assert plan.vocabularies == {} and "vocabularies" not in plan.to_json()
    assert kept_vocabularies(slim) == {}


def test_a_slim_network_is_trained_and_its_contract_follows() -> None:
    program = captured(text(lambda m, ids: m.emb(ids)), 1)
    _, slim = trimmed(program, {"inputs_0": list(KEEP)})
    module = slim.module().train()
    [ids] = drawn(KEEP, 1)
    before = module.get_parameter("emb.weight").detach().clone()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module(ids).square().sum().backward()
    optimizer.step()
    trained = slim.with_weights(module)
    assert not torch.equal(trained.state_dict["emb.weight"], before)
    new = dict(with_numbers(kept_vocabularies(trained), {"inputs_0": ids}))["inputs_0"]
    got = edgeprune.slim_contract(trained).module()(new)
    torch.testing.assert_close(got, trained.module()(ids), **EXACT)


def test_a_class_takes_back_its_tables_with_new_ids() -> None:
    net = text(lambda m, ids: m.emb(ids))
    program = captured(net, 1)
    _, slim = trimmed(program, {"inputs_0": list(KEEP)})
    [ids] = drawn(KEEP, 1)
    want = net(ids)
    with pytest.raises(ApplyError, match="numbers the ids of input 'inputs_0' anew, .* apply edgeprune.slim_contract"):
        slim.apply_to(net)
    edgeprune.slim_contract(slim).apply_to(net)
    assert net.get_submodule("emb").num_embeddings == len(KEEP)
    new = dict(with_numbers(kept_vocabularies(slim), {"inputs_0": ids}))["inputs_0"]
    torch.testing.assert_close(net(new), want, **EXACT)


# -- random networks -------------------------------------------------------------------------------------------------


@settings(max_examples=4, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_random_networks_give_the_same_on_the_ids_that_are_kept(data: st.DataObject) -> None:
    check_random_network(data)


@pytest.mark.sweep
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_many_random_networks_give_the_same(data: st.DataObject) -> None:
    check_random_network(data)


def check_random_network(data: st.DataObject) -> None:
    """One or two inputs, tables of their own or shared, masks, shifts, a second lookup."""
    n_inputs = data.draw(st.integers(1, 2))
    shared, mask, shift, second = (data.draw(st.booleans()) for _ in range(4))
    pad = data.draw(st.integers(0, 5))
    sizes = [SIZE + shift, SIZE + 5]

    def embedded(m: nn.Module, *ids: Tensor) -> Tensor:
        total = torch.zeros(1, dtype=torch.float64)
        for k, each in enumerate(ids):
            table = m.get_submodule("table0" if shared else f"table{k}")
            row = table(each + shift)
            total = total + (row * (each != pad).unsqueeze(-1) if mask else row)
        if second:
            total = total * torch.sigmoid(m.get_submodule("gate")(ids[0]))
        return total

    tables = {f"table{k}": nn.Embedding(sizes[k] + shift, 8) for k in range(n_inputs)}
    net = text(embedded, **tables, gate=nn.Embedding(SIZE + 2, 8))
    program = captured(net, n_inputs)
    keep = {
        name: sorted(data.draw(st.sets(st.integers(0, SIZE - 1), min_size=2, max_size=9))) for name in names(program)
    }
    plan, slim = trimmed(program, keep)
    ids = [drawn(plan.vocabularies[name].keep, 1)[0] for name in names(program)]
    torch.testing.assert_close(slim.module()(*ids), net(*ids), **EXACT)
    contract = edgeprune.slim_contract(slim)
    new = dict(with_numbers(kept_vocabularies(slim), dict(zip(names(program), ids, strict=True))))
    torch.testing.assert_close(contract.module()(*new.values()), net(*ids), **EXACT)


# -- transformers ----------------------------------------------------------------------------------------------------


def bert(kind: type) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16,
    )  # fmt: skip
    net = Net(lambda m, ids, mask: m.bert(input_ids=ids, attention_mask=mask)[0], bert=kind(config))
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[1, 6:] = 0
    return net.double().eval(), (torch.randint(0, 200, (2, 10)), mask)


def test_a_bert_keeps_its_positions_and_loses_the_words_that_are_not_used() -> None:
    net, (ids, mask) = bert(transformers.BertModel)
    program = edgeprune.capture(net, (ids, mask))
    keep = [0, 100, 101, 102, *range(150, 180)]
    plan, slim = trimmed(program, {"inputs_0": keep}, {"inputs_0": 100})
    shapes = {name.split(".")[-2]: tuple(t.shape) for name, t in slim.state_dict.items() if "_embeddings" in name}
    assert shapes == {"word_embeddings": (34, 16), "position_embeddings": (16, 16), "token_type_embeddings": (2, 16)}
    known = torch.where(torch.isin(ids, torch.tensor(keep)), ids, 100)
    torch.testing.assert_close(slim.module()(ids, mask), net(known, mask), **EXACT)
    assert list(plan.vocabularies) == ["inputs_0"]


def test_the_words_of_a_tied_decoder_are_its_outputs_and_stay() -> None:
    net, inputs = bert(transformers.BertForMaskedLM)
    program = edgeprune.capture(net, inputs)
    with pytest.raises(InputError, match="the rows of '.*decoder.weight' must stay, .* also read by linear"):
        edgeprune.vocabularies(program, {"inputs_0": [0, 1]})


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beside() -> Program:
    """Ids and a table of numbers."""
    net = Net(lambda m, ids, x: m.out(m.emb(ids).mean(1) + x), emb=nn.Embedding(SIZE, 8), out=nn.Linear(8, 3))
    return edgeprune.capture(net, (example(1)[0], torch.randn(2, 8)))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"inputs_0": [3, SIZE]}, f"expected ids from 0 to {SIZE - 1}, got {SIZE}"),
        ({"inputs_0": [3, -1]}, "expected ids from 0, got -1"),
        ({"inputs_0": [3, 5, 3]}, "expected every id once, got 3 2 times"),
        ({"inputs_0": []}, "expected a list of at least one id, got none"),
        ({"inputs_0": [1.5]}, "expected whole numbers, got 1.5"),
        ({"inputs_0": ["a"]}, "expected whole numbers, got 'a'"),
        ({"inputs_0": [True, False]}, "expected whole numbers, got True"),
        ({"inputs_0": [[1, 2]]}, "expected a list of at least one id, got an array"),
        ({"inputs_1": [1]}, r"expected an input whose ids look up the rows of a table \(inputs_0\), got 'inputs_1'"),
        ({"words": [1]}, "got 'words': it is no input of whole numbers"),
    ],
)
def test_ids_that_make_no_sense_are_refused(beside: Program, keep: dict[str, list[int]], message: str) -> None:
    program = beside
    with pytest.raises(InputError, match=message) as error:
        edgeprune.vocabularies(program, keep)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_an_unknown_id_needs_a_list_and_a_row() -> None:
    program = captured(text(lambda m, ids: m.emb(ids)), 1)
    with pytest.raises(InputError, match="unknown id: expected one for an input whose ids are given"):
        edgeprune.vocabularies(program, {"inputs_0": [1]}, {"x": 1})
    with pytest.raises(InputError, match=f"expected ids from 0 to {SIZE - 1}, got {SIZE}"):
        edgeprune.vocabularies(program, {"inputs_0": [1]}, {"inputs_0": SIZE})


def test_used_ids_are_found_in_arrays() -> None:
    arrays = [np.array([[3, 1], [3, 9]]), torch.tensor([4.0, 1.0]), np.array([2], dtype=np.uint8)]
    assert edgeprune.used_ids("ids", arrays) == (1, 2, 3, 4, 9)
    for wrong, message in (
        ([np.array([1.5])], "expected data of whole numbers, got float64"),
        ([np.array([np.nan])], "expected data of whole numbers"),
        ([np.array([-1])], "expected ids from 0, got -1"),
        ([], "expected a list of at least one id, got none"),
        ([np.array(["a"])], "expected data of whole numbers"),
    ):
        with pytest.raises(InputError, match=message):
            edgeprune.used_ids("ids", wrong)


@pytest.fixture(scope="module")
def planned() -> tuple[Program, PruningPlan]:
    program = captured(text(lambda m, ids: m.emb(ids)), 1)
    return program, trimmed(program, {"inputs_0": list(KEEP)})[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": [1, 3]}, "expected the rows of its tensors to be those of its ids"),
        ({"size": SIZE + 1}, f"expected {SIZE} ids in all, got {SIZE + 1}"),
        ({"size": 10}, r"\['keep'\]: expected ids below 10, got 15"),
        ({"keep": []}, "keeps nothing"),
        ({"keep": [3, 1]}, "expected ascending indices"),
        ({"unknown": 2}, r"\['unknown'\]: expected an id that is kept or null, got 2"),
        ({"size": "x"}, r"\['size'\]: expected a whole number from 1"),
        ({"tables": {"emb.weight": -1}}, "expected the dim of the rows of each tensor"),
        ({"tables": {"fc.weight": 0}}, "expected"),
    ],
)
def test_a_plan_that_was_changed_is_refused(
    planned: tuple[Program, PruningPlan], change: dict[str, object], message: str
) -> None:
    program, plan = planned
    document = json.loads(plan.to_json())
    document["vocabularies"]["inputs_0"] |= change
    with pytest.raises(PlanError, match=message):
        edgeprune.cut(program, PruningPlan.from_json(json.dumps(document)))


# -- ONNX ------------------------------------------------------------------------------------------------------------


def test_both_contracts_agree_in_onnxruntime(tmp_path: Path) -> None:
    """With int32; int64 goes through the command."""
    dtype = torch.int32
    net = GOOD["positions"][0]().float()
    program = captured(net, 1, dtype)
    kept = edgeprune.vocabularies(program, {"inputs_0": list(KEEP)})
    graph = edgeprune.analyze(program, vocabularies=kept)
    slim = edgeprune.cut(program, edgeprune.plan(program, graph, keep_macs=None), graph)
    edgeprune.export_onnx(slim, tmp_path / "full.onnx")
    edgeprune.export_onnx(edgeprune.slim_contract(slim), tmp_path / "slim.onnx")
    full, narrow = (onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("full", "slim"))
    [ids] = drawn(KEEP, 1, dtype)
    [new] = [each.numpy() for _, each in with_numbers(kept_vocabularies(slim), {"inputs_0": ids})]
    [got] = full.run(None, {"input": ids.numpy()})
    np.testing.assert_allclose(got, net(ids).detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(narrow.run(None, {"input": new})[0], got, atol=1e-6)
    with pytest.raises(Exception, match="out of data bounds|invalid index"):
        full.run(None, {"input": np.full((1, 6), 2, dtype=ids.numpy().dtype)})
