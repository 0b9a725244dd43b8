"""Core ML: real packages, whose programs are read back and run here, and the rules that run them beside PyTorch."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from target_nets import (
    Bessel,
    Shuffled,
    Tagger,
    in_pytorch,
    kept_sensors,
    of_sensors,
    raw_sensors,
    saved_sensors,
    slim_program,
)
from torch import Tensor, nn
from torch.nn import functional as F

from edgeprune.commands.export import export
from edgeprune.errors import InputError, ParityError
from edgeprune.export import coreml as target
from edgeprune.export.mil import layers, movement, pointwise
from edgeprune.export.mil.registry import RULES, Call
from edgeprune.export.targets import targets_of
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import capture
from edgeprune.records import ModelInfo, Normalization
from edgeprune.requests import ExportRequest
from edgeprune.results import ExportedFile, ExportRecord, LeftOut

assert layers and movement and pointwise  # their rules are registered


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    [coreml] = targets_of(["coreml"])
    with pytest.raises(
        InputError, match=r"^Core ML \(coremltools\) is not installed: pip install 'edgeprune\[coreml\]'$"
    ):
        coreml.check_installed()


# --- rules, beside PyTorch's own operators


def ran(op: str, **inputs: Any) -> Any:
    """What a rule makes of numbers, lists and tensors."""
    given = {name: _tensor(value) for name, value in inputs.items()}
    return RULES[op](Call(op, given))


def _tensor(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_tensor, value))
    return value if isinstance(value, (str, Tensor)) else torch.tensor(value)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 6, 7, 5, generator=torch.Generator().manual_seed(0))


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_convolutions(x: Tensor) -> None:
    weight, bias = drawn(4, 3, 3, 3), drawn(4)
    got = ran(
        "conv", x=x, weight=weight, bias=bias, strides=[2, 1], dilations=[1, 2], groups=2, pad_type="custom",
        pad=[1, 0, 2, 1],
    )  # fmt: skip
    close(got, F.conv2d(F.pad(x, (2, 1, 1, 0)), weight, bias, (2, 1), 0, (1, 2), 2))
    weight = drawn(4, 6, 3, 3)
    close(ran("conv", x=x, weight=weight, pad_type="same"), F.conv2d(x, weight, padding="same"))
    close(ran("conv", x=x, weight=weight, pad_type="valid"), F.conv2d(x, weight))
    got = ran("conv", x=x, weight=drawn(4, 6, 2, 2), strides=[2, 2], pad_type="same")  # one more at the end
    close(got, F.conv2d(F.pad(x, (0, 1, 0, 1)), drawn(4, 6, 2, 2), stride=2))
    got = ran("conv", x=x, weight=drawn(4, 6, 2, 2), strides=[2, 2], pad_type="same_lower")
    close(got, F.conv2d(F.pad(x, (1, 0, 1, 0)), drawn(4, 6, 2, 2), stride=2))
    close(ran("conv", x=x[..., 0], weight=weight[..., 0], pad_type="valid"), F.conv1d(x[..., 0], weight[..., 0]))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1])
def test_transposed_convolutions(x: Tensor, stride: int, padding: int) -> None:
    weight, bias = drawn(6, 2, 3, 3), drawn(4)
    pad = [padding] * 4
    got = ran(
        "conv_transpose", x=x, weight=weight, bias=bias, strides=[stride] * 2, groups=2, pad_type="custom", pad=pad
    )
    close(got, F.conv_transpose2d(x, weight, bias, stride, padding, 0, 2))
    if stride > 1:
        want = F.conv_transpose2d(x, weight, bias, stride, padding, 1, 2)
        got = ran(
            "conv_transpose", x=x, weight=weight, bias=bias, strides=[stride] * 2, groups=2, pad_type="custom", pad=pad,
            output_shape=list(want.shape),
        )  # fmt: skip
        close(got, want)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 3, 1), (2, 3, 0)])
def test_pools(x: Tensor, kernel: int, stride: int, padding: int, ceil: bool) -> None:
    told = {"kernel_sizes": [kernel] * 2, "strides": [stride] * 2, "pad_type": "custom", "pad": [padding] * 4}
    want = F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil)
    close(ran("max_pool", x=x, **told, ceil_mode=ceil), want)
    for excluded in (False, True):
        want = F.avg_pool2d(x, kernel, stride, padding, ceil, not excluded)
        close(ran("avg_pool", x=x, **told, ceil_mode=ceil, exclude_padding_from_average=excluded), want)


def test_normalisations_and_reductions(x: Tensor) -> None:
    mean, gamma, beta = drawn(6), drawn(6, seed=2), drawn(6, seed=3)
    variance = drawn(6).abs() + 1
    got = ran("batch_norm", x=x, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=1e-3)
    close(got, F.batch_norm(x, mean, variance, gamma, beta, eps=1e-3))
    gamma, beta = drawn(7, 5), drawn(7, 5, seed=2)
    close(ran("layer_norm", x=x, axes=[2, -1], gamma=gamma, beta=beta), F.layer_norm(x, (7, 5), gamma, beta))
    close(ran("layer_norm", x=x, axes=[-1], epsilon=1e-2), F.layer_norm(x, (5,), eps=1e-2))
    close(ran("instance_norm", x=x), F.instance_norm(x))
    close(ran("softmax", x=x, axis=1), x.softmax(1))
    close(ran("reduce_mean", x=x, axes=[-1, 2], keep_dims=True), x.mean((2, 3), keepdim=True))
    close(ran("reduce_l2_norm", x=x, axes=[1], keep_dims=False), x.norm(dim=1))
    close(ran("reduce_max", x=x), x.max())
    assert torch.equal(ran("reduce_argmax", x=x, axis=1, keep_dims=False), x.argmax(1))
    values, places = ran("topk", x=x, k=2, axis=-1, ascending=False)
    assert torch.equal(values, x.topk(2).values) and torch.equal(places, x.topk(2).indices)


@pytest.mark.parametrize("both", [False, True])
def test_lstm(both: bool) -> None:
    lstm = nn.LSTM(4, 3, bidirectional=both)
    x = drawn(5, 2, 4)
    start = [drawn(1 + both, 2, 3, seed=seed) for seed in (2, 3)]
    with torch.no_grad():
        want, (hidden, cell) = lstm(x, (start[0], start[1]))
    inputs: dict[str, Any] = {
        f"{name}{to}": _gates(getattr(lstm, f"{name}_l0{of}").detach())
        for to, of in [("", "")] + ([("_back", "_reverse")] if both else [])
        for name in ("weight_ih", "weight_hh")
    }
    for to, of in [("", "")] + ([("_back", "_reverse")] if both else []):
        inputs[f"bias{to}"] = _gates((getattr(lstm, f"bias_ih_l0{of}") + getattr(lstm, f"bias_hh_l0{of}")).detach())
    inputs |= {
        name: value.transpose(0, 1).reshape(2, -1)
        for name, value in zip(("initial_h", "initial_c"), start, strict=True)
    }
    inputs["direction"] = "bidirectional" if both else "forward"
    got = ran("lstm", x=x, **inputs, output_sequence=True)
    close(got[0], want)
    for mine, own in zip(got[1:], (hidden, cell), strict=True):
        close(mine, own.transpose(0, 1).reshape(2, -1))
    last = ran("lstm", x=x, **inputs, output_sequence=False)
    close(last[0][0], got[1])


@pytest.mark.parametrize("backward", [False, True])
def test_rnn(backward: bool) -> None:
    """PyTorch's own way forward, or, of two ways, that back."""
    rnn, x = nn.RNN(4, 3, nonlinearity="relu", bidirectional=backward), drawn(5, 2, 4)
    start = drawn(1 + backward, 2, 3, seed=2)
    with torch.no_grad():
        want, hidden = rnn(x, start)
    of = "_l0_reverse" if backward else "_l0"
    w_ih, w_hh, b_ih, b_hh = (
        getattr(rnn, f"{name}{of}").detach() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    inputs = {"weight_ih": w_ih, "weight_hh": w_hh, "bias": b_ih + b_hh, "initial_h": start[-1], "activation": "relu",
              "direction": "reverse" if backward else "forward"}  # fmt: skip
    outputs, last = ran("rnn", x=x, **inputs, output_sequence=True)
    close(outputs, want[..., -3:])
    close(last, hidden[-1])
    close(ran("rnn", x=x, **inputs, output_sequence=False)[0][0], hidden[-1])


def _gates(weights: Tensor) -> Tensor:
    """PyTorch's order (input, forget, cell, output) as Core ML's (input, forget, output, cell)."""
    into, forget, cell, out = weights.chunk(4)
    return torch.cat([into, forget, out, cell])


def test_rows_that_are_put_into_a_tensor() -> None:
    data, rows = drawn(4, 3), drawn(2, 3, seed=1)
    want = data.clone()
    want[[1, 3]] = rows
    close(ran("scatter", data=data, indices=[1, -1], updates=rows, mode="update"), want)
    want = data.clone()
    want[:, [0, 2]] += rows.new_ones(4, 2)
    close(ran("scatter", data=data, indices=[0, 2], updates=torch.ones(4, 2), axis=1, mode="add"), want)
    with pytest.raises(InputError, match="scatter by mul is not known"):
        ran("scatter", data=data, indices=[1, 3], updates=rows, mode="mul")


def test_elements(x: Tensor) -> None:
    close(ran("gelu", x=x, mode="EXACT"), F.gelu(x))
    close(ran("gelu", x=x, mode="TANH_APPROXIMATION"), F.gelu(x, approximate="tanh"))
    close(ran("sigmoid_hard", x=x, alpha=1 / 6, beta=0.5), F.hardsigmoid(x))
    close(ran("clip", x=x, alpha=-0.5, beta=0.25), x.clamp(-0.5, 0.25))
    close(ran("prelu", x=x, alpha=drawn(6)), F.prelu(x, drawn(6)))
    close(ran("rsqrt", x=x.abs(), epsilon=1e-2), (x.abs() + 1e-2).rsqrt())
    close(ran("real_div", x=x, y=x.abs() + 1), x / (x.abs() + 1))
    assert torch.equal(ran("real_div", x=[7, -7], y=[2, 2]), torch.tensor([3, -4]))
    assert torch.equal(ran("select", cond=x > 0, a=x, b=-x), x.abs())
    assert torch.equal(ran("cast", x=[1.7, -1.7], dtype="int32"), torch.tensor([1.0, -1.0]))
    got = ran("constexpr_affine_dequantize", quantized_data=torch.tensor([[1, 2], [3, 4]], dtype=torch.int8), axis=0,
              scale=[0.5, 2.0], zero_point=torch.tensor([0, 1], dtype=torch.int8))  # fmt: skip
    close(got, torch.tensor([[0.5, 1.0], [4.0, 6.0]]))


def test_movements(x: Tensor) -> None:
    assert torch.equal(ran("reshape", x=x, shape=[0, -1, 5]), x.reshape(2, 42, 5))
    assert torch.equal(ran("expand_dims", x=x, axes=[-1, 0]), x[None, ..., None])
    assert torch.equal(ran("squeeze", x=x[:1], axes=[0]), x[0])
    ends = {"end": [2, 6, 0, 2], "end_mask": [False, True, False, True], "squeeze_mask": [True, False, False, False]}
    got = ran("slice_by_index", x=x, begin=[1, -3, 5, 0], stride=[1, 2, -2, 1], begin_mask=[False] * 4, **ends)
    assert torch.equal(got, x[1, 3::2].flip(1)[:, 1:6:2])
    assert torch.equal(ran("slice_by_size", x=x, begin=[0, 2, 0, 1], size=[2, 3, -1, 2]), x[:, 2:5, :, 1:3])
    assert torch.equal(ran("gather", x=x, indices=[[0, -1], [2, 2]], axis=1), x[:, [[0, 5], [2, 2]]])
    assert torch.equal(ran("concat", values=(x, x), axis=-3), torch.cat([x, x], 1))
    mixed = ran("concat", values=(x, -x), axis=-3, interleave=True)
    assert torch.equal(mixed[:, 0::2], x)
    assert torch.equal(mixed[:, 1::2], -x)
    assert [part.shape[1] for part in ran("split", x=x, split_sizes=[2, 4], axis=1)] == [2, 4]
    assert [part.shape[1] for part in ran("split", x=x, num_splits=3, axis=1)] == [2] * 3
    close(ran("pad", x=x, pad=[0, 0, 1, 2], mode="constant", constant_val=3.0), F.pad(x, (1, 2), value=3.0))
    close(ran("pad", x=x, pad=[0, 0, 0, 0, 1, 2, 2, 1], mode="reflect"), F.pad(x, (2, 1, 1, 2), mode="reflect"))
    close(ran("upsample_bilinear", x=x, scale_factor_height=2.0, scale_factor_width=3.0, align_corners=False),
          F.interpolate(x, scale_factor=(2.0, 3.0), mode="bilinear"))  # fmt: skip
    assert torch.equal(ran("matmul", x=x, y=x, transpose_y=True), x @ x.mT)


# --- with the package


@pytest.fixture
def coreml() -> None:
    pytest.importorskip("coremltools", reason="edgeprune[coreml] is not installed")


def exported(net: Path, **changes: Any) -> ExportRecord:
    return export(ExportRequest(model=str(net), out=str(net.parent / "out"), targets=("coreml",), **changes))


def contract(net: Path) -> dict[str, Any]:
    return json.loads((net.parent / "out" / "features.json").read_text())["contracts"]["coreml"]


@pytest.mark.slow
@pytest.mark.usefixtures("coreml")
def test_a_shuffle_that_stays_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = capture(Shuffled().eval(), torch.randn(2, 3, 8, 6))
    assert "aten.channel_shuffle.default" in {str(node.target) for node in program.graph.nodes}
    save_program(tmp_path / "net.pt2", program, ModelInfo((3, 8, 6)))
    assert "net.mlpackage" in {Path(file.path).name for file in exported(tmp_path / "net.pt2").files}


@pytest.mark.slow
@pytest.mark.usefixtures("coreml")
@pytest.mark.parametrize("preprocess", ["apart", "fold"])
def test_an_image_network_in_three_precisions(tmp_path: Path, preprocess: str) -> None:
    from edgeprune.export.mil.program import MilProgram

    torch.manual_seed(0)
    net = tmp_path / "net.pt2"
    info = ModelInfo((3, 8, 6), normalization=Normalization((0.5,) * 3, (0.25,) * 3))
    save_program(net, slim_program(Shuffled(), torch.randn(2, 3, 8, 6)), info)
    record = exported(net, preprocess=preprocess)
    files = {Path(file.path).name: file for file in record.files}
    names = ["net.mlpackage", "net.fp16.mlpackage", "net.w8.mlpackage"]
    assert list(files)[-3:] == names
    assert {files[name].note for name in names} == {"program checked; Apple's kernels not run"}
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 6), dtype=np.float32)
    want = in_pytorch(net, (x - 0.5) / 0.25 if preprocess == "fold" else x)
    for name, tolerance in zip(names, (1e-5, 1e-2, 5e-2), strict=True):
        for a, b in zip(want, MilProgram(net.parent / "out" / name)([x]), strict=True):
            assert np.abs(a - b).max() <= tolerance * np.abs(a).max()
    assert files["net.fp16.mlpackage"].size_bytes < files["net.mlpackage"].size_bytes
    assert record.targets is not None
    assert {row.verdict for row in record.targets.rows[1:]} == {"program checked; Apple's kernels not run"}
    assert [value["name"] for value in contract(net)["outputs"]] == ["scores", "map"]
    if preprocess == "apart":
        exported(net, force=True)


