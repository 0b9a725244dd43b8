"""int8 that is finetuned as it is rounded: the network that is trained is the file, and wins back what int8 lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from edgeprune.cli.app import app
from edgeprune.commands.export import export
from edgeprune.data import batches, first_inputs, normalize, open_data
from edgeprune.data.splits import some_of
from edgeprune.errors import InputError, LostProcessError, TrainingError
from edgeprune.export import ort
from edgeprune.export.exact import meaning
from edgeprune.export.fakequant import FakeQuantized, OnnxModule
from edgeprune.export.finetuned import Finetuning, _with, write_finetuned
from edgeprune.export.floatfile import open_float
from edgeprune.export.judging import QuantizedFile
from edgeprune.export.onnx import export_onnx
from edgeprune.export.quantize import Work, work_of, write_int8
from edgeprune.formats.load import load
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import capture
from edgeprune.progress import Silent
from edgeprune.records import ACCURACY, IDENTITY, ModelInfo
from edgeprune.requests import ExportRequest
from edgeprune.results import ExportRecord, LeftOut
from edgeprune.settings import TrainSettings
from edgeprune.training import fit
from tests.uneven import uneven_network

MODELS = Path(__file__).parent.parent / "models"


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeprune.commands.variants._SECONDS", 0.01)
    monkeypatch.setattr("edgeprune.commands.int8tuning._LR", 3e-3)  # for the few steps that a test takes


class Mixed(nn.Module):
    """Convolutions plain, in groups, depthwise, transposed and strided, a sum, a pool, a product and a clip."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.Hardswish())
        self.split = nn.Conv2d(8, 8, 1, groups=2)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 3, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.relu(self.split(x + self.deep(x)))
        x = nn.functional.max_pool2d(self.up(x), 2)
        return self.head(x.mean((2, 3)) * 2)


def float_file(net: nn.Module, x: Tensor, folder: Path) -> Path:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 2)
            module.running_mean.normal_()
    export_onnx(capture(net.eval(), x), folder / "net.onnx", inputs=x)
    return folder / "net.onnx"


def work(source: Path, x: Tensor, reduced: bool) -> Work:
    folder = source.parent / f"work_{reduced}"
    folder.mkdir()
    return work_of(open_float(source, x.numpy()), folder, reduced)


def fake(made: Work) -> FakeQuantized:
    plain = onnx.load(made.quantized((), "plain", fitted=False))
    module = FakeQuantized(plain, onnx.load(made.source), None, made.reduce_range)
    module.settle({name: array[:2] for name, array in made.file.feeds[0].items()})
    return module


def meant(made: Work, x: Tensor) -> np.ndarray:
    path = meaning(made.quantized((), "all"), made.folder / "exact.onnx")
    assert path is not None
    return ort.run(ort.session(path), x.numpy())


def check_it_is_the_file(module: FakeQuantized, made: Work, x: Tensor) -> None:
    """To one step of the last integers, for a number may lie on the edge between two of them."""
    want, got = meant(made, x), module(x).detach().numpy()
    step = min(high - low for low, high in module.ranges().values()) / 255
    assert np.abs(want - got).max() <= 1.01 * step + 1e-5
    assert (np.abs(want - got).max(axis=1) < 1e-5).mean() > 0.9


def test_the_network_that_is_trained_is_the_file_before_and_after(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 2, 8, 8)
    source = float_file(Mixed(), x, tmp_path)
    floats = ort.run(ort.session(source), x.numpy())
    for reduced in (True, False):
        made = work(source, x, reduced)
        module = fake(made)
        check_it_is_the_file(module, made, x)
        assert np.abs(module(x).detach().numpy() - floats).max() > 1e-4  # it does round
        before = {name: weight.copy() for name, weight in module.trained().items()}
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            (module(x) - 3).square().mean().backward()
            optimizer.step()
        assert all((weight != before[name]).any() for name, weight in module.trained().items())
        check_it_is_the_file(module, _with(made, module), x)
        shapes = [weight.shape for weight in before.values() if weight.ndim > 1]
        assert sorted(shapes) == sorted([(8, 2, 3, 3), (8, 1, 3, 3), (8, 4, 1, 1), (8, 4, 2, 2), (6, 4), (3, 6)])
        trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        assert all(name.startswith(("weights.", "scales.")) for name in trained)
    teacher = OnnxModule(onnx.load(made.source), None)
    np.testing.assert_allclose(teacher(x).detach().numpy(), floats, atol=1e-5)
    np.testing.assert_allclose(ort.run(ort.session(source), x.numpy()), floats)  # the float file stays


