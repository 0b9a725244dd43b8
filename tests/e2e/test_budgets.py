"""Budgets in milliseconds and bytes, and the profile of a device, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from commands import CNN, MLP, done, refused, run


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile of the digits MLP's layers on this machine."""
    folder = tmp_path_factory.mktemp("device")
    done(folder, "profile", MLP, "--out", "device.json", "--runs", "5")
    return folder / "device.json"


def of_a_phone(device: Path, folder: Path) -> Path:
    """The same layers on another device, whose time is as their weights: the few microseconds here are noise."""
    document = json.loads(device.read_text()) | {"cpu": "a phone", "runtime": "onnxruntime-web 1.30.0"}
    for point in document["points"]:
        point["ms"] = 1e-4 * point["width_in"] * point["width_out"]
    (folder / "phone.json").write_text(json.dumps(document))
    return folder / "phone.json"


def compressed(out: Path, *options: Any) -> dict[str, Any]:
    done(out.parent, "compress", MLP, "--out", out, "--input-features", "off", "--finetune-epochs", "0", *options)
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    return record


def test_a_profile_is_written_and_not_overwritten(device: Path) -> None:
    document = json.loads(device.read_text())
    assert document["format"] == "edgeprune-device/1"
    assert {point["layer"].split()[0] for point in document["points"]} == {"linear"}
    assert all(point["ms"] > 0 for point in document["points"])
    assert "--force" in refused(device.parent, "profile", MLP, "--out", device)
    table = done(device.parent, "profile", MLP, "--out", device, "--force", "--json").json
    assert table["kinds"][0]["kind"] == "linear"
    assert table["kinds"][0]["share"] == pytest.approx(1.0)


def test_a_size_is_held_by_the_file(tmp_path: Path) -> None:
    record = compressed(tmp_path / "run", "--max-size", "60kB")
    assert 0.8 * 60_000 < record["slim"]["onnx_bytes"] <= 60_000
    done(tmp_path, "export", "--onnx", tmp_path / "run" / "slim.pt2")
    assert (tmp_path / "run" / "slim.onnx").stat().st_size <= 60_000
    onnx.checker.check_model(str(tmp_path / "run" / "slim.onnx"))


def test_a_latency_on_another_device_is_foretold_by_its_profile(device: Path, tmp_path: Path) -> None:
    phone = of_a_phone(device, tmp_path)
    out = tmp_path / "run"
    result = done(
        tmp_path, "compress", MLP, "--out", out, "--input-features", "off", "--finetune-epochs", "0",
        "--max-latency", "0.7x", "--device", phone,
    )  # fmt: skip
    assert "it is of another device than this one" in result.err
    record = json.loads((out / "run.json").read_text())
    assert 0.5 < record["slim"]["macs"] / record["dense"]["macs"] <= 0.72
    assert record["asked"]["max_latency"] == "0.7x"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--max-latency", "5mss"), "--max-latency: expected one of the units us, ms, s and x, got '5mss'"),
        (("--max-latency", "2x"), "--max-latency: expected a share of at most 1x, got '2x'"),
        (("--max-size", "500"), "--max-size: expected one of the units"),
        (("--device", "missing.json"), "missing.json: expected a device.json, got nothing there"),
    ],
)
def test_typos_are_told_before_anything_is_read(tmp_path: Path, options: tuple[str, str], expected: str) -> None:
    assert expected in refused(tmp_path, "compress", MLP, "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_a_profile_of_another_network_is_refused(device: Path, tmp_path: Path) -> None:
    told = refused(tmp_path, "compress", CNN, "--out", tmp_path / "run", "--device", device, "--keep-macs", "0.5")
    assert "expected measurements of this network's layers" in told


@pytest.mark.parametrize(
    ("options", "binding"),
    [
        (("--max-size", "0.5kB"), "--max-size"),
        (("--max-size", "10kB", "--max-drop", "0"), "the budgets cannot be met"),
        (("--pareto", "2", "--keep-macs", "0.05", "--max-drop", "0.1"), "loses at most 0.1 accuracy points: the best"),
        (("--widths", "0.05,0.1", "--max-drop", "0.1"), "loses at most 0.1 accuracy points: the best, at 9."),
    ],
)
def test_what_cannot_be_met_ends_with_one(tmp_path: Path, options: tuple[str, ...], binding: str) -> None:
    result = run(tmp_path, "compress", MLP, "--out", tmp_path / "run", "--finetune-epochs", "0", *options)
    assert result.code == 1
    assert binding in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "run").exists()


def test_several_networks_come_from_one_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done(
        tmp_path, "compress", MLP, "--out", out, "--pareto", "3", "--keep-macs", "0.3", "--input-features", "off",
        "--finetune-epochs", "1", "--max-drop", "100",
    )  # fmt: skip
    record = json.loads((out / "run.json").read_text())
    shares = [point["macs_ratio"] for point in record["front"]]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)
    assert shares[0] < 0.75
    assert 0.2 < shares[-1] <= 0.3
    assert [point["chosen"] for point in record["front"]] == [False, False, True]
    for point in record["front"]:
        onnx_bytes = point["size_bytes"]
        assert (out / point["folder"] / "slim.pt2").stat().st_size > onnx_bytes
        assert json.loads((out / point["folder"] / "plan.json").read_text())["format"] == "edgeprune-plan/1"
    assert (out / "plan.json").read_bytes() == (out / "pareto" / "3" / "plan.json").read_bytes()
    assert "Accuracy over latency" in (out / "report.html").read_text()
    done(tmp_path, "export", "--onnx", out / "pareto" / "1" / "slim.pt2", "--out", tmp_path / "onnx")


def test_a_front_that_misses_the_drop_that_is_assumed_says_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    asked = ("--pareto", "2", "--keep-macs", "0.01", "--finetune-epochs", "0", "--no-reconstruct")
    result = done(tmp_path, "compress", MLP, "--out", out, "--input-features", "off", *asked)
    missed = "no network that was found loses at most 1 accuracy points: the best, at "
    record = json.loads((out / "run.json").read_text())
    assert any(text.startswith(missed) and text.endswith("; it is taken") for text in record["assumed"])
    [taken] = [point for point in record["front"] if point["chosen"]]
    assert taken["val_accuracy"] == max(point["val_accuracy"] for point in record["front"])
    assert "no network that was found loses" in result.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--pareto", "1"), "expected 2 to 20 networks, got 1"),
        (("--pareto", "3", "--max-size", "50kB"), "--pareto: expected no --max-size, got 50kB"),
        (("--pareto", "3", "--max-latency", "0.5x"), "--pareto: expected no --max-latency, got 0.5x"),
    ],
)
def test_several_networks_go_down_to_macs_alone(tmp_path: Path, options: tuple[str, ...], expected: str) -> None:
    assert expected in refused(tmp_path, "compress", MLP, "--out", tmp_path / "run", *options)