@pytest.mark.slow
@pytest.mark.usefixtures("coreml")
def test_ids_an_lstm_and_whole_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeprune.export.mil.program import MilProgram

    torch.manual_seed(0)
    net = tmp_path / "net.pt2"
    slim = slim_program(Tagger(), torch.randint(0, 11, (2, 5)), torch.randn(2, 5, 4))
    save_program(net, slim, ModelInfo((5,)))
    checked = target._checked

    def but_of_8_bits(package: Path, *rest: Any) -> ExportedFile:
        if ".w8." in package.name:
            raise ParityError(f"{package.name}: too far off")
        return checked(package, *rest)

    monkeypatch.setattr(target, "_checked", but_of_8_bits)
    record = exported(net)
    [float_file] = [file for file in record.files if file.path.endswith("net.mlpackage")]
    assert float_file.left_out == (LeftOut("w8", "net.w8.mlpackage: too far off"),)
    rng = np.random.default_rng(0)
    ids, x = rng.integers(0, 11, (1, 5)), rng.standard_normal((1, 5, 4), dtype=np.float32)
    scores, best = in_pytorch(net, ids, x)
    got = MilProgram(tmp_path / "out" / "net.mlpackage")([ids.astype(np.int32), x])
    np.testing.assert_allclose(got[0], scores, atol=1e-6, rtol=1e-5)
    np.testing.assert_array_equal(got[1], best)
    assert [value["type"] for value in contract(net)["inputs"]] == ["int32", "float32"]
    monkeypatch.delitem(RULES, "lstm")
    with pytest.raises(InputError, match=r"^the check of Core ML programs does not know lstm \(\w+\)$"):
        MilProgram(tmp_path / "out" / "net.mlpackage")


