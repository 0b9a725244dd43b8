"""torchvision can be imported beside a CPU build of PyTorch, and keeps its own operators where it has them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from edgeprune import compat

BOXES = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [0, 0, 10, 4], [20, 20, 30, 30], [20, 20, 30, 31]])
SCORES = torch.tensor([0.5, 0.9, 0.6, 0.3, 0.4])


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torchvision_imports_after_compat_and_its_operator_works() -> None:
    pytest.importorskip("torchvision")
    code = (
        "import edgeprune.compat, torch, torchvision\n"
        "boxes = torch.tensor([[0., 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])\n"
        "print(torch.ops.torchvision.nms(boxes, torch.tensor([.5, .9, .1]), .5).tolist())\n"
        "print(torchvision.models.resnet18().fc.out_features)"
    )
    assert _run(code) == "[1, 2]\n1000"


def test_nothing_is_registered_twice() -> None:
    code = "from edgeprune import compat\nprint(compat.register_missing_schemas(), len(compat._libraries) <= 1)"
    assert _run(code) == "() True"


def test_operators_that_exist_are_left_alone() -> None:
    """Stands for a torchvision whose compiled operators are already loaded."""
    code = (
        "import torch\n"
        "own = torch.library.Library('torchvision', 'DEF')\n"
        "own.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')\n"
        "own.impl('nms', lambda d, s, i: torch.tensor([42]), 'CPU')\n"
        "from edgeprune import compat\n"
        "print(torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), .5).tolist(), compat._libraries)"
    )
    assert _run(code) == "[42] []"


def test_without_torchvision_nothing_happens() -> None:
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'torchvision' else find(name, *rest)\n"
        "from edgeprune import compat\n"
        "print(compat._libraries, 'torchvision' in sys.modules)"
    )
    assert _run(code) == "[] False"


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.0, [1, 4]),  # every touch removes
        (0.35, [1, 2, 4]),  # boxes 1 and 2 share 27 of 94
        (0.5, [1, 2, 4]),  # boxes 0 and 1 share 81 of 100
        (0.85, [1, 2, 0, 4]),  # boxes 3 and 4 share 100 of 110
        (0.95, [1, 2, 0, 4, 3]),
        (1.0, [1, 2, 0, 4, 3]),
    ],
)
def test_nms_by_hand(threshold: float, expected: list[int]) -> None:
    assert compat.nms(BOXES, SCORES, threshold).tolist() == expected


def test_nms_of_nothing_and_of_equal_scores() -> None:
    assert compat.nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []
    assert compat.nms(BOXES[[0, 0]], torch.tensor([0.5, 0.5]), 0.5).tolist() == [0]


def test_nms_exports() -> None:
    pytest.importorskip("torchvision")

    class Keep(torch.nn.Module):
        def forward(self, boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return boxes[torch.ops.torchvision.nms(boxes, scores, 0.5)]

    program = torch.export.export(Keep(), (BOXES, SCORES), strict=False)
    assert torch.equal(program.module()(BOXES, SCORES), BOXES[[1, 2, 4]])
