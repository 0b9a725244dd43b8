"""Other people's checkpoints: weights are found whatever they are wrapped in, or what stands in the way is named."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

from edgeprune.errors import InputError, UnsafeFileError
from edgeprune.formats.load import load
from edgeprune.formats.statedict import StateChoice, fitted_weights
from edgeprune.records import Model

FILE = """
from torch import nn

def make(n=2):
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, n))

def conv():
    return nn.Sequential(nn.Conv1d(4, 6, 1), nn.Flatten(), nn.Linear(6, 3))

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
    def forward(self, x):
        return self.b(self.a(x).tanh())
"""


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(FILE)
    return tmp_path


def loaded(folder: Path, content: Any, name: str = "make", shape: tuple[int, ...] = (4,), **named: Any) -> Model:
    torch.save(content, folder / "c.pt")
    return load(folder / "c.pt", arch=f"{folder}/nets.py:{name}", input_shape=shape, **named)


def is_of(model: Model, module: nn.Module, shape: tuple[int, ...] = (4,)) -> bool:
    x = torch.rand(3, *shape)
    return torch.allclose(model.program.module()(x), module(x), atol=1e-6)


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


STATE = net().state_dict()
OTHER = net(1).state_dict()
LAYOUTS: dict[str, Callable[[], Any]] = {
    "AveragedModel": lambda: AveragedModel(net()).state_dict(),
    "DataParallel in compile": lambda: prefixed(STATE, "_orig_mod.module."),
    "parts compiled": lambda: {name.replace("3.", "3._orig_mod."): value for name, value in STATE.items()},
    "a part in parallel": lambda: {"0.module." + n[2:] if n[0] == "0" else n: value for n, value in STATE.items()},
    "Lightning": lambda: {"state_dict": prefixed(STATE, "model."), "epoch": 1, "loops": {"fit": {}}},
    "loss and metrics": lambda: {
        "state_dict": {**prefixed(STATE, "model."), "loss.weight": torch.ones(2), "val.total": torch.tensor(3.0)}
    },
    "an unseen prefix": lambda: {**prefixed(STATE, "distiller.student.net."), "distiller.t.0.weight": torch.ones(8, 4)},
    **{
        key: (lambda key=key: {key: STATE, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(8, 4)}}}})
        for key in "ema params_ema params state_dict_ema model_state model_ema net generator xyz".split()
    },
    "nested twice": lambda: {"checkpoint": {"model": {"weights": prefixed(STATE, "module.")}}, "args": {"lr": 0.1}},
    "with numbers beside": lambda: {**STATE, "epoch": 3, "name": "run"},
    "GAN": lambda: {"G": STATE, "D": nn.Linear(4, 1).state_dict()},
    "the same twice": lambda: {"model": STATE, "best": {name: value.clone() for name, value in STATE.items()}},
    "old files": lambda: {name: value for name, value in STATE.items() if "num_batches" not in name},
}  # fmt: skip


def fitted(content: Any, key: str | None = None) -> tuple[nn.Module, tuple[str, ...]]:
    """The network with the weights that are found in what was saved, and what is told."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    module = net(9)
    found = fitted_weights(torch.load(buffer, weights_only=True), module, "make", StateChoice(key))
    module.load_state_dict(found.state)
    return module, found.notes


def are_same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found_by_what_the_architecture_calls_them(layout: str) -> None:
    assert are_same(fitted(LAYOUTS[layout]())[0], net())


def test_a_checkpoint_is_loaded_from_its_file(folder: Path) -> None:
    assert is_of(loaded(folder, LAYOUTS["loss and metrics"]()), net())


def test_what_is_left_out_is_told(folder: Path) -> None:
    content = {"state_dict": {**prefixed(STATE, "model."), "criterion.weight": torch.ones(2)}}
    (note,) = loaded(folder, content).notes
    assert note == "in state_dict, only what is called model.* is taken, not criterion.weight"
    assert loaded(folder, {"state_dict": prefixed(STATE, "module.")}).notes == ()


@pytest.mark.parametrize(
    ("plain", "averaged"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("net", "swa_net"), ("G", "G.Ema")],
)
def test_averaged_weights_are_taken_and_told(plain: str, averaged: str) -> None:
    content = {plain: STATE, averaged: OTHER}
    module, notes = fitted(content)
    assert are_same(module, net(1))
    assert notes == (f"--state-key {averaged} (averaged weights; --state-key {plain} takes the plain ones)",)
    assert are_same(fitted(content, plain)[0], net()) and are_same(fitted(content, averaged)[0], net(1))


