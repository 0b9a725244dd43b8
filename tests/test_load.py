"""Every format loads to the same program; every bad file is one line."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeprune.errors import InputError, UnsafeFileError
from edgeprune.formats.load import digest, load
from edgeprune.formats.pt2.program import inspect
from edgeprune.formats.save import save_checkpoint, save_program
from edgeprune.graph.capture import Program, capture
from edgeprune.graph.specs import input_specs
from edgeprune.records import InputInfo, Model, ModelInfo, Normalization


class Mlp(nn.Sequential):
    def __init__(self, width: int = 5) -> None:
        super().__init__(nn.Flatten(), nn.Linear(12, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 3))


class Residual(nn.Module):
    """Convolution, batch norm, a residual join, a split, and a size that depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        first, second = self.body(x).chunk(2, dim=1)
        x = x + torch.cat([second, first], dim=1)
        return self.head(x.reshape(x.shape[0], -1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


class Constants(nn.Module):
    """A persistent and a non-persistent buffer, a tensor made in the forward, an attention mask with -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4), requires_grad=False)
        self.register_buffer("shift", torch.rand(4))
        self.register_buffer("order", torch.tensor([2, 0, 1, 3]), persistent=False)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, -torch.inf]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax((x * self.scale + self.shift)[:, self.order] + self.mask, -1) * torch.tensor(
            [1.0, 2, 3, 4]
        )


INFO = ModelInfo(
    (3, 2, 2), "some.where:net", ("cat", "dog", "owl"), Normalization((0.1, 0.2, 0.3), (1.0, 2.0, 3.0)), "digits"
)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (Mlp, (3, 2, 2)),
    "residual": (Residual, (3, 4, 4)),
    "tied": (Tied, (4,)),
    "constants": (Constants, (4,)),
    "double": (lambda: Residual().double(), (3, 4, 4)),
    "channels_last": (lambda: Residual().to(memory_format=torch.channels_last), (3, 4, 4)),
}


def _net(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    make, shape = NETS[name]
    net = make().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return net, torch.rand(5, *shape, dtype=next(net.parameters()).dtype)


def _save(kind: str, path: Path, program: Program, info: ModelInfo) -> Path:
    path = path / f"net.{kind}"
    (save_checkpoint if kind == "pt" else save_program)(path, program, info)
    return path


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["pt", "pt2"])
@pytest.mark.parametrize("name", NETS)
def test_round_trip(tmp_path: Path, name: str, kind: str) -> None:
    net, x = _net(name)
    program, info = capture(net, x[:2]), replace(INFO, input_shape=tuple(x.shape[1:]))
    model = load(_save(kind, tmp_path, program, info))
    assert model.info == info
    assert model.name == "net"
    assert model.sha256 == digest(program)
    assert isinstance(model.program, Program)
    assert torch.equal(model.program.module()(x), net(x))
    assert torch.equal(model.program.module()(x[:1]), net(x[:1]))
    again = load(_save(kind, tmp_path, model.program, info))
    assert again.sha256 == model.sha256


@pytest.mark.parametrize("kind", ["pt", "pt2"])
def test_the_same_program_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    net, x = _net("residual")
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    paths = [_save(kind, folder, capture(net, x), INFO) for folder in (first, second)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_flags_survive(tmp_path: Path) -> None:
    net, x = _net("constants")
    for kind in ("pt", "pt2"):
        state = load(_save(kind, tmp_path, capture(net, x), replace(INFO, input_shape=(4,)))).program.state_dict
        assert isinstance(state["scale"], nn.Parameter)
        assert not state["scale"].requires_grad
        assert not isinstance(state["shift"], nn.Parameter)
        assert "order" not in state


def test_tied_weights_stay_one(tmp_path: Path) -> None:
    net, x = _net("tied")
    for kind in ("pt", "pt2"):
        path = _save(kind, tmp_path, capture(net, x), replace(INFO, input_shape=(4,)))
        module = load(path).program.module()
        assert sum(parameter.numel() for parameter in module.parameters()) == 16 + 4 + 4


def test_a_loaded_program_trains(tmp_path: Path) -> None:
    net, x = _net("residual")
    module = load(_save("pt", tmp_path, capture(net, x), replace(INFO, input_shape=(3, 4, 4)))).program.module()
    module.train()
    before = module.norm.running_mean.clone()
    loss = module(x).square().mean()
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert not torch.equal(module.norm.running_mean, before)


def test_what_is_written_never_needs_pickle(tmp_path: Path) -> None:
    """Plain torch.export.load reads the .pt2, the weights-only loader the .pt; a weight is stored once."""
    net, x = _net("residual")
    program = capture(net, x)
    exported = _save("pt2", tmp_path, program, INFO)
    assert torch.equal(torch.export.load(exported).module()(x), net(x))
    assert inspect(exported.read_bytes()).extra.keys() == {"edgeprune.json"}
    content = torch.load(_save("pt", tmp_path, program, INFO), weights_only=True)
    assert content["format"] == "edgeprune-checkpoint/1"
    assert content["classes"] == ["cat", "dog", "owl"]
    weight = net.head.weight.detach().numpy().tobytes()
    assert weight not in content["program"].numpy().tobytes()
    assert (tmp_path / "net.pt").read_bytes().count(weight) == 1


def test_a_slice_of_a_large_tensor_is_saved_compactly(tmp_path: Path) -> None:
    net = nn.Linear(4, 4)
    net.weight = nn.Parameter(torch.rand(4000, 400)[::1000, :4])
    program = capture(net, torch.rand(2, 4))
    for kind in ("pt", "pt2"):
        path = _save(kind, tmp_path, program, ModelInfo((4,)))
        assert path.stat().st_size < 30_000
        assert load(path).sha256 == digest(program)


def test_a_checkpoint_works_without_its_factory(tmp_path: Path) -> None:
    """A fresh process in another folder, where the class cannot be imported."""
    net, x = _net("mlp")
    path = _save("pt", tmp_path, capture(net, x), INFO)
    torch.save({"x": x, "y": net(x)}, tmp_path / "xy")
    code = (
        "import torch, sys; from edgeprune.formats.load import load\n"
        "xy = torch.load(sys.argv[2]); m = load(sys.argv[1])\n"
        "print(torch.equal(m.program.module()(xy['x']), xy['y']), m.sha256)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "xy")]
    out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True).stdout
    assert out.split() == ["True", load(path).sha256]


def test_the_digest_tells_programs_apart() -> None:
    net, x = _net("residual")
    digests = {digest(capture(net, x))}
    net.head.bias.data[0] += 1e-6
    digests.add(digest(capture(net, x)))
    net.body.padding = (2, 2)
    net.body.stride = (1, 1)
    net.body.kernel_size = (3, 3)
    net.body.dilation = (2, 2)
    digests.add(digest(capture(net, x)))
    digests.add(digest(capture(net.double(), x.double())))
    assert len(digests) == 4


def test_the_digest_does_not_depend_on_the_batch_it_was_captured_with() -> None:
    net, x = _net("residual")
    assert digest(capture(net, x[:2])) == digest(capture(net, x)) == digest(capture(net, x[:1]))


NET_FILE = """
import torch
from torch import nn
class Net(nn.Sequential):
    def __init__(self, width=5):
        super().__init__(nn.Flatten(), nn.Linear(12, width), nn.BatchNorm1d(width), nn.Linear(width, 3))
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "factory.py").write_text(NET_FILE)
    return f"{tmp_path / 'factory.py'}:Net"


def _built() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval()


def _check(model: Model, factory: str) -> None:
    net, x = _built(), torch.rand(4, 3, 2, 2)
    dtype = next(iter(model.program.parameters())).dtype
    assert torch.equal(model.program.module()(x.to(dtype)), net.to(dtype)(x.to(dtype)))
    assert model.info == ModelInfo((3, 2, 2), factory)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {}},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"model.{name}": tensor for name, tensor in state.items()},
        lambda state: {name: tensor for name, tensor in state.items() if "num_batches" not in name},
        lambda state: {name: t.double() if t.is_floating_point() else t for name, t in state.items()},
    ],
)
def test_a_state_dict_needs_its_arch(tmp_path: Path, factory: str, wrap: Callable[[Any], Any]) -> None:
    torch.save(wrap(_built().state_dict()), tmp_path / "weights.any")
    _check(load(tmp_path / "weights.any", arch=factory, input_shape=(3, 2, 2)), factory)
    with pytest.raises(InputError, match="expected --arch beside a bare state_dict, got none"):
        load(tmp_path / "weights.any")
    with pytest.raises(InputError, match="expected the shape of one input"):
        load(tmp_path / "weights.any", arch=factory)


