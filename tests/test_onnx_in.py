"""ONNX in: files of PyTorch's exporters and of others' become programs that are pruned, proved and exported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from onnx_nets import Node, judged, model, written
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import EdgepruneError, InputError
from edgeprune.export.onnx import export_onnx
from edgeprune.formats.load import load
from edgeprune.graph.capture import Program
from edgeprune.records import InputInfo

MODELS = Path(__file__).parents[1] / "models"
R = np.random.default_rng(1)


def w(*shape: int) -> np.ndarray:
    return R.standard_normal(shape).astype(np.float32) / 3


class Cnn(nn.Module):
    """A stem, a residual block with batch norms, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv3, self.fc = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.Linear(32, 10)
        for norm in (self.bn1, self.bn2):
            nn.init.uniform_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.stem(x)))
        x = torch.relu(x + self.bn2(self.conv2(x)))
        return self.fc(torch.relu(self.conv3(x)).mean((2, 3)))


def exported(path: Path, new: bool, free: bool, training: bool = False) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    net, x = Cnn().eval(), torch.randn(2 if free else 1, 1, 8, 8)
    mode = torch.onnx.TrainingMode.PRESERVE if training else torch.onnx.TrainingMode.EVAL
    if new:
        dims: Any = ({0: torch.export.Dim("n")},) if free else None
        torch.onnx.export(net, (x,), path, dynamo=True, verbose=False, dynamic_shapes=dims)
    else:
        axes: Any = {"x": {0: "n"}} if free else None
        torch.onnx.export(net, (x,), path, dynamo=False, input_names=["x"], dynamic_axes=axes, training=mode,
                          do_constant_folding=not training)  # fmt: skip
    return net, path


@pytest.mark.sampled(2)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("new", "free"), [(False, False), (False, True), (True, False), (True, True)])
def test_files_of_both_exporters_are_the_network_again(tmp_path: Path, new: bool, free: bool) -> None:
    net, path = exported(tmp_path / "net.onnx", new, free)
    found = load(path)
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(found.program.module()(x), net(x), rtol=1e-4, atol=1e-5)
    assert found.info.input_shape == (1, 8, 8)
    assert {"stem.weight", "conv2.weight", "conv3.bias", "fc.weight", "fc.bias"} <= set(found.program.state_dict)


@pytest.mark.filterwarnings("ignore")
def test_a_batch_norm_of_a_file_trains(tmp_path: Path) -> None:
    net, path = exported(tmp_path / "net.onnx", new=False, free=False, training=True)
    program = load(path).program
    assert isinstance(program, Program)
    module, x = program.module().train(), torch.randn(8, 1, 8, 8)
    before = dict(module.named_buffers())["bn1.running_mean"].clone()
    torch.testing.assert_close(module(x), net.train()(x), rtol=1e-4, atol=1e-5)
    after = dict(module.named_buffers())["bn1.running_mean"]
    torch.testing.assert_close(after, net.get_buffer("bn1.running_mean"), rtol=1e-4, atol=1e-5)
    assert not torch.equal(before, after)


# -- shapes that state the batch