def test_of_several_that_fit_none_is_guessed(folder: Path) -> None:
    content = {**prefixed(STATE, "student."), **prefixed(OTHER, "teacher.")}
    with pytest.raises(InputError, match="one set of weights that fits, got student, teacher; choose by --state-key"):
        loaded(folder, content)
    assert is_of(loaded(folder, content, state_key="teacher"), net(1))
    assert are_same(fitted({"a": content}, "a.student")[0], net())
    with pytest.raises(InputError, match="--state-key: expected one of student, teacher, got 'techer'"):
        loaded(folder, content, state_key="techer")


def test_extra_names_are_left_out_by_pattern(folder: Path) -> None:
    extra = {"similarity_w": torch.ones(2), "similarity_b": torch.ones(1), "head.loss": torch.ones(1)}
    content = {**STATE, **extra}
    with pytest.raises(
        InputError, match=r"unexpected similarity_w.*; --ignore-keys 'similarity_\*','head.loss' leaves"
    ):
        loaded(folder, content)
    model = loaded(folder, content, ignore_keys="similarity_*, head.loss")
    assert is_of(model, net())
    assert is_of(loaded(folder, prefixed(content, "module."), ignore_keys="similarity_*,module.head.*"), net())
    with pytest.raises(InputError, match="--ignore-keys: expected a pattern that fits a name of the file, got 'sim-.'"):
        loaded(folder, content, ignore_keys="sim-*")
    with pytest.raises(InputError, match="missing 3.weight, missing 3.bias"):
        loaded(folder, STATE, ignore_keys="3.*")


def test_what_does_not_fit_is_named_with_the_place(folder: Path) -> None:
    lacking = {name: value for name, value in prefixed(STATE, "model.").items() if name != "model.3.bias"}
    with pytest.raises(InputError, match=r"state_dict ck.model: expected the weights of .*:make, got missing 3.bias$"):
        loaded(folder, {"ck": lacking})
    with pytest.raises(
        InputError, match=r"3.weight \[2, 8\] instead of \[5, 8\].*; the file's last layer has 2 outputs"
    ):
        loaded(folder, STATE, name="make?n=5")
    with pytest.raises(InputError, match="missing 0.weight, .*; the network's names are e.g. 0.weight"):
        loaded(folder, nn.ModuleDict({"fc": nn.Linear(4, 8)}).state_dict())
    with pytest.raises(InputError, match="got a dict for 'a'"):
        loaded(folder, {"a": {"b": 3}})


def test_a_tied_weight_may_be_there_once(folder: Path) -> None:
    space: dict[str, Any] = {}
    exec(FILE, space)
    tied = space["Tied"]().eval()
    state = {name: value for name, value in tied.state_dict().items() if name != "b.weight"}
    assert is_of(loaded(folder, state, name="Tied"), tied)


# weights in parts ----------------------------------------------------------------------------------------------------


def conv() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv1d(4, 6, 1), nn.Flatten(), nn.Linear(6, 3)).eval()


def pruned(module: nn.Module) -> None:
    prune.l1_unstructured(module[0], "weight", 0.5)
    prune.random_unstructured(module[2], "bias", 0.5)


def normed(module: nn.Module) -> None:
    weight_norm(module[0])
    weight_norm(module[2], dim=None)
    with torch.no_grad():
        module[0].weight_g.mul_(1.7)


def parametrized(module: nn.Module) -> None:
    parametrizations.weight_norm(module[0], dim=1)
    parametrizations.weight_norm(module[2])
    with torch.no_grad():
        module[2].parametrizations.weight.original0.mul_(0.3)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", [pruned, normed, parametrized])
@pytest.mark.parametrize("prefix", ["", "model.net."])
def test_weights_in_parts_are_put_together(change: Callable[[nn.Module], None], prefix: str) -> None:
    module, plain, x = conv(), conv(), torch.rand(3, 4, 1)
    change(module)
    found = fitted_weights(prefixed(module.state_dict(), prefix), plain, "conv", StateChoice())
    assert not torch.allclose(plain(x), module.eval()(x), atol=1e-6)
    plain.load_state_dict(found.state)
    assert torch.allclose(plain(x), module.eval()(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("change", [spectral_norm, parametrizations.spectral_norm])
def test_spectral_norm_is_refused_by_name(folder: Path, change: Callable[[nn.Module], Any]) -> None:
    module = conv()
    change(module[0])
    with pytest.raises(InputError, match="got '0.weight' under a spectral_norm; make it plain before saving: torch.nn"):
        loaded(folder, module.state_dict(), "conv", (4, 1))


def test_an_architecture_that_has_the_parts_keeps_them() -> None:
    module = conv()
    pruned(module)
    found = fitted_weights(module.state_dict(), module, "own", StateChoice())
    assert set(found.state) == set(module.state_dict()) and found.notes == ()


@pytest.mark.filterwarnings("ignore")
def test_quantised_weights_are_named(folder: Path) -> None:
    quantized = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})
    with pytest.raises(InputError, match="expected float weights, got those of a quantised network .*export --int8"):
        loaded(folder, quantized.state_dict())
    packed = {**STATE, "0.weight": torch.quantize_per_tensor(STATE["0.weight"], 0.1, 0, torch.qint8)}
    with pytest.raises(InputError, match="quantised network"):
        loaded(folder, packed)


