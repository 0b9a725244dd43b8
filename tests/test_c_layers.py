"""C for microcontrollers, as onnxruntime has it: transposed and recurrent layers, norms of a sample, attention, ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from test_c import COMPILERS, STRICT, differs, made, sanitized, written
from torch import Tensor, nn

from edgeprune.data import first_inputs, open_data
from edgeprune.errors import InputError
from edgeprune.export.c.runtime import Library, compiled
from edgeprune.export.exact import meaning
from edgeprune.export.floatfile import snr_db
from edgeprune.export.onnx import draft_onnx
from edgeprune.export.quantize import write_int8
from edgeprune.graph.capture import capture

pytestmark = pytest.mark.skipif(not COMPILERS, reason="no C compiler")
SHARED = ("-O2", "-fPIC", "-shared")


class Spread(nn.Module):
    """Transposed convolutions with strides, gaps, groups and what is put at the end, over images and lines."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1)
        self.grouped = nn.ConvTranspose2d(6, 9, (2, 3), stride=(1, 3), dilation=(2, 1), groups=3, bias=False)
        self.line = nn.ConvTranspose1d(9, 5, 4, stride=3, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(F.silu(self.grouped(self.wide(x).relu())).mean(2))


class Norms(nn.Module):
    """Norms over the last dim, over several, over groups and over images, with and without numbers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.groups, self.images = nn.GroupNorm(3, 6), nn.InstanceNorm2d(6, affine=True)
        self.several, self.plain = nn.LayerNorm((5, 7), eps=1e-3), nn.LayerNorm(7, elementwise_affine=False)
        self.last = nn.LayerNorm(6)
        for norm in (self.groups, self.images, self.several, self.last):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.images(self.groups(x)) + self.plain(self.several(x))
        return self.last(y.permute(0, 2, 3, 1) + 2.0).mean((1, 2))


class Rows(nn.Module):
    """Recurrent layers in both directions and several layers, whose states, last states and cells are read."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.gru, self.plain = nn.GRU(10, 4, batch_first=True, bidirectional=True), nn.LSTM(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y, (states, cells) = self.lstm(x)
        z, last = self.gru(y)
        w, (first, _) = self.plain(z.transpose(0, 1), (x[:, :1, :3].transpose(0, 1), x[:, 1:2, :3].transpose(0, 1)))
        return torch.cat([states.sum(0), cells.mean(0), last[0], last[1], w[-1], first[0]], 1)


class Words(nn.Module):
    """Ids through a table, an encoder layer and products of stored and computed matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(23, 16), nn.Parameter(torch.randn(6, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, activation="gelu")
        self.encoder, self.mix = (
            nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
            nn.Parameter(torch.randn(3, 6)),
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.mix @ self.encoder(self.table(ids) + self.places)


class Both(nn.Module):
    """Ids beside numbers; ids are cut, moved and counted with."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 5), nn.Linear(34, 3)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        y = self.table(ids[:, 1:4]).flatten(1) + self.table(ids.flip(1)[:, :3]).flatten(1)
        scores = torch.cat([y, ids.float() / 11, x, x @ x.new_ones(5, 10)], 1)
        return self.head(scores)


@pytest.mark.parametrize(
    ("net", "shape"),
    [(Spread, (4, 5, 4)), (Norms, (6, 5, 7)), (Rows, (7, 6))],
    ids=["transposed", "norms", "recurrent"],
)
def test_layers_give_what_onnxruntime_gives(net: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    program, source = made(net(), torch.randn(2, *shape), tmp_path)
    compiled(source, tmp_path / "strict.so", (*STRICT, *SHARED))
    assert differs(tmp_path / "net.onnx", source) < 1e-5
    assert program.arena_bytes >= program.network.arena.peak_bytes


@pytest.mark.parametrize("net", [Words, Both])
def test_ids_give_what_onnxruntime_gives(net: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    size, n_ids = (23, 6) if net is Words else (11, 4)
    ids, x = torch.randint(0, size, (2, n_ids)), torch.randn(2, 5)
    program = capture(net().eval(), ids if net is Words else (ids, x))
    draft_onnx(program, tmp_path / "net.onnx")
    _, source = written(tmp_path / "net.onnx")
    compiled(source, tmp_path / "strict.so", (*STRICT, *SHARED))
    assert "#define NET_INPUT0_TYPE int32_t\n" in source.with_suffix(".h").read_text()
    session, library, chance = onnxruntime.InferenceSession(tmp_path / "net.onnx"), Library.of(source), np.random
    names = [value.name for value in session.get_inputs()]
    for seed in range(8):
        chance = np.random.default_rng(seed)
        given = [chance.integers(0, size, (1, n_ids)), chance.standard_normal((1, 5), np.float32)][: len(names)]
        library.fill(given)
        [want], [got] = session.run(None, dict(zip(names, given, strict=True))), library.run()
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_an_id_means_a_row_of_the_table_whatever_it_is(tmp_path: Path) -> None:
    """Negative ones count from the end; what is beyond the table reads no other memory."""
    table = numpy_helper.from_array(np.arange(15, dtype=np.float32).reshape(5, 3), "table")
    numbers = numpy_helper.from_array(np.array([4, 0, 7, 2], np.int64), "numbers")
    nodes = [
        helper.make_node("Gather", ["numbers", "ids"], ["renamed"]),
        helper.make_node("Gather", ["table", "ids"], ["rows"], axis=1),
    ]
    given = helper.make_tensor_value_info("ids", TensorProto.INT64, [6])
    outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in
               (("renamed", TensorProto.INT64), ("rows", TensorProto.FLOAT))]  # fmt: skip
    graph = helper.make_graph(nodes, "ids", [given], outputs, [table, numbers])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "net.onnx"
    )
    _, source = written(tmp_path / "net.onnx")
    compiled(source, tmp_path / "strict.so", (*STRICT, *SHARED))
    library = Library.of(source)
    library.fill([np.array([0, 2, -1, -3, 99, -99])])
    renamed, rows = library.run()
    assert renamed.tolist() == [4, 7, 2, 0, 2, 4]
    np.testing.assert_array_equal(rows, np.arange(15).reshape(5, 3)[:, [0, 2, 2, 0, 2, 0]])


def test_whole_numbers_beyond_32_bits_are_refused(tmp_path: Path) -> None:
    numbers = numpy_helper.from_array(np.array([1, 2**40], np.int64), "numbers")
    given = helper.make_tensor_value_info("ids", TensorProto.INT64, [2])
    out = helper.make_tensor_value_info("renamed", TensorProto.INT64, None)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["numbers", "ids"], ["renamed"])], "g", [given], [out], [numbers]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "net.onnx"
    )
    with pytest.raises(InputError, match=r"^C: expected whole numbers below 2\^31, got 1099511627776$"):
        written(tmp_path / "net.onnx")


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("operator", ["AveragePool", "MaxPool"])
def test_windows_that_hold_no_number_are_refused(tmp_path: Path, operator: str, quantized: bool) -> None:
    """Both taps of a dilated window may lie beside a short line; its mean is one of nothing."""
    held = [numpy_helper.from_array(np.array(one), name) for one, name in ((np.float32(0.1), "s"), (np.uint8(3), "z"))]
    grid = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"])]
    grid += [helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xf"])]
    pool = helper.make_node(operator, ["xf" if quantized else "x"], ["p"], kernel_shape=[2], pads=[1, 1], dilations=[2])
    back = [helper.make_node("QuantizeLinear", ["p", "s", "z"], ["q"])]
    back += [helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
    for size, message in ((1, rf"^C has no {operator} .* with a window that holds no number$"), (2, None)):
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, size])
        out = helper.make_tensor_value_info("y" if quantized else "p", TensorProto.FLOAT, None)
        nodes = [*grid, pool, *back] if quantized else [pool]
        graph = helper.make_graph(nodes, "g", [given], [out], held if quantized else [])
        path = tmp_path / f"{size}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10), path)
        if message is None:
            written(path)
            continue
        with pytest.raises(InputError, match=message):
            written(path)