def test_a_batch_that_shapes_state_is_freed(tmp_path: Path) -> None:
    """A class token beside patches, heads split and joined by literal shapes, as exporters write them for batch 1."""
    nodes = [
        ("Reshape", "x s1", "patches", {}), ("MatMul", "patches we", "e"), ("Concat", "cls e", "t", {"axis": 1}),
        ("Reshape", "t s2", "h"), ("Transpose", "h", "q", {"perm": [0, 2, 1, 3]}),
        ("Transpose", "h", "k", {"perm": [0, 2, 3, 1]}), ("MatMul", "q k", "a"), ("Softmax", "a", "p", {"axis": -1}),
        ("MatMul", "p q", "o"), ("Transpose", "o", "m", {"perm": [0, 2, 1, 3]}), ("Reshape", "m s3", "j"),
        ("Gather", "j zero", "first", {"axis": 1}), ("Gemm", "first wf bf", "y", {"transB": 1}),
    ]  # fmt: skip
    weights = {"s1": [1, 4, 6], "we": w(6, 8), "cls": w(1, 1, 8), "s2": [1, 5, 2, 4], "s3": [1, 5, 8], "zero": 0,
               "wf": w(3, 8), "bf": w(3)}  # fmt: skip
    path = written(tmp_path / "net.onnx", model(nodes, {"x": (1, 24)}, weights, opset=13))
    found = load(path)
    x = torch.randn(4, 24)
    wanted = np.concatenate([judged(path, [row.numpy()[None]])[0] for row in x])
    np.testing.assert_allclose(found.program.module()(x).detach().numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_a_batch_in_the_second_place_of_memory_is_freed(tmp_path: Path) -> None:
    """Steps first, as PyTorch's attention has them: (length, batch, width) to heads and back."""
    nodes = [
        ("Transpose", "x", "s", {"perm": [1, 0, 2]}), ("Reshape", "s s1", "rows"), ("Gemm", "rows we be", "e"),
        ("Reshape", "e s2", "seq"), ("Reshape", "seq s3", "heads"), ("Transpose", "heads", "h", {"perm": [1, 0, 2]}),
        ("Transpose", "heads", "k", {"perm": [1, 2, 0]}), ("MatMul", "h k", "a"), ("MatMul", "a h", "o"),
        ("Transpose", "o", "b", {"perm": [1, 0, 2]}), ("Reshape", "b s2", "c"),
        ("ReduceMean", "c", "y", {"axes": [0], "keepdims": 0}),
    ]  # fmt: skip
    weights = {"s1": [5, 6], "we": w(6, 8), "be": w(8), "s2": [5, 1, 8], "s3": [5, 2, 4]}
    path = written(tmp_path / "net.onnx", model(nodes, {"x": (1, 5, 6)}, weights, opset=13))
    x = torch.randn(3, 5, 6)
    wanted = np.concatenate([judged(path, [row.numpy()[None]])[0] for row in x])
    np.testing.assert_allclose(load(path).program.module()(x).detach().numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_a_batch_that_lies_between_steps_and_heads_is_freed(tmp_path: Path) -> None:
    """As PyTorch's older exporter joins heads for batch 1: (length, 1, heads, size) to (length, width)."""
    nodes = [
        ("Transpose", "x", "s", {"perm": [1, 0, 2]}), ("Reshape", "s s1", "heads"), ("Reshape", "heads s2", "rows"),
        ("Gemm", "rows we be", "e"), ("Reshape", "e s3", "c"), ("ReduceMean", "c", "y", {"axes": [0], "keepdims": 0}),
    ]  # fmt: skip
    weights = {"s1": [5, 1, 2, 4], "s2": [5, 8], "we": w(8, 3), "be": w(3), "s3": [5, 1, 3]}
    path = written(tmp_path / "net.onnx", model(nodes, {"x": (1, 5, 8)}, weights, opset=13))
    x = torch.randn(3, 5, 8)
    wanted = np.concatenate([judged(path, [row.numpy()[None]])[0] for row in x])
    np.testing.assert_allclose(load(path).program.module()(x).detach().numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_images_of_channels_last_are_read(tmp_path: Path) -> None:
    """As tf2onnx writes a Keras network."""
    nodes = [
        ("Transpose", "x", "c", {"perm": [0, 3, 1, 2]}),
        ("Conv", "c wc bc", "f", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}), ("Relu", "f", "r"),
        ("Transpose", "r", "l", {"perm": [0, 2, 3, 1]}), ("ReduceMean", "l", "m", {"axes": [1, 2], "keepdims": 0}),
        ("MatMul", "m wd", "d"), ("Add", "d bd", "y"),
    ]  # fmt: skip
    weights = {"wc": w(8, 3, 3, 3), "bc": w(8), "wd": w(8, 4), "bd": w(4)}
    for opset in (9, 11):
        path = written(tmp_path / f"net{opset}.onnx", model(nodes, {"x": ("n", 9, 8, 3)}, weights, opset=opset))
        x = torch.randn(3, 9, 8, 3)
        found = load(path).program.module()(x).detach().numpy()
        np.testing.assert_allclose(found, judged(path, [x.numpy()])[0], rtol=1e-4, atol=1e-5)


def test_shapes_that_are_computed_follow_the_batch(tmp_path: Path) -> None:
    nodes = [
        ("Shape", "x", "s"), ("Slice", "s zero one", "n"), ("Concat", "n rest", "t", {"axis": 0}),
        ("Reshape", "x t", "r"), ("ConstantOfShape", "n", "z", {"value": helper.make_tensor("v", 1, [1], [2.0])}),
        ("Unsqueeze", "z a", "u"), ("Add", "r u", "b"), ("MatMul", "b we", "y"),
    ]  # fmt: skip
    weights = {"zero": [0], "one": [1], "rest": [-1], "a": [1], "we": w(12, 3)}
    path = written(tmp_path / "net.onnx", model(nodes, {"x": ("n", 3, 4)}, weights, opset=13))
    x = torch.randn(6, 3, 4)
    found = load(path).program.module()(x).detach().numpy()
    np.testing.assert_allclose(found, judged(path, [x.numpy()])[0], rtol=1e-4, atol=1e-5)


# -- inputs


def mlp(shape: tuple[int | str, ...] = ("n", 6), **more: Any) -> onnx.ModelProto:
    nodes = [("Gemm", "x w1 b1", "h", {"transB": 1}), ("Relu", "h", "r"), ("Gemm", "r w2 b2", "y", {"transB": 1})]
    return model(nodes, {"x": shape}, {"w1": w(16, 6), "b1": w(16), "w2": w(3, 16), "b2": w(3)}, **more)


def test_what_is_locked_has_no_line_of_source_in_a_file(tmp_path: Path) -> None:
    nodes = [("Conv", "x wc", "c"), ("ReduceMax", "c", "y", {"axes": [1], "keepdims": 0})]
    path = written(tmp_path / "net.onnx", model(nodes, {"x": ("n", 3, 8, 8)}, {"wc": w(4, 3, 3, 3)}))
    (lock,) = [lock for lock in edgeprune.analyze(load(path).program).locked if lock.name == "wc" and lock.dim == 0]
    assert (lock.operator, lock.where) == ("amax", "")


def test_open_sizes_are_asked_for(tmp_path: Path) -> None:
    nodes = [("Conv", "x wc", "c"), ("GlobalAveragePool", "c", "p"), ("Flatten", "p", "y")]
    path = written(tmp_path / "net.onnx", model(nodes, {"x": ("n", 3, "h", "w")}, {"wc": w(4, 3, 3, 3)}))
    with pytest.raises(InputError, match=r"expected the shape of one input.*\(3, \*, \*\).*--input-shape"):
        load(path)
    assert load(path, input_shape=(3, 8, 9)).info.input_shape == (3, 8, 9)
    with pytest.raises(InputError, match="expected the shape .* of the file, got"):
        load(path, input_shape=(4, 8, 9))
    program = load(path, input_shape=(3, 8, 9), dynamic_size=True).program
    assert program.module()(torch.randn(2, 3, 12, 7)).shape == (2, 4)


def test_several_inputs_and_outputs_keep_their_names(tmp_path: Path) -> None:
    nodes = [("MatMul", "a wa", "h"), ("Gather", "t ids", "e"), ("ReduceMean", "e", "m", {"axes": [1], "keepdims": 0}),
             ("Add", "h m", "sum"), ("Relu", "sum", "positive")]  # fmt: skip
    proto = model(nodes, {"a": ("n", 4), "ids": ("n", 5)}, {"wa": w(4, 8), "t": w(20, 8)}, ("sum", "positive"),
                  opset=13, types={"ids": "int64"})  # fmt: skip
    path = written(tmp_path / "net.onnx", proto)
    program = load(path, inputs=(InputInfo("a", (4,)), InputInfo("ids", (5,), "int64"))).program
    a, ids = torch.randn(3, 4), torch.randint(0, 20, (3, 5))
    found = program.module()(a, ids)
    assert list(found) == ["sum", "positive"]
    for own, wanted in zip(found.values(), judged(path, [a.numpy(), ids.numpy()]), strict=True):
        np.testing.assert_allclose(own.detach().numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_weights_beside_the_file_are_read_from_its_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    onnx.save(mlp(), folder / "net.onnx", save_as_external_data=True, size_threshold=0, location="net.bin")
    x = torch.randn(3, 6)
    found = load(folder / "net.onnx").program.module()(x).detach().numpy()
    np.testing.assert_allclose(found, judged(folder / "net.onnx", [x.numpy()])[0], rtol=1e-4, atol=1e-5)
    (folder / "net.bin").rename(tmp_path / "net.bin")
    with pytest.raises(InputError, match="expected its external data 'net.bin' beside it"):
        load(folder / "net.onnx")
    proto = onnx.load(folder / "net.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "../net.bin"
    onnx.save(proto, folder / "net.onnx")
    with pytest.raises(InputError, match="expected weights in its own folder, got external data at '../net.bin'"):
        load(folder / "net.onnx")


# -- bad input


def quantized() -> onnx.ModelProto:
    nodes = [("QuantizeLinear", "x s z", "q"), ("DequantizeLinear", "q s z", "y")]
    return model(nodes, {"x": (1, 3)}, {"s": 0.1, "z": np.array(0, np.uint8)})


def of_domain() -> onnx.ModelProto:
    proto = model([("BiasGelu", "x b", "y")], {"x": (1, 3)}, {"b": w(3)})
    proto.graph.node[0].domain = "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return proto


def fixed() -> onnx.ModelProto:
    return model([("Squeeze", "x a", "v"), ("MatMul", "v w", "y")], {"x": (1, 3)}, {"a": [0], "w": w(3, 4)})


def recursive() -> onnx.ModelProto:
    proto = mlp()
    proto.opset_import.append(helper.make_opsetid("own", 1))
    node = helper.make_node("F", ["a"], ["b"], domain="own")
    proto.functions.append(helper.make_function("own", "F", ["a"], ["b"], [node], [helper.make_opsetid("own", 1)]))
    return proto


BAD = {
    "quantized": (quantized, r"'n0' \(QuantizeLinear\): expected a float network, .*compress the float file"),
    "of_domain": (of_domain, r"'n0' \(BiasGelu\): expected an operator of ONNX itself, .*'com.microsoft'"),
    "fixed": (fixed, r"expected a batch that can be freed.* a batch of 1.*\(Squeeze\).*export it with a free batch"),
    "recursive": (recursive, "expected functions that end, got some that call themselves"),
    "unknown": (lambda: model([("NonZero", "x", "y")], {"x": (1, 3)}), r"\(NonZero\): expected an operator that"),
    "old": (lambda: mlp(opset=8), "expected operators of opset 9 or later, got 8"),
    "no_batch": (lambda: model([("Relu", "x", "y")], {"x": ()}), "expected a batch as its first size"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, name: str) -> None:
    make, told = BAD[name]
    onnx.save(make(), tmp_path / "net.onnx")
    with pytest.raises(InputError, match=f"net.onnx: .*{told}") as caught:
        load(tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = mlp().SerializeToString()
    for content in (whole[: len(whole) // 2], whole[:8] + bytes(40), b"no model"):
        (tmp_path / "net.onnx").write_bytes(content)
        with pytest.raises(EdgepruneError, match="net.onnx: expected"):
            load(tmp_path / "net.onnx")


def test_an_answer_that_is_not_the_runtimes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeprune.formats.onnxin.registry import RULES

    path = written(tmp_path / "net.onnx", mlp())
    monkeypatch.setitem(RULES, "Relu", lambda call: torch.relu(call.tensor(0)) * 1.001)
    with pytest.raises(InputError, match=r"'y': expected what onnxruntime gives within 0.0001 .*, got 0.00"):
        load(path)


def test_what_float32_itself_rounds_is_no_other_answer(tmp_path: Path) -> None:
    """A variance as a mean of squares less a squared mean loses four digits of seven."""
    nodes: list[Node] = [
        ("Gemm", "x w b", "h"),
        ("Mul", "h h", "squares"),
        ("ReduceMean", "squares", "mean_of_squares", {"axes": [1]}),
        ("ReduceMean", "h", "mean", {"axes": [1]}),
        ("Mul", "mean mean", "squared_mean"),
        ("Sub", "mean_of_squares squared_mean", "y"),
    ]
    weights = {"w": np.random.default_rng(0).normal(size=(6, 64)), "b": np.full(64, 200.0)}
    path = written(tmp_path / "m.onnx", model(nodes, {"x": ("n", 6)}, weights))
    found = load(path).program.module()(x := torch.randn(5, 6))
    (wanted,) = judged(path, [x.numpy()])
    assert 1e-5 < np.abs(found.detach().numpy() - wanted).max() / np.abs(wanted).max() < 1e-2


def test_an_output_that_is_near_zero_everywhere_is_judged_by_what_it_is_taken_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector finds nothing in drawn images: onnxruntime's sigmoid then differs by as much as it gives."""
    from edgeprune.formats.onnxin.registry import RULES

    nodes: list[Node] = [("Gemm", "x w b", "h"), ("LeakyRelu", "h", "a"), ("Sigmoid", "a", "y")]
    weights = {"w": np.random.default_rng(0).normal(size=(6, 5)), "b": np.full(5, -2500.0)}
    path = written(tmp_path / "m.onnx", model(nodes, {"x": ("n", 6)}, weights))
    (wanted,) = judged(path, [np.zeros((2, 6), np.float32)])
    assert wanted.max() < 1e-6
    assert load(path).program.module()(torch.zeros(2, 6)).max() < 1e-6
    monkeypatch.setitem(RULES, "LeakyRelu", lambda call: torch.relu(call.tensor(0)) - 30)
    with pytest.raises(InputError, match=r"'a': expected what onnxruntime gives"):
        load(path)


def test_the_first_state_of_a_recurrent_layer_follows_the_batch(tmp_path: Path) -> None:
    """As tf2onnx writes it: zeros expanded to a shape that is computed from the input's; and steps come first."""
    rng = np.random.default_rng(0)
    nodes: list[Node] = [
        ("Transpose", "x", "steps", {"perm": [1, 0, 2]}),
        ("Shape", "x", "shape"),
        ("Slice", "shape zero one zero", "batch"),
        ("Concat", "one batch width", "size", {"axis": 0}),
        ("Expand", "nothing size", "state"),
        ("LSTM", "steps w r b", "y_all", {"hidden_size": 4}),
        ("Squeeze", "y_all one", "y"),
    ]
    weights = {
        "zero": np.array([0]), "one": np.array([1]), "width": np.array([4]), "nothing": np.zeros(()),
        "w": rng.normal(size=(1, 16, 3)), "r": rng.normal(size=(1, 16, 4)), "b": rng.normal(size=(1, 32)),
    }  # fmt: skip
    proto = model(nodes, {"x": ("n", 5, 3)}, weights)
    proto.graph.node[5].input.extend(["", "state", "state"])
    path = written(tmp_path / "m.onnx", proto)
    x = rng.normal(size=(3, 5, 3)).astype(np.float32)
    found = load(path).program.module()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, judged(path, [x])[0], rtol=1e-4, atol=1e-6)
    proto.graph.input[0].type.tensor_type.shape.dim[0].Clear()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    stated = load(written(tmp_path / "stated.onnx", proto)).program.module()(torch.from_numpy(x))
    assert stated.shape == (5, 3, 4)
    np.testing.assert_allclose(stated.detach().numpy(), found, rtol=1e-4, atol=1e-6)


# -- commands


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeprune", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def test_a_file_is_compressed_to_half_its_macs(tmp_path: Path) -> None:
    """A trained network of the digits, as onnxruntime has it: cut, proved, finetuned, and written as ONNX again."""
    export_onnx(load(MODELS / "digits_mlp.pt").program, tmp_path / "net.onnx")
    done = command(
        tmp_path, "compress", "net.onnx", "--data", "digits", "--normalize", "data", "--keep-macs", "0.5",
        "--finetune-epochs", "1", "--out", "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "slim = masked dense" in done.stdout
    assert record["slim"]["macs"] <= 0.5 * record["dense"]["macs"]
    slim, x = load(tmp_path / "run" / "slim.pt2").program, torch.randn(3, *load(tmp_path / "net.onnx").info.input_shape)
    export_onnx(slim, tmp_path / "slim.onnx")
    found = judged(tmp_path / "slim.onnx", [x.numpy()])[0]
    np.testing.assert_allclose(slim.module()(x).detach().numpy(), found, rtol=1e-4, atol=1e-5)


def test_a_bad_file_is_one_line_and_exit_2(tmp_path: Path) -> None:
    onnx.save(quantized(), tmp_path / "net.onnx")
    done = command(tmp_path, "inspect", "net.onnx")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "net.onnx: node 'n0' (QuantizeLinear): expected a float network" in done.stderr


class Spectrogram(nn.Module):
    """What windows over a signal sound like, through a convolution over their bins."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(16))
        self.conv, self.head = nn.Conv1d(9, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        bins = torch.stft(x, 16, 4, window=self.window, center=False, return_complex=True)
        return self.head(self.conv(torch.view_as_real(bins).pow(2).sum(-1)).relu().mean(2))


def test_bins_of_a_spectrogram_go_as_channels_do(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = Spectrogram().eval(), torch.randn(2, 80)
    torch.onnx.export(
        net, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False, dynamic_shapes=({0: torch.export.Dim("n")},)
    )
    assert "STFT" in {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    program = load(tmp_path / "net.onnx").program
    graph = edgeprune.analyze(program)
    plan = edgeprune.plan(program, graph, keep_macs=0.5)
    slim = edgeprune.cut(program, plan, graph)
    assert edgeprune.prove(program, slim, plan) < 1e-6
    assert {group.after for group in plan.groups if group.before == 9} == {6}
    x = torch.randn(3, 80)
    torch.testing.assert_close(program.module()(x), net(x), rtol=1e-4, atol=1e-5)