class Gated(nn.Module):
    """A GRU, two layers both ways, which Core ML has as a loop, and one of plain steps."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.rnn = nn.GRU(6, 8, 2, batch_first=True, bidirectional=True), nn.RNN(16, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, hidden = self.gru(x)
        return self.head(self.rnn(y)[0].mean(1)), hidden[-1]


@pytest.mark.slow
@pytest.mark.usefixtures("coreml")
def test_a_gru_is_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeprune.export.mil.program import MilProgram

    torch.manual_seed(0)
    net = tmp_path / "net.pt2"
    save_program(net, slim_program(Gated(), torch.randn(2, 5, 6)), ModelInfo((5, 6)))
    record = exported(net)
    assert not any(file.left_out for file in record.files)
    x = np.random.default_rng(0).standard_normal((1, 5, 6), dtype=np.float32)
    for name, share in (("net.mlpackage", 1e-5), ("net.fp16.mlpackage", 5e-3), ("net.w8.mlpackage", 5e-2)):
        for want, got in zip(in_pytorch(net, x), MilProgram(tmp_path / "out" / name)([x]), strict=True):
            assert np.abs(got - want).max() <= share * np.abs(want).max(), name
    monkeypatch.delitem(RULES, "scatter")
    with pytest.raises(InputError, match=r"^the check of Core ML programs does not know scatter \(\w+\)$"):
        MilProgram(tmp_path / "out" / "net.mlpackage")


@pytest.mark.slow
@pytest.mark.usefixtures("coreml")
def test_raw_sensors_are_scaled_before_they_are_halved(tmp_path: Path) -> None:
    """Half precision has no 30,005."""
    from edgeprune.export.mil.program import MilProgram

    net, raw = saved_sensors(tmp_path), raw_sensors(9)
    record = exported(net, preprocess="fold")
    assert not any(file.left_out for file in record.files)
    want = of_sensors(net, raw)
    for name, share in (("net.mlpackage", 1e-5), ("net.fp16.mlpackage", 5e-3), ("net.w8.mlpackage", 5e-2)):
        program = MilProgram(tmp_path / "out" / name)
        got = np.concatenate([program([row[None]])[0] for row in kept_sensors(raw)])
        assert np.abs(got - want).max() <= share * np.abs(want).max(), name


@pytest.mark.slow
@pytest.mark.usefixtures("coreml")
def test_what_core_ml_cannot_express_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_program(tmp_path / "net.pt2", capture(Bessel(), torch.randn(2, 4)), ModelInfo((4,)))
    from edgeprune.export.coreml import CoreMl
    from edgeprune.export.target import Material
    from edgeprune.formats.load import load
    from edgeprune.progress import Silent

    model = load(tmp_path / "net.pt2")
    said = r"^Core ML cannot convert net: Core ML cannot express special_bessel_j0; replace it in the model$"
    with pytest.raises(InputError, match=said):
        CoreMl().write(Material(model, model.info, tmp_path, "net"), Silent())
    assert not (tmp_path / "net.mlpackage").exists()
