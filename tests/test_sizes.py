"""Free height, width and length: every stage keeps them, and a size that the model fixes is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import CaptureError, InputError
from edgeprune.export.contracts import write_contracts
from edgeprune.formats import architectures
from edgeprune.formats.load import load
from edgeprune.formats.save import save_checkpoint, save_program
from edgeprune.graph.sizes import free_dims, free_ranges, grown_shapes
from edgeprune.records import ModelInfo, Normalization
from tests.nets import Net, cut_randomly, randomized, sample

IMAGE = (3, 16, 12)
SIZES = ((16, 12), (24, 20), (8, 36))


def classifier() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


def unet() -> nn.Module:
    """Upsampled to the size of what it is joined with."""
    return Net(
        _unet,
        a=nn.Conv2d(3, 6, 3, padding=1), b=nn.Conv2d(6, 8, 3, stride=2, padding=1),
        c=nn.Conv2d(8, 8, 3, stride=2, padding=1), up=nn.Conv2d(16, 6, 3, padding=1), last=nn.Conv2d(12, 2, 1),
    )  # fmt: skip


def _unet(m: Any, x: Tensor) -> Tensor:
    a = m.a(x).relu()
    b = m.b(a).relu()
    u = F.interpolate(m.c(b).relu(), size=b.shape[-2:], mode="bilinear")
    u = F.interpolate(m.up(torch.cat([u, b], 1)).relu(), size=a.shape[-2:])
    return m.last(torch.cat([u, a], 1))


def gated() -> nn.Module:
    """Squeeze and excite, and a view whose sizes are products of channels and free sizes."""
    return Net(
        _gated,
        a=nn.Conv2d(3, 8, 3, padding=1), down=nn.Linear(8, 4), up=nn.Linear(4, 8), mix=nn.Linear(8, 6),
        head=nn.Linear(6, 3),
    )  # fmt: skip


def _gated(m: Any, x: Tensor) -> Tensor:
    x = m.a(x).relu()
    gate = m.up(m.down(x.mean((2, 3))).relu()).sigmoid()
    x = x * gate[:, :, None, None]
    n, channels, height, width = x.shape
    tokens = x.reshape(n, channels, height * width).transpose(1, 2)
    tokens = m.mix(tokens).relu().reshape(n, height * width * 6).reshape(n, height * width, 6)
    return m.head(tokens.mean(1))


NETWORKS = {"classifier": classifier, "unet": unet, "gated": gated}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_free_size_stays_free_through_every_stage(name: str, tmp_path: Path) -> None:
    model = randomized(NETWORKS[name]()).double().eval()
    program = edgeprune.capture(model, sample((IMAGE,), 2), dynamic_size=True)
    assert free_dims(program) == ({0, 2, 3},)
    assert grown_shapes(program) == ((2, 3, 32, 12),)
    for height, width in SIZES:
        (x,) = sample(((3, height, width),), 3)
        torch.testing.assert_close(program.module()(x), model(x))
    for seed in (0, 1) if name == "gated" else (0,):
        cut = cut_randomly(program, edgeprune.analyze(program), share=0.7, seed=seed)
        assert cut.error <= 1e-10
        assert free_dims(cut.slim) == ({0, 2, 3},)
        save_program(tmp_path / f"{seed}.pt2", cut.slim, ModelInfo(input_shape=IMAGE))
        loaded = load(tmp_path / f"{seed}.pt2").program
        assert free_dims(loaded) == ({0, 2, 3},)
        for height, width in SIZES:
            (x,) = sample(((3, height, width),), 3)
            torch.testing.assert_close(loaded.module()(x), cut.slim.module()(x))
        program = edgeprune.graph.capture.Program.adopt(loaded)


def test_onnx_keeps_free_sizes(tmp_path: Path) -> None:
    program = edgeprune.capture(randomized(unet()), torch.randn(2, *IMAGE), dynamic_size=True)
    slim = cut_randomly(program, edgeprune.analyze(program)).slim
    edgeprune.export_onnx(slim, tmp_path / "slim.onnx")
    (taken,) = onnx.load(tmp_path / "slim.onnx").graph.input
    dims = [dim.dim_param or dim.dim_value for dim in taken.type.tensor_type.shape.dim]
    assert dims == ["batch", 3, "height", "width"]
    session = onnxruntime.InferenceSession(tmp_path / "slim.onnx")
    for height, width in SIZES:
        (x,) = sample(((3, height, width),), 3, torch.float32)
        with torch.no_grad():
            expected = slim.module()(x).numpy()
        (got,) = session.run(None, {"input": x.numpy()})
        np.testing.assert_allclose(got, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


def test_preprocessing_keeps_free_sizes(tmp_path: Path) -> None:
    program = edgeprune.capture(randomized(classifier()), torch.randn(2, *IMAGE), dynamic_size=True)
    info = ModelInfo(IMAGE, normalization=Normalization((0.5,), (0.25,)))
    write_contracts(program, info, tmp_path, name="net")
    session = onnxruntime.InferenceSession(tmp_path / "preprocess.onnx")
    raw = np.random.default_rng(0).random((2, 3, 24, 20), dtype=np.float32)
    np.testing.assert_allclose(session.run(None, {"input": raw})[0], (raw - 0.5) / 0.25, rtol=1e-6)


def test_a_slim_program_trains_and_is_exported_again_at_any_size() -> None:
    program = edgeprune.capture(randomized(classifier()), torch.randn(2, *IMAGE), dynamic_size=True)
    slim = cut_randomly(program, edgeprune.analyze(program)).slim
    module = slim.module().train()
    module(torch.randn(4, 3, 20, 28)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    again = edgeprune.graph.capture.reexport(module.eval(), (torch.zeros(2, *IMAGE),), free_ranges(slim))
    assert free_dims(again) == ({0, 2, 3},)


def test_sequences_of_any_length() -> None:
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    program = edgeprune.capture(randomized(net), sample(((7, 5),), 2), dynamic={"input": (0, 1)})
    assert free_dims(program) == ({0, 1},)
    slim = cut_randomly(program, edgeprune.analyze(program)).slim
    assert slim.module()(*sample(((19, 5),), 3)).shape == (3, 19, 2)


def test_an_input_without_a_batch() -> None:
    net = Net(lambda m, x, table: m.b((m.a(x) + table).relu()), a=nn.Linear(5, 8), b=nn.Linear(8, 2)).double()
    args = (*sample(((5,),), 3), torch.randn(8, dtype=torch.float64))
    program = edgeprune.capture(randomized(net), args, dynamic={"inputs_1": ()})
    assert free_dims(program) == ({0}, set())
    assert edgeprune.capture(net, args, dynamic_batch=False).module()(*args).equal(net.eval()(*args))


class Rest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return self.layer(sum(rest, x))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_inputs(count: int) -> None:
    program = edgeprune.capture(Rest(), [torch.ones(2, 5)] * count)
    assert free_dims(program) == ({0},) * count
    assert program.module()(*[torch.ones(4, 5)] * count).shape == (4, 3)


# -- what a model fixes -----------------------------------------------------------------------------------------------


class Asserting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[3] == 12, f"expected a width of 12, got {x.shape[3]}"
        return self.conv(x)


class Choosing(Asserting):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.shape[2] < 100 else self.conv(-x)


class Flattening(Asserting):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4 * 16 * 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


class Square(Asserting):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.shape[2] * 3 == x.shape[3] * 4 else self.conv(-x)


@pytest.mark.parametrize(
    ("network", "dim", "said"),
    [
        (Asserting, 3, ["at shape (2, 3, 16, 24) it fails: AssertionError: expected a width of 12, got 24"]),
        (Choosing, 2, ["expected at most 99"]),
        (Flattening, 2, ["at shape (2, 3, 32, 12) it fails: layer 'head', Linear(", "reduction dim"]),
        (Square, 2, ["expected "]),
    ],
)  # fmt: skip
def test_a_size_that_the_model_fixes_is_named_with_the_line(
    network: type[nn.Module], dim: int, said: list[str]
) -> None:
    with pytest.raises(CaptureError) as caught:
        edgeprune.capture(network(), torch.zeros(2, *IMAGE), dynamic_size=True)
    message = str(caught.value)
    assert message.startswith(f"{network.__name__} fixes the size of input 'x', dim {dim}, that was to be free: ")
    assert all(part in message for part in said) and f" (at {__file__}:" in message and "\n" not in message


@pytest.mark.parametrize("function", [lambda m, x: m.a(x).view(2, 12), lambda m, x: m.a(x) + torch.ones(2, 12)])
def test_a_batch_that_the_model_fixes(function: Callable[..., Any]) -> None:
    net = Net(function, a=nn.Linear(5, 12))
    with pytest.raises(CaptureError, match=r"Net fixes the batch of input 'inputs_0', dim 0.*dynamic_batch=False"):
        edgeprune.capture(net, torch.ones(2, 5))
    assert free_dims(edgeprune.capture(net, torch.ones(2, 5), dynamic_batch=False)) == (set(),)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dynamic": {"y": (0,)}}, "dynamic: expected names of inputs (input), got y"),
        ({"dynamic": {"input": (4,)}}, "dynamic['input']: expected dims from 0 to 3, got [4]"),
        ({"dynamic": {"input": (0, 1)}}, "fixes the size of input 'input', dim 1"),
    ],
)
def test_free_sizes_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(CaptureError) as caught:
        edgeprune.capture(classifier(), torch.zeros(2, *IMAGE), **options)
    assert said in str(caught.value)


def test_a_size_of_one_cannot_stand_for_any() -> None:
    with pytest.raises(CaptureError, match="expected a size of at least 2 where it is to be free, got 1 for dim 2"):
        edgeprune.capture(classifier(), torch.zeros(2, 3, 1, 8), dynamic_size=True)


class Stateful(nn.Module):
    """A recurrent layer whose state comes in as it takes it: the layers first."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(8, 32, batch_first=True)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        return self.cells(x, (h, c))[0]