def test_gradients_are_those_of_straight_through_and_of_learnt_steps(tmp_path: Path) -> None:
    from edgeprune.export.fakequant import _OnGrid

    x = torch.tensor([-3.0, -0.2, 0.7, 2.0, 9.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    given = _OnGrid.apply(x, step, -2, 6)
    assert given.tolist() == [-1.0, 0.0, 0.5, 2.0, 3.0]
    given.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    # By https://arxiv.org/abs/1902.08153: round(x/s) - x/s inside, the bound outside.
    assert step.grad is not None
    assert step.grad.item() == pytest.approx(-2 + (0 + 0.4) + (1 - 1.4) + 0 + 6)


# -- export --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uneven_network(tmp_path_factory.mktemp("uneven"))


def calibration() -> np.ndarray:
    """As `export` takes it."""
    data = open_data("digits")
    return normalize(torch.from_numpy(first_inputs(data.train, 256)), data.normalization).numpy()


def exported(model: Path, out: Path, **asked: object) -> ExportRecord:
    return export(ExportRequest(model=str(model), out=str(out), int8=True, **{"data": "digits", **asked}), Silent())


def test_finetuning_wins_back_what_int8_lost(uneven: Path, tmp_path: Path) -> None:
    record = exported(uneven, tmp_path, finetune_epochs=8)
    assert record.variants is not None
    rows = {row.name: row for row in record.variants.variants}
    assert [row for row in rows if row.startswith("int8")] == ["int8", "int8-finetuned"]
    path = tmp_path / "uneven.int8-finetuned.onnx"
    assert rows["int8-finetuned"].path == str(path)
    x, y = next(batches(open_data("digits").val, 10_000))
    x = normalize(x, load(uneven).info.normalization)

    def accuracy(file: Path) -> float:
        return float((ort.run(ort.session(file), x.numpy()).argmax(1) == y.numpy()).mean())

    assert accuracy(path) == rows["int8-finetuned"].value
    write_int8(tmp_path / "uneven.onnx", tmp_path / "all.onnx", calibration(), max_drop=100.0)
    lost = 100 * (accuracy(tmp_path / "uneven.onnx") - accuracy(tmp_path / "all.onnx"))
    assert lost > 1
    note = next(note for note in record.variants.notes if note.startswith("int8-finetuned: 8 epochs"))
    assert f"{lost:.2f} points lost before" in note
    assert rows["int8-finetuned"].drop is not None and rows["int8-finetuned"].drop < lost / 2
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert (tmp_path / "uneven.int8.onnx").exists()  # the one after training stays beside it


def test_what_is_not_needed_or_not_better_beyond_doubt_is_not_kept(uneven: Path, tmp_path: Path) -> None:
    model, data = load(uneven), open_data("digits")
    export_onnx(model.program, tmp_path / "net.onnx", inputs=calibration()[:4])
    xs, y = next(batches(data.val, 10_000))
    xs = normalize(xs, data.normalization)

    def value(path: Path) -> float:
        return float((ort.run(ort.session(path), xs.numpy()).argmax(1) == y.numpy()).mean())

    def tried(train: object, better: bool, max_drop: float = 1.0) -> QuantizedFile | LeftOut:
        how = Finetuning(1, train, lambda before, after: better, None)  # type: ignore[arg-type]
        return write_finetuned(
            tmp_path / "net.onnx", tmp_path / "out.onnx", calibration(), how,
            value=value, metric=ACCURACY, max_drop=max_drop, reduce_range=True, progress=Silent(),
        )  # fmt: skip

    needless = tried(None, True, 100.0)
    assert isinstance(needless, LeftOut) and needless.reason.startswith("int8 of all layers keeps the budget without")
    full = TrainingError("the epoch was not kept")
    full.__cause__ = InputError("out.training: cannot be written")
    full.__cause__.__cause__ = OSError(28, "No space left on device")
    for outside in (full, LostProcessError("process 1 has ended")):

        def stopped(module: nn.Module, teacher: nn.Module, error: Exception = outside) -> None:
            raise error

        with pytest.raises(type(outside)):
            tried(stopped, True)
    same = tried(lambda module, teacher: None, True)
    assert isinstance(same, LeftOut) and same.reason.endswith("0 % won back: not better beyond doubt")

    def trained(module: nn.Module, teacher: nn.Module) -> None:
        taken = replace(data, train=[(normalize(a[None], data.normalization)[0], b) for a, b in data.train],  # type: ignore[arg-type]
                        val=[(normalize(a[None], data.normalization)[0], b) for a, b in some_of(data.val, 90)])  # type: ignore[arg-type] # fmt: skip
        fit(module, taken, IDENTITY, TrainSettings(epochs=3, lr=3e-3), teacher=teacher)

    doubtful = tried(trained, False)
    assert isinstance(doubtful, LeftOut) and "not better beyond doubt" in doubtful.reason
    assert not (tmp_path / "out.onnx").exists()


class Two(nn.Module):
    """Two inputs, two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 12), nn.Linear(4, 12), nn.Linear(12, 1)

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        inner = torch.relu(self.a(a) + self.b(b))
        return {"y": self.head(inner), "inner": inner}


def test_without_labels_named_inputs_meet_the_network_in_float(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(400, n)).astype(np.float32) for n in (6, 4))
    np.savez(tmp_path / "two.npz", a=a, b=b)
    program = capture(Two().eval(), (torch.zeros(2, 6), torch.zeros(2, 4)))
    save_program(tmp_path / "two.pt2", program, ModelInfo(()))
    record = exported(
        tmp_path / "two.pt2", tmp_path / "out", data=f"npz:{tmp_path / 'two.npz'}", task="match", max_drop=0.0,
        finetune_epochs=2,
    )  # fmt: skip
    assert record.variants is not None
    told = [one.reason for one in record.variants.left_out if one.kind == "int8-finetuned"]
    told += [note for note in record.variants.notes if note.startswith("int8-finetuned")]
    assert len(told) >= 1 and "2 epochs of all layers in int8" in " ".join(told)


def test_the_command_line() -> None:
    runner = CliRunner()
    alone = runner.invoke(app, ["export", str(MODELS / "digits_cnn.pt"), "--onnx", "--finetune-epochs", "2"])
    assert alone.exit_code == 2 and "--int8" in alone.output
    negative = runner.invoke(app, ["export", str(MODELS / "digits_cnn.pt"), "--int8", "--finetune-epochs", "-1"])
    assert negative.exit_code == 2
