"""Models and data of every kind through the commands: own factories, tables, arrays, bare weights, bare commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import CNN, MLP, NETS, QUICK, assumed, done, names, refused, run, snapshot
from conftest import Run
from safetensors.torch import save_file

import edgeprune.compat  # noqa: F401 - makes torchvision importable
from edgeprune.data import open_data

FACTORY = """
from torch import nn

def table(n=6, classes=3):
    return nn.Sequential(nn.Linear(n, 32), nn.ReLU(), nn.Linear(32, classes))

def normalised(n=6, classes=3):
    return nn.Sequential(nn.LayerNorm(n), *table(n, classes))

def line():
    return nn.Linear(2, 2)

def colours():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 10))

def pixels():
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 10, 1))
"""
TRAIN = "--epochs 15 --batch-size 32 --lr 0.01 --threads 1".split()
NO_DROP = ("--finetune-epochs", "0", "--criterion", "l2")
COLUMNS = ["Höhe", "width", "depth", "noise 1", "noise 2", "noise 3"]


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    """A folder with the user's own factories."""
    (tmp_path / "nets.py").write_text(FACTORY)
    return tmp_path


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """The weights of the digits MLP, bare."""
    state: dict[str, torch.Tensor] = torch.load(MLP, weights_only=True)["state_dict"]
    return state


def _table() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, len(COLUMNS))).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] > 0.5).astype(int) + (x[:, 2] > 0).astype(int)


def test_an_own_factory_is_trained_here_and_compressed_there(nets: Path) -> None:
    x, y = _table()
    np.savez(nets / "table.npz", x=x, y=y)
    data = ("--data", "npz:table.npz")
    trained = done(nets, "train", "--arch", "nets.py:table", *data, *TRAIN, "--out", "m.pt", "--json")
    assert trained.json["val_accuracy"] > 0.7
    elsewhere = nets / "else where" / "ünicode"
    elsewhere.mkdir(parents=True)
    (nets / "m.pt").rename(elsewhere / "-m.pt")
    (nets / "nets.py").unlink()
    data = ("--data", f"npz:{nets / 'table.npz'}")
    result = done(elsewhere, "compress", *QUICK, *data, "--out", "run 1", "--json", "--", "-m.pt")
    assert result.json["slim"]["macs"] <= 0.5 * result.json["dense"]["macs"]
    done(elsewhere, "export", "--onnx", "run 1/slim.pt2")
    assert "slim.onnx" in names(elsewhere / "run 1")
    found = f"the recorded data are npz:{nets / 'table.npz'}"
    assert found in assumed(done(elsewhere, "compress", *QUICK, "--out", "run 2", "./-m.pt").err)
    (nets / "table.npz").rename(nets / "moved.npz")
    assert (
        "table.npz: expected" in (hint := refused(elsewhere, "compress", "./-m.pt")) and "--data names others" in hint
    )


def test_a_table_keeps_its_column_names_to_the_end(nets: Path) -> None:
    pandas = pytest.importorskip("pandas")
    x, y = _table()
    frame = pandas.DataFrame(x, columns=COLUMNS)
    frame["kind"] = np.array(["low", "mid", "high"])[y]
    frame.to_csv(nets / "table.csv", index=False)
    data = ("--data", "csv:table.csv?target=kind")
    done(nets, "train", "--arch", "nets.py:table", *data, *TRAIN, "--out", "m.pt")
    done(nets, "compress", "m.pt", "--input-features", "3", *QUICK, "--out", "run")
    done(nets, "export", "--onnx", "run/slim.pt2")
    facts = json.loads((nets / "run" / "features.json").read_text(encoding="utf-8"))
    assert set(facts["names"]) == set(COLUMNS[:3])
    assert [COLUMNS[index] for index in facts["indices"]] == facts["names"]
    page = (nets / "run" / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in COLUMNS[:3])
    assert json.loads((nets / "run" / "run.json").read_text())["model"]["classes"] == ["high", "low", "mid"]


def test_a_table_that_the_network_normalises_first(nets: Path) -> None:
    pytest.importorskip("pandas").DataFrame(
        {**dict(zip(COLUMNS, _table()[0].T, strict=True)), "k": _table()[1]}
    ).to_csv(nets / "table.csv", index=False)
    done(nets, "train", "--arch", "nets.py:normalised", "--data", "csv:table.csv?target=k", *TRAIN, "--out", "m.pt")
    result = done(nets, "compress", "m.pt", *QUICK, "--input-features", "4", "--out", "run", "--json")
    assert result.json["slim"]["macs"] < result.json["dense"]["macs"]
    assert result.json["proof_error"] <= 1e-5
    files = done(nets, "export", "--onnx", "run/slim.pt2", "--json").json["files"]
    assert {Path(file["path"]).name for file in files} >= {"full.onnx", "slim.onnx", "preprocess.onnx", "features.json"}
    assert all(file["parity"] <= 1e-4 for file in files if file["parity"] is not None)


