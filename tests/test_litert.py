"""LiteRT: real .tflite files in its own interpreter, checked against PyTorch."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from target_nets import (
    Bessel,
    Tagger,
    in_pytorch,
    kept_sensors,
    of_sensors,
    raw_sensors,
    saved_sensors,
    saved_shuffled,
    slim_program,
)

from edgeprune.commands.export import export
from edgeprune.data import batches, normalize, open_data
from edgeprune.errors import InputError, ParityError
from edgeprune.export.feeds import filled
from edgeprune.export.parity import Sample
from edgeprune.export.targets import TargetOptions, targets_of
from edgeprune.formats.load import load
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import capture
from edgeprune.progress import Silent
from edgeprune.records import ModelInfo, Normalization
from edgeprune.requests import ExportRequest
from edgeprune.results import ExportRecord, LeftOut
from edgeprune.runrecord import to_dict

MODELS = Path(__file__).parent.parent / "models"


def test_a_missing_package_names_the_extra_and_what_comes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    [litert] = targets_of(["litert"], TargetOptions(layout="nchw"))
    said = (
        r"^LiteRT is not installed: pip install 'edgeprune\[litert\]' && "
        r"pip install --no-deps litert-converter==0\.5\.0 litert-torch==0\.10\.0$"
    )
    with pytest.raises(InputError, match=said):
        litert.check_installed()


@pytest.mark.parametrize(
    ("outputs", "error"), [([[1.0, 2.5]], 0.5), ([[1.0, np.nan]], None), ([[1.0]], None)], ids=["near", "NaN", "shape"]
)
def test_what_int8_gives_is_finite_and_of_its_shape(outputs: list[Any], error: float | None) -> None:
    from edgeprune.export.litert import _error

    wanted = np.array([[1.0, 2.0]], np.float32)
    sample = Sample((wanted,), (wanted,), (torch.float32,), (None,), lambda: None, None)
    got = [[np.array(outputs, np.float32)]]
    if error is None:
        with pytest.raises(ParityError, match=r"a.int8.tflite in LiteRT: expected finite outputs"):
            _error([sample], got, "a.int8.tflite")
    else:
        assert _error([sample], got, "a.int8.tflite") == error


def test_rows_in_whole_batches() -> None:
    assert filled(5, 2).tolist() == [[0, 1], [2, 3], [4, 0]] and filled(4, 2).tolist() == [[0, 1], [2, 3]]


# --- with the package

pytestmark = pytest.mark.slow


@pytest.fixture
def litert() -> None:
    pytest.importorskip("litert_converter", reason="edgeprune[litert] is not installed")
    pytest.importorskip("ai_edge_litert", reason="edgeprune[litert] is not installed")


@pytest.fixture
def shuffled(tmp_path: Path) -> Path:
    return saved_shuffled(tmp_path, (3, 8, 6))


def exported(net: Path, **changes: Any) -> ExportRecord:
    return export(ExportRequest(model=str(net), out=str(net.parent / "out"), targets=("litert",), **changes))


def signature_answers(path: Path, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    """By the interpreter's own signature, as an app calls it."""
    return signature_runner(path)(**arrays)


def signature_runner(path: Path) -> Any:
    """Takes and gives arrays by name."""
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_path=str(path), num_threads=1).get_signature_runner()


def contract(net: Path) -> dict[str, Any]:
    return json.loads((net.parent / "out" / "features.json").read_text())["contracts"]["litert"]


