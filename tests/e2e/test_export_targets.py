"""Every target of `edgeprune export` in one command, on a run with input features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from commands import MLP, done, names, refused, run
from conftest import Run

from edgeprune.records import DataSource


@pytest.fixture(scope="module")
def exported(quick_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that needs nothing but onnxruntime, with raw bytes as inputs and a fixed batch."""
    place = tmp_path_factory.mktemp("targets")
    result = done(
        place, "export", quick_run.folder / "slim.pt2", "--ort", "--int8", "--mobile", "--batch", "1",
        "--preprocess", "fold", "--c-header", "--dense", MLP, "--out", "out", "--json",
    )  # fmt: skip
    (place / "document.json").write_text(result.out)
    return place


def test_all_files_are_there_and_are_what_the_document_says(exported: Path) -> None:
    document = json.loads((exported / "document.json").read_text())
    written = {Path(file["path"]).name for file in document["files"]}
    assert {"slim.onnx", "full.onnx", "preprocess.onnx", "features.json", "edgeprune_features.h", "slim.ort"} < written
    assert written | {"slim.int8.onnx", "slim.dynamic.onnx"} == names(exported / "out")
    timed = {Path(file["path"]).name: file["ratio"] for file in document["files"] if file["ratio"] is not None}
    assert set(timed) == {"slim.onnx", "slim.ort"}
    assert all(ratio > 0 for ratio in timed.values())
    told = [words.split()[0].rstrip(":") for words in document["mobile"]]
    assert list(dict.fromkeys(told)) == ["LiteRT's", "CoreML", "Core", "QNN", "NNAPI"]  # LiteRT has one line, or two


def test_the_table_of_variants_says_which_to_ship(exported: Path) -> None:
    table = json.loads((exported / "document.json").read_text())["variants"]
    rows = {row["name"]: row for row in table["variants"]}
    assert table["ship"] in rows
    assert table["why"]
    assert rows["int8"]["size_bytes"] < rows["fp32"]["size_bytes"]
    assert rows["fp32"]["accuracy"] - rows["int8"]["accuracy"] <= 0.01
    for row in rows.values():
        assert Path(row["path"]).parent.name == "out"


def test_the_files_take_one_sample_of_bytes(exported: Path, digits: DataSource) -> None:
    keep = json.loads((exported / "out" / "features.json").read_text())["indices"]
    raw = digits.test[0][0].unsqueeze(0).numpy().astype(np.uint8)
    given = {"full.onnx": raw, "slim.onnx": raw.reshape(1, -1)[:, keep], "slim.ort": raw.reshape(1, -1)[:, keep]}
    scores = []
    for name, array in given.items():
        session = onnxruntime.InferenceSession(exported / "out" / name, providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].shape[0] == 1
        assert session.get_inputs()[0].type == "tensor(uint8)"
        scores.append(session.run(None, {session.get_inputs()[0].name: array})[0])
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    np.testing.assert_allclose(scores[1], scores[2], atol=1e-5)
    onnx.checker.check_model(str(exported / "out" / "slim.int8.onnx"))


def test_firmware_is_told_of_the_fixed_batch(exported: Path) -> None:
    document = json.loads((exported / "out" / "features.json").read_text())
    entry, n_kept = document["contracts"]["slim"], len(document["indices"])
    assert [(value["type"], value["shape"]) for value in entry["inputs"]] == [("uint8", [1, n_kept])]
    assert [value["shape"] for value in entry["outputs"]] == [[1, 10]]
    header = (exported / "out" / "edgeprune_features.h").read_text()
    assert f"#define EDGEPRUNE_N_FEATURES {n_kept}\n" in header and "typedef uint8_t edgeprune_feature;" in header


def test_a_second_export_replaces_all_of_the_first(exported: Path, quick_run: Run, tmp_path: Path) -> None:
    done(tmp_path, "export", quick_run.folder / "slim.pt2", "--ort", "--out", "out")
    assert "--force" in refused(tmp_path, "export", quick_run.folder / "slim.pt2", "--onnx", "--out", "out")
    done(tmp_path, "export", quick_run.folder / "slim.pt2", "--onnx", "--out", "out", "--force")
    assert names(tmp_path / "out") == {"slim.onnx", "full.onnx", "preprocess.onnx", "features.json"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--onnx", "--batch", "0"), "expected dynamic or a whole number from 1, got 0"),
        (("--onnx", "--batch", "many"), "expected dynamic or a whole number from 1, got many"),
        (("--onnx", "--preprocess", "inside"), "'inside' is not one of"),
        (("--ort", "--ort-platform", "mips"), "'mips' is not one of arm, amd64"),
        (("--web", "--web-runtime", "no-such-folder"), "no-such-folder"),
        (("--int8", "--max-drop", "-1"), "expected a number of at least 0, with % or the metric's unit, got -1"),
    ],
)
def test_bad_options_leave_nothing(tmp_path: Path, quick_run: Run, options: tuple[str, ...], expected: str) -> None:
    assert expected in refused(tmp_path, "export", quick_run.folder / "slim.pt2", "--out", tmp_path / "out", *options)


def test_a_page_needs_a_dense_network(tmp_path: Path, quick_run: Run) -> None:
    (tmp_path / "slim.pt2").write_bytes((quick_run.folder / "slim.pt2").read_bytes())
    package = tmp_path / "node_modules"
    result = run(tmp_path, "export", "slim.pt2", "--web", "--out", "out", "--web-runtime", package)
    assert result.code == 2
    assert "Traceback" not in result.err
    assert not (tmp_path / "out").exists()
