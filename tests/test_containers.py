"""Outputs in dataclasses and ModelOutputs: a file gives the names of their fields, and needs no class of theirs."""

from __future__ import annotations

import dataclasses
import io
import json
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._pytree import tree_leaves
from transformers.modeling_outputs import BaseModelOutput
from typer.testing import CliRunner

from edgeprune import analyze, capture, compat, cut, export_onnx, plan, prove  # noqa: F401  (compat: torchvision)
from edgeprune.cli.app import app
from edgeprune.cost.macs import macs
from edgeprune.export.answers import structure_of
from edgeprune.formats.load import load
from edgeprune.formats.pt2 import read_program, write_program
from edgeprune.graph.specs import output_names
from edgeprune.tasks.usertask import UserTask

X = torch.linspace(-1, 1, 16).reshape(2, 8)


@dataclasses.dataclass
class Part:
    scores: torch.Tensor
    mask: Any = None

    def __post_init__(self) -> None:
        assert self.scores.ndim == 2  # of a class's own code nothing runs but in the network itself


@dataclasses.dataclass
class Answer:
    part: Part
    nothing: Any = None
    others: Any = None


class Pair(NamedTuple):
    scores: torch.Tensor
    sizes: torch.Tensor


torch.export.register_dataclass(Part, serialized_type_name="tests.Part")
torch.export.register_dataclass(Answer, serialized_type_name="tests.Answer")
pytree._register_namedtuple(Pair, serialized_type_name="tests.Pair")


class Heads(nn.Module):
    """Two heads on a hidden layer of 32, put together by `gather`."""

    def __init__(self, gather: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.scores, self.sizes = nn.Linear(8, 32), nn.Linear(32, 3), nn.Linear(32, 2)
        self.gather = gather

    def forward(self, x: torch.Tensor) -> Any:
        hidden = torch.relu(self.body(x))
        return self.gather(self.scores(hidden), self.sizes(hidden))


GATHERED: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], Any], Any]] = {
    "fields": (Part, {"scores": "scores", "mask": "mask"}),
    "nested": (
        lambda a, b: Answer(Part(a), others={"more": [b]}),
        {"part": {"scores": "output_0"}, "others": {"more": ["output_1"]}},
    ),
    "in a list": (lambda a, b: [Part(a, b), None], [{"scores": "output_0", "mask": "output_1"}, None]),
    "named tuple": (Pair, ["output_0", "output_1"]),
    "defaultdict": (lambda a, b: defaultdict(list, a=a, b=b), {"a": "a", "b": "b"}),
    "OrderedDict": (lambda a, b: OrderedDict(b=b, a=a), {"b": "b", "a": "a"}),
    "deque": (lambda a, b: deque([a, b]), ["output_0", "output_1"]),
    "numbers": (lambda a, b: {4: a, 2: b}, {"4": "4", "2": "2"}),
    "ModelOutput": (
        lambda a, b: BaseModelOutput(a, (b, a)),
        {"last_hidden_state": "output_0", "hidden_states": ["output_1", "output_2"]},
    ),
}


