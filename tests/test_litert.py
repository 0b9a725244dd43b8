"""LiteRT: real .tflite files in its own interpreter, checked against PyTorch."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from target_nets import Bessel, Tagger, in_pytorch, saved_shuffled, slim_program

from edgeprune.commands.export import export
from edgeprune.errors import InputError
from edgeprune.export.targets import TargetOptions, targets_of
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import capture
from edgeprune.records import ModelInfo
from edgeprune.requests import ExportRequest
from edgeprune.results import ExportRecord


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
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_path=str(path), num_threads=1).get_signature_runner()(**arrays)


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
def test_an_operator_that_cannot_be_expressed_is_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_program(tmp_path / "net.pt2", capture(Bessel(), torch.randn(2, 4)), ModelInfo((4,)))
    from edgeprune.export.litert import Litert
    from edgeprune.export.target import Material
    from edgeprune.formats.load import load
    from edgeprune.progress import Silent

    model = load(tmp_path / "net.pt2")
    said = (
        r"^LiteRT cannot convert net: LiteRT cannot express aten\.special_bessel_j0\.default; replace it in the model"
    )
    with pytest.raises(InputError, match=said):
        Litert().write(Material(model, model.info, tmp_path, "net"), Silent())
    assert not (tmp_path / "net.tflite").exists()
