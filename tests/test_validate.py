"""Validation of two ONNX files on real data, in onnxruntime."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeprune.commands.export import export
from edgeprune.commands.onnxfile import stated_of
from edgeprune.commands.validate import validate_files
from edgeprune.data import batches, normalize, open_data
from edgeprune.errors import InputError
from edgeprune.export import ort
from edgeprune.export.contracts import write_contracts
from edgeprune.export.onnx import export_onnx
from edgeprune.export.quantize import write_int8
from edgeprune.formats.load import load
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import capture
from edgeprune.progress import Silent
from edgeprune.records import DataSource, ModelInfo
from edgeprune.requests import ExportRequest, ValidateRequest

CHECKPOINT = Path(__file__).parent.parent / "models" / "digits_mlp.pt"


class Notes(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


class Linear(nn.Module):
    """A linear classifier of the pixels that `keep` names, gathered inside; all of them where it is None."""

    def __init__(self, weights: Tensor, keep: Tensor | None) -> None:
        super().__init__()
        if keep is not None:
            self.register_buffer("edgeprune_keep_x", keep)
        self.gathers = keep is not None
        self.weight, self.bias = nn.Parameter(weights[:-1].T.contiguous()), nn.Parameter(weights[-1])

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.gathers:
            x = torch.index_select(x, 1, self.edgeprune_keep_x)
        return nn.functional.linear(x, self.weight, self.bias)


class Files(NamedTuple):
    """Two classifiers of the digits: of all pixels, and of 40."""

    dense: Path
    slim: Path
    data: DataSource
    drop_points: float


def least_squares(x: Tensor, y: Tensor) -> Tensor:
    ones = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    return torch.linalg.lstsq(ones, nn.functional.one_hot(y, 10).double(), driver="gelsd").solution.float()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    data = open_data("digits")
    (x, y), (x_test, y_test) = (next(iter(batches(split, 5000))) for split in (data.train, data.test))
    x, x_test = (normalize(part, data.normalization) for part in (x, x_test))
    keep = x.flatten(1).var(0).topk(40).indices.sort().values
    models = [
        Linear(least_squares(x.flatten(1), y), None),
        Linear(least_squares(x.flatten(1)[:, keep], y), keep),
    ]
    folder = tmp_path_factory.mktemp("validate")
    info = ModelInfo(data.input_shape, classes=data.classes, normalization=data.normalization)
    for model, name in zip(models, ("dense", "slim"), strict=True):
        write_contracts(capture(model, x[:2]), info, folder / name)
    with torch.no_grad():
        dense, slim = ((model(x_test).argmax(1) == y_test).float().mean().item() for model in models)
    return Files(folder / "dense" / "slim.onnx", folder / "slim" / "slim.onnx", data, 100 * (dense - slim))


def request(files: Files, **changes) -> ValidateRequest:
    fields = {"dense": str(files.dense), "slim": str(files.slim), "data": "digits", "runs": 20}
    return ValidateRequest(**{**fields, **changes})


def test_slim_contract_is_fed_by_its_preprocessing(files: Files) -> None:
    notes = Notes()
    record = validate_files(request(files), files.data, progress=notes)
    assert record.accuracy.n_samples == len(files.data.test)
    assert record.accuracy.dense > 0.85 and record.accuracy.slim > 0.85
    assert record.accuracy.drop_points == pytest.approx(files.drop_points, abs=1e-3)
    assert record.accuracy.drop_interval[0] <= record.accuracy.drop_points <= record.accuracy.drop_interval[1]
    assert 0 <= record.accuracy.mcnemar_p <= 1
    assert record.parity > 0
    assert (record.dense_bytes, record.slim_bytes) == (files.dense.stat().st_size, files.slim.stat().st_size)
    assert (record.latency.n_runs, record.latency.threads, record.latency.batch_size) == (20, 1, 1)
    assert record.failures == () and notes.said == []


def test_full_contract_gives_the_same_as_the_slim_one(files: Files) -> None:
    full = files.slim.parent / "full.onnx"
    record = validate_files(request(files, dense=str(full), batch_size=3, threads=2), files.data)
    assert record.parity <= 1e-5
    assert record.accuracy.drop_points == 0 and record.accuracy.mcnemar_p == 1
    assert (record.latency.batch_size, record.latency.threads) == (3, 2)


def test_missed_budgets_are_named(files: Files) -> None:
    pair = {"dense": str(files.slim), "slim": str(files.dense)} if files.drop_points <= 0 else {}
    record = validate_files(request(files, **pair, max_drop=0.0, max_latency_ratio=1e-6), files.data)
    drop, latency = record.failures
    assert drop == f"accuracy drop: at most 0 points asked, got {record.accuracy.drop_points:.2f}"
    assert latency == f"latency: at most 1e-06 of the dense time asked, got {record.latency.ratio:.2f}"
    assert validate_files(request(files, max_drop=50.0, max_latency_ratio=1e6), files.data).failures == ()


def bare(path: Path, folder: Path) -> str:
    """The file without what it says of itself, as another tool would have written it."""
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.save(proto, folder / "bare.onnx")
    return str(folder / "bare.onnx")


@pytest.mark.parametrize("which", ["dense", "slim"])
def test_file_without_normalisation_takes_that_of_the_other_and_says_so(
    which: str, files: Files, tmp_path: Path
) -> None:
    notes = Notes()
    pair = {"slim": str(files.dense), which: bare(files.dense, tmp_path)}
    record = validate_files(request(files, **pair), files.data, progress=notes)
    assert record.parity == 0 and record.accuracy.drop_points == 0
    assert len(notes.said) == 1 and "bare.onnx: states no normalisation; taken: mean" in notes.said[0]
    assert f"(as {files.dense} says)" in notes.said[0]


def test_foreign_files_take_the_data_as_they_are_or_as_asked(files: Files, tmp_path: Path) -> None:
    path, notes = bare(files.dense, tmp_path), Notes()
    x, y = next(iter(batches(files.data.test, 1000)))
    right = (ort.run(ort.session(Path(path)), x.numpy()).argmax(1) == y.numpy()).mean()
    raw = validate_files(request(files, dense=path, slim=path, allow_chance=True), files.data, progress=notes)
    assert len(notes.said) == 2 and all("none; inputs as the data hold them" in text for text in notes.said)
    scaled = validate_files(request(files, dense=path, slim=path, normalize="data"), files.data)
    assert raw.accuracy.dense == pytest.approx(right) and scaled.accuracy.dense != raw.accuracy.dense
    with pytest.raises(
        InputError, match="--normalize: expected none, data or numbers, as an ONNX file names no weights"
    ):
        validate_files(request(files, dense=path, normalize="weights"), files.data)


def test_networks_at_chance_are_not_compared(files: Files, tmp_path: Path) -> None:
    proto = onnx.load(files.dense)
    weights = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.raw_data = bytes(len(weights.raw_data))  # always the same class
    onnx.save(proto, tmp_path / "constant.onnx")
    pair = {"dense": str(tmp_path / "constant.onnx"), "slim": str(tmp_path / "constant.onnx")}
    with pytest.raises(
        InputError, match=r"constant.onnx: expected the network to do better than guessing, got 1\d\.\d%"
    ):
        validate_files(request(files, **pair), files.data)
    assert validate_files(request(files, **pair, allow_chance=True), files.data).accuracy.dense < 0.15


def test_each_file_is_fed_by_its_own_normalisation(files: Files, tmp_path: Path) -> None:
    """A network that scales inside states none of its own; with identity scaling it agrees with the dense one."""
    proto = onnx.load(files.dense)
    norm = files.data.normalization
    for name, values in (("mean", norm.mean), ("std", norm.std)):
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(values).reshape(1, -1, 1, 1), name))
    proto.graph.node[0].input[0] = "scaled"
    proto.graph.node.insert(0, helper.make_node("Div", ["centred", "std"], ["scaled"]))
    proto.graph.node.insert(0, helper.make_node("Sub", ["input", "mean"], ["centred"]))
    helper.set_model_props(proto, {"edgeprune.normalization": '{"mean": [0], "std": [1]}'})
    onnx.save(proto, tmp_path / "inside.onnx")
    record = validate_files(request(files, slim=str(tmp_path / "inside.onnx")), files.data)
    assert record.parity <= 1e-5


def refused(files: Files, path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        validate_files(request(files, slim=str(path)), files.data)
    assert "\n" not in str(caught.value) and path.parent.name in str(caught.value)


def test_slim_file_without_its_preprocessing_is_refused(files: Files, tmp_path: Path) -> None:
    shutil.copy(files.slim, tmp_path / "slim.onnx")
    refused(
        files, tmp_path / "slim.onnx", r"expected an input \(batch, 1, 8, 8\) .* got \(batch, 40\), and no preprocess"
    )


def test_preprocessing_of_another_network_is_refused(files: Files, tmp_path: Path) -> None:
    shutil.copy(files.slim, tmp_path / "slim.onnx")
    shutil.copy(files.dense.parent / "preprocess.onnx", tmp_path / "preprocess.onnx")
    refused(files, tmp_path / "slim.onnx", r"expected an output \(batch, 40\)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an ONNX file, got an empty file"),
        (b"PK\x03\x04 a zip archive", "truncated or of another format"),
        (b"<html>not found</html>", "expected an ONNX file"),
    ],
)
def test_foreign_file_is_refused(content: bytes, message: str, files: Files, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    refused(files, tmp_path / "net.onnx", message)


def test_truncated_and_missing_files_are_refused(files: Files, tmp_path: Path) -> None:
    content = files.dense.read_bytes()
    for share in (0.1, 0.5, 0.95):
        (tmp_path / "net.onnx").write_bytes(content[: int(len(content) * share)])
        refused(files, tmp_path / "net.onnx", "expected an ONNX file|onnxruntime cannot load it")
    refused(files, tmp_path / "nothing.onnx", "expected an ONNX file, got nothing there")
    refused(files, tmp_path, "expected an ONNX file, got a folder")


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), (1, 8, 8), r"expected an output \(batch, 10\) .*, got .*7"),
        (nn.Conv2d(1, 10, 8), (1, 8, 8), r"expected an output \(batch, 10\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), (3, 8, 8), r"expected an input \(batch, 1, 8, 8\)"),
        (nn.Bilinear(3, 4, 10), None, "expected one float32 input"),
    ],
)
def test_network_that_does_not_fit_the_data_is_refused(
    model: nn.Module, shape: tuple[int, ...] | None, message: str, files: Files, tmp_path: Path
) -> None:
    args = torch.randn(2, *shape) if shape else (torch.randn(2, 3), torch.randn(2, 4))
    export_onnx(capture(model, args), tmp_path / "net.onnx")
    refused(files, tmp_path / "net.onnx", message)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "sub/../../secret.bin"])
def test_external_data_outside_the_folder_is_refused(location: str, files: Files, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(64 * 10 * 4))
    proto = onnx.load(files.dense)
    tensor = max(proto.graph.initializer, key=lambda one: len(one.raw_data))
    point_outside(tensor, location)
    (tmp_path / "model" / "net.onnx").write_bytes(proto.SerializeToString())
    refused(files, tmp_path / "model" / "net.onnx", "expected weights in its own folder, got external data at")


def test_external_data_hidden_in_an_attribute_is_refused(files: Files, tmp_path: Path) -> None:
    proto = onnx.load(files.dense)
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "hidden")
    point_outside(tensor, "../../hidden.bin")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=tensor)],
        "branch",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [4])],
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    proto.graph.node.append(helper.make_node("If", ["flag"], ["unused"], then_branch=branch, else_branch=branch))
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    refused(files, tmp_path / "net.onnx", "expected weights in its own folder")


def point_outside(tensor: TensorProto, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def test_external_data_in_the_folder_counts_as_size(files: Files, tmp_path: Path) -> None:
    proto = onnx.load(files.dense)
    path = tmp_path / "net.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    record = validate_files(request(files, slim=str(path)), files.data)
    assert record.parity == 0
    assert record.slim_bytes == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    (tmp_path / "weights.bin").unlink()
    refused(files, path, "expected its external data 'weights.bin' beside it")


def test_network_that_gives_nan_is_refused(files: Files, tmp_path: Path) -> None:
    proto = onnx.load(files.dense)
    bias = min((t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT), key=lambda t: np.prod(t.dims))
    bias.raw_data = np.full(10, np.nan, np.float32).tobytes()
    onnx.save(proto, tmp_path / "net.onnx")
    refused(files, tmp_path / "net.onnx", "expected finite logits")


def test_a_checkpoint_is_compared_as_a_program_is_and_weights_alone_are_refused(tmp_path: Path) -> None:
    model, data = load(CHECKPOINT), open_data("digits")
    export_onnx(model.program, tmp_path / "net.onnx", metadata=stated_of(model.program, model.info))
    renamed = shutil.copy(CHECKPOINT, tmp_path / "net.ckpt")
    for dense in (str(CHECKPOINT), renamed):
        record = validate_files(ValidateRequest(dense, str(tmp_path / "net.onnx"), "digits", runs=5), data)
        assert record.parity < 1e-4 and record.accuracy is not None
        assert record.accuracy.drop_points == 0 and record.accuracy.dense > 0.95
    weights = dict(model.program.state_dict)
    torch.save(weights, tmp_path / "net.pt")
    torch.save(weights, tmp_path / "net.bin", _use_new_zipfile_serialization=False)
    save_file(weights, tmp_path / "net.safetensors")
    for name in ("net.pt", "net.bin", "net.safetensors"):
        request = ValidateRequest(str(tmp_path / name), str(tmp_path / "net.onnx"), "digits")
        with pytest.raises(InputError, match=f"{name}: expected an .onnx, .* got weights without their network"):
            validate_files(request, data)


class Detector(nn.Module):
    """Boxes first, and then the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.boxes, self.scores = nn.Linear(64, 16), nn.Linear(16, 4), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x.flatten(1)).relu()
        return {"boxes": self.boxes(h), "scores": self.scores(h)}


def test_of_several_outputs_none_is_taken_for_the_scores(tmp_path: Path) -> None:
    program = capture(Detector(), torch.randn(2, 1, 8, 8))
    path = tmp_path / "net.onnx"
    export_onnx(program, path)
    with pytest.raises(InputError, match=r"one output \(batch, 10\) .* got boxes \(batch, 4\), scores \(batch, 10\)"):
        validate_files(ValidateRequest(str(path), str(path), "digits"), open_data("digits"))
    save_program(tmp_path / "net.pt2", program, ModelInfo((1, 8, 8)))
    request = ExportRequest(model=str(tmp_path / "net.pt2"), data="digits", out=str(tmp_path / "out"), int8=True)
    with pytest.raises(InputError, match=r"got boxes \(batch, 4\) and scores \(batch, 10\); without --int8"):
        export(request)
    assert not (tmp_path / "out").exists()
    rows = np.random.default_rng(0).standard_normal((32, 1, 8, 8), dtype=np.float32)
    made = write_int8(path, tmp_path / "int8.onnx", rows)
    assert (made.drop, made.agreement) == (None, None) and made.snr_db > 20