def saved(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> bytes:
    """What plain torch.export.save writes of a network whose batch is free."""
    batch = torch.export.Dim("batch", min=1, max=64)
    free: Any = {name: {0: batch} for name in kwargs} if kwargs else tuple({0: batch} for _ in args)
    program = torch.export.export(model.eval(), args, kwargs, dynamic_shapes=free, strict=False)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def test_outputs_of_a_class_that_pytorch_has_not_seen() -> None:
    """It is made known to PyTorch by what the network gives, and captured after all."""

    @dataclasses.dataclass
    class Fresh:
        scores: torch.Tensor
        others: torch.Tensor

    model = Heads(Fresh).eval()
    program = capture(model, X)
    with torch.no_grad():
        got, want = program.module()(X), model(X)
    assert isinstance(got, Fresh) and torch.equal(got.scores, want.scores) and torch.equal(got.others, want.others)


@pytest.mark.parametrize("name", GATHERED)
def test_a_file_of_another_hand_is_read_and_written_again(name: str) -> None:
    gather, structure = GATHERED[name]
    model = Heads(gather)
    program, _ = read_program(saved(model, (X,)))
    data = write_program(program, {})
    again, _ = read_program(data)
    assert structure_of(program) == structure_of(again) == structure
    assert write_program(again, {}) == data
    with torch.no_grad():
        for got, want in zip(tree_leaves(program.module()(X)), tree_leaves(model(X)), strict=True):
            torch.testing.assert_close(got, want)


def test_what_is_read_is_cut_proved_and_exported(tmp_path: Path) -> None:
    program, _ = read_program(saved(Heads(GATHERED["nested"][0]), (X,)))
    graph = analyze(program)
    pruning = plan(program, graph, keep_macs=0.5, criterion="l2", align=1)
    slim = cut(program, pruning, graph)
    assert prove(program, slim, pruning, inputs=X) <= 1e-5
    export_onnx(slim, tmp_path / "slim.onnx", inputs=X)
    session = onnxruntime.InferenceSession(tmp_path / "slim.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == output_names(slim) == ["output_0", "output_1"]
    with torch.no_grad():
        wanted = [leaf.numpy() for leaf in tree_leaves(slim.module()(X))]
    for want, got in zip(wanted, session.run(None, {"input": X.numpy()}), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("name", GATHERED)
def test_a_captured_network_keeps_its_class_and_its_file_the_names(name: str) -> None:
    gather, structure = GATHERED[name]
    program = capture(Heads(gather), X)
    assert structure_of(program) == structure
    assert type(program.module()(X)) is type(gather(X, X))
    read, _ = read_program(write_program(program, {}))
    assert structure_of(read) == structure


def test_dataclasses_that_pytorch_has_not_heard_of_are_captured_too() -> None:
    @dataclasses.dataclass
    class Inner:
        sizes: torch.Tensor
        nothing: Any = None

    @dataclasses.dataclass
    class Outer:
        scores: torch.Tensor
        inner: Inner

    program = capture(Heads(lambda a, b: {"all": Outer(a, Inner(b))}), X)
    assert isinstance(program.module()(X)["all"].inner, Inner)
    read, _ = read_program(write_program(program, {}))
    outer = read.module()(X)["all"]
    assert list(outer) == ["scores", "inner"]
    assert list(outer["inner"]) == ["sizes"]
    assert outer["inner"]["sizes"].shape == (2, 2)


def test_a_network_that_fails_is_told_as_before() -> None:
    with pytest.raises(Exception, match="mat1 and mat2"):
        capture(Heads(Part), X[:, :5])


# -- a text encoder of transformers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """One layer of 16 channels, with a pooler; ids `(4, 6)` and a mask."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 8}
    config = transformers.BertConfig(num_hidden_layers=1, num_attention_heads=2, **sizes)
    mask = (torch.arange(6) < torch.tensor([[6], [4], [5], [6]])).long()
    return transformers.BertModel(config).eval(), {"attention_mask": mask, "input_ids": torch.randint(0, 30, (4, 6))}


@pytest.mark.slow
def test_its_file_goes_through_all_commands(
    bert: tuple[nn.Module, dict[str, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exported with keyword arguments, as its tokenizer gives them."""
    monkeypatch.setattr("edgeprune.measure.candidates._FINAL_SECONDS", (0.01,))
    monkeypatch.setattr("edgeprune.measure.candidates._SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    model, given = bert
    Path("bert.pt2").write_bytes(saved(model, (), given))
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 30, (60, 6))
    np.savez("texts.npz", input_ids=ids, attention_mask=(np.arange(6) < rng.integers(3, 7, (60, 1))).astype(np.int64))
    asked = ("--data", "npz:texts.npz", "--json")
    quick = ("--threads", "1", "--keep-macs", "0.7", "--finetune-epochs", "0", "--align", "1", "--task", "match")
    called("compress", "bert.pt2", *asked, *quick, "--out", "run")
    assert json.loads(Path("run/run.json").read_text())["metric"]["name"] == "agreement"
    slim = load("run/slim.pt2").program
    assert macs(slim) <= 0.7 * macs(load("bert.pt2").program)
    assert structure_of(slim) == {"last_hidden_state": "last_hidden_state", "pooler_output": "pooler_output"}
    called("export", "run/slim.pt2", "--onnx", "--out", "run", *asked)
    session = onnxruntime.InferenceSession("run/slim.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == ["last_hidden_state", "pooler_output"]
    figures = [
        called("validate", "bert.pt2", f"run/slim.{kind}", *asked, "--runs", "10", "--max-drop", "90")
        for kind in ("pt2", "onnx")
    ]
    values = [figure["comparison"]["slim"] for figure in figures]
    assert values[0] == pytest.approx(values[1], abs=1e-5)


def called(*arguments: str) -> Any:
    """What a command says in JSON."""
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


# -- a task of the user's own ------------------------------------------------------------------------------------------


class ByAttribute:
    """Reads outputs as its author's network gives them."""

    metric = SimpleNamespace(name="error", unit="", scale=1.0, higher_is_better=False)

    def loss(self, outputs: Any, targets: Any) -> torch.Tensor:
        return (outputs.part.scores - targets).square().mean()

    def outcomes(self, outputs: Any, targets: Any) -> torch.Tensor:
        return (outputs.part.scores - targets).square().mean(dim=1)

    def value(self, outcomes: Any) -> float:
        return float(np.mean(outcomes))


def test_a_task_finds_the_fields_as_attributes_before_and_after_a_file() -> None:
    program = capture(Heads(GATHERED["nested"][0]), X)
    read, _ = read_program(write_program(program, {}))
    task, targets = UserTask(ByAttribute(), "task.py"), torch.zeros(2, 3)
    live, again = program.module()(X), read.module()(X)
    assert task.loss(live, targets).item() == pytest.approx(task.loss(again, targets).item())
    np.testing.assert_allclose(task.outcomes(live, targets), task.outcomes(again, targets))
