"""A detector of the digits in small scenes: the scenes, the network, and the task by which it is trained and judged.

One file for three options: `--data models/detector.py:scenes --arch models/detector.py:detector --task
models/detector.py:detection`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from edgeprune.data import open_data
from edgeprune.records import IDENTITY, DataSource, Metric, MetricComparison, Targets
from edgeprune.tasks.task import Outcomes, compared

SIZE, STRIDE, N_CLASSES = 32, 4, 10  # pixels a side of a scene, of a cell of what the network gives out
_SIDES = (8, 14)  # pixels of a digit, from and to
_MOST_DIGITS, _MOST_BOXES = 4, 12
_NOISE = 0.05
Boxes = Mapping[str, Tensor]  # "boxes" float32 (k, 4) as x1, y1, x2, y2 in pixels, "labels" int64 (k,)


class Scenes(Dataset[Any]):
    """Scenes float32 `(1, 32, 32)` of one to four digits that do not overlap, with their boxes."""

    def __init__(self, digits: Dataset[Any], count: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.scenes = [_composed(digits, rng) for _ in range(count)]

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[Tensor, Boxes]:
        return self.scenes[index]


def _composed(digits: Dataset[Any], rng: np.random.Generator) -> tuple[Tensor, Boxes]:
    scene = torch.from_numpy(rng.normal(0, _NOISE, (1, SIZE, SIZE)).astype(np.float32))
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(1, _MOST_DIGITS + 1))):
        side = int(rng.integers(_SIDES[0], _SIDES[1] + 1))
        left, top = (int(value) for value in rng.integers(0, SIZE - side + 1, 2))
        box = (left, top, left + side, top + side)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes):
            continue
        image, label = digits[int(rng.integers(len(digits)))]  # type: ignore[arg-type]
        drawn = F.interpolate(torch.as_tensor(image)[None], (side, side), mode="bilinear", align_corners=False)[0]
        scene[:, top : top + side, left : left + side] += drawn
        boxes.append(box)
        labels.append(int(label))
    return scene, {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)}


def scenes(train: int = 800, val: int = 150, test: int = 150) -> DataSource:
    """So many scenes a split, each composed of the digits of its split alone."""
    digits = open_data("digits")
    return DataSource(
        name="scenes of digits",
        train=Scenes(digits.train, train, 0),
        val=Scenes(digits.val, val, 1),
        test=Scenes(digits.test, test, 2),
        input_shape=(1, SIZE, SIZE),
        classes=(),
        normalization=IDENTITY,
        targets=Targets("other"),
    )


def detector(width: int = 16) -> nn.Module:
    """Three stages of convolutions, each at half the size of the one before, and a head without anchors.

    `(batch, 1, h, w)` in, `(batch, 14, h / 4, w / 4)` out: for each cell the scores of the ten classes, where the
    centre lies in the cell, and the logarithms of width and height.

    Zhou, Wang and Krahenbuhl, Objects as Points, 2019.
    """
    layers: list[nn.Module] = []
    before = 1
    for stage, after in enumerate((width, 2 * width, 4 * width)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if stage < 2 else []
        before = after
    layers += [nn.Conv2d(before, before, 3, padding=1, bias=False), nn.BatchNorm2d(before), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(before, N_CLASSES + 4, 1))


class Detection:
    """Centres by focal loss, boxes by L1, judged by the mean average precision at an overlap of a half."""

    metric = Metric("mAP50")

    def __init__(self, resamples: int) -> None:
        self.resamples = resamples

    def loss(self, outputs: Tensor, targets: Sequence[Boxes]) -> Tensor:
        """Of outputs `(batch, 14, rows, columns)`."""
        sample, row, column, wanted, labels = _cells(targets, outputs.device)
        heat = torch.zeros_like(outputs[:, :N_CLASSES])
        heat[sample, labels, row, column] = 1
        scores = outputs[:, :N_CLASSES].sigmoid().clamp(1e-4, 1 - 1e-4)
        off = torch.where(heat > 0, 1 - scores, scores)
        focal = -(off.square() * torch.log(1 - off)).sum() / len(sample)
        return focal + F.l1_loss(outputs[sample, N_CLASSES:, row, column], wanted)

    def distillation(self, outputs: Tensor, teacher_outputs: Tensor) -> Tensor:
        """The same cells are to light up, with the same boxes where they do."""
        wanted = teacher_outputs[:, :N_CLASSES].sigmoid()
        heat = F.binary_cross_entropy_with_logits(outputs[:, :N_CLASSES], wanted, reduction="none").sum(1)
        weight = wanted.amax(1)
        boxes = (outputs[:, N_CLASSES:] - teacher_outputs[:, N_CLASSES:]).abs().mean(1)
        return heat.mean() + (weight * boxes).sum() / weight.sum()

    def outcomes(self, outputs: Any, targets: Sequence[Boxes]) -> list[tuple[Boxes, Boxes]]:
        """What was found in each scene beside what is in it."""
        found = boxes_of(torch.as_tensor(outputs).detach().cpu())
        return [
            (own, {name: value.cpu() for name, value in real.items()}) for own, real in zip(found, targets, strict=True)
        ]

    def value(self, outcomes: Sequence[tuple[Boxes, Boxes]]) -> float:
        """The mean over the classes that occur."""
        from torchmetrics.detection import MeanAveragePrecision

        measured = MeanAveragePrecision(iou_thresholds=[0.5])
        measured.update([dict(found) for found, _ in outcomes], [dict(real) for _, real in outcomes])
        return float(measured.compute()["map_50"])

    def compare(self, dense: Outcomes, slim: Outcomes) -> MetricComparison:
        """By the paired bootstrap over scenes, of fewer draws than usual: each takes two average precisions."""

        def resampled(counts: np.ndarray) -> list[np.ndarray]:
            drawn = [np.repeat(np.arange(len(row)), row) for row in counts]
            return [np.array([self.value([rows[i] for i in index]) for index in drawn]) for rows in (dense, slim)]

        return compared(self, dense, slim, resampled, self.resamples)  # type: ignore[arg-type]

    def beside(self, outcomes: Outcomes) -> dict[str, float]:
        """Nothing."""
        return {}


def detection(resamples: int = 100) -> Detection:
    """The task."""
    return Detection(resamples)


def _cells(targets: Sequence[Boxes], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of every box its sample, row and column, what is wanted of its four numbers `(n, 4)`, and its label."""
    samples = torch.cat([torch.full((len(one["labels"]),), i) for i, one in enumerate(targets)]).to(device)
    boxes = torch.cat([one["boxes"] for one in targets]).to(device) / STRIDE
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    cell = centre.floor().long()
    labels = torch.cat([one["labels"] for one in targets]).to(device)
    return samples, cell[:, 1], cell[:, 0], torch.cat([centre - cell, size.log()], dim=1), labels


def boxes_of(outputs: Tensor) -> list[Boxes]:
    """The boxes, scores and labels in outputs `(batch, 14, rows, columns)`: the cells that score best around them."""
    heat = outputs[:, :N_CLASSES].sigmoid()
    heat = heat * (F.max_pool2d(heat, 3, 1, 1) == heat)
    scores, index = heat.flatten(1).topk(_MOST_BOXES)
    n_cells, n_columns = heat[0, 0].numel(), heat.shape[3]
    cell = index % n_cells
    numbers = outputs[:, N_CLASSES:].flatten(2).gather(2, cell[:, None].expand(-1, 4, -1))  # (batch, 4, k)
    corner = torch.stack([cell % n_columns, cell // n_columns], dim=1)
    centre, half = corner + numbers[:, :2], numbers[:, 2:].clamp(-2, 3).exp() / 2
    boxes = STRIDE * torch.cat([centre - half, centre + half], dim=1).transpose(1, 2)
    labels = index // n_cells
    return [{"boxes": b, "scores": s, "labels": n} for b, s, n in zip(boxes, scores, labels, strict=True)]
