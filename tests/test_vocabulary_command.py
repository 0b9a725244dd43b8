"""Vocabularies from the command line: compress, replay, export and inspect of a network of token ids; bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import Result
from torch import nn
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

import edgeprune
from edgeprune.cli.app import app
from edgeprune.commands.vocabulary import asked_vocabularies, check_data
from edgeprune.errors import InputError
from edgeprune.export.contracts import write_contracts
from edgeprune.formats.load import load_model
from edgeprune.formats.save import save_program
from edgeprune.records import IDENTITY, DataSource, ModelInfo, Targets, Vocabulary
from edgeprune.requests import CompressRequest
from tests.nets import Net
from tests.token_nets import GOOD, KEEP, example, text

N_IDS = 500


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of ids below 500, of which 1 is padding."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.pt2"
    net = text(lambda m, ids: m.emb(ids) * (ids != 1).unsqueeze(-1), size=N_IDS).float()
    save_program(path, edgeprune.capture(net, example(1)), ModelInfo((6,)))
    return path


@pytest.fixture(scope="module")
def found(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a network with half the MACs and 102 ids, one of which stands for the others."""
    out = tmp_path_factory.mktemp("run") / "out"
    asked = ("--input-features", "inputs_0=0-1,100-198", "--unknown-id", "inputs_0=7", "--keep-macs", 0.5)
    result = run("compress", model, *asked, "--align", 1, "--out", out)
    assert result.exit_code == 0, result.output
    assert "102" in result.output and "on the ids that are kept" in result.output
    return out


def test_the_plan_and_the_record_tell_the_ids(found: Path) -> None:
    plan, record = (json.loads((found / name).read_text()) for name in ("plan.json", "run.json"))
    kept = plan["vocabularies"]["inputs_0"]
    assert kept == {"size": N_IDS, "keep": [0, 1, 7, *range(100, 199)], "unknown": 7, "tables": {"emb.weight": 0}}
    [told] = record["vocabularies"]
    width = len(plan["tensors"]["emb.weight"].get("1", range(8)))
    assert told == {
        "input": "inputs_0", "n_ids": N_IDS, "n_kept": 102, "unknown": 7, "tables": ["emb.weight"],
        "dense_bytes": 4 * 8 * N_IDS, "slim_bytes": 4 * 102 * width,
    }  # fmt: skip
    assert record["slim"]["onnx_bytes"] < record["dense"]["onnx_bytes"]
    assert record["asked"]["vocabularies"] == ["inputs_0=0-1,100-198"]


def test_a_plan_is_replayed(model: Path, found: Path, tmp_path: Path) -> None:
    result = run("compress", model, "--plan", found / "plan.json", "--out", tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "again" / "plan.json").read_bytes() == (found / "plan.json").read_bytes()
    first, second = (load_model(folder / "slim.pt2").program for folder in (found, tmp_path / "again"))
    ids = torch.arange(6).repeat(3, 1)
    assert torch.equal(first.module()(ids), second.module()(ids))


def test_every_file_takes_its_ids(model: Path, found: Path, tmp_path: Path) -> None:
    result = run("export", "--onnx", found / "slim.pt2", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "features.json").read_text())
    keep = told["vocabularies"]["input"]["keep"]
    assert told["vocabularies"]["input"] == {"size": N_IDS, "keep": [0, 1, 7, *range(100, 199)], "unknown": 7}
    ids = {name: entry["inputs"][0]["ids"] for name, entry in told["contracts"].items()}
    old, new = {"numbering": "old", "size": N_IDS}, {"numbering": "new", "size": len(keep)}
    assert ids == {"full": old, "slim": new, "preprocess": old}
    sessions = {name: onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ids}
    given = np.array([[0, 1, 7, 100, 198, 2], [499, 250, 7, 7, 101, 1]])
    numbers = np.array([[0, 1, 2, 3, 101, 2], [2, 2, 2, 2, 4, 1]])
    assert np.array_equal(sessions["preprocess"].run(None, {"input": given})[0], numbers)
    [want] = sessions["full"].run(None, {"input": given})
    np.testing.assert_allclose(sessions["slim"].run(None, {"input": numbers})[0], want, atol=1e-6)
    np.testing.assert_allclose(
        load_model(found / "slim.pt2").program.module()(torch.tensor(given)).detach(), want, atol=1e-5
    )
    tables = [tuple(t.dims) for t in onnx.load(tmp_path / "slim.onnx").graph.initializer]
    assert not any(N_IDS in sizes for sizes in tables) and any(len(keep) in sizes for sizes in tables)


