"""Parts of networks that cannot be exported whole: detectors whose backbone is compressed and put back."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import assumed, done, names, refused, says
from torch import Tensor, nn

import edgeprune
from edgeprune import compat  # noqa: F401  (torchvision can be imported after it)
from edgeprune.errors import CaptureError
from edgeprune.formats.architectures import build
from edgeprune.graph.capture import Program
from edgeprune.pruning.masked import zeroed

DETECTOR = """
from collections import OrderedDict
from torch import nn

class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.deep = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.near, self.far = nn.Conv2d(16, 8, 1), nn.Conv2d(24, 8, 1)

    def forward(self, x):
        near = self.norm(self.stem(x)).relu()
        far = self.deep(near).relu()
        return OrderedDict(near=self.near(near), far={"maps": (self.far(far), self.far(far).amax((2, 3)))})

class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, images):
        maps = self.backbone(images)
        scores = self.head(maps["far"]["maps"][0]).flatten(2)
        return scores[:, :, :4] if scores.max() > 0 else scores

def detector():
    return Detector()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small detector, its weights, and a run that compressed its backbone."""
    folder = tmp_path_factory.mktemp("detector")
    (folder / "nets.py").write_text(DETECTOR)
    torch.manual_seed(0)
    torch.save(build(f"{folder}/nets.py:detector").state_dict(), folder / "model.pt")
    result = done(folder, "compress", *ARGUMENTS, "--module", "backbone", "--keep-macs", "0.5", "--out", "run",
                  "--threads", "1")  # fmt: skip
    (folder / "said.txt").write_text(result.err)
    return folder


ARGUMENTS = ("model.pt", "--arch", "nets.py:detector", "--input-shape", "3,32,32")


def test_the_backbone_is_compressed_and_put_back(place: Path) -> None:
    assert {"slim.pt2", "plan.json", "run.json", "report.html"} <= names(place / "run")
    record = json.loads((place / "run" / "run.json").read_text())
    assert record["model"]["module"] == record["asked"]["module"] == "backbone"
    assert record["slim"]["macs"] <= 0.5 * record["dense"]["macs"] and record["proof_error"] <= 1e-5
    program = edgeprune.load_model(place / "run" / "slim.pt2")
    assert program.info.module == "backbone" and program.info.input_shape == (3, 32, 32)
    detector = build(f"{place}/nets.py:detector").eval()
    detector.load_state_dict(torch.load(place / "model.pt", weights_only=True))
    dense = detector(torch.ones(2, 3, 48, 48))
    Program.adopt(program.program).apply_to(detector.backbone)
    assert detector.backbone.stem.out_channels == detector.backbone.norm.num_features < 16
    assert detector.backbone.near.out_channels == 8  # what the head takes
    assert detector(torch.ones(2, 3, 48, 48)).shape[:2] == dense.shape[:2] == (2, 5)


def test_the_inputs_of_a_part_are_kept(place: Path) -> None:
    said = assumed((place / "said.txt").read_text())
    assert any(text.startswith("--input-features off") for text in said)
    assert json.loads((place / "run" / "plan.json").read_text())["inputs"] == {}


def test_the_slim_part_is_exported(place: Path) -> None:
    done(place, "export", "--onnx", "run/slim.pt2", "--out", "onnx")
    assert "slim.onnx" in names(place / "onnx")


def test_a_whole_detector_is_refused_with_its_parts(place: Path) -> None:
    line = refused(place, "compress", *ARGUMENTS)
    assert says(
        line, ["Detector cannot be exported", "nets.py:27 in forward", "--module NAME, with one of backbone, head"]
    )


def test_a_part_by_its_dotted_name(place: Path) -> None:
    line = refused(place, "compress", *ARGUMENTS, "--module", "backbon")
    assert says(line, ["model.pt: --module: expected a part of the Detector, got 'backbon'; e.g. backbone"])
    line = refused(place, "compress", *ARGUMENTS, "--module", "backbone.stem", code=1)
    assert says(line, ["nothing can be pruned", "the model's output"])  # one layer, whose channels are all outputs


def test_a_program_has_no_parts(place: Path) -> None:
    line = refused(place, "compress", "run/slim.pt2", "--module", "head")
    assert says(line, ["run/slim.pt2: expected no --module", "got head", "state_dict and --arch"])


# -- torchvision ------------------------------------------------------------------------------------------------------

_RCNN = {
    "rpn_pre_nms_top_n_test": 40, "rpn_post_nms_top_n_test": 12, "rpn_score_thresh": 0.0, "box_score_thresh": 0.0,
    "box_detections_per_img": 8, "min_size": 128, "max_size": 160,
}  # fmt: skip
_ONE_STAGE = {"score_thresh": 0.0, "topk_candidates": 20, "detections_per_img": 8}
_SMALL = {"min_size": 128, "max_size": 160}
DETECTORS: dict[str, tuple[dict[str, Any], int]] = {
    # name: arguments, height and width that the backbone is captured with
    "fasterrcnn_mobilenet_v3_large_320_fpn": (_RCNN, 64),
    "fasterrcnn_mobilenet_v3_large_fpn": (_RCNN, 64),
    "fasterrcnn_resnet50_fpn": (_RCNN, 64),
    "fasterrcnn_resnet50_fpn_v2": (_RCNN, 64),
    "maskrcnn_resnet50_fpn": (_RCNN, 64),
    "maskrcnn_resnet50_fpn_v2": (_RCNN, 64),
    "keypointrcnn_resnet50_fpn": (_RCNN, 64),
    "retinanet_resnet50_fpn": ({**_ONE_STAGE, **_SMALL}, 64),
    "retinanet_resnet50_fpn_v2": ({**_ONE_STAGE, **_SMALL}, 64),
    "fcos_resnet50_fpn": ({**_ONE_STAGE, **_SMALL}, 64),
    "ssd300_vgg16": (_ONE_STAGE, 300),
    "ssdlite320_mobilenet_v3_large": (_ONE_STAGE, 320),
}
_FAST = "fasterrcnn_mobilenet_v3_large_320_fpn"
EVERY = [pytest.param(name, marks=pytest.mark.slow if name == _FAST else pytest.mark.sweep) for name in DETECTORS]


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Detectors run without torchvision's compiled operators: compat has an nms, torchvision a roi_align in Python."""
    from torchvision import extension, ops

    with contextlib.ExitStack() as stack:
        if not extension._has_ops():
            monkeypatch.setattr(ops.boxes, "_assert_has_ops", lambda: None)
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # it would be compiled
        yield