@pytest.mark.parametrize(
    ("operator", "told", "message"),
    [
        ("GRU", {}, "that resets the state before its product"),
        ("LSTM", {"activations": ["Sigmoid", "Relu", "Tanh"]}, "with Sigmoid, Relu, Tanh"),
        ("LSTM", {"clip": 2.0}, "with a layout, a clip or joined gates"),
        ("LSTM", {}, "with peepholes"),
    ],
    ids=["gru", "functions", "clip", "peepholes"],
)
def test_recurrent_layers_that_pytorch_has_not_are_refused(
    operator: str, told: dict[str, Any], message: str, tmp_path: Path
) -> None:
    n_gates, inputs = (4, ["x", "w", "r"]) if operator == "LSTM" else (3, ["x", "w", "r"])
    held = [
        numpy_helper.from_array(np.ones((1, 2 * n_gates, size), np.float32), name)
        for name, size in zip("wr", (3, 2), strict=True)
    ]
    if message == "with peepholes":
        held.append(numpy_helper.from_array(np.ones((1, 6), np.float32), "p"))
        inputs = [*inputs, "", "", "", "", "p"]
    node = helper.make_node(operator, inputs, ["y"], name="layer", hidden_size=2, **told)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 1, 3] if name == "x" else None) for name in "xy")
    graph = helper.make_graph([node], "g", [x], [y], held)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "net.onnx"
    )
    with pytest.raises(InputError, match=rf"^C has no {operator} \(layer\) {message}$"):
        written(tmp_path / "net.onnx")