@pytest.mark.parametrize(("batch", "shapes"), [(2, "(1, 2, 32)"), (1, "(1, 5, 8) and (1, 1, 32)")])
def test_a_state_whose_first_size_is_no_batch_is_told(batch: int, shapes: str) -> None:
    state = torch.randn(1, batch, 32)
    with pytest.raises(CaptureError) as caught:
        edgeprune.capture(Stateful(), (torch.randn(batch, 5, 8), state, state.clone()))
    said = f"expected the batch as the first size of every input, got {shapes}, whose 1 was doubled as such"
    assert said in str(caught.value) and "(batch, layers, ...)" in str(caught.value)


def test_programs_of_fixed_size_are_not_opened(tmp_path: Path) -> None:
    save_program(tmp_path / "net.pt2", edgeprune.capture(classifier(), torch.zeros(2, *IMAGE)), ModelInfo(IMAGE))
    assert free_dims(load(tmp_path / "net.pt2").program) == ({0},)
    with pytest.raises(InputError, match="--dynamic-size: expected a program with a height and a"):
        load(tmp_path / "net.pt2", dynamic_size=True)


def test_weights_beside_an_architecture_are_opened_on_request(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3))\n")
    torch.save({"0.weight": torch.randn(4, 3, 3, 3), "0.bias": torch.randn(4)}, tmp_path / "net.pt")
    named: Any = {"arch": f"{tmp_path / 'own.py'}:net", "input_shape": IMAGE}
    assert free_dims(load(tmp_path / "net.pt", **named).program) == ({0},)
    model = load(tmp_path / "net.pt", dynamic_size=True, **named)
    assert free_dims(model.program) == ({0, 2, 3},) and model.info.input_shape == IMAGE