def test_bare_weights_take_shape_and_normalisation_from_the_data(tmp_path: Path, weights: Any) -> None:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "m.safetensors")
    options = ("--arch", f"{NETS}:mlp", "--data", "digits", *QUICK, "--input-features", "30", "--out", "run")
    result = done(tmp_path, "compress", "m.safetensors", *options, "--normalize", "data", "--json")
    assert not any(text.startswith("--normalize") for text in assumed(result.err))
    assert result.json["accuracy"]["dense"] >= 0.97
    done(tmp_path, "export", "--onnx", "run/slim.pt2")
    facts = json.loads((tmp_path / "run" / "features.json").read_text())
    assert facts["scaling"]["std"] == pytest.approx(30 * list(open_data("digits").normalization.std))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_weights_of_other_precisions(tmp_path: Path, weights: Any, dtype: torch.dtype) -> None:
    torch.save({name: tensor.to(dtype) for name, tensor in weights.items()}, tmp_path / "m.pt")
    result = done(
        tmp_path, "compress", "m.pt", "--arch", f"{NETS}:mlp", "--data", "digits", "--normalize", "data", *QUICK,
        "--out", "run", "--json",
    )  # fmt: skip
    assert result.json["accuracy"]["dense"] >= 0.97
    assert result.json["proof_error"] <= (1e-10 if dtype == torch.float64 else 1e-5)
    done(tmp_path, "export", "--onnx", "run/slim.pt2")
    assert "slim.onnx" in names(tmp_path / "run")


def test_a_large_network_without_data(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    torch.save(models.squeezenet1_1(num_classes=10).state_dict(), tmp_path / "squeeze.pt")
    arch = ("--arch", "torchvision:squeezenet1_1?num_classes=10", "--input-shape", "3,64,64")
    result = done(tmp_path, "compress", "squeeze.pt", "--keep-macs", "0.5", *arch, "--threads", "1", "--json")
    kept = "--input-features off (without data nothing tells what the inputs hold)"
    assert assumed(result.err) == ["--out runs/squeeze-1", "--criterion l2", kept]
    record = result.json
    assert record["features"] is None
    assert record["slim"]["macs"] <= 0.5 * record["dense"]["macs"]
    assert record["accuracy"] is None and record["data"] is None and record["slim"]["val_accuracy"] is None
    assert record["proof_error"] <= 1e-5
    wide = [width["after"] for width in record["widths"][:-1] if width["before"] >= 64]
    assert len(wide) > 10 and all(after % 8 == 0 for after in wide)
    missing = refused(tmp_path, "compress", "squeeze.pt", *arch, "--max-drop", "1")
    assert "--max-drop: expected data to measure the drop on, got none; give --data" in missing


def test_a_number_of_input_features_needs_no_data(nets: Path) -> None:
    layers = torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), torch.nn.Flatten()
    torch.save(torch.nn.Sequential(*layers, torch.nn.Linear(256, 10)).state_dict(), nets / "colours.pt")
    arch = ("--arch", "nets.py:colours", "--input-shape", "3,8,8")
    fewer = done(nets, "compress", "colours.pt", "--keep-macs", "0.5", "--input-features", "2", *arch, "--json").json
    assert len(fewer["features"]["keep"]) == 2


def test_a_drop_alone_gives_the_smallest_network_within_it(tmp_path: Path) -> None:
    options = "--max-drop 10 --finetune-epochs 0 --input-features off --threads 1 --out run".split()
    record = done(tmp_path, "compress", MLP, *options, "--json").json
    assert 100 * (record["dense"]["val_accuracy"] - record["slim"]["val_accuracy"]) <= 10
    assert record["slim"]["macs"] < 0.5 * record["dense"]["macs"]
    kept = [step["macs_ratio"] for step in record["steps"] if step["accepted"]]
    assert kept == sorted(kept, reverse=True) and len(kept) >= 3


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("asked", "kept"), [("off", None), ("20", 20), ("0.25", 16), ("1.0", None)])
def test_input_features(tmp_path: Path, asked: str, kept: int | None) -> None:
    options = ("--input-features", asked, "--keep-macs", "0.5", "--finetune-epochs", "0", "--threads", "1")
    record = done(tmp_path, "compress", MLP, *options, "--criterion", "l2", "--out", "run", "--json").json
    features = record["features"]
    assert (None if features is None else len(features["keep"])) == kept


def test_input_features_auto(tmp_path: Path) -> None:
    options = ("--keep-macs", "0.1", "--finetune-epochs", "0", "--threads", "1", "--criterion", "l1", "--out", "run")
    record = done(tmp_path, "compress", MLP, *options, "--json").json
    assert 1 <= len(record["features"]["keep"]) < 64


