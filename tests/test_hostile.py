"""Files that were made to do harm: each is refused in one line, within bounds of time and memory."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import edgeprune
from edgeprune.cli.app import main
from edgeprune.data import open_data
from edgeprune.errors import InputError
from edgeprune.formats.load import load_model
from edgeprune.formats.save import save_checkpoint, save_program
from edgeprune.records import ModelInfo


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        act()
    return str(caught.value)


# -- data --------------------------------------------------------------------------------------------------------------


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def npz(path: Path, content: bytes, packed: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", packed) as archive:
        archive.writestr("x.npy", content)
        archive.writestr("y.npy", npy("{'descr': '|u1', 'fortran_order': False, 'shape': (0,), }"))
    return f"npz:{path}"


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("", "expected a header of NumPy's"),
        ("(" * 300, "expected a header of NumPy's"),
        ("{'a': [", "expected a header of NumPy's"),
        ("1" + "+1" * 1500, "expected a header of NumPy's"),
        ("__import__('os').system('touch marker')", "expected a header of NumPy's"),
        ("{1: 2, 'a': 3}", "expected a header with descr"),
        ("{[]: 1}", "expected a header of NumPy's"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}", "Python objects, which need unpickling"),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,)}", "expected an array of numbers"),
        ("{'descr': '<f3', 'fortran_order': False, 'shape': (3,)}", "expected an array of numbers"),
        ("{'descr': '<f4', 'fortran_order': 0, 'shape': (3,)}", "expected an array of numbers"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': 3}", "expected a shape"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "expected a shape"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}", "expected a shape"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 900 + ")}", "expected a shape"),
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999)}",
            "at most 4,294,967,296 bytes",
        ),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", "the header promises 12 bytes, got 0"),
        ("x" * 5000, "a header of at most 4096 bytes, got 5,001"),
    ],
)
def test_headers_of_arrays(tmp_path: Path, header: str, said: str) -> None:
    spec = npz(tmp_path / "d.npz", npy(header))
    assert said in refused(lambda: open_data(spec))


def test_arrays_of_other_orders_and_versions_are_read_as_numpy_reads_them(tmp_path: Path) -> None:
    x = np.asfortranarray(np.random.default_rng(0).standard_normal((50, 3, 2)))
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, x, version=(3, 0))
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", buffer.getvalue())
        archive.writestr("y.npy", npy("{'descr': '>i2', 'fortran_order': False, 'shape': (50, 1), }",
                                      (np.arange(50) % 2).astype(">i2").tobytes()))  # fmt: skip
    data = open_data(f"npz:{tmp_path / 'd.npz'}")
    rows = {row.tobytes() for row in x.astype(np.float32)}
    assert all(data.train[i][0].numpy().tobytes() in rows for i in range(len(data.train)))


def test_a_gigabyte_of_zeros_in_a_megabyte_is_not_unpacked(tmp_path: Path) -> None:
    head = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (67108864, 2), }")
    spec = npz(tmp_path / "d.npz", head + bytes(2**27), zipfile.ZIP_DEFLATED)
    assert "expected at most 67,108,864 bytes in" in refused(lambda: open_data(spec))


def test_a_table_of_too_many_columns_or_too_long_a_head(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"k," + b"c," * 99_999 + b"c\n" + b"1," * 100_000 + b"1\n")
    assert "at most 32,768 columns, got 100,001" in refused(lambda: open_data(f"csv:{path}?target=k"))
    path.write_bytes(b"k" * 2**23)
    assert "a first line of at most 4,194,304 bytes" in refused(lambda: open_data(f"csv:{path}?target=k"))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(marker) (w) file closefile showpage\n"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(5):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / name / f"{index}.png")
    return tmp_path


def read_all(root: Path) -> None:
    data = open_data(f"imagefolder:{root}?size=8")
    for split in (data.train, data.val, data.test):
        for index in range(len(split)):
            split[index]


@pytest.mark.parametrize("content", [EPS, b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(EPS)) + bytes(18) + EPS])
def test_an_image_is_read_as_one_of_the_formats_that_are_meant(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    import subprocess

    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("another program was started"))
    (pictures / "cat" / "2.png").write_bytes(content)
    said = refused(lambda: read_all(pictures))
    assert "2.png: expected an image, got UnidentifiedImageError" in said and "0x" not in said


def test_an_image_that_takes_too_long_is_left(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeprune.data.images.MAX_SECONDS", -1.0)
    assert "one that takes more than -1 s to read" in refused(lambda: read_all(pictures))


def test_a_pipe_among_the_images_is_not_waited_for(pictures: Path) -> None:
    (pictures / "cat" / "2.png").unlink()
    os.mkfifo(pictures / "cat" / "2.png")
    assert "2.png: expected an image, got a pipe" in refused(lambda: read_all(pictures))


def test_a_picture_of_too_many_pixels_is_not_unpacked(pictures: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    (pictures / "cat" / "2.png").write_bytes(image + chunk(b"IEND", b""))
    assert "2.png: expected" in refused(lambda: read_all(pictures))


# -- models ------------------------------------------------------------------------------------------------------------


class Named(nn.Module):
    """A layer under any name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Linear(4, 64))
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(batch, 4)` to `(batch, 3)`."""
        return self.head(torch.relu(getattr(self, self.name)(x)))


@pytest.mark.parametrize("name", ["größe", "слой", "層", "a b"])
def test_names_in_any_script_go_all_the_way(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    program = edgeprune.capture(Named(name).eval(), torch.randn(3, 4))
    plan = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.5)
    slim = edgeprune.cut(program, plan)
    x = torch.randn(5, 4)
    for write, file in ((save_program, "m.pt2"), (save_checkpoint, "m.pt")):
        write(tmp_path / file, slim, ModelInfo(input_shape=(4,)))
        assert torch.equal(load_model(tmp_path / file).program.module()(x), slim.module()(x))


NETS = """
from torch import nn

class Named(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name
        self.add_module(name, nn.Linear(4, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(getattr(self, self.name)(x))

def quoted():
    return Named("a'b")

def escape():
    return Named("a\\x1bb")
"""


@pytest.mark.parametrize("name", ["quoted", "escape"])
def test_names_that_no_file_can_hold_are_refused_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    np.savez("d.npz", x=rng.standard_normal((60, 4)).astype(np.float32), y=np.arange(60) % 3)
    command = ["train", "--arch", f"nets.py:{name}", "--data", "npz:d.npz", "--epochs", "100000", "--out", "m.pt"]
    assert main(command) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "expected a name of letters" in line and "\x1b" not in line
    assert not Path("m.pt").exists() and not Path("m.pt.training").exists()


def checkpoint(path: Path, **changes: Any) -> Path:
    program = edgeprune.capture(Named("a").eval(), torch.randn(3, 4))
    save_checkpoint(path, program, ModelInfo(input_shape=(4,)))
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)
    return path


def doubled() -> list[Any]:
    """Sixty lists that stand for 2 to the sixtieth."""
    value: list[Any] = []
    for _ in range(60):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"normalization": {"mean": [10**400], "std": [1.0]}}, "expected normalization with mean and std"),
        ({"normalization": doubled()}, "expected normalization with mean and std"),
        ({"input_shape": doubled()}, "expected input_shape as sizes above 0"),
        ({"input_shape": [2**40]}, "expected input_shape as sizes above 0"),
        ({"input_shape": [1] * 1000}, "expected input_shape as sizes above 0"),
        ({"classes": doubled()}, "expected classes as a list of short texts"),
        ({"classes": ["a", "\ud800"]}, "expected classes as a list of short texts"),
        ({"arch": "x" * 10**6}, "expected arch as a short text"),
        ({"training": doubled()}, "expected training with"),
        ({"format": "edgeprune-checkpoint/" + "9" * 40_000}, "expected a checkpoint edgeprune-checkpoint/1"),
        ({"state_dict": {"a.weight": torch.zeros(1).expand(2**20, 2**20)}}, "fewer that stand for them"),
    ],
)
def test_what_a_checkpoint_says_of_itself(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = checkpoint(tmp_path / "m.pt", **changes)
    line = refused(lambda: load_model(path))
    assert said in line and len(line.removeprefix(str(path))) < 300


def test_a_program_that_lies_about_a_shape_is_refused(tmp_path: Path) -> None:
    program = edgeprune.capture(Named("a").eval(), torch.randn(3, 4))
    save_program(tmp_path / "m.pt2", program, ModelInfo(input_shape=(4,)))
    content = (tmp_path / "m.pt2").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    model = next(name for name in records if name.endswith("model.json"))
    head, _, tail = records[model].partition(b'"relu": {')
    records[model] = head + b'"relu": {' + tail.replace(b'{"as_int": 64}', b'{"as_int": 65}', 1)
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    assert "value 'relu': expected" in refused(lambda: load_model(tmp_path / "m.pt2"))


# -- ONNX --------------------------------------------------------------------------------------------------------------

OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]


def network(nodes: list[Any], start: list[Any], functions: list[Any] | None = None) -> onnx.ModelProto:
    """`input` `(batch, 4)` to `output` `(batch, 3)`."""
    start = [*start, onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w")]
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4])]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 3])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, start)
    return helper.make_model(graph, opset_imports=OPSETS, functions=functions or [], ir_version=9)


def plain() -> onnx.ModelProto:
    return network([helper.make_node("MatMul", ["input", "w"], ["output"])], [])


def doubling(n_levels: int, closed: bool = False) -> onnx.ModelProto:
    functions = [helper.make_function("own", "f0", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], OPSETS)]
    for level in range(1, n_levels):
        calls = [helper.make_node(f"f{level - 1}", [one], [two], domain="own") for one, two in ("ac", "cb")]
        functions.append(helper.make_function("own", f"f{level}", ["a"], ["b"], calls, OPSETS))
    if closed:
        functions[0].node[0].op_type, functions[0].node[0].domain = f"f{n_levels - 1}", "own"
    nodes = [
        helper.make_node(f"f{n_levels - 1}", ["input"], ["x"], domain="own"),
        helper.make_node("MatMul", ["x", "w"], ["output"]),
    ]
    return network(nodes, [], functions)


def swelling(n: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("MatMul", ["input", "w"], ["y"]),
        helper.make_node("Add", ["y", "sum"], ["output"]),
    ]
    return network(nodes, [onnx.numpy_helper.from_array(np.array([n]), "shape")])


def endless() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["v"], ["next"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("next", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["y"]),
        helper.make_node("Loop", ["trips", "yes", "y"], ["output"], body=body),
    ]
    start = [onnx.numpy_helper.from_array(np.array(2**62), "trips"),
             onnx.numpy_helper.from_array(np.array(True), "yes")]  # fmt: skip
    return network(nodes, start)


def elsewhere(location: str) -> onnx.ModelProto:
    proto = plain()
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return proto


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: doubling(31), "expected at most 1,000,000 nodes, got functions that stand for more"),
        (lambda: doubling(5, closed=True), "expected functions that end, got some that call themselves"),
        (lambda: swelling(2**33), "onnxruntime"),
        (lambda: swelling(2**62), "onnxruntime"),
        (endless, "it took more than 0 s"),
        (lambda: elsewhere("a\x00b"), "expected the name of a file with weights, got 'a\\x00b'"),
        (lambda: elsewhere("x" * 5000), "expected the name of a file with weights"),
        (lambda: elsewhere("../up"), "expected weights in its own folder, got external data at '../up'"),
        (lambda: elsewhere("\x1b[2J"), "expected its external data '\\x1b[2J' beside it, got nothing there"),
    ],
)
def test_networks_that_onnxruntime_would_choke_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], make: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("edgeprune.measure.foreign._SECONDS", 0.2)
    onnx.save(plain(), "good.onnx")
    Path("bad.onnx").write_bytes(make().SerializeToString())
    rng = np.random.default_rng(0)
    np.savez("d.npz", x=rng.standard_normal((60, 4)).astype(np.float32), y=np.arange(60) % 3)
    assert main(["validate", "bad.onnx", "good.onnx", "--data", "npz:d.npz", "--runs", "10"]) == 2
    [line] = [line for line in capfd.readouterr().err.splitlines() if not line.startswith(("bad.onnx: states", "load"))]
    assert line.startswith("edgeprune: bad.onnx: ") and said in line and len(line) <= 300


def test_functions_that_do_not_double_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.onnx").write_bytes(doubling(5).SerializeToString())
    rng = np.random.default_rng(0)
    np.savez("d.npz", x=rng.standard_normal((60, 4)).astype(np.float32), y=np.arange(60) % 3)
    assert main(["validate", "good.onnx", "good.onnx", "--data", "npz:d.npz", "--runs", "10"]) == 0


# -- pipes -------------------------------------------------------------------------------------------------------------

MLP = str(Path(__file__).parent.parent / "models" / "digits_mlp.pt")
TRAIN = ["train", "--arch", str(Path(MLP).with_name("digits.py")) + ":mlp", "--data", "digits", "--out", "m.pt"]


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("pipe", ["compress", "pipe"]),
        ("pipe", ["inspect", "pipe"]),
        ("pipe", ["export", "pipe", "--onnx"]),
        ("pipe", ["compress", MLP, "--data", "npz:pipe"]),
        ("pipe", ["compress", MLP, "--data", "csv:pipe?target=a"]),
        ("pipe", ["compress", MLP, "--plan", "pipe"]),
        ("pipe", ["compress", MLP, "--device", "pipe"]),
        ("pipe", ["compress", MLP, "--feature-groups", "pipe"]),
        ("pipe", ["validate", "pipe", "pipe", "--data", "digits"]),
        ("pipe.py", ["compress", MLP, "--data", "pipe.py:made"]),
        ("m.pt.training", [*TRAIN, "--resume"]),
    ],
)
def test_a_pipe_under_the_name_of_any_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(name)
    assert main(command) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"edgeprune: {name}") and "got a pipe" in line
