"""A user's file does not decide how a command ends: exit 2 and one line with its file and line, never 0."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
from commands import MLP, refused, run, says
from onnx import TensorProto, helper

CODE = """
import dataclasses, os, signal, sys
import torch
from torch import nn
from edgeprune.data import open_data
class Own(BaseException): pass
def exits(): sys.exit(0)
def own(): raise Own("mine\\x1b[31m")
def interrupts(): raise KeyboardInterrupt
class Trapped(BaseException):
    @property
    def __class__(self): raise SystemExit(0)
    __cause__ = __context__ = __suppress_context__ = __notes__ = __class__
def trapped(): raise Trapped("in it")
class Rows(torch.utils.data.Dataset):
    def __init__(self, act): self.act = act
    def __len__(self): return 359
    def __getitem__(self, i):
        if i > 20: self.act()
        return torch.rand(1, 8, 8), i % 10
def _digits(act): return dataclasses.replace(open_data("digits"), val=Rows(act), test=Rows(act))
def late(): return _digits(exits)
def late_own(): return _digits(own)
def pressed():
    try: os.kill(os.getpid(), signal.SIGINT)
    except BaseException: sys.exit(0)
class Net(nn.Sequential):
    def __init__(self): super().__init__(nn.Flatten(), nn.Linear(64, 10))
    def forward(self, x):
        if self.training: sys.exit(0)
        return super().forward(x)
class Captured(Net):
    def forward(self, x): sys.exit(0)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(CODE)
    (tmp_path / "at_once.py").write_text("raise SystemExit(0)\n")
    return tmp_path


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("own.py:exits", "own.py:exits: the factory raised SystemExit: 0"),
        ("own.py:own", "the factory raised Own: mine"),
        ("own.py:interrupts", "the factory raised KeyboardInterrupt"),
        ("own.py:late", "val: reading samples 0 and on raised SystemExit: 0"),
        ("own.py:late_own", "val: reading samples 0 and on raised Own: mine"),
        ("at_once.py:data", "at_once.py: importing it raised SystemExit: 0"),
    ],
)
def test_data_do_not_end_compress(place: Path, data: str, said: str) -> None:
    options = ("--data", data, "--finetune-epochs", "0", "--threads", "1")
    result = run(place, "compress", MLP, *options)
    assert result.code == 2 and result.out == ""
    line = result.err.splitlines()[-1]
    assert says(line, ["edgeprune: ", said]) and re.search(r"\(at .*\.py:\d+ in ", line)
    assert "\x1b" not in line


def make_networks(folder: Path) -> None:
    """Two files that are read before any data: what they say of their inputs says how data are read."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 10]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "net", value[:1], value[1:])
    for name in ("a.onnx", "b.onnx"):
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / name)


def test_data_do_not_pass_a_gate(place: Path) -> None:
    make_networks(place)
    for data in ("own.py:exits", "at_once.py:data"):
        line = refused(place, "validate", "a.onnx", "b.onnx", "--data", data, "--max-drop", "0")
        assert "SystemExit: 0 (at " in line


def test_nor_does_debug_let_them(place: Path) -> None:
    make_networks(place)
    result = run(place, "validate", "a.onnx", "b.onnx", "--data", "own.py:trapped", "--max-drop", "0", "--debug")
    assert result.code == 2
    assert "the factory raised Trapped: in it (at " in result.err.splitlines()[-1]


@pytest.mark.parametrize("net", ["own.py:exits", "own.py:own", "at_once.py:net", "own.py:Captured", "own.py:Net"])
def test_a_network_does_not_end_train(place: Path, net: str) -> None:
    result = run(place, "train", "--arch", net, "--data", "digits", "--epochs", "1", "--out", "m.pt")
    line = result.err.splitlines()[-1]
    assert result.code == 2 and result.out == "" and not (place / "m.pt").exists()
    assert line.startswith("edgeprune: ") and re.search(r"got (SystemExit: 0|Own: mine\S*) \(at .*\.py:\d+ in ", line)


def test_ctrl_c_within_a_factory_is_ctrl_c(place: Path) -> None:
    result = run(place, "compress", MLP, "--data", "own.py:pressed")
    assert (result.code, result.out) == (130, "")
    assert result.err.splitlines()[-1] == "edgeprune: interrupted; nothing half-written is left"