def test_everything_may_be_kept(tmp_path: Path) -> None:
    record = done(
        tmp_path, "compress", MLP, "--keep-macs", "1.0", "--finetune-epochs", "0", "--out", "run", "--json"
    ).json
    assert record["slim"]["macs"] == record["dense"]["macs"]
    assert record["accuracy"]["drop_points"] == 0
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["tensors"] == {}


def test_bare_commands_say_what_they_assume(nets: Path) -> None:
    x, y = _table()
    np.savez(nets / "table.npz", x=x, y=y)
    done(nets, "train", "--arch", "nets.py:table", "--data", "npz:table.npz", *TRAIN, "--out", "net.pt")
    result = done(nets, "compress", "net.pt")
    said = assumed(result.err)
    assert said[:3] == [
        "--out runs/net-1",
        "--data npz:table.npz (the data that the model was trained on)",
        "--max-drop 1",
    ]
    assert said[3].startswith("--finetune-epochs ") and said[-1].startswith("--criterion taylor or l2 (in each cut ")
    assert all(f"assumed {text}" in " ".join(result.out.split()) for text in said)
    exported = done(nets, "export", "--onnx")
    assert assumed(exported.err) == ["MODEL runs/net-1/slim.pt2 (the newest run)", "--out runs/net-1"]
    assert {"slim.onnx", "preprocess.onnx"} <= names(nets / "runs" / "net-1")
    shutil.copytree(nets / "runs" / "net-1", nets / "runs" / "net-7", copy_function=shutil.copy)
    again = run(nets, "export", "--onnx")
    assert assumed(again.err) == [] and "runs/net-7/slim.onnx: expected no file of an earlier export" in again.err
    assert "--out runs/net-8" in assumed(
        done(nets, "compress", "net.pt", "--plan", "runs/net-1/plan.json", *NO_DROP).err
    )


def test_inspect_lists_groups_and_locks(tmp_path: Path) -> None:
    result = done(tmp_path, "inspect", CNN, "--json")
    rows = {row["name"]: row for row in result.json["groups"]}
    assert rows["3.conv1"]["kind"] == "channels" and rows["3.conv1"]["width"] == 32
    assert set(rows["3.conv1"]["layers"]) == {"3.conv1", "3.bn1", "3.conv2"}
    locked = [row for row in result.json["groups"] if row["kind"] == "locked"]
    assert ["11"] in [row["layers"] for row in locked] and all(row["reason"] for row in locked)
    table = done(tmp_path, "inspect", MLP).out
    assert "groups can be pruned" in table and "locked" in table and "input" in table
    assert snapshot(tmp_path) == {}


def test_nothing_to_prune_exits_1_and_names_the_groups(nets: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), nets / "line.pt")
    arch = ("--arch", "nets.py:line", "--input-shape", "2")
    only = ("--input-features", "off", "--keep-macs", "0.5")
    line = refused(nets, "compress", "line.pt", *arch, *only, code=1)
    assert "nothing can be pruned" in line and "output" in line


def test_outputs_that_are_no_class_scores(nets: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 10, 1))
    torch.save(net.state_dict(), nets / "pixels.pt")
    arch = ("--arch", "nets.py:pixels", "--input-shape", "1,8,8")
    line = refused(nets, "compress", "pixels.pt", *arch, "--data", "digits")
    assert "expected a network with one output (batch, 10), the scores of the classes, got (batch, 10, 8, 8)" in line
    assert "got (batch, 10, 8, 8)" in refused(nets, "train", *arch[:2], "--data", "digits", "--out", "m.pt")
    done(nets, "compress", "pixels.pt", *arch, "--keep-macs", "0.6", "--out", "run")
    done(nets, "export", "--onnx", "run/slim.pt2", "--data", "digits")
    assert "slim.onnx" in names(nets / "run")


def test_a_batch_that_was_fixed_at_export_is_opened(tmp_path: Path, quick_run: Run) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
    torch.export.save(torch.export.export(net, (torch.zeros(1, 4),)), tmp_path / "fixed.pt2")
    done(tmp_path, "compress", "fixed.pt2", "--keep-macs", "0.5", "--out", "run")
    done(tmp_path, "export", "--onnx", "run/slim.pt2")
    assert "slim.onnx" in names(tmp_path / "run")


def test_a_model_may_lie_anywhere_but_not_in_the_folder_that_is_replaced(tmp_path: Path, quick_run: Run) -> None:
    place = tmp_path / "my models"
    shutil.copytree(quick_run.folder, place)
    line = refused(tmp_path, "compress", "my models/slim.pt2", *QUICK, "--out", "my models", "--force")
    assert "expected an output folder that does not hold the model" in line
    result = run(place, "compress", "slim.pt2", *QUICK, "--out", "../other/run")
    assert result.code == 0 and names(tmp_path / "other") == {"run"}
