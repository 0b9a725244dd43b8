"""Weights that edgeprune did not train, on inputs as they knew them: from the data to the files for the device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import edgeprune.compat  # noqa: F401 - makes torchvision importable
from edgeprune import pipeline
from edgeprune.commands.preparing import prepare
from edgeprune.data import batches, normalize, open_data
from edgeprune.errors import InputError
from edgeprune.formats.load import load
from edgeprune.formats.normalizing import other_normalizations
from edgeprune.formats.pretrained import weights_normalization
from edgeprune.formats.save import save_program
from edgeprune.progress import Silent
from edgeprune.records import IDENTITY, Normalization
from edgeprune.requests import CompressRequest, ExportRequest, TrainRequest
from edgeprune.settings import TrainSettings

NETS = """
from torch import nn

def table():
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))

def image():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 2))

def configured():
    net = table()
    net.default_cfg = {"mean": (1.0,), "std": [2]}
    return net
"""


_STATES: dict[str, dict[str, Tensor]] = {}  # of the networks, which are trained once


class Notes(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


class Case(NamedTuple):
    """A network that was trained elsewhere on raw values, its data, and how well it does on the test split."""

    folder: Path
    net: nn.Module
    request: CompressRequest
    accuracy: float


def _trained(net: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


def _case(folder: Path, name: str, x: np.ndarray, y: np.ndarray) -> Case:
    np.savez(folder / f"{name}.npz", x=x, y=y)
    (folder / "nets.py").write_text(NETS)
    names: dict[str, object] = {}
    exec(NETS, names)
    torch.manual_seed(0)
    scale = 1 / 255 if x.dtype == np.uint8 else 1.0
    net = names[name]().eval()  # type: ignore[operator]
    if name not in _STATES:
        _STATES[name] = _trained(net, torch.from_numpy(x).float() * scale, torch.from_numpy(y)).state_dict()
    net.load_state_dict(_STATES[name])
    torch.save(net.state_dict(), folder / f"{name}.pt")
    inputs, labels = next(iter(batches(open_data(f"npz:{folder}/{name}.npz").test, 1000)))
    with torch.no_grad():
        accuracy = (net(inputs).argmax(1) == labels).float().mean().item()
    request = CompressRequest(
        str(folder / f"{name}.pt"), data=f"npz:{folder}/{name}.npz", arch=f"{folder}/nets.py:{name}", keep_macs=0.9,
        align=1, finetune_epochs=0, criterion="l2", input_features="off", out=str(folder / "run"), threads=1,
    )  # fmt: skip
    return Case(folder, net, request, accuracy)


@pytest.fixture
def table(tmp_path: Path, one_thread: None) -> Case:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = (rng.normal(size=(400, 6)) + 10 + 5 * y[:, None]).astype(np.float32)
    return _case(tmp_path, "table", x, y)


@pytest.fixture
def image(tmp_path: Path, one_thread: None) -> Case:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = np.clip(rng.normal(size=(400, 3, 4, 4)) * 30 + 80 + 60 * y[:, None, None, None], 0, 255).astype(np.uint8)
    return _case(tmp_path, "image", x, y)


def run(path: Path, array: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: array})[0]


def test_foreign_weights_take_raw_values_from_the_data_to_the_device(table: Case) -> None:
    notes = Notes()
    folder, record = pipeline.compress(replace(table.request, input_features="4"), notes)
    assert record.dense.test_value == pytest.approx(table.accuracy, abs=1e-6) and table.accuracy > 0.95
    (told,) = [text for text in record.assumed if text.startswith("--normalize none (edgeprune did not train")]
    assert f"assumed: {told}" in notes.said and "mean=12" in told
    assert load(folder / "slim.pt2").info.normalization == IDENTITY
    (folder / "run.json").unlink()  # nothing is timed beside the dense network then
    pipeline.export(ExportRequest(str(folder / "slim.pt2")))
    raw = open_data(table.request.data or "").test.x.numpy()  # type: ignore[attr-defined]
    want = load(folder / "slim.pt2").program.module()(torch.from_numpy(raw)).detach().numpy()
    got = run(folder / "slim.onnx", run(folder / "preprocess.onnx", raw))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(folder / "full.onnx", raw), want, rtol=1e-4, atol=1e-4)
    facts = json.loads((folder / "features.json").read_text())
    np.testing.assert_allclose(run(folder / "slim.onnx", raw[:, facts["indices"]]), want, rtol=1e-4, atol=1e-4)
    assert facts["scaling"] == {**facts["scaling"], "mean": [0.0] * 4, "std": [1.0] * 4}


def test_what_takes_all_raw_values_needs_no_preprocessing(table: Case) -> None:
    request = table.request
    files = pipeline.export(ExportRequest(request.model, data=request.data, arch=request.arch, out=request.out)).files
    assert [Path(file.path).name for file in files] == ["table.onnx", "features.json"]
    with pytest.raises(InputError, match="nothing to fold"):
        pipeline.export(
            ExportRequest(request.model, data=request.data, arch=request.arch, out="new", preprocess="fold")
        )


def test_bytes_are_scaled_and_nothing_else(image: Case) -> None:
    request = ExportRequest(image.request.model, data=image.request.data, arch=image.request.arch, preprocess="fold")
    pipeline.export(replace(request, out=image.request.out))
    raw = open_data(image.request.data or "").test.x.numpy()  # type: ignore[attr-defined]
    want = image.net(torch.from_numpy(raw).float() / 255).detach().numpy()
    np.testing.assert_allclose(run(image.folder / "run" / "image.onnx", raw), want, rtol=1e-4, atol=1e-4)


def test_a_network_at_chance_is_refused_with_what_would_do(table: Case) -> None:
    wrong = replace(table.request, normalize="mean=100;std=1")
    message = r"of 80 samples, as it always .* same class \(inputs mean=100;std=1\); --normalize none makes it 100.0%"
    with pytest.raises(InputError, match=message):
        pipeline.compress(wrong)
    assert not (table.folder / "run").exists()
    job = prepare(replace(wrong, allow_chance=True), Silent())
    assert job.model.info.normalization == Normalization((100.0,), (1.0,))


def test_images_are_tried_as_usual_networks_take_them(image: Case) -> None:
    job = prepare(image.request, Silent())
    assert job.data is not None
    tried = other_normalizations(job.model, job.data)
    assert tried["'mean=0.485,0.456,0.406;std=0.229,0.224,0.225'"].std == (0.229, 0.224, 0.225)
    assert tried["'mean=0;std=0.00392157'"] == Normalization((0.0,), (1 / 255,))  # bytes as a file holds them
    assert "data" in tried and "none" not in tried  # which is what is used
    state = image.net.state_dict()
    torch.save({**state, "1.weight": state["1.weight"] / 255}, image.folder / "image.pt")
    with pytest.raises(
        InputError, match=r"inputs as the data hold them\); --normalize 'mean=0;std=0.00392157' makes it"
    ):
        prepare(replace(image.request, out=str(image.folder / "new")), Silent())


def test_a_normalisation_that_does_clearly_better_is_told(table: Case) -> None:
    """Trained on standardised values, but not at chance on raw ones."""
    data = open_data(table.request.data or "")
    x, y = next(iter(batches(data.train, 1000)))
    net = _trained(table.net.train(), normalize(x, data.normalization), y)
    with torch.no_grad():  # raw values lie at 10 to 15: most of them seem to be of class 1
        net[4].bias.copy_(torch.tensor([6.0, -6.0]))
    torch.save(net.state_dict(), table.folder / "table.pt")
    job = prepare(replace(table.request, allow_chance=True), Silent())
    assert any("may have seen other inputs: with --normalize data " in text for text in job.assumed)


def test_classes_in_another_order_are_at_chance(table: Case) -> None:
    state = load(table.request.model, arch=table.request.arch, input_shape=(6,)).program.state_dict
    swapped = {name: tensor.flip(0) if name.startswith("4.") else tensor for name, tensor in state.items()}
    torch.save(swapped, table.folder / "table.pt")
    with pytest.raises(InputError, match="got [0-9].[0-9]% right .* classes in the order of that training; --allow-ch"):
        pipeline.compress(table.request)


def test_int8_is_not_judged_at_chance(table: Case) -> None:
    request = ExportRequest(
        table.request.model, arch=table.request.arch, data=table.request.data, int8=True,
        out=str(table.folder / "out"),
    )  # fmt: skip
    with pytest.raises(InputError, match="better than guessing"):
        pipeline.export(replace(request, normalize="mean=100;std=1"))
    assert not (table.folder / "out" / "table.onnx").exists()


def test_what_is_asked_is_recorded_and_wins(table: Case) -> None:
    job = prepare(replace(table.request, normalize="mean=0;std=1,1,1,1,1,1"), Silent())
    assert job.model.info.normalization == Normalization((0.0,), (1.0,) * 6)
    save_program(table.folder / "slim.pt2", job.model.program, job.model.info)
    assert load(table.folder / "slim.pt2").info == job.model.info
    own = replace(table.request, model=str(table.folder / "slim.pt2"), arch=None, normalize="mean=1;std=1", out="new")
    said = "--normalize mean=1;std=1 for mean=0;std=1,1,1,1, which the model's file records"
    assert said in prepare(own, Silent()).assumed
    with pytest.raises(InputError, match="--normalize: expected 1 or 6 means and stds for inputs .*, got 2"):
        prepare(replace(own, normalize="mean=1,2;std=1"), Silent())
    with pytest.raises(InputError, match="--normalize: expected data to measure"):
        prepare(replace(table.request, data=None, input_shape=(6,), normalize="data", out="new"), Silent())


def test_training_records_what_it_was_asked(table: Case) -> None:
    request = TrainRequest(table.request.arch or "", table.request.data or "", str(table.folder / "own.pt"))
    request = replace(request, settings=TrainSettings(epochs=20, lr=1e-2, batch_size=32, threads=1), normalize="none")
    record = pipeline.train(request)
    info = load(table.folder / "own.pt").info
    assert info.normalization == IDENTITY and record.test_value > 0.6
    job = prepare(replace(table.request, model=str(table.folder / "own.pt"), arch=None), Silent())
    assert job.data is not None and job.model.info.normalization == IDENTITY
    assert not any("--normalize" in text for text in job.assumed)


def test_a_data_source_of_one_s_own_says_its_normalisation(table: Case) -> None:
    (table.folder / "source.py").write_text(
        "from dataclasses import replace\n"
        "from edgeprune.data import open_data\n"
        "from edgeprune.records import Normalization\n"
        "def raw(spec):\n"
        "    return replace(open_data(spec), normalization=Normalization((0.5,), (0.99,)))\n"
        "def measured(spec): return open_data(spec)\n"
    )
    own = replace(table.request, data=f"{table.folder}/source.py:raw?spec={table.request.data}")
    job = prepare(own, Silent())
    assert job.model.info.normalization == Normalization((0.5,), (0.99,))
    assert any("--normalize data (mean=0.5 and std=0.99, as " in text for text in job.assumed)
    measured = replace(own, data=f"{table.folder}/source.py:measured?spec={table.request.data}")
    assert prepare(measured, Silent()).model.info.normalization == IDENTITY


def test_published_weights_say_their_own() -> None:
    pytest.importorskip("torchvision")
    imagenet = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert weights_normalization("torchvision:resnet18?num_classes=10") == imagenet
    assert weights_normalization("torchvision:efficientnet_v2_l").mean == (0.5, 0.5, 0.5)
    with pytest.raises(InputError, match="expected weights of one mean and std, got several for torchvision:vgg16: "):
        weights_normalization("torchvision:vgg16")
    assert weights_normalization("torchvision:vgg16?weights=VGG16_Weights.IMAGENET1K_V1") == imagenet
    with pytest.raises(InputError, match="expected --arch"):
        weights_normalization(None)


def test_configured_networks_say_their_own(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    assert weights_normalization(f"{tmp_path}/nets.py:configured") == Normalization((1.0,), (2.0,))
    with pytest.raises(InputError, match="which does not"):
        weights_normalization(f"{tmp_path}/nets.py:table")
    pytest.importorskip("timm")
    assert weights_normalization("timm:vit_tiny_patch16_224").mean == (0.5, 0.5, 0.5)
