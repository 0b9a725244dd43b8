"""ONNX files of networks that take a recurrent state, whose batch is its second size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx_nets import judged, model, written
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import InputError
from edgeprune.formats.load import load
from edgeprune.records import InputInfo

R = np.random.default_rng(0)
NAMES = ("x", "h", "c")
OUTPUTS = ("scores", "h_out", "c_out")


class Streaming(nn.Module):
    """An LSTM of two layers that goes on where it stopped."""

    def __init__(self, n_layers: int = 2) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, n_layers, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.lstm(x, (h, c))
        return self.head(y[:, -1]), h, c


def exported(
    path: Path, free: bool, new: bool = False, n_layers: int = 2, named: tuple[str, ...] = NAMES + OUTPUTS
) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    net, n = Streaming(n_layers).eval(), 3 if free else 1
    inputs = torch.randn(n, 5, 6), torch.randn(n_layers, n, 8), torch.randn(n_layers, n, 8)
    if new:
        dims = ({0: torch.export.Dim("n")}, {1: torch.export.Dim("n")}, {1: torch.export.Dim("n")}) if free else None
        torch.onnx.export(
            net, inputs, path, dynamo=True, verbose=False, dynamic_shapes=dims, input_names=NAMES, output_names=OUTPUTS
        )
    else:
        axes: Any = {name: {0 if name in ("x", "scores") else 1: "n"} for name in named} if free else None
        torch.onnx.export(
            net, inputs, path, dynamo=False, dynamic_axes=axes, input_names=list(NAMES), output_names=list(OUTPUTS)
        )
    return net, path


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("free", [True, False])
def test_a_state_is_taken_with_its_batch_first(tmp_path: Path, free: bool, new: bool, n_layers: int) -> None:
    """Of one layer at batch 1 both first sizes are 1."""
    net, path = exported(tmp_path / "net.onnx", free, new, n_layers)
    model = load(path)
    assert model.notes == (
        "the batch of h (dim 1), c (dim 1) in the file is the first size here and in what is exported, and so is that "
        "of the output h_out, c_out",
    )
    x, h, c = torch.randn(4, 5, 6), torch.randn(4, n_layers, 8), torch.randn(4, n_layers, 8)
    got = model.program.module()(x, h, c)
    scores, h_out, c_out = net(x, h.movedim(0, 1), c.movedim(0, 1))
    torch.testing.assert_close(got["scores"], scores)
    torch.testing.assert_close(got["h_out"], h_out.movedim(1, 0))
    torch.testing.assert_close(got["c_out"], c_out.movedim(1, 0))


@pytest.mark.parametrize("named", [NAMES, NAMES + OUTPUTS], ids=["inputs", "all"])
def test_a_state_is_narrowed(tmp_path: Path, named: tuple[str, ...]) -> None:
    """What goes out and comes back in the next run loses the units that the layers lose; any batch stays."""
    _, path = exported(tmp_path / "net.onnx", True, named=named)
    program = load(path).program
    graph = edgeprune.analyze(program, state={"h": "h_out", "c": "c_out"})
    plan = edgeprune.plan(program, graph, keep_macs=0.5)
    slim = edgeprune.cut(program, plan, graph)
    assert edgeprune.prove(program, slim, plan) < 1e-6
    taken = [tuple(node.meta["val"].shape[1:]) for node in slim.graph.nodes if node.name in NAMES]
    assert taken[0] == (5, 6)
    assert taken[1] == taken[2]
    assert taken[1][-1] < 8
    x, h = torch.randn(5, 5, 6), torch.randn(5, *taken[1])
    assert slim.module()(x, h, h)["h_out"].shape == h.shape


def test_inputs_that_share_no_batch_are_refused(tmp_path: Path) -> None:
    nodes = [("ReduceSum", "s", "m", {"keepdims": 0}), ("Add", "x m", "y")]
    onnx.save(model(nodes, {"x": ("n", 4), "s": (2, 5)}), tmp_path / "net.onnx")
    with pytest.raises(InputError, match="expected inputs of one batch, which is their first size, got x"):
        load(tmp_path / "net.onnx")


def test_sizes_that_nobody_states_are_asked_for(tmp_path: Path) -> None:
    nodes = [("Conv", "x w", "v"), ("Add", "v s", "y")]
    made = model(nodes, {"x": ("n", 1, "length"), "s": ("n", 4, 1)}, {"w": np.ones((4, 1, 9), np.float32)})
    path = written(tmp_path / "net.onnx", made)
    told = r"\(Conv\): .*; sizes of x that the file leaves open were tried as 8: state them, --input x=SHAPE$"
    with pytest.raises(InputError, match=told):
        load(path)
    asked = (InputInfo("x", (1, 20)), InputInfo("s", (4, 1)))
    assert load(path, inputs=asked).program.module()(torch.ones(2, 1, 20), torch.zeros(2, 4, 1)).shape == (2, 4, 12)


def test_a_batch_in_the_middle_of_what_is_no_state(tmp_path: Path) -> None:
    nodes = [("Transpose", "s", "t", {"perm": [1, 0, 2]}), ("MatMul", "x t", "y")]
    path = written(tmp_path / "net.onnx", model(nodes, {"x": ("n", 3, 4), "s": (4, "n", 5)}))
    x, s = (np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in ((2, 3, 4), (4, 2, 5)))
    got = load(path).program.module()(torch.from_numpy(x), torch.from_numpy(np.moveaxis(s, 1, 0).copy()))
    np.testing.assert_allclose(got.numpy(), judged(path, [x, s])[0], rtol=1e-4, atol=1e-6)


def gru(x: tuple[int | str, ...], state: tuple[int | str, ...]) -> onnx.ModelProto:
    """A GRU over one step, whose state is a part of an input."""
    weights = {
        "w": R.standard_normal((1, 12, 3)) / 2, "r": R.standard_normal((1, 12, 4)) / 2, "b": np.zeros((1, 24)),
        "zero": np.array([0]), "one": np.array([1]),
    }  # fmt: skip
    nodes: list[Any] = [
        ("Unsqueeze", "x zero", "steps"),
        ("Slice", "h zero one zero", "first"),
        ("GRU", "steps w r b  first", "all last", {"hidden_size": 4, "linear_before_reset": 1}),
        ("Squeeze", "last zero", "y"),
    ]
    return model(nodes, {"x": x, "h": state}, weights)


@pytest.mark.parametrize("state", [(2, "", 4), (2, 1, 4)], ids=["no names", "one row"])
def test_the_batch_of_a_state_that_has_no_name(tmp_path: Path, state: tuple[int | str, ...]) -> None:
    """A state of one row holds the file to that, though its other input leaves the batch free."""
    path = written(tmp_path / "net.onnx", gru(("" if state[1] == "" else "n", 3), state))
    x, h = (R.standard_normal(shape).astype(np.float32) for shape in ((1, 3), (2, 1, 4)))
    program = load(path).program
    got = program.module()(torch.from_numpy(x), torch.from_numpy(h).movedim(1, 0))
    np.testing.assert_allclose(got.detach().numpy(), judged(path, [x, h])[0], rtol=1e-4, atol=1e-6)
    assert program.module()(torch.zeros(5, 3), torch.zeros(5, 2, 4)).shape == (5, 4)


def test_a_state_that_is_taken_within_a_choice(tmp_path: Path) -> None:
    inner = gru(("n", 3), (2, "", 4)).graph
    del inner.input[:]
    branches = {name: onnx.GraphProto.FromString(inner.SerializeToString()) for name in ("then_branch", "else_branch")}
    nodes: list[Any] = [
        ("Shape", "x", "s"),
        ("Gather", "s one", "n"),
        ("Equal", "n three", "c"),
        ("If", "c", "y", branches),
    ]
    for branch in branches.values():
        branch.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    made = model(nodes, {"x": ("", 3), "h": (2, "", 4)}, {"one": np.array(1), "three": np.array(3)})
    path = written(tmp_path / "net.onnx", made)
    x, h = (R.standard_normal(shape).astype(np.float32) for shape in ((2, 3), (2, 2, 4)))
    got = load(path).program.module()(torch.from_numpy(x), torch.from_numpy(h).movedim(1, 0))
    np.testing.assert_allclose(got.detach().numpy(), judged(path, [x, h])[0], rtol=1e-4, atol=1e-6)


def test_what_runs_by_layers_stays_in_its_place(tmp_path: Path) -> None:
    """(steps, rows, 2, 4) of one row and one step becomes (1, 1, 8), of which the rows are the second."""
    weights = {"w": w_of(2, 12, 3), "r": w_of(2, 12, 4), "b": np.zeros((2, 24)), "shape": np.array([1, 1, 8])}
    nodes: list[Any] = [
        ("Transpose", "x", "steps", {"perm": [1, 0, 2]}),
        (
            "GRU",
            "steps w r b  h",
            "all last",
            {"hidden_size": 4, "direction": "bidirectional", "linear_before_reset": 1},
        ),
        ("Transpose", "all", "beside", {"perm": [0, 2, 1, 3]}),
        ("Reshape", "beside shape", "joined"),
        ("Transpose", "joined", "y", {"perm": [1, 0, 2]}),
    ]
    path = written(tmp_path / "net.onnx", model(nodes, {"x": (1, 1, 3), "h": (2, 1, 4)}, weights))
    assert load(path).program.module()(torch.zeros(5, 1, 3), torch.zeros(5, 2, 4)).shape == (5, 1, 8)


def test_a_squeeze_that_drops_the_batch_before_a_concat_is_named(tmp_path: Path) -> None:
    """What is beside it then has another number of dims."""
    nodes: list[Any] = [
        ("MatMul", "x w", "scores"), ("Squeeze", "scores", "row"),
        ("Slice", "row zero two", "some"), ("Slice", "row two four", "others"),
        ("Concat", "some others", "y", {"axis": 0}),
    ]  # fmt: skip
    weights = {"w": w_of(3, 4), "zero": np.array([0]), "two": np.array([2]), "four": np.array([4])}
    path = written(tmp_path / "net.onnx", model(nodes, {"x": (1, 3)}, weights))
    with pytest.raises(InputError, match=r"of which node 'n1' \(Squeeze\) gives no batch on"):
        load(path)


def w_of(*shape: int) -> np.ndarray:
    return (R.standard_normal(shape) / 2).astype(np.float32)