class Turned(nn.Module):
    """Gives an image another shape, which is the image's own where that is a square."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x).reshape(x.shape[0], 2, x.shape[3], x.shape[2]) * 2


class Squares(nn.Module):
    """Takes squares alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.transpose(2, 3)


def test_a_square_example_does_not_stand_for_images_that_are_no_squares() -> None:
    """PyTorch would take height and width for one size, and the program would give other images the wrong shape."""
    with pytest.raises(CaptureError, match="Turned fixes the size of input 'x', dim 2, that was to be free"):
        edgeprune.capture(Turned().eval(), torch.randn(2, 2, 6, 6), dynamic_size=True)
    program = edgeprune.capture(Turned().eval(), torch.randn(2, 2, 6, 6))
    x = torch.randn(3, 2, 6, 6)
    torch.testing.assert_close(program.module()(x), Turned()(x))


def test_a_network_of_squares_stays_one() -> None:
    program = edgeprune.capture(Squares().eval(), torch.randn(2, 2, 6, 6), dynamic_size=True)
    x = torch.randn(1, 2, 5, 5)
    torch.testing.assert_close(program.module()(x), Squares()(x))


# -- a file that fixes what is asked for ------------------------------------------------------------------------------

RECURRENT = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden=4):
        super().__init__()
        self.cells, self.out = nn.LSTM(3, hidden, batch_first=True, bidirectional=True), nn.Linear(2 * hidden, 2)

    def forward(self, x, scale):
        return self.out(self.cells(x)[0].mean(1)) * scale.SUM(1, keepdim=True)

def net(hidden=4):
    return Net(hidden)
