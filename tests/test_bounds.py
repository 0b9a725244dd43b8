"""Sizes that are free up to a bound, as learnt positions set one; other sizes are never tried."""

from __future__ import annotations

import ast
import inspect
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.cli.values import parse_dynamic
from edgeprune.commands.train import train
from edgeprune.errors import CaptureError, InputError
from edgeprune.formats.load import load, load_model
from edgeprune.formats.save import save_program
from edgeprune.graph.sizes import free_ranges, grown_shapes
from edgeprune.records import ModelInfo
from edgeprune.requests import TrainRequest
from tests.nets import cut_randomly, randomized

BOUNDED: Any = {"tokens": {0: None, 1: (1, 12)}, "mask": (0, 1)}
ARGS = (torch.randn(2, 5, 6), torch.ones(2, 5))


class Positions(nn.Module):
    """Tokens with learnt positions, of which there are 12: looked up, sliced, or looked up behind two others."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.table = nn.Embedding(14 if how == "behind" else 12, 6)
        self.register_buffer("numbers", torch.arange(12)[None], persistent=False)
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        n = tokens.shape[1]
        if self.how == "sliced":
            positions = self.table.weight[:n]
        elif self.how == "buffer":
            positions = self.table(self.numbers[:, :n])
        else:
            positions = self.table(torch.arange(n) + 2 * (self.how == "behind"))
        return self.second(self.first(tokens + positions).relu()) * mask[..., None]


@pytest.mark.parametrize("how", ["sliced", "buffer", "behind"])
def test_a_bounded_length_stays_so_through_all_stages(how: str, tmp_path: Path) -> None:
    net = randomized(Positions(how))
    program = edgeprune.capture(net, ARGS, dynamic=BOUNDED)
    assert free_ranges(program) == ({0: (1, None), 1: (2, 12)},) * 2
    assert grown_shapes(program) == ((2, 10, 6), (2, 10))
    slim = cut_randomly(program, edgeprune.analyze(program)).slim  # proved at a length of 10 too
    assert free_ranges(slim) == free_ranges(program)
    full = (torch.randn(3, 12, 6), torch.ones(3, 12))
    assert slim.module()(*full).shape == (3, 12, 3)
    assert slim.apply_to(net).tensors


def test_a_bounded_length_stays_so_in_onnx(tmp_path: Path) -> None:
    program = edgeprune.capture(randomized(Positions("looked up")), ARGS, dynamic=BOUNDED)
    assert edgeprune.export_onnx(program, tmp_path / "net.onnx", simplify=False).parity < 1e-5


@pytest.mark.parametrize(("example", "other"), [(5, 10), (10, 12), (12, 6)])
def test_another_size_is_within_the_bounds(example: int, other: int) -> None:
    args = (torch.randn(2, example, 6), torch.ones(2, example))
    program = edgeprune.capture(randomized(Positions("looked up")), args, dynamic=BOUNDED)
    assert grown_shapes(program) == ((2, other, 6), (2, other))


@pytest.mark.parametrize(
    ("how", "tokens"), [("looked up", (0, 1)), ("sliced", (0, 1)), ("behind", {0: None, 1: (1, 13)})]
)
def test_a_longer_length_is_refused_with_the_range_to_give(how: str, tokens: Any) -> None:
    with pytest.raises(
        CaptureError, match=r"test_bounds\.py:\d+.*give it that range: .*compress --dynamic 'tokens:1<=12'$"
    ) as told:
        edgeprune.capture(Positions(how), ARGS, dynamic={"tokens": tokens, "mask": (0, 1)})
    assert "dynamic={'tokens': {0: None, 1: (1, 12)}}" in str(told.value)
    if how != "sliced":
        assert "'table.weight' has" in str(told.value)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.flatten(1)).relu()
        return self.last(h if h.shape[0] <= 25 else h / 2)


def test_a_bounded_batch_is_refused_with_advice_that_holds(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="fixes the batch of input 'x', dim 0") as told:
        edgeprune.capture(Counting(), torch.randn(2, 1, 8, 8))
    _, _, advice = str(told.value).partition("give it that range: dynamic=")
    free, _, command = advice.partition(", or edgeprune compress --dynamic ")
    assert ast.literal_eval(free) == parse_dynamic(shlex.split(command)) == {"x": {0: (1, 25)}}
    program = edgeprune.capture(Counting(), torch.randn(2, 1, 8, 8), dynamic=ast.literal_eval(free))
    assert free_ranges(program) == ({0: (1, 25)},)
    imports, factory = "import torch\nfrom torch import Tensor, nn\n\n", "\n\ndef net():\n    return Counting()\n"
    (tmp_path / "own.py").write_text(imports + inspect.getsource(Counting) + factory)
    # To train with fewer is nothing that can be asked.
    with pytest.raises(CaptureError, match="expected at most 25 .at [^()]* in forward.$"):
        train(TrainRequest(f"{tmp_path}/own.py:net", "digits", str(tmp_path / "net.pt")))


@pytest.mark.parametrize("bounds", [(0, 4), (3, 2), (1,), "1..4", (1, 2.5), (1, 4), (6, 12)])
def test_bounds_that_are_none_or_that_the_example_breaks(bounds: Any) -> None:
    with pytest.raises(CaptureError, match=r"^dynamic\['tokens'\]\[1\]: expected"):
        edgeprune.capture(Positions("looked up"), ARGS, dynamic={"tokens": {0: None, 1: bounds}})


def test_dynamic_on_the_command_line() -> None:
    assert parse_dynamic(None) is None
    assert parse_dynamic(["x:2,3"]) == {"x": {0: None, 2: None, 3: None}}
    assert parse_dynamic(["4<=ids:1<=64", "x:2"]) == {"ids": {0: None, 1: (4, 64)}, "x": {0: None, 2: None}}
    for wrong in ("x", "x:", "x:a", "x:1<64", ":1", "x:-1"):
        with pytest.raises(Exception, match="expected an input and its free dims"):
            parse_dynamic([wrong])


def test_a_file_keeps_the_bounds(tmp_path: Path) -> None:
    net = randomized(nn.Sequential(nn.Conv1d(3, 8, 1), nn.Conv1d(8, 2, 1)))
    program = edgeprune.capture(net, torch.randn(2, 3, 9), dynamic={"input": {0: None, 2: (1, 40)}})
    save_program(tmp_path / "net.pt2", program, ModelInfo((3, 9)))
    assert free_ranges(load_model(tmp_path / "net.pt2").program) == ({0: (1, None), 2: (2, 40)},)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    factory = tmp_path / "net.py"
    factory.write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Conv1d(3, 8, 1), nn.Conv1d(8, 2, 1))\n"
    )
    asked = parse_dynamic(["input:2<=40"])
    loaded = load(tmp_path / "net.pt", arch=f"{factory}:make", input_shape=(3, 9), dynamic=asked)
    assert free_ranges(loaded.program) == ({0: (1, None), 2: (2, 40)},)
    with pytest.raises(InputError, match="--dynamic input: expected a program with dims 0 and 1 of input free, got"):
        load(tmp_path / "net.pt2", dynamic=parse_dynamic(["input:1"]))
