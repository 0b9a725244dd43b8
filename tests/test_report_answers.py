"""What the report says of single samples: a picture for each kind of task, and the samples that changed most."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from edgeprune.commands.answers import Pair, Told, told_of
from edgeprune.records import IDENTITY, DataSource, Metric, Targets
from edgeprune.report.answers import Errors, MaskedImage, Masks, PerLabel, Predicted, answers_svg
from edgeprune.report.html import render
from edgeprune.results import ChangedSample, RunRecord
from edgeprune.runrecord import run_from_json, to_dict, to_json
from edgeprune.tasks.match import Match
from edgeprune.tasks.multilabel import Multilabel
from edgeprune.tasks.regression import Regression
from edgeprune.tasks.segmentation import Segmentation
from edgeprune.tasks.task import Task
from edgeprune.tasks.torchmetric import functional
from edgeprune.training import Judge

HOSTILE = "<script>x</script> & $\\frac{ \u202e"


class Shifted(nn.Module):
    """What another network gives, a little off on the samples whose first number is above 1."""

    def __init__(self, inner: nn.Module, by: float) -> None:
        super().__init__()
        self.inner, self.by = inner, by

    def forward(self, x: Tensor) -> Tensor:
        moved = (x.flatten(1)[:, 0] > 1).to(x.dtype) * self.by
        out = self.inner(x)
        return out + moved.reshape(-1, *(1,) * (out.dim() - 1)) * torch.linspace(-1, 1, out.shape[1]).reshape(
            1, -1, *(1,) * (out.dim() - 2)
        )


def source(x: Tensor, y: Tensor | None, kind: str, **targets: object) -> DataSource:
    split = TensorDataset(x) if y is None else TensorDataset(x, y)
    shape = () if y is None else tuple(y.shape[1:])
    names = ("sky", HOSTILE, "land") if kind in ("flags", "masks") else ()
    return DataSource(
        "made", split, split, split, tuple(x.shape[1:]), names, IDENTITY, targets=Targets(kind, shape, **targets)
    )  # type: ignore[arg-type]


def told(task: Task, data: DataSource, dense: nn.Module, slim: nn.Module) -> Told:
    judge = Judge(task, IDENTITY, dense if task.by_reference else None)
    outcomes = [judge.outcomes(module, data.test)[0] for module in (dense, slim)]
    return told_of(task, data, Pair(dense, slim, IDENTITY), outcomes)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(90, 6)


def test_numbers_that_moved_are_named_and_drawn(x: Tensor) -> None:
    dense = nn.Linear(6, 2).eval()
    slim = Shifted(dense, 3.0)
    y = torch.stack([x[:, 0], x[:, 1]], dim=1)
    found = told(Regression(unit="mmol"), source(x, y, "values", spread=(1.0, 1.0)), dense, slim)
    with torch.no_grad():
        a, b = dense(x), slim(x)
    apart = (a - b).abs().mean(1)
    assert found.change == "mean difference, mmol"
    assert {one.index for one in found.changed} <= set(np.flatnonzero(x[:, 0].numpy() > 1).tolist())
    first = found.changed[0]
    assert first.change == pytest.approx(apart.max().item()) and len(found.changed) == 8
    assert first.truth == ", ".join(f"{value:.4g}" for value in y[first.index].tolist())
    assert first.dense == ", ".join(f"{value:.4g}" for value in a[first.index].tolist()) != first.slim
    assert isinstance(found.answers, Predicted) and found.answers.unit == "mmol"
    for given, wanted in ((found.answers.truth, y), (found.answers.dense, a), (found.answers.slim, b)):
        np.testing.assert_allclose(given, wanted.numpy(), rtol=1e-6)


def test_labels_that_changed(x: Tensor) -> None:
    dense = nn.Linear(6, 3).eval()
    slim = Shifted(dense, 9.0)
    flags = (x[:, :3] > 0).float()
    found = told(Multilabel(), source(x, flags, "flags"), dense, slim)
    with torch.no_grad():
        pair = [module(x) for module in (dense, slim)]
    for given, logits in zip((found.answers.dense, found.answers.slim), pair, strict=True):
        wanted = functional().multilabel_average_precision(logits, flags.long(), 3, average=None)
        np.testing.assert_allclose(given, wanted.numpy(), atol=1e-6)
    other = ((pair[0] > 0) != (pair[1] > 0)).sum(1)
    assert [one.change for one in found.changed] == other.double().sort(descending=True).values[:8].tolist()
    first = found.changed[0]
    names = ("sky", HOSTILE, "land")
    held = [name for name, logit in zip(names, pair[1][first.index].tolist(), strict=True) if logit > 0]
    assert first.slim == (", ".join(held) or "none") and found.change == "other labels"


def test_masks_lie_beside_each_other() -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 1, 8, 8)
    dense = nn.Conv2d(1, 3, 3, padding=1).eval()
    slim = Shifted(dense, 2.0)
    masks = torch.from_numpy(np.digitize(x[:, 0].numpy(), [-0.5, 0.5]))
    masks[:, 0, 0] = 255
    found = told(Segmentation(), source(x, masks, "masks"), dense, slim)
    with torch.no_grad():
        pair = [module(x).argmax(1) for module in (dense, slim)]
    share = 100 * (pair[0] != pair[1]).flatten(1).double().mean(1)
    assert found.changed[0].change == pytest.approx(share.max().item()) and found.change == "other pixels, %"
    assert len(found.answers.images) == 4 and found.answers.ignore == 255
    for one in found.answers.images:
        np.testing.assert_array_equal(one.dense, pair[0][one.index].numpy())
        np.testing.assert_array_equal(one.slim, pair[1][one.index].numpy())
        np.testing.assert_array_equal(one.truth, masks[one.index].numpy())
        np.testing.assert_array_equal(one.image, x[one.index].numpy())
    assert found.answers.images[0].index == found.changed[0].index
    assert " %" in found.changed[0].slim and "255" not in found.changed[0].truth


def test_match_shows_how_its_errors_lie(x: Tensor) -> None:
    dense = nn.Linear(6, 4).eval()
    slim = Shifted(dense, 0.5)
    found = told(Match(), source(x, None, "none"), dense, slim)
    with torch.no_grad():
        a, b = dense(x), slim(x)
    relative = ((a - b).norm(dim=1) / a.norm(dim=1)).numpy()
    np.testing.assert_allclose(found.answers.relative, relative, atol=1e-6)
    assert found.changed[0].change == pytest.approx(100 * relative.max(), rel=1e-5)
    assert found.changed[0].truth == "" and found.change == "relative difference, %"
    assert told(Match(), source(x, None, "none"), dense, dense).changed == (), "nothing changed"


class Heads(nn.Module):
    """What is no sample's comes first; how many rows the last has depends on the inputs."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.arange(7.0) + self.by, x[x[:, 0] > self.by]