"""


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A network that a checkpoint and a .pt2 hold with free batches alone; its file is code."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(RECURRENT.replace("SUM", "sum"))
    net = architectures.build("own.py:net").eval()
    program = edgeprune.capture(net, (torch.randn(2, 6, 3), torch.randn(2, 5)))
    save_checkpoint("net.pt", program, ModelInfo((), arch="own.py:net"))
    save_program("net.pt2", program, ModelInfo((), arch="own.py:net"))
    return net


@pytest.mark.parametrize("file", ["net.pt", "net.pt2"])
def test_a_file_beside_its_architecture_is_captured_anew(recorded: nn.Module, file: str) -> None:
    model = load(file, arch="own.py:net", dynamic={"x": {0: None, 1: None}})
    assert free_dims(model.program) == ({0, 1}, {0}) and model.info.arch == "own.py:net"
    for length in (6, 9):
        inputs = torch.randn(3, length, 3), torch.randn(3, 5)
        torch.testing.assert_close(model.program.module()(*inputs), recorded(*inputs))


@pytest.mark.parametrize("file", ["net.pt", "net.pt2"])
def test_code_that_a_file_records_is_named_and_not_run(recorded: nn.Module, file: str) -> None:
    Path("own.py").write_text("raise SystemExit('run')")
    said = (
        f"{file}: --dynamic x: expected a program with dims 0 and 1 of x free, got one that was captured with others; "
        "--arch own.py:net beside it captures its weights anew"
    )
    with pytest.raises(InputError) as refusal:
        load(file, dynamic={"x": (0, 1)})
    assert str(refusal.value) == said


def test_what_is_free_is_so_of_the_input_that_is_named(recorded: nn.Module) -> None:
    load("net.pt", arch="own.py:net", dynamic={"x": (0, 1)})
    program = edgeprune.capture(recorded, (torch.randn(2, 6, 3), torch.randn(2, 5)), dynamic={"x": (0, 1)})
    save_program("free.pt2", program, ModelInfo((), arch="own.py:net"))
    assert free_dims(load("free.pt2", dynamic={"x": (0, 1)}).program) == ({0, 1}, {0})
    with pytest.raises(InputError, match="--dynamic scale: expected a program with dims 0 and 1 of scale free"):
        load("free.pt2", dynamic={"scale": (0, 1)})
    with pytest.raises(InputError, match=r"--dynamic: expected names of inputs \(x, scale\), got y"):
        load("free.pt2", dynamic={"y": (0, 1)})
    both = load("free.pt2", arch="own.py:net", dynamic={"scale": (0, 1)})
    assert free_dims(both.program) == ({0, 1}, {0, 1})


@pytest.mark.parametrize(
    ("code", "refused"),
    [
        (RECURRENT.replace("SUM", "prod"), "one that computes something else of its weights"),
        (RECURRENT.replace("SUM", "sum").replace("hidden=4", "hidden=5"), "a network that was cut keeps the sizes"),
    ],
)
def test_code_that_was_changed_is_no_longer_the_network(recorded: nn.Module, code: str, refused: str) -> None:
    Path("own.py").write_text(code)
    with pytest.raises(InputError, match=refused):
        load("net.pt", arch="own.py:net", dynamic={"x": (0, 1)})
    with pytest.raises(InputError, match=refused.replace("keeps the sizes", "has no such parts")):
        load("net.pt", arch="own.py:net", module="out", input_shape=(8,))


@pytest.mark.parametrize("file", ["net.pt", "net.pt2"])
def test_a_part_of_a_file_beside_its_architecture_is_captured_anew(recorded: nn.Module, file: str) -> None:
    part = load(file, arch="own.py:net", module="out", input_shape=(8,))
    assert (part.info.arch, part.info.module, part.info.input_shape) == ("own.py:net", "out", (8,))
    x = torch.randn(3, 8)
    torch.testing.assert_close(part.program.module()(x), recorded.get_submodule("out")(x))
    save_checkpoint("part.pt", part.program, part.info)
    assert load("part.pt", module="out").info.module == "out"
    expected = "expected no --module, as the file holds an exported program, which has no parts, got {}; {}"
    anew = "--arch own.py:net beside it captures its weights anew"
    for name, module, way in ((file, "out", anew), ("part.pt", "cells", "give the network's state_dict and --arch")):
        with pytest.raises(InputError) as refusal:
            load(name, module=module)
        assert str(refusal.value) == f"{name}: {expected.format(module, way)}"