def detector_of(name: str) -> nn.Module:
    """A detector of 3 classes whose weights and statistics are random and none of them trivial."""
    from torchvision.models import get_model

    torch.manual_seed(0)
    model = get_model(name, weights=None, weights_backbone=None, num_classes=3, **DETECTORS[name][0])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
        for key, buffer in model.named_buffers():
            if key.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape) + 0.5)
    return model.eval()


def detections(model: nn.Module) -> dict[str, Tensor]:
    with torch.no_grad():
        return model([torch.rand(3, 120, 150, generator=torch.Generator().manual_seed(3))])[0]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of a result, relative to the largest number of its kind."""
    if any(one[key].shape != other[key].shape for key in one):
        return float("inf")
    errors = [float((one[key] - other[key]).abs().max() / one[key].abs().max().clamp(min=1e-6)) for key in one]
    return max(errors)


@pytest.mark.parametrize("name", EVERY)
def test_a_detector_of_torchvision_runs_with_a_slim_backbone(name: str, operators: None) -> None:
    model = detector_of(name)
    program = edgeprune.capture(model.backbone, torch.randn(2, 3, *[DETECTORS[name][1]] * 2), dynamic_size=False)
    # At these widths no two proposals are as good as one another: which of them comes first would be rounding.
    plan = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.5, align=8)
    slim = edgeprune.cut(program, plan)
    assert edgeprune.prove(program, slim, plan) <= 1e-5
    dense, reference = detections(model), copy.deepcopy(model)
    reference.backbone = MaskedLike(model.backbone, program, plan)
    expected = detections(reference)
    slim.apply_to(model.backbone)
    found = detections(model)
    assert len(found["boxes"]) > 0
    assert distance(expected, found) <= 1e-4
    assert distance(expected, dense) > 1e-3  # the cut changes what is found, so that their agreement says something


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "head"), [("retinanet_resnet50_fpn", "head"), ("fcos_resnet50_fpn", "head"),
                                            (_FAST, "rpn.head")])  # fmt: skip
def test_heads_that_take_lists_of_maps(name: str, head: str, operators: None) -> None:
    model = detector_of(name)
    maps = [part.detach() for part in model.backbone(torch.randn(2, 3, 64, 64)).values()]
    program = edgeprune.capture(model.get_submodule(head), (maps,))
    plan = edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.5)
    slim = edgeprune.cut(program, plan)
    assert edgeprune.prove(program, slim, plan) <= 1e-5
    slim.apply_to(model.get_submodule(head))
    assert len(detections(model)["boxes"]) > 0


class MaskedLike(nn.Module):
    """The dense backbone with the removed channels set to zero; it takes images of any size."""

    def __init__(self, backbone: nn.Module, program: Program, plan: edgeprune.PruningPlan) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        state = {name: program.state_dict[name] for name in self.backbone.state_dict()}
        kept = plan.tensors
        self.backbone.load_state_dict({name: zeroed(tensor, kept.get(name, {})) for name, tensor in state.items()})

    def forward(self, x: Tensor) -> Any:
        return self.backbone(x)


@pytest.mark.sweep
def test_a_whole_detector_of_torchvision_is_refused_with_its_parts(operators: None) -> None:
    model = detector_of(_FAST)
    with pytest.raises(CaptureError) as refusal:
        edgeprune.capture(model, torch.zeros(2, 3, 64, 64))
    assert "--module NAME, with one of backbone, rpn, roi_heads" in str(refusal.value)