@pytest.mark.usefixtures("litert")
@pytest.mark.parametrize(("layout", "batch"), [("nhwc", None), ("nchw", 2)])
def test_images_in_both_layouts(shuffled: Path, layout: str, batch: int | None) -> None:
    record = exported(shuffled, layout=layout, batch=batch, dense=str(shuffled))
    rows, last = batch or 1, layout == "nhwc"
    x = np.random.default_rng(0).standard_normal((rows, 3, 8, 6), dtype=np.float32)
    scores, maps = in_pytorch(shuffled, x)
    path = shuffled.parent / "out" / "net.tflite"
    got = signature_answers(path, input=x.transpose(0, 2, 3, 1) if last else x)
    np.testing.assert_allclose(got["scores"], scores, atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(got["map"].transpose(0, 3, 1, 2) if last else got["map"], maps, atol=1e-6, rtol=1e-5)
    [given], [first, second] = contract(shuffled)["inputs"], contract(shuffled)["outputs"]
    assert given["shape"] == ([rows, 8, 6, 3] if last else [rows, 3, 8, 6]) and given["layout"] == layout
    assert (first["name"], first["shape"], second["layout"]) == ("scores", [rows, 5], layout)
    assert given["scaling"]["mean"] == [0.5] * 3 and contract(shuffled)["file"] == "net.tflite"
    file = next(file for file in record.files if file.path == str(path))
    assert file.parity is not None and file.parity <= 1e-5 and file.ratio is not None
    told = next(file for file in record.files if file.path.endswith("features.json"))
    assert told.size_bytes == Path(told.path).stat().st_size


@pytest.mark.usefixtures("litert")
def test_ids_an_lstm_and_whole_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    slim = slim_program(Tagger(), torch.randint(0, 11, (2, 5)), torch.randn(2, 5, 4))
    save_program(tmp_path / "net.pt2", slim, ModelInfo((5,)))
    exported(tmp_path / "net.pt2")
    rng = np.random.default_rng(0)
    ids, x = rng.integers(0, 11, (1, 5)), rng.standard_normal((1, 5, 4), dtype=np.float32)
    scores, best = in_pytorch(tmp_path / "net.pt2", ids, x)
    assert [(value["name"], value["type"]) for value in contract(tmp_path / "net.pt2")["inputs"]] == [
        ("ids", "int32"),
        ("x", "float32"),
    ]
    got = signature_answers(tmp_path / "out" / "net.tflite", ids=ids.astype(np.int32), x=x)
    np.testing.assert_allclose(got["output_0"], scores, atol=1e-6, rtol=1e-5)
    np.testing.assert_array_equal(got["output_1"], best)


@pytest.mark.usefixtures("litert")
def test_folded_preprocessing_is_in_the_file(shuffled: Path) -> None:
    exported(shuffled, preprocess="fold")
    x = np.random.default_rng(0).uniform(0, 1, (1, 3, 8, 6)).astype(np.float32)
    scores, _ = in_pytorch(shuffled, (x - 0.5) / 0.25)
    got = signature_answers(shuffled.parent / "out" / "net.tflite", input=x.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(got["scores"], scores, atol=1e-5, rtol=1e-4)
    [given] = contract(shuffled)["inputs"]
    assert given["values"] == "raw" and given["scaling"] is None


@pytest.mark.usefixtures("litert")
@pytest.mark.parametrize(("kind", "layout"), [("steps", "nhwc"), ("grid", "nhwc"), ("grid", "nchw")])
def test_kept_sensors_are_scaled_in_the_files_of_8_bits_too(tmp_path: Path, kind: str, layout: str) -> None:
    """Raw values of all sensors in the same 8 bits would be those of the largest alone."""
    pytest.importorskip("ai_edge_quantizer", reason="edgeprune[litert] is not installed")
    net, raw = saved_sensors(tmp_path, kind), raw_sensors(120, kind)
    want = of_sensors(net, raw)
    np.savez(tmp_path / "data.npz", x=raw, y=(want[:, 0] > np.median(want[:, 0])).astype(int))
    asked = {"preprocess": "fold", "layout": layout, "int8": True, "max_drop": 20.0, "allow_chance": True}
    record = exported(net, data=f"npz:{tmp_path / 'data.npz'}", **asked)
    given = kept_sensors(raw)[:40]
    given = given.transpose(0, 2, 3, 1) if kind == "grid" and layout == "nhwc" else given
    [stated] = contract(net)["inputs"]
    assert stated["shape"] == [1, *given.shape[1:]] and stated["values"] == "raw" and stated["scaling"] is None
    for name, share in (("net.tflite", 1e-5), ("net.int8.tflite", 0.05)):
        runner = signature_runner(tmp_path / "out" / name)
        got = np.concatenate([runner(**{stated["name"]: row[None]})["logits"] for row in given])
        assert np.abs(got - want[:40]).max() <= share * np.abs(want).max(), name
    pytest.importorskip("tflite_micro", reason="tflite-micro is not installed")
    files = {Path(file.path): file.note for file in record.files if file.path.endswith(".tflite")}
    assert len(files) == 2 and all(f"arena {microcontrollers_arena(path):,} B" in note for path, note in files.items())


@pytest.mark.usefixtures("litert")
def test_an_operator_that_cannot_be_expressed_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_program(tmp_path / "net.pt2", capture(Bessel(), torch.randn(2, 4)), ModelInfo((4,)))
    from edgeprune.export.litert import Litert
    from edgeprune.export.target import Material

    model = load(tmp_path / "net.pt2")
    said = (
        r"^LiteRT cannot convert net: LiteRT cannot express aten\.special_bessel_j0\.default; replace it in the model"
    )
    with pytest.raises(InputError, match=said):
        Litert().write(Material(model, model.info, tmp_path, "net"), Silent())
    assert not (tmp_path / "net.tflite").exists()


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


class Padded(torch.nn.Module):
    """A stride of two, which is padded in a copy, and a sum of two that stay alive."""

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.second = torch.nn.Conv2d(8, 16, 3, stride=stride, padding=1)
        self.third, self.head = torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.head((x + torch.relu(self.third(x))).mean((2, 3)))


def microcontrollers_arena(file: Path) -> int:
    """What the allocator of LiteRT for Microcontrollers plans for a file's values, by its own record."""
    code = (
        "from tflite_micro.python.tflite_micro import runtime; import sys; "
        "runtime.Interpreter.from_file(sys.argv[1]).print_allocations()"
    )
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=True)
    [n_bytes] = re.findall(r"Arena allocation head (\d+)", done.stdout + done.stderr)
    return int(n_bytes)


@pytest.mark.usefixtures("litert")
@pytest.mark.parametrize(("stride", "n_bytes"), [(2, 8192 + 4 * 8 * 18 * 18), (1, 3 * 4 * 16 * 16 * 16)])
def test_the_arena_of_a_file_is_told(tmp_path: Path, stride: int, n_bytes: int) -> None:
    torch.manual_seed(0)
    save_program(
        tmp_path / "net.pt2", capture(Padded(stride).eval(), torch.randn(2, 1, 16, 16)), ModelInfo((1, 16, 16))
    )
    record = exported(tmp_path / "net.pt2")
    [file] = [file for file in record.files if file.path.endswith(".tflite")]
    assert file.note == f"arena {n_bytes:,} B"
    assert record.targets is not None and any(file.note in row.verdict for row in record.targets.rows)
    pytest.importorskip("tflite_micro", reason="tflite-micro is not installed")
    assert microcontrollers_arena(Path(file.path)) == n_bytes


@pytest.mark.usefixtures("litert")
def test_the_gaps_of_an_arena_count(tmp_path: Path) -> None:
    """448 bytes are alive at once; LiteRT's planner leaves a gap."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv1d(9, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.AvgPool1d(6))
    net = torch.nn.Sequential(*net, torch.nn.Flatten(), torch.nn.Linear(8, 3))
    info = ModelInfo((9, 6), normalization=Normalization((0.5,), (0.25,)))
    save_program(tmp_path / "net.pt2", capture(net.eval(), torch.randn(2, 9, 6)), info)
    record = exported(tmp_path / "net.pt2", preprocess="fold")
    [file] = [file for file in record.files if file.path.endswith(".tflite")]
    pytest.importorskip("tflite_micro", reason="tflite-micro is not installed")
    assert file.note == f"arena {microcontrollers_arena(Path(file.path)):,} B"


@pytest.mark.usefixtures("litert")
@pytest.mark.parametrize(("layout", "batch"), [("nhwc", None), ("nchw", 3)])
def test_int8_has_the_inputs_of_the_float_file_and_keeps_the_budget(tmp_path: Path, layout: Any, batch: Any) -> None:
    pytest.importorskip("ai_edge_quantizer", reason="edgeprune[litert] is not installed")
    model = MODELS / "digits_cnn.pt"
    request = ExportRequest(
        model=str(model), out=str(tmp_path), targets=("litert",), int8=True, data="digits", layout=layout, batch=batch
    )
    record = export(request)
    path = tmp_path / "digits_cnn.int8.tflite"
    data, rows = open_data("digits"), batch or 1
    x, y = next(batches(data.val, 300))
    x = normalize(x, load(model).info.normalization).numpy()
    given = x.transpose(0, 2, 3, 1) if layout == "nhwc" else x
    answers = [signature_answers(path, input=given[k : k + rows])["logits"] for k in range(0, 300, rows)]
    assert answers[0].dtype == np.float32
    accuracy = (np.concatenate(answers).argmax(1) == y.numpy()).mean()
    assert accuracy >= 0.98
    assert path.stat().st_size < (tmp_path / "digits_cnn.tflite").stat().st_size / 3
    assert record.targets is not None
    [row] = [row for row in record.targets.rows if row.path == str(path)]
    assert (
        "int8, accuracy" in row.verdict and "arena " in row.verdict and row.p50_ms is not None and row.ratio is not None
    )
    contracts = json.loads((tmp_path / "features.json").read_text())["contracts"]
    assert contracts["litert-int8"] == {**contracts["litert"], "file": "digits_cnn.int8.tflite"}


@pytest.mark.usefixtures("litert")
def test_int8_that_loses_more_than_it_may_is_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ai_edge_quantizer", reason="edgeprune[litert] is not installed")
    monkeypatch.setattr("edgeprune.export.litert.judged", lambda *_: ("accuracy 10.0 % (97.5 % in float)", False))
    told = Said()
    record = export(
        ExportRequest(
            model=str(MODELS / "digits_mlp.pt"), out=str(tmp_path), targets=("litert",), int8=True, data="digits"
        ),
        told,
    )
    lost = "left out: int8 for LiteRT: accuracy 10.0 % (97.5 % in float), which is more than may be lost"
    assert record.files[-1].left_out == (LeftOut("int8", lost.removeprefix("left out: int8 for LiteRT: ")),)
    assert (
        to_dict(record)["files"][-1]["left_out"][0]["kind"] == "int8" and "left_out" not in to_dict(record)["files"][0]
    )
    assert lost in told.lines and not (tmp_path / "digits_mlp.int8.tflite").exists()
    assert record.targets is not None and len(record.targets.rows) == 2
    assert "litert-int8" not in (tmp_path / "features.json").read_text()


@pytest.mark.usefixtures("litert")
def test_a_network_that_the_quantizer_knows_nothing_of_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_quantizer", reason="edgeprune[litert] is not installed")
    from edgeprune.export.litert import _converted, _write_int8
    from edgeprune.export.signature import signature_of

    class Steps(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.floor(x)

    save_program(tmp_path / "net.pt2", capture(Steps(), torch.randn(2, 4)), ModelInfo((4,)))
    model = load(tmp_path / "net.pt2")
    zeros = [np.zeros((1, 4), np.float32)]
    signature = signature_of(model.program, zeros, zeros)
    made = _converted(model.program, signature, tmp_path / "net.tflite")
    with pytest.raises(InputError, match="^LiteRT cannot quantise net.tflite: expected operators that LiteRT's quant"):
        _write_int8(made, tmp_path / "net.int8.tflite", signature, [zeros])