def test_several_inputs_have_both_contracts(tmp_path: Path) -> None:
    program = edgeprune.capture(GOOD["two vocabularies"][0]().float(), example(2))
    graph = edgeprune.analyze(program, vocabularies=edgeprune.vocabularies(program, {"inputs_1": list(KEEP)}))
    slim = edgeprune.cut(program, edgeprune.plan(program, graph, keep_macs=None), graph)
    files = write_contracts(slim, ModelInfo((6,)), tmp_path)
    assert [Path(file.path).name for file in files] == ["full.onnx", "slim.onnx", "preprocess.onnx", "features.json"]
    told = json.loads((tmp_path / "features.json").read_text())
    assert told["vocabularies"] == {"inputs_1": {"size": 30, "keep": list(KEEP), "unknown": None}}
    assert ["ids" in value for value in told["contracts"]["slim"]["inputs"]] == [False, True]


def test_files_of_a_fixed_batch_are_checked_on_ids_that_are_kept(model: Path, tmp_path: Path) -> None:
    program = load_model(model).program
    graph = edgeprune.analyze(program, vocabularies=edgeprune.vocabularies(program, {"inputs_0": range(3, 60, 2)}))
    slim = edgeprune.cut(program, edgeprune.plan(program, graph, keep_macs=None), graph)
    save_program(tmp_path / "slim.pt2", slim, ModelInfo((6,)))
    result = run("export", tmp_path / "slim.pt2", "--onnx", "--ort", "--batch", 2, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    ids = np.array([[3, 5, 59, 21, 3, 57], [7, 9, 11, 13, 15, 17]])
    [got] = onnxruntime.InferenceSession(tmp_path / "out" / "full.onnx").run(None, {"input": ids})
    np.testing.assert_allclose(got, slim.module()(torch.tensor(ids)).detach(), atol=1e-5)


def test_inspect_shows_the_tables_of_an_input_of_ids(model: Path, tmp_path: Path) -> None:
    [row] = json.loads(run("inspect", model, "--json").stdout)["tokens"]
    assert row == {"input": "inputs_0", "n_ids": N_IDS, "tables": ["emb.weight"], "params": 8 * N_IDS, "reason": None}
    assert "can be cut" in run("inspect", model).output
    tied = Net(
        lambda m, ids: m.up(torch.relu(m.emb(ids) @ m.emb.weight.t())), emb=nn.Embedding(9, 4), up=nn.Linear(9, 4)
    )
    save_program(tmp_path / "tied.pt2", edgeprune.capture(tied, (torch.ones(2, 6, dtype=torch.long),)), ModelInfo((6,)))
    [row] = json.loads(run("inspect", tmp_path / "tied.pt2", "--json").stdout)["tokens"]
    assert row["reason"].startswith("must stay: a table is also read by ")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("inputs_0=500",), "vocabulary of 'inputs_0': expected ids from 0 to 499, got 500"),
        (("inputs_0=3,3",), "expected every id once, got 3 2 times"),
        (("inputs_0=9-3",), "expected a range that ascends, got '9-3'"),
        (("inputs_0=",), "expected an input and its ids, such as ids=used"),
        (("x=3",), "expected an input whose ids look up the rows of a table (inputs_0), got 'x'"),
        (("inputs_0=nothing.txt",), "nothing.txt: expected a file of ids, got nothing there"),
        (("inputs_0=WORDS",), "expected whole numbers with spaces, commas or new lines between, got 'one'"),
        (("inputs_0=used",), "expected data to find the ids in, got none"),
        (("inputs_0=1", "inputs_0=2"), "expected every input once, got 'inputs_0' twice"),
        (("auto", "off"), "one of auto, off, a count or a ratio"),
        (("inputs_0=1", "--unknown-id", "inputs_0=x"), "--unknown-id inputs_0=...: expected a whole number from 0"),
        (("inputs_0=1", "--unknown-id", "y=1"), "expected one for an input whose ids are given (inputs_0), got 'y'"),
        (("off", "--unknown-id", "inputs_0=1"), "expected --input-features inputs_0=..., got no list of ids"),
        (("inputs_0=1", "--plan", "PLAN"), "expected no --plan, which says itself what stays"),
    ],
)
def test_bad_input_is_one_line(model: Path, found: Path, tmp_path: Path, asked: tuple[str, ...], message: str) -> None:
    (tmp_path / "words.txt").write_text("one two")
    places: dict[str, Any] = {"inputs_0=WORDS": f"inputs_0={tmp_path / 'words.txt'}", "PLAN": found / "plan.json"}
    options: list[object] = []
    for text_ in asked:
        options += [text_] if text_.startswith("--") or options[-1:] == ["--unknown-id"] else []
        if not options or options[-1] is not text_:
            options += [] if options[-1:] == ["--plan"] else ["--input-features"]
            options.append(places.get(text_, text_))
    result = run("compress", model, *options, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_a_file_of_ids_may_be_written_in_any_way(model: Path, tmp_path: Path) -> None:
    program = load_model(model).program
    for content in ("0 1\n7,9\n100-102", "[0, 1, 7, 9, 100, 101, 102]", "102\n9-9, 0,1,7 100-101"):
        (tmp_path / "ids.txt").write_text(content)
        request = CompressRequest(str(model), vocabularies=(f"inputs_0={tmp_path / 'ids.txt'}",))
        kept = asked_vocabularies(request, program, None)
        assert kept["inputs_0"].keep == (0, 1, 7, 9, 100, 101, 102)


# -- the ids of data -------------------------------------------------------------------------------------------------


def holding(*splits: list[list[int]]) -> DataSource:
    """Data whose train, val and test splits hold these ids, as numbers of any type."""
    train, val, test = (
        TensorDataset(torch.tensor(rows, dtype=torch.float32), torch.zeros(len(rows))) for rows in splits
    )
    return DataSource("ids", train, val, test, (2,), (), IDENTITY, targets=Targets("none"))


def test_the_ids_that_the_data_use_are_kept(model: Path) -> None:
    program = load_model(model).program
    request = CompressRequest(str(model), vocabularies=("inputs_0=used",))
    data = holding([[3, 9], [9, 4]], [[499, 3]], [[3, 3]])
    kept = asked_vocabularies(request, program, data)
    assert kept == {"inputs_0": Vocabulary(N_IDS, (3, 4, 9, 499))}
    check_data(kept, program, data)


def test_data_with_ids_that_are_cut_need_an_unknown_id(model: Path) -> None:
    program = load_model(model).program
    request = CompressRequest(str(model), vocabularies=("inputs_0=used",))
    data = holding([[3, 9]], [[4, 3]], [[3, 7], [8, 3]])
    kept = asked_vocabularies(request, program, data)
    with pytest.raises(InputError, match="got none of the test split's 7 and 1 more; --unknown-id inputs_0=ID says"):
        check_data(kept, program, data)
    kept = asked_vocabularies(replace(request, unknown_ids=("inputs_0=0",)), program, data)
    assert kept == {"inputs_0": Vocabulary(N_IDS, (0, 3, 4, 9), 0)}
    check_data(kept, program, data)
