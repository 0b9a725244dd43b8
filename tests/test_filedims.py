"""`validate --normalize data` goes along the dim of the features that a network's file records, which is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from fakes import Told
from onnx import helper, numpy_helper
from torch import nn

import edgeprune
from edgeprune.commands.validate import validate
from edgeprune.data import open_data
from edgeprune.errors import InputError
from edgeprune.export.contracts import write_contracts
from edgeprune.formats.save import save_program
from edgeprune.measure.filedims import recorded_dims
from edgeprune.measure.networkfile import opened
from edgeprune.records import DataSource, ModelInfo
from edgeprune.requests import ValidateRequest
from edgeprune.tasks.registry import open_task

STEPS, SENSORS = 20, 6
SCALES = np.array([1e-2, 50.0, 3.0, 1000.0, 0.5, 10.0], np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sequences `(steps, sensors)` without names, of three classes that the first two sensors tell."""
    draws = np.random.default_rng(0)
    y = draws.integers(0, 3, 240)
    x = draws.normal(size=(240, STEPS, SENSORS))
    x[..., :2] += np.eye(3)[y][:, None, :2]
    path = tmp_path_factory.mktemp("data") / "x.npz"
    np.savez(path, x=(x * SCALES).astype(np.float32), y=y)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def data(source: str) -> DataSource:
    found = open_data(source)
    assert found.feature_dim is None
    return found


def written(folder: Path, name: str = "net.onnx", **metadata: Any) -> Path:
    """A network that takes the means over steps: right where each sensor has a mean and std of its own."""
    weight = np.zeros((SENSORS, 3), np.float32)
    weight[0, 0] = weight[1, 1] = 3.0
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "w"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", STEPS, SENSORS])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(proto, {f"edgeprune.{key}": json.dumps(value) for key, value in metadata.items()})
    folder.mkdir(exist_ok=True)
    onnx.save(proto, folder / name)
    return folder / name


def described(path: Path, **document: Any) -> None:
    contracts = {"full": {"file": path.name, "inputs": [{"name": "x"}], "outputs": []}}
    (path.parent / "features.json").write_text(json.dumps({"contracts": contracts, **document}))


def run(dense: Path, slim: Path, source: str) -> tuple[list[str], float]:
    """What is said, and the accuracy of the first file."""
    told = Told()
    asked = ValidateRequest(str(dense), str(slim), data=source, normalize="data", allow_chance=True, runs=2)
    record = validate(asked, told)
    assert record.accuracy is not None
    return [line for line in told.lines if "mean and std of the data" in line], record.accuracy.dense


def test_without_a_record_it_is_as_the_data_say(tmp_path: Path, source: str) -> None:
    path = written(tmp_path)
    [said], accuracy = run(path, path, source)
    assert "one for each of the 20 along dim 1 of x (20, 6), as nothing says which dim has the features" in said
    assert accuracy < 0.6


def test_it_is_that_of_the_numbers_that_the_other_file_states(tmp_path: Path, source: str) -> None:
    stated = {"mean": [0.0] * SENSORS, "std": SCALES.tolist(), "dim": 2}
    slim = written(tmp_path / "run", "slim.onnx", normalization=stated)
    [said], accuracy = run(written(tmp_path), slim, source)
    assert said.endswith(f"one for each of the 6 along dim 2 of x (20, 6), its features as {slim} says")
    assert accuracy > 0.9