class Own(Match):
    """As a task of the user's own: nobody else knows what its outputs mean."""

    name = "own.py:task"


def test_outputs_that_cannot_be_told_side_by_side_are_not(x: Tensor) -> None:
    data, outcomes = source(x, None, "none"), [np.zeros(90), np.zeros(90)]
    for slim in (Heads(0.5), Heads(0.0)):
        found = told_of(Own(), data, Pair(Heads(0.0), slim, IDENTITY), outcomes)
        assert (found.change, found.changed, found.answers) == ("", (), None)


def test_raw_outputs_of_a_task_of_ones_own(x: Tensor) -> None:
    dense = nn.Linear(6, 9).eval()
    found = told(Own(), source(x, None, "none"), dense, Shifted(dense, 1.0))
    assert found.answers is None and found.changed[0].dense.endswith(", …")


PICTURES = {
    "numbers": Predicted(np.zeros((3, 1)), np.ones((3, 1)), np.ones((3, 1)), HOSTILE),
    "columns": Predicted(*np.random.default_rng(0).normal(size=(3, 900, 6)), ""),
    "errors": Errors(np.zeros(5)),
    "labels": PerLabel(np.linspace(0, 1, 40), np.linspace(1, 0, 40), (HOSTILE,) * 40),
    "masks": Masks(
        (
            MaskedImage(
                7, np.random.default_rng(0).random((3, 600, 900)), *(np.full((600, 900), k) for k in (255, 21, 0))
            ),
        ),
        (HOSTILE,),
        255,
    ),
    "no picture": Masks((MaskedImage(0, np.zeros(6), *(np.zeros((1, 9), int) for _ in range(3))),), (), None),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", PICTURES)
def test_whatever_is_drawn_can_be_shown(name: str, make_run: Callable[..., RunRecord]) -> None:
    run = make_run()
    plain, page = render(run), render(run, PICTURES[name])
    assert len(page) - len(plain) < 1_000_000
    assert "What both networks answer" in page and "What both networks answer" not in plain
    svg, caption = answers_svg(PICTURES[name])
    assert caption and "<script" not in page and "\u202e" not in page
    assert not re.search(r"(?:href|src)=\"(?!#|data:)", svg), "it fetches nothing"
    assert answers_svg(PICTURES[name])[0] == svg, "the same each time"


def test_changed_samples_are_in_the_record_of_other_tasks_alone(make_run: Callable[..., RunRecord]) -> None:
    run = make_run()
    assert not {"change", "changed", "comparison", "metric"} & set(to_dict(run)), "a classification's is as ever"
    metric = Metric("MAE", "mmol", 1.0, higher_is_better=False)
    assert run.compared is not None
    changed = (ChangedSample(3, "", HOSTILE, "2", 1.5),)
    other = replace(
        run,
        accuracy=None,
        metric=metric,
        comparison=replace(run.compared, metric=metric),
        change="mean difference, mmol",
        changed=changed,
    )
    text = to_json(other)
    assert run_from_json(text) == other and to_json(run_from_json(text)) == text
    page = render(other)
    assert "Test samples that changed most" in page and "mean difference, mmol" in page and "<script" not in page


def test_a_metric_of_ones_own_may_be_called_accuracy(make_run: Callable[..., RunRecord]) -> None:
    """Its comparison is told all the same."""
    run = make_run()
    other = replace(run, accuracy=None, comparison=run.compared)
    assert to_dict(other)["comparison"]["dense"] == run.compared.dense  # type: ignore[union-attr]
    assert run_from_json(to_json(other)) == other
