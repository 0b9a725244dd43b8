"""C of int8: what a quantised file means, on integers, strictly compiled and within the budget."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from test_c import COMPILERS, MODELS, STRICT, Cells, peak, sanitized, sensors, shallow, written
from torch import Tensor, nn

from edgeprune.commands.export import export
from edgeprune.export.c import target
from edgeprune.export.c.quantities import multiplied
from edgeprune.export.c.runtime import Library, compiled
from edgeprune.export.exact import meaning
from edgeprune.export.floatfile import snr_db
from edgeprune.export.onnx import draft_onnx
from edgeprune.export.quantize import write_int8
from edgeprune.graph.capture import capture
from edgeprune.progress import Silent
from edgeprune.requests import ExportRequest
from edgeprune.results import LeftOut

pytestmark = pytest.mark.skipif(not COMPILERS, reason="no C compiler")


class Squeezed(nn.Module):
    """Gates, a shuffle and parts of a tensor: what moves integers, looks them up, and has no form but in floats."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.down, self.up, self.point = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(16, 6, 1)
        self.head = nn.Linear(54, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.stem(x))
        z = F.silu(self.deep(y))
        z = z * torch.sigmoid(self.up(F.relu(self.down(z.mean((2, 3), keepdim=True)))))
        left, right = F.channel_shuffle(torch.cat([z, y], 1), 2).chunk(2, 1)
        w = F.max_pool2d(F.gelu(self.point(torch.cat([left + right, right], 1))), 2)
        return self.head(F.avg_pool2d(w, 2, 1).flatten(1)).softmax(1)