class Digits(nn.Module):
    """Down by a pool with padding and up again, with a skip, over images of 8 by 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(1, 8, 3, padding=1), nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1)
        self.join, self.head = nn.Conv2d(14, 4, 1), nn.Linear(196, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).relu()
        z = F.avg_pool2d(y, 3, 2, 1, count_include_pad=False)
        z = torch.cat([self.up(z), y[:, :, :7, :7]], 1)
        return self.head(self.join(z).relu().flatten(1))


def test_all_digits_are_answered_in_float_and_in_int8(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = open_data("digits")
    draft_onnx(capture(Digits().eval(), torch.randn(2, 1, 8, 8)), tmp_path / "net.onnx")
    images, calibration = first_inputs(data.test, None), first_inputs(data.train, 64)
    _, source = written(tmp_path / "net.onnx")
    write_int8(tmp_path / "net.onnx", tmp_path / "small.onnx", calibration, max_drop=90.0, reduce_range=False)
    program, small = written(tmp_path / "small.onnx", "small")
    kernels = {call.kernel for step in program.network.arena.steps for call in step.calls}
    assert {"conv_transpose_u8", "average_pool_padded_u8"} <= kernels
    exact = meaning(tmp_path / "small.onnx", tmp_path / "exact.onnx")
    assert exact is not None
    for file, wanted in ((source, tmp_path / "net.onnx"), (small, exact)):
        compiled(file, tmp_path / "strict.so", (*STRICT, *SHARED))
        [want] = onnxruntime.InferenceSession(wanted).run(None, {"input": images})
        library, got = Library.of(file), []
        for image in images:
            library.fill([image[None]])
            got.append(library.run()[0][0])
        if file == source:
            np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
        else:
            assert snr_db([want], [np.array(got)]) > 40


def test_no_layer_does_what_is_undefined(tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, source = made(Spread(), torch.randn(2, 4, 5, 4), tmp_path)
    given = np.random.default_rng(0).standard_normal((1, 4, 5, 4), np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    [want] = session.run(None, {session.get_inputs()[0].name: given})
    np.testing.assert_allclose(sanitized(source, given).reshape(want.shape), want, atol=1e-5)