def test_safetensors_and_the_format_before_zip(tmp_path: Path, factory: str) -> None:
    save_file(_built().state_dict(), tmp_path / "w")
    torch.save(_built().state_dict(), tmp_path / "old", _use_new_zipfile_serialization=False)
    for name in ("w", "old"):
        _check(load(tmp_path / name, arch=factory, input_shape=(3, 2, 2)), factory)


@pytest.mark.parametrize("first", [b"\x80", b"P"])
def test_safetensors_whose_length_begins_like_another_format(tmp_path: Path, factory: str, first: bytes) -> None:
    path = tmp_path / "w"
    for padding in range(256):
        save_file(_built().state_dict(), path, metadata={"note": "x" * padding})
        if path.read_bytes()[:1] == first:
            break
    assert path.read_bytes()[:1] == first
    _check(load(path, arch=factory, input_shape=(3, 2, 2)), factory)


def _refusal(path: Path, kind: type[InputError] = InputError, **named: Any) -> str:
    with pytest.raises(kind) as caught:
        load(path, **named)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


def test_a_state_dict_that_does_not_fit(tmp_path: Path, factory: str) -> None:
    path, named = tmp_path / "w.pt", {"arch": factory, "input_shape": (3, 2, 2)}
    state = _built().state_dict()
    torch.save({**state, "extra": torch.zeros(1)}, path)
    assert "unexpected extra" in _refusal(path, **named)
    torch.save({name: tensor for name, tensor in state.items() if name != "1.bias"}, path)
    assert "missing 1.bias" in _refusal(path, **named)
    torch.save({**state, "3.weight": torch.zeros(3, 6)}, path)
    assert "3.weight [3, 6] instead of [3, 5]" in _refusal(path, **named)
    torch.save({f"x{index}": torch.zeros(1) for index in range(100)}, path)
    assert "missing 1.weight, missing 1.bias, missing 2.weight and 105 more" in _refusal(path, **named)
    torch.save({**state, "1.bias": "text"}, path)
    assert "expected tensors by name, got a str for '1.bias'" in _refusal(path, **named)
    torch.save({**state, "1.bias": torch.zeros(5).to_sparse()}, path)
    assert "'1.bias': expected a dense tensor" in _refusal(path, **named)
    torch.save({**state, "1.bias": torch.zeros(5, dtype=torch.complex64)}, path)
    assert "'1.bias': expected real numbers, got torch.complex64" in _refusal(path, **named)
    torch.save(state, path)
    assert "does not run on the example inputs" in _refusal(path, arch=factory, input_shape=(3, 2, 3))
    assert "did you mean Net" in _refusal(path, arch=f"{factory}t", input_shape=(3, 2, 2))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected a model file, got an empty file"),
        (b"\x00" * 100, "got a file of another kind"),
        (b"hello, this is no model at all", "got a file of another kind"),
        (bytes(range(7, 256)) * 5, "got a file of another kind"),
        (b"PK\x03\x04" + b"\x00" * 100, "got a truncated or damaged one"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{not a json head}", "expected a whole .safetensors file"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert expected in _refusal(path)


def test_places_that_are_no_files(tmp_path: Path) -> None:
    assert "expected a model file, got nothing there" in _refusal(tmp_path / "missing.pt")
    assert "got a folder" in _refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "got a pipe" in _refusal(tmp_path / "pipe")


@pytest.mark.parametrize("kind", ["pt", "pt2", "safetensors", "old"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.99])
def test_truncated_files(tmp_path: Path, kind: str, part: float) -> None:
    net, x = _net("mlp")
    path = tmp_path / f"model.{kind}"
    if kind == "safetensors":
        save_file(net.state_dict(), path)
    elif kind == "old":
        torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    else:
        path = _save(kind, tmp_path, capture(net, x), INFO)
    data = path.read_bytes()
    path.write_bytes(data[: max(1, int(len(data) * part))])
    _refusal(path, arch="torch.nn:Identity", input_shape=(3, 2, 2))


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickled_module_is_refused_with_the_way_out(tmp_path: Path, new_format: bool) -> None:
    path, marker = tmp_path / "m.pt", tmp_path / "marker"
    net = nn.Linear(2, 2)
    net.note = Evil(marker)
    torch.save(net, path, _use_new_zipfile_serialization=new_format)
    message = _refusal(path, UnsafeFileError)
    assert "--arch" in message
    assert "--unsafe-pickle" in message
    path.write_bytes(pickle.dumps(Evil(marker)))
    _refusal(path, UnsafeFileError)
    assert not marker.exists()


def test_unsafe_pickle_takes_a_module(tmp_path: Path) -> None:
    net = _built()
    torch.save(net, tmp_path / "m.pt")
    model = load(tmp_path / "m.pt", unsafe_pickle=True, input_shape=(3, 2, 2))
    x = torch.rand(3, 3, 2, 2)
    assert torch.equal(model.program.module()(x), net(x))
    torch.save({"a": Evil(tmp_path / "marker")}, tmp_path / "m.pt")
    assert "expected tensors by name" in _refusal(tmp_path / "m.pt", unsafe_pickle=True, arch="torch.nn:Identity")


def test_compressed_archives_and_scripts_are_refused(tmp_path: Path) -> None:
    torch.save(_built().state_dict(), tmp_path / "m.pt")
    with (
        zipfile.ZipFile(tmp_path / "m.pt") as old,
        zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "expected it uncompressed" in _refusal(tmp_path / "z.pt", UnsafeFileError)
    with zipfile.ZipFile(tmp_path / "s.pt", "w") as new:
        for name in ("s/data.pkl", "s/constants.pkl", "s/code/x.py"):
            new.writestr(name, b"x")
    assert "TorchScript" in _refusal(tmp_path / "s.pt")
    with zipfile.ZipFile(tmp_path / "o.zip", "w") as new:
        new.writestr("o/readme", b"x")
    assert "another kind of zip" in _refusal(tmp_path / "o.zip")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("kind", ["pt", "pt2"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["head.weight", "norm.running_var"])
def test_weights_that_are_no_numbers(tmp_path: Path, kind: str, value: float, name: str) -> None:
    net, x = _net("residual")
    net.state_dict()[name].view(-1)[3] = value
    path = _save(kind, tmp_path, capture(net, x), replace(INFO, input_shape=(3, 4, 4)))
    expected = "NaN" if value != value else "infinity"
    assert f"tensor {name!r}: expected finite values, got {expected}" in _refusal(path)


def test_a_checkpoint_that_was_tampered_with(tmp_path: Path) -> None:
    net, x = _net("mlp")
    path = _save("pt", tmp_path, capture(net, x), INFO)
    content = torch.load(path, weights_only=True)

    def tampered(**changes: Any) -> str:
        torch.save({**content, **changes}, path)
        return _refusal(path)

    assert "expected its program as bytes" in tampered(program=None)
    assert "expected a whole zip archive" in tampered(program=torch.zeros(50, dtype=torch.uint8))
    assert "expected a checkpoint edgeprune-checkpoint/1" in tampered(format="edgeprune-checkpoint/2")
    assert "expected tensors by name" in tampered(state_dict=None)
    state = content["state_dict"]
    assert "missing ['1.weight']" in tampered(state_dict={n: t for n, t in state.items() if n != "1.weight"})
    assert "'1.weight': expected [5, 12] torch.float32, got [5, 11]" in tampered(
        state_dict={**state, "1.weight": torch.zeros(5, 11)}
    )
    assert "expected input_shape as sizes above 0" in tampered(input_shape=[3, -2, 2])
    assert "expected inputs of shape" in tampered(input_shape=[3, 2, 3])
    assert "expected classes as a list of short texts" in tampered(classes=[1, 2])
    assert "stds above 0" in tampered(normalization={"mean": [0.0], "std": [0.0]})
    assert "expected normalization with mean and std" in tampered(normalization=[1])


def test_what_is_asked_must_agree_with_the_file(tmp_path: Path) -> None:
    net, x = _net("mlp")
    path = _save("pt", tmp_path, capture(net, x), INFO)
    assert load(path, arch=INFO.arch, input_shape=(3, 2, 2)).info == INFO
    assert "got --input-shape [4]" in _refusal(path, input_shape=(4,))
    assert "expected no --arch" in _refusal(path, arch="torchvision:resnet18")


def _foreign(path: Path, net: nn.Module, x: torch.Tensor, **named: Any) -> Path:
    torch.export.save(torch.export.export(net.eval(), (x,), strict=False, **named), path)
    return path


def test_a_foreign_program_tells_its_input(tmp_path: Path) -> None:
    net, x = _net("residual")
    batch = torch.export.Dim("n", min=1)
    path = _foreign(tmp_path / "f.pt2", net, x, dynamic_shapes=({0: batch},))
    model = load(path)
    assert model.info == ModelInfo((3, 4, 4))
    assert torch.equal(model.program.module()(x), net(x))


def test_a_fixed_batch_is_opened_where_that_works(tmp_path: Path) -> None:
    net, x = _net("mlp")
    for size in (1, 3):
        model = load(_foreign(tmp_path / "f.pt2", net, x[:size]))
        assert torch.allclose(model.program.module()(x), net(x), atol=1e-6)


def test_a_batch_that_cannot_be_opened_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, 12).cumsum(0)

    path = _foreign(tmp_path / "f.pt2", Fixed(), torch.rand(2, 3, 2, 2))
    capfd.readouterr()
    assert "got a fixed batch of 2" in _refusal(path)
    assert capfd.readouterr().err == ""


class Two(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


def test_several_inputs_need_a_dynamic_batch_each(tmp_path: Path) -> None:
    args, batch = (torch.rand(2, 3), torch.rand(2, 3)), torch.export.Dim("n")
    torch.export.save(torch.export.export(Two(), args), tmp_path / "f.pt2")
    assert "dynamic batch as the first size of each input (x, y), got x of fixed size" in _refusal(tmp_path / "f.pt2")
    torch.export.save(torch.export.export(Two(), args, dynamic_shapes=({0: batch}, {0: batch})), tmp_path / "f.pt2")
    model = load(tmp_path / "f.pt2")
    assert model.info.input_shape == () and [spec.name for spec in input_specs(model.program)] == ["x", "y"]


@pytest.mark.parametrize(
    ("inputs", "fragment"),
    [
        ((InputInfo("x", (3,)), InputInfo("z", (3,))), "--input: expected x, y, got x, z"),
        ((InputInfo("x", (3,)), InputInfo("y", (4,))), "--input y: expected 3:float32, got 4:float32"),
        ((InputInfo("x", (3,)), InputInfo("y", (3,), "int64")), "--input y: expected 3:float32, got 3:int64"),
    ],
)
def test_stated_inputs_are_those_of_the_file(tmp_path: Path, inputs: tuple[InputInfo, ...], fragment: str) -> None:
    batch = torch.export.Dim("n")
    program = torch.export.export(Two(), (torch.rand(2, 3), torch.rand(2, 3)), dynamic_shapes=({0: batch}, {0: batch}))
    torch.export.save(program, tmp_path / "f.pt2")
    with pytest.raises(InputError, match=re.escape(fragment)):
        load(tmp_path / "f.pt2", inputs=inputs)


def test_info_in_a_program_is_checked(tmp_path: Path) -> None:
    net, x = _net("mlp")
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    for content, expected in (("[1]", "got a list"), ("{", "got no JSON"), (json.dumps({"input_shape": 3}), "got 3")):
        torch.export.save(program, tmp_path / "f.pt2", extra_files={"edgeprune.json": content})
        assert expected in _refusal(tmp_path / "f.pt2")
