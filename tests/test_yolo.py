"""Detectors of the ultralytics package, as they are: from capture to onnxruntime, and back into their own class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import edgeprune
from tests.nets import randomized

pytestmark = pytest.mark.slow
IMAGE = (2, 3, 64, 64)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The package's models; its settings lie in a folder of the test's, and it asks nothing of the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
        patch.setenv("YOLO_OFFLINE", "true")
        return pytest.importorskip("ultralytics.nn.tasks", reason="scripts/test installs ultralytics")


def randomized_norms(model: nn.Module) -> nn.Module:
    """Statistics as training leaves them: with those of a fresh network a wrong cut hardly shows."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            randomized(norm)
            nn.init.uniform_(norm.weight, 0.8, 1.6)
    return model.eval()


def check(model: nn.Module, tmp_path: Path) -> None:
    program = edgeprune.capture(model, torch.rand(IMAGE))
    plan = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.5, appliable=True)
    slim = edgeprune.cut(program, plan)
    assert edgeprune.prove(program, slim, plan) <= 1e-5
    assert edgeprune.export_onnx(slim, tmp_path / "slim.onnx", simplify=False).parity < 1e-2  # of boxes in pixels
    assert len(slim.apply_to(model).tensors) > 100
    x = torch.rand(1, *IMAGE[1:])
    with torch.no_grad():
        for own, expected in zip(tree_leaves(model(x)), tree_leaves(slim.module()(x)), strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-2)


def test_half_a_detector_runs_in_onnxruntime_and_in_its_own_class(tasks: Any, tmp_path: Path) -> None:
    """One that has run before: its head keeps the anchors of the very batch that it is captured with."""
    model = randomized_norms(tasks.DetectionModel("yolov8n.yaml", verbose=False))
    head = model.model[-1]
    with torch.no_grad():
        model(torch.rand(IMAGE))
    kept = head.anchors
    check(model, tmp_path)
    assert "shape" in vars(head) and kept.shape == (2, 84)


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["yolov5n", "yolov9t", "yolov10n", "yolo11n", "yolo12n"])
def test_half_of_every_detector(tasks: Any, name: str, tmp_path: Path) -> None:
    check(randomized_norms(tasks.DetectionModel(f"{name}.yaml", verbose=False)), tmp_path)


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["yolov8n-seg", "yolo11n-pose", "yolo11n-obb"])
def test_half_of_other_heads(tasks: Any, name: str, tmp_path: Path) -> None:
    kinds = {"seg": "SegmentationModel", "pose": "PoseModel", "obb": "OBBModel"}
    build = getattr(tasks, kinds[name.partition("-")[2]])
    check(randomized_norms(build(f"{name}.yaml", verbose=False)), tmp_path)