QUANTISED: dict[str, tuple[Any, tuple[int, ...]]] = {
    "squeezed": (Squeezed, (3, 8, 8)), "cells": (Cells, (3, 17, 14)), "sensors": (sensors, (6, 28)),
    "mlp": (shallow, (1, 4, 6)),
}  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", QUANTISED)
def test_a_quantised_file_is_computed_as_it_means(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, shape = QUANTISED[name]
    draft_onnx(capture(net().eval(), torch.randn(2, *shape)), tmp_path / "net.onnx")
    chance = np.random.default_rng(0)
    calibration = chance.standard_normal((32, *shape), np.float32)
    write_int8(tmp_path / "net.onnx", tmp_path / "small.onnx", calibration, max_drop=90.0, reduce_range=False)
    program, source = written(tmp_path / "small.onnx", "small")
    compiled(source, tmp_path / "strict.so", (*STRICT, "-O2", "-fPIC", "-shared"))
    exact = meaning(tmp_path / "small.onnx", tmp_path / "exact.onnx")
    assert exact is not None
    given = chance.standard_normal((40, *shape), np.float32)
    session, library = onnxruntime.InferenceSession(exact), Library.of(source)
    [want] = session.run(None, {session.get_inputs()[0].name: given})
    got = []
    for one in given:
        library.fill([one])
        got.append(library.run()[0][0])
    np.testing.assert_array_equal(np.argmax(got, 1), want.argmax(1))
    assert snr_db([want], [np.array(got)]) > 40
    kernels = {call.kernel for step in program.network.arena.steps for call in step.calls}
    assert "linear_u8" in kernels and not kernels & {"linear_f32", "conv_f32"}
    assert program.arena_bytes == peak(program)


def on_grids(path: Path) -> None:
    """Operators between integers of several grids, signed ones too, and values that are read as floats as well."""
    make = helper.make_node
    grids = {
        "a": (0.0513, 99, np.uint8),
        "b": (0.0307, 90, np.uint8),
        "c": (0.0203, -7, np.int8),
        "d": (0.0411, 0, np.uint8),
    }
    held = [numpy_helper.from_array(np.array([0, 0, 1, 2, 0, 0, 0, 1]), "pads")]
    held += [numpy_helper.from_array(np.array([2, 0]), "places"), numpy_helper.from_array(np.array([1, 2]), "axes")]
    for name, (scale, zero, kind) in grids.items():
        held.append(numpy_helper.from_array(np.array(scale, np.float32), f"{name}_scale"))
        held.append(numpy_helper.from_array(np.array(zero, kind), f"{name}_zero"))
    nodes: list[onnx.NodeProto] = []

    def on(grid: str, value: str) -> str:
        scale, zero = f"{grid}_scale", f"{grid}_zero"
        nodes.append(make("QuantizeLinear", [value, scale, zero], [f"{value}_{grid}q"]))
        nodes.append(make("DequantizeLinear", [f"{value}_{grid}q", scale, zero], [f"{value}_{grid}"]))
        return f"{value}_{grid}"

    def put(kind: str, *values: str, **told: Any) -> str:
        name = f"{kind}{len(nodes)}"
        nodes.append(make(kind, values, [name], **told))
        return name

    x, fine, signed = on("a", "x"), on("b", "x"), on("c", "x")
    results = [
        on("b", put("AveragePool", x, kernel_shape=[2, 3], strides=[1, 2])),
        on("b", put("MaxPool", x, kernel_shape=[2, 2])), on("c", put("Mul", signed, signed)),
        on("b", put("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])), on("b", put("Sub", x, fine)),
        on("b", put("AveragePool", x, kernel_shape=[3, 2], pads=[1, 0, 1, 1], strides=[2, 2], count_include_pad=1)),
        on("d", put("Relu", put("Add", x, on("d", "x")))), on("b", put("ReduceMean", x, "axes", keepdims=0)),
        on("b", put("Pad", x, "pads")), on("b", put("Gather", x, "places", axis=1)), on("b", put("Sigmoid", x)),
        on("b", put("Concat", x, fine, axis=1)), on("c", put("Tanh", signed)),
        on("b", put("Transpose", x, perm=[0, 2, 3, 1])), put("Neg", x), on("c", put("Flatten", signed)),
    ]  # fmt: skip
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 6, 7])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in results]
    graph = helper.make_graph(nodes, "grids", [given], outputs, held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def test_operators_on_integers_are_computed_as_they_mean(tmp_path: Path) -> None:
    on_grids(tmp_path / "net.onnx")
    program, source = written(tmp_path / "net.onnx")
    compiled(source, tmp_path / "strict.so", (*STRICT, "-O2", "-fPIC", "-shared"))
    exact = meaning(tmp_path / "net.onnx", tmp_path / "exact.onnx")
    assert exact is not None
    session, library = onnxruntime.InferenceSession(exact), Library.of(source)
    for seed in range(3):
        given = 3 * np.random.default_rng(seed).standard_normal((1, 3, 6, 7), np.float32)
        library.fill([given])
        for want, got in zip(session.run(None, {"x": given}), library.run(), strict=True):
            assert want.shape == got.shape
            away = np.abs(want - got)
            # A step of the coarsest grid at most, where a multiplier of 31 bits rounds otherwise; seldom.
            assert away.max() < 0.052 and (away > 1e-5).mean() < 0.01
    kernels = {call.kernel for step in program.network.arena.steps for call in step.calls}
    assert {"average_pool_u8", "max_pool_u8", "add_u8", "mean_u8", "copy_table_u8", "table_u8"} <= kernels
    assert {"quantize_s8", "dequantize_s8", "average_pool_padded_u8"} <= kernels


@pytest.mark.parametrize("factor", [0.375, 1.0, 0.999999999, 1e-3, 77.7, 3e-9, 1e-25, 2.0**20])
def test_factors_become_whole_numbers_and_shifts(factor: float) -> None:
    found = multiplied(factor)
    assert found is not None
    multiplier, shift = found
    assert 0 <= multiplier < 2**31 and 1 <= shift <= 62
    assert abs(multiplier / 2**shift - factor) <= max(factor * 2.0**-30, 2.0**-62)


def test_a_factor_that_is_too_large_has_none() -> None:
    assert multiplied(2.0**40) is None and multiplied(0.375) == (1610612736, 32)


def test_nothing_is_undefined_in_int8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    draft_onnx(capture(Squeezed().eval(), torch.randn(2, 3, 8, 8)), tmp_path / "net.onnx")
    given = np.random.default_rng(0).standard_normal((16, 3, 8, 8), np.float32)
    write_int8(tmp_path / "net.onnx", tmp_path / "small.onnx", given, max_drop=90.0)
    _, source = written(tmp_path / "small.onnx", "small")
    given[0], given[1] = 1e30, -1e30
    want = sanitized(source, given).reshape(16, 5)
    library = Library.of(source)
    for one, row in zip(given, want, strict=True):
        library.fill([one])
        np.testing.assert_allclose(library.run()[0][0], row, rtol=1e-6)


@pytest.mark.slow
def test_the_c_of_int8_is_judged_by_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = ExportRequest(
        model=str(MODELS / "digits_mlp.pt"),
        out=str(tmp_path / "out"),
        data="digits",
        int8=True,
        targets=("c",),
        batch=2,
    )
    record = export(request)
    assert [Path(file.path).name for file in record.files[-4:]] == [
        "digits_mlp.c", "digits_mlp.h", "digits_mlp_int8.c", "digits_mlp_int8.h",
    ]  # fmt: skip
    assert record.targets is not None
    assert re.search(r"int8, accuracy 9\d\.\d % \(9\d\.\d % in float\); arena", record.targets.rows[2].verdict)
    stated = (tmp_path / "out" / "features.json").read_text()
    assert '"c-int8"' in stated and '"digits_mlp_int8_input0"' in stated
    told = Lines()
    monkeypatch.setattr(target, "judged", lambda *_: ("accuracy 10.0 % (97.5 % in float)", False))
    again = export(replace(request, force=True), told)
    assert [Path(file.path).name for file in again.files[-2:]] == ["digits_mlp.c", "digits_mlp.h"]
    lost = "left out: C of int8: accuracy 10.0 % (97.5 % in float), which is more than may be lost"
    assert again.files[-2].left_out == (LeftOut("int8", lost.removeprefix("left out: C of int8: ")),)
    assert lost in told.lines and not (tmp_path / "out" / "digits_mlp_int8.c").exists()


class Lines(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)