# several files, other files ------------------------------------------------------------------------------------------


def shards(folder: Path) -> list[str]:
    names = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    keys = list(STATE)
    for name, part in zip(names, (keys[:3], keys[3:]), strict=True):
        save_file({key: STATE[key] for key in part}, folder / name)
    weights = {key: names[int(place >= 3)] for place, key in enumerate(keys)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    return names


def test_weights_in_several_files_are_read_together(folder: Path) -> None:
    names = shards(folder)
    named: dict[str, Any] = {"arch": f"{folder}/nets.py:make", "input_shape": (4,)}
    for name in (*names, "model.safetensors.index.json"):
        assert is_of(load(folder / name, **named), net())
    (folder / names[1]).unlink()
    for name in (names[0], "model.safetensors.index.json"):
        with pytest.raises(InputError, match=f"expected all 2 parts of the weights beside it, got no {names[1]}"):
            load(folder / name, **named)


@pytest.mark.parametrize("place", ["../model.safetensors", "/etc/passwd", "", 3])
def test_an_index_stays_in_its_folder(folder: Path, place: Any) -> None:
    (folder / "i.json").write_text(json.dumps({"weight_map": {"0.weight": place}}))
    with pytest.raises(InputError, match="i.json: expected files of its own folder in an index"):
        load(folder / "i.json", arch=f"{folder}/nets.py:make")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "got an HDF5 file"),
        (b"GGUF\x03\x00\x00\x00" + bytes(50), "got a GGUF file"),
        (b"\x1c\x00\x00\x00TFL3" + bytes(50), "got a TensorFlow Lite file"),
        (b"\x1c\x00\x00\x00ORTM" + bytes(50), "got an ORT-format file"),
        (b"\x1f\x8b\x08\x00" + bytes(50), "got a gzip archive; unpack it first"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "got a pointer of Git LFS .*: git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "got a web page"),
    ],
)
def test_files_of_other_tools_are_named(folder: Path, content: bytes, said: str) -> None:
    (folder / "model.bin").write_bytes(content)
    with pytest.raises(InputError, match=f"model.bin: expected a state_dict, .*{said}"):
        load(folder / "model.bin")


def test_an_archive_of_arrays_is_named(folder: Path) -> None:
    np.savez(folder / "a.npz", x=np.zeros(3))
    with pytest.raises(InputError, match="got an .npz of arrays"):
        load(folder / "a.npz")


@pytest.mark.filterwarnings("ignore")
def test_torchscript_and_pickled_classes_are_named(folder: Path) -> None:
    torch.jit.trace(net(), torch.rand(2, 4)).save(folder / "script.pt")
    with pytest.raises(InputError, match=r"got a TorchScript file; save model.state_dict\(\) and give --arch$"):
        load(folder / "script.pt")
    buffer = io.BytesIO()
    torch.save({"epoch": 1, "model": net()}, buffer)
    (folder / "whole.pt").write_bytes(buffer.getvalue())
    with pytest.raises(UnsafeFileError, match=r"that need unpickling \(torch.nn.modules.container.Sequential\); save"):
        load(folder / "whole.pt")


def test_a_trusted_file_may_hold_whole_networks(folder: Path) -> None:
    path, named = folder / "c.pt", {"unsafe_pickle": True, "input_shape": (4,)}
    torch.save({"epoch": 3, "model": net().half(), "ema": None}, path)
    assert torch.allclose(load(path, **named).program.state_dict["0.weight"], STATE["0.weight"], atol=1e-3)
    torch.save({"model": net(), "ema": net(1)}, path)
    assert is_of(load(path, **named), net(1)) and is_of(load(path, state_key="model", **named), net())
    torch.save({"a": net(), "b": net(1)}, path)
    with pytest.raises(InputError, match="expected one network, got a, b; choose by --state-key"):
        load(path, **named)
    with pytest.raises(InputError, match="--state-key: expected one of a, b, got 'c'"):
        load(path, state_key="c", **named)
