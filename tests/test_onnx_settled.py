"""Inputs of ONNX files that are settings rather than data, such as a sampling rate: stated, they are constants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_nets import judged, model, written
from typer.testing import CliRunner

import edgeprune
from edgeprune.cli.app import app
from edgeprune.errors import InputError
from edgeprune.formats.load import load
from edgeprune.records import InputInfo

R = np.random.default_rng(0)
RATE = InputInfo("sr", (), numbers=(16000,))


def w(*shape: int) -> np.ndarray:
    return (R.standard_normal(shape) / 2).astype(np.float32)


def of_two_rates(path: Path, rate_first: bool = False) -> Path:
    """A network for 16 kHz and one for 8 kHz in one file, which a single number chooses between, as silero-vad is."""
    networks = []
    for label in ("wide", "narrow"):
        nodes = [("MatMul", f"x {label}1", "h"), ("Relu", "h", "r"), ("MatMul", f"r {label}2", "o")]
        made = [helper.make_node(op, given.split(), [out]) for op, given, out in nodes]
        weights = [numpy_helper.from_array(w(*shape), f"{label}{k}") for k, shape in ((1, (6, 16)), (2, (16, 3)))]
        output = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
        networks.append(helper.make_graph(made, label, [], [output], weights))
    choice = ("If", "is_wide", "y", {"then_branch": networks[0], "else_branch": networks[1]})
    inputs: dict[str, Sequence[int | str]] = {"x": ("n", 6), "sr": ()}
    if rate_first:
        inputs = {"sr": (), "x": ("n", 6)}
    nodes_ = [("Equal", "sr high", "is_wide"), choice]
    return written(path, model(nodes_, inputs, {"high": np.array(16000)}, types={"sr": "int64"}))


def ran(path: Path, **inputs: np.ndarray) -> list[Any]:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs)


@pytest.mark.parametrize("rate_first", [False, True])
@pytest.mark.parametrize("rate", [16000, 8000])
def test_a_single_number_chooses_the_network(tmp_path: Path, rate: int, rate_first: bool) -> None:
    path = of_two_rates(tmp_path / "net.onnx", rate_first)
    loaded = load(path, inputs=[InputInfo("sr", (), numbers=(rate,))])
    assert loaded.notes == (f"sr is {rate} for good: what is exported has no such input",)
    x = w(5, 6)
    want = ran(path, x=x, sr=np.array(rate))[0]
    np.testing.assert_allclose(loaded.program.module()(torch.from_numpy(x)).detach().numpy(), want, rtol=1e-4)
    program = loaded.program
    plan = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.5)
    assert edgeprune.prove(program, edgeprune.cut(program, plan), plan) < 1e-6


def test_the_way_out_is_told(tmp_path: Path) -> None:
    told = r"input 'sr': expected a batch .* single number; state it by --input sr=NUMBER:constant"
    with pytest.raises(InputError, match=told):
        load(of_two_rates(tmp_path / "net.onnx"))


def test_several_numbers_and_names_that_are_no_identifiers(tmp_path: Path) -> None:
    """Those of a voice: how fast it speaks, and how much it varies."""
    nodes = [("Mul", "x voice.scales", "s"), ("MatMul", "s w", "y")]
    inputs = {"x": ("n", 3), "voice.scales": (3,)}
    path = written(tmp_path / "net.onnx", model(nodes, inputs, {"w": w(3, 8)}))
    numbers = (0.667, 1.0, 0.8)
    program = load(path, inputs=[InputInfo("voice_scales", (), numbers=numbers)]).program
    x = w(4, 3)
    want = judged(path, [x, np.array(numbers, np.float32)])[0]
    np.testing.assert_allclose(program.module()(torch.from_numpy(x)).detach().numpy(), want, rtol=1e-4)


def test_numbers_beside_sizes_that_are_asked_for(tmp_path: Path) -> None:
    nodes = [("Conv", "x w", "v"), ("Mul", "v gain", "y")]
    made = model(nodes, {"x": ("n", 1, "length"), "gain": (1,)}, {"w": w(4, 1, 9)})
    path = written(tmp_path / "net.onnx", made)
    asked = [InputInfo("x", (1, 20)), InputInfo("gain", (), numbers=(2,))]
    assert load(path, inputs=asked).program.module()(torch.ones(2, 1, 20)).shape == (2, 4, 12)


@pytest.mark.parametrize(
    ("info", "told"),
    [
        (InputInfo("rate", (), numbers=(1,)), "--input: expected one of x, sr, got rate"),
        (InputInfo("sr", (), numbers=(1, 2)), r"input 'sr': expected numbers for a shape of \(\), got 2"),
        (InputInfo("sr", (), numbers=(0.5,)), r"input 'sr': expected numbers of type int64, got 0.5"),
        (InputInfo("sr", (), numbers=(1e30,)), r"input 'sr': expected numbers of type int64, got 1e\+30"),
        (InputInfo("x", (), numbers=(1.0,) * 7), r"input 'x': expected numbers for a shape of \(\*, 6\), got 7"),
    ],
)
def test_what_cannot_be_stated(tmp_path: Path, info: InputInfo, told: str) -> None:
    with pytest.raises(InputError, match=told):
        load(of_two_rates(tmp_path / "net.onnx"), inputs=[info])


def test_an_input_is_left(tmp_path: Path) -> None:
    path = of_two_rates(tmp_path / "net.onnx")
    with pytest.raises(InputError, match="expected an input that stays one, got numbers for all of them"):
        load(path, inputs=[RATE, InputInfo("x", (), numbers=(0.0,) * 6)])


def test_a_network_of_pytorch_has_none(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(2, 3),)), tmp_path / "net.pt2")
    with pytest.raises(InputError, match=r"--input sr=\.\.\.:constant: expected an \.onnx file"):
        load(tmp_path / "net.pt2", inputs=[RATE])


@pytest.mark.parametrize("text", ["sr=fast:constant", "sr=nan:constant", "sr=,:constant"])
def test_the_option_takes_numbers(tmp_path: Path, text: str) -> None:
    path = of_two_rates(tmp_path / "net.onnx")
    done = CliRunner().invoke(app, ["inspect", str(path), "--input", text])
    assert done.exit_code == 2
    assert "NAME=NUMBERS:constant" in " ".join(done.output.split())


def test_commands_take_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = of_two_rates(tmp_path / "net.onnx")
    x = w(200, 6)
    np.savez("data.npz", x=x, y=ran(path, x=x, sr=np.array(16000))[0].argmax(1))
    options = [
        str(path),
        "--data",
        "npz:data.npz",
        "--input",
        "sr=16000:constant",
        "--finetune-epochs",
        "1",
        "--keep-macs",
        ".7",
    ]
    done = CliRunner().invoke(app, ["compress", *options, "--out", "run"])
    assert done.exit_code == 0, done.output
    assert "sr is 16000 for good" in " ".join(done.output.split())
    done = CliRunner().invoke(app, ["export", "run/slim.pt2", "--onnx", "--out", "phone"])
    assert done.exit_code == 0, done.output
    graph = onnx.load(tmp_path / "phone" / "slim.onnx").graph
    assert len(graph.input) == 1
    assert "not timed beside the dense network" not in done.output
    Path("run/run.json").rename("elsewhere.json")
    done = CliRunner().invoke(app, ["export", "run/slim.pt2", "--onnx", "--dense", str(path), "--out", "other"])
    assert done.exit_code == 2
    assert "sr=NUMBER:constant" in " ".join(done.output.split())