@pytest.mark.parametrize(
    ("document", "dim"),
    [
        ({"dim": 2, "size": 6, "indices": [0, 1, 3]}, 2),
        ({"dim": 2, "size": 6, "indices": list(range(6))}, 2),
        ({"dim": 1, "size": 20, "indices": list(range(10))}, 1),
        ({"dim": 1, "size": 20, "indices": list(range(20))}, None),  # as it is where nobody told features apart
        ({"dim": None, "size": 120, "indices": [0, 7]}, None),
    ],
)
def test_features_json_beside_the_file_says_it(
    tmp_path: Path, data: DataSource, document: dict[str, Any], dim: int | None
) -> None:
    path = written(tmp_path)
    described(path, **document)
    found = recorded_dims(opened(path, data, open_task(None, data)), data)
    assert found == ({} if dim is None else {"x": (dim, str(tmp_path / "features.json"))})
    other = written(tmp_path, "other.onnx")
    assert recorded_dims(opened(other, data, open_task(None, data)), data) == {}, "of another file it says nothing"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"dim": 3, "size": 6, "indices": [0]}, r"features.json: expected features along a dim of 1 to 2, got 3"),
        ({"dim": "last", "size": 6, "indices": [0]}, r"expected features along a dim of 1 to 2, got 'last'"),
        ({"dim": 2, "indices": 3}, r"features.json: expected a description of an export, got 3 in place of a list"),
    ],
)
def test_what_is_malformed_is_refused(tmp_path: Path, data: DataSource, document: dict[str, Any], message: str) -> None:
    path = written(tmp_path)
    described(path, **document)
    with pytest.raises(InputError, match=message):
        recorded_dims(opened(path, data, open_task(None, data)), data)


def test_the_export_of_a_cut_network_without_numbers_records_it(tmp_path: Path, source: str, data: DataSource) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(SENSORS, 8), nn.Tanh(), nn.Flatten(), nn.Linear(8 * STEPS, 3))
    program = edgeprune.capture(net, torch.randn(2, STEPS, SENSORS))
    plan = edgeprune.plan(program, edgeprune.analyze(program, inputs=True), keep_macs=None, n_features=3)
    write_contracts(edgeprune.cut(program, plan), ModelInfo((STEPS, SENSORS), classes=data.classes), tmp_path / "cut")
    full = next((tmp_path / "cut").glob("full*.onnx"))
    [said], _ = run(full, full, source)
    assert said.endswith(f"along dim 2 of x (20, 6), its features as {tmp_path / 'cut' / 'features.json'} says")
    save_program(tmp_path / "net.pt2", program, ModelInfo((STEPS, SENSORS), classes=data.classes))
    [said], _ = run(tmp_path / "net.pt2", tmp_path / "net.pt2", source)
    assert said.endswith(f"the 6 along dim 2 of x (20, 6), its features as {tmp_path / 'net.pt2'} says")


def test_a_file_goes_before_what_the_data_say(tmp_path: Path, source: str, data: DataSource) -> None:
    stated = {"mean": [0.0] * SENSORS, "std": SCALES.tolist(), "dim": 2}
    [said], accuracy = run(written(tmp_path), written(tmp_path / "run", normalization=stated), f"{source}?features=1")
    assert "along dim 2" in said and accuracy > 0.9


def test_inputs_by_name_have_theirs(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, STEPS, SENSORS)).astype(np.float32)
    np.savez(tmp_path / "x.npz", series=x, row=x[:, 0], y=np.arange(60) % 3)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["series", "axes"], ["mean"], keepdims=0),
            helper.make_node("Add", ["mean", "row"], ["sum"]),
            helper.make_node("MatMul", ["sum", "w"], ["y"]),
        ],
        "net",
        [
            helper.make_tensor_value_info("series", onnx.TensorProto.FLOAT, ["batch", STEPS, SENSORS]),
            helper.make_tensor_value_info("row", onnx.TensorProto.FLOAT, ["batch", SENSORS]),
        ],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(np.eye(SENSORS, 3, dtype=np.float32), "w"),
            numpy_helper.from_array(np.array([1]), "axes"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(proto, tmp_path / "net.onnx")
    [said], _ = run(tmp_path / "net.onnx", tmp_path / "net.onnx", f"npz:{tmp_path / 'x.npz'}")
    assert "along dim 1 of series" in said
    numbers = {"series": {"mean": [0.0] * SENSORS, "std": [1.0] * SENSORS, "dim": 2}}
    helper.set_model_props(proto, {"edgeprune.normalizations": json.dumps(numbers)})
    (tmp_path / "run").mkdir()
    onnx.save(proto, tmp_path / "run" / "slim.onnx")
    [said], _ = run(tmp_path / "net.onnx", tmp_path / "run" / "slim.onnx", f"npz:{tmp_path / 'x.npz'}")
    assert "one for each of the 6 along dim 2 of series (20, 6), its features as" in said
