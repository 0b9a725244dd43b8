"""Recipes: what each part does to images, targets, weights and gradients, and what it is refused for."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from edgeprune.data import Share, open_data, read
from edgeprune.data.arrays import from_arrays
from edgeprune.errors import InputError
from edgeprune.progress import Silent
from edgeprune.records import IDENTITY, DataSource, Metric, Targets
from edgeprune.settings import Recipe, TrainSettings
from edgeprune.tasks.classification import CLASSIFICATION
from edgeprune.tasks.match import Match
from edgeprune.tasks.multilabel import Multilabel
from edgeprune.tasks.segmentation import Segmentation
from edgeprune.tasks.usertask import UserTask
from edgeprune.training import Judge, StateFile, evaluate, fit
from edgeprune.training.augment import Augmentation
from edgeprune.training.ema import Average
from edgeprune.training.mixing import Mixing
from edgeprune.training.optimizer import make_optimizer, make_schedule
from edgeprune.training.samples import Samples
from edgeprune.training.state import identity

pytestmark = pytest.mark.usefixtures("one_thread")
ALL = Recipe("crop-flip", 0.4, 1.0, 0.1, 1.0, 0.99, 0.5)


@pytest.fixture(scope="module")
def digits() -> DataSource:
    return open_data("digits")


@pytest.fixture(scope="module")
def photographs(digits: DataSource) -> DataSource:
    """Digits in colour, as bytes that use their whole range."""
    found = {}
    for name in ("train", "val", "test"):
        x, y = (part[:300] for part in split_of(digits, name))
        found[name] = np.repeat((x * 15.9).byte().numpy(), 3, axis=1), y.numpy()
    return from_arrays("photographs", found)


def split_of(data: DataSource, name: str) -> tuple[Tensor, Tensor]:
    split: Any = getattr(data, name)
    x, y = split.take(torch.arange(len(split)))
    return x, y


def network(seed: int = 0, channels: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(),
        nn.Dropout(0.2), nn.Linear(6 * 64, 10),
    )  # fmt: skip


def settings_of(recipe: Recipe, **how: Any) -> TrainSettings:
    return TrainSettings(**{"epochs": 2, "threads": 1, "batch_size": 256, "recipe": recipe, **how})


def trained(data: DataSource, recipe: Recipe, module: nn.Module | None = None, **how: Any) -> nn.Module:
    module = network(channels=data.input_shape[0]) if module is None else module
    fit(module, data, data.normalization, settings_of(recipe, **how))
    return module


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# -- images ------------------------------------------------------------------------------------------------------------


def test_crop_flip_shifts_by_an_eighth_and_mirrors(digits: DataSource) -> None:
    x = split_of(digits, "train")[0][:400] + 1  # nothing is 0 but what comes from outside
    found, _ = Augmentation("crop-flip", seed=3)(torch.arange(400), x, None)
    padded = F.pad(x, (1, 1, 1, 1))
    shifted = [padded[:, :, top : top + 8, left : left + 8] for top in range(3) for left in range(3)]
    choices = torch.stack([*shifted, *(images.flip(-1) for images in shifted)])
    fits = (choices == found).flatten(2).all(dim=2)
    assert fits.any(dim=0).all()
    assert (fits.sum(dim=1) >= 8).all()  # each of the 18, which some 22 images get


@pytest.mark.parametrize("kind", ["crop-flip", "trivial", "rand"])
def test_what_becomes_of_an_image_depends_on_the_epoch_and_the_image_alone(photographs: DataSource, kind: str) -> None:
    index = torch.tensor([5, 200, 17, 33])
    x, y = photographs.train.take(index)  # type: ignore[attr-defined]
    before = torch.get_rng_state()
    augment = Augmentation(kind, seed=7, byte_scale=photographs.byte_scale)
    whole, targets = augment(index, x, y)
    apart = torch.cat([augment(index[i : i + 1], x[i : i + 1], y[i : i + 1])[0] for i in (2, 0, 3, 1)])
    assert torch.equal(whole, apart[[1, 3, 0, 2]]) and targets is y
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(replace(augment, seed=8)(index, x, y)[0], whole)
    as_bytes = whole / photographs.byte_scale
    assert torch.allclose(as_bytes, as_bytes.round(), atol=1e-4) and 0 <= whole.min() <= whole.max() <= 1
    assert kind == "crop-flip" or not torch.equal(replace(augment, kind="crop-flip")(index, x, y)[0], whole)


def test_masks_move_with_their_images() -> None:
    x = torch.arange(1, 81).reshape(1, 1, 8, 10).expand(50, 1, 8, 10).float()
    found, masks = Augmentation("crop-flip", 1, None, outside=255)(torch.arange(50), x, x[:, 0].long())
    assert masks.dtype == torch.int64 and len(torch.unique(found, dim=0)) > 10
    assert torch.equal(torch.where(masks == 255, 0, masks), found[:, 0].long()) and (masks == 255).any()


class Files(Dataset[Any]):
    """Samples that workers read one by one."""

    def __init__(self, data: DataSource) -> None:
        self.split, self.byte_scale = data.train, data.byte_scale

    def __len__(self) -> int:
        return len(self.split)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        return self.split[index]


def test_workers_change_images_as_this_process_does(photographs: DataSource) -> None:
    augment = Augmentation("trivial", 2, photographs.byte_scale)
    index = [torch.arange(6), torch.arange(6, 9)]
    own = list(read(photographs.train, index, change=augment))
    for (x, y), (others_x, others_y) in zip(own, read(Files(photographs), index, 1, 0, augment), strict=True):
        assert torch.equal(x, others_x) and torch.equal(y, others_y)  # type: ignore[arg-type]


# -- targets -----------------------------------------------------------------------------------------------------------


def test_label_smoothing_is_that_of_cross_entropy(digits: DataSource) -> None:
    x, y = split_of(digits, "val")
    logits = network()(x)
    same, shares = Mixing(Recipe(label_smoothing=0.1), 10)(x, y, 0, 0)
    assert same is x
    loss = CLASSIFICATION.loss(logits, shares)
    torch.testing.assert_close(loss, F.cross_entropy(logits, y, label_smoothing=0.1))
    teacher = network(1)(x)
    taught = CLASSIFICATION.taught_loss(logits, shares, teacher)
    torch.testing.assert_close(taught, loss + CLASSIFICATION.distillation(logits, teacher))


def test_mixup_mixes_each_image_and_its_class_with_the_one_before(digits: DataSource) -> None:
    x, y = split_of(digits, "val")
    before, mixing = torch.get_rng_state(), Mixing(Recipe(mixup=0.8), 10)
    mixed, shares = mixing(x, y, 5, 2)
    assert torch.equal(torch.get_rng_state(), before)
    share = shares[y != y.roll(1), y[y != y.roll(1)]]
    assert 0 < float(share[0]) < 1 and torch.allclose(share, share[0])
    torch.testing.assert_close(mixed, share[0] * x + (1 - share[0]) * x.roll(1, 0))
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(len(y)))
    assert torch.equal(mixing(x, y, 5, 2)[0], mixed) and not torch.equal(mixing(x, y, 5, 3)[0], mixed)  # type: ignore[arg-type]


def test_cutmix_pastes_and_shares_by_the_area(digits: DataSource) -> None:
    x, y = torch.arange(12).repeat_interleave(64).reshape(12, 1, 8, 8).float(), torch.arange(12) % 10
    for number in range(5):
        mixed, shares = Mixing(Recipe(cutmix=1.0), 10)(x, y, 0, number)
        own = (mixed == x).flatten(1).float().mean(dim=1)  # type: ignore[union-attr]
        assert torch.equal((mixed == x) | (mixed == x.roll(1, 0)), torch.ones_like(x, dtype=torch.bool))
        torch.testing.assert_close(shares[torch.arange(12), y], own)
    both = Mixing(Recipe(cutmix=1.0, mixup=1.0), 10)
    pasted = [bool(((m := both(x, y, 0, n)[0]) == x).logical_or(m == x.roll(1, 0)).all()) for n in range(20)]
    assert {True, False} == set(pasted)


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_several_processes_see_what_one_does(digits: DataSource, n_ranks: int) -> None:
    def batches(share: Share, parts: list[Tensor]) -> list[Any]:
        judge = Judge(CLASSIFICATION, digits.normalization)
        samples = Samples(digits, judge, settings_of(ALL), share, torch.device("cpu"), torch.float32)
        return list(samples.of(parts, seed=4))

    parts = [torch.tensor([8, 3, 70, 5, 900]), torch.tensor([11, 4, 6]), torch.arange(20, 31), torch.tensor([1, 2])]
    ranks = [batches(Share(rank, n_ranks), parts) for rank in range(n_ranks)]
    for number, (x, y) in enumerate(batches(Share(), parts)):
        own = [len(Share(rank, n_ranks).of(parts[number])) for rank in range(n_ranks)]
        for which, expected in enumerate((x, y)):
            pieces = [ranks[rank][number][which] for rank in range(n_ranks)]
            assert all(len(piece) == max(1, n) for piece, n in zip(pieces, own, strict=True))
            assert torch.equal(torch.cat([piece[:n] for piece, n in zip(pieces, own, strict=True)]), expected)


# -- weights -----------------------------------------------------------------------------------------------------------


def test_the_average_is_that_of_all_steps_with_its_statistics() -> None:
    module = network()
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    average, decay = Average(module, 0.6), 0.6
    wanted = {name: value.double() for name, value in module.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        for tensor in (*module.parameters(), module[1].running_mean, module[1].num_batches_tracked):  # type: ignore[index]
            tensor.data += torch.randint(-3, 4, tensor.shape, generator=generator).to(tensor.dtype)
        average.after_step()
        now = min(decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            wanted[name] = wanted[name] * now + value.double() * (1 - now)
    latest = {name: value.clone() for name, value in module.state_dict().items()}
    wanted |= {"mask": latest["mask"].double(), "1.num_batches_tracked": latest["1.num_batches_tracked"].double()}
    with average.shown():
        for name, value in module.state_dict().items():
            torch.testing.assert_close(value.double(), wanted[name], rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, latest[name]) for name, value in module.state_dict().items())


def test_half_precision_is_averaged_finely_and_tied_weights_once() -> None:
    module = nn.Sequential(nn.Linear(4, 4, dtype=torch.bfloat16), nn.Linear(4, 4, dtype=torch.bfloat16))
    module[1].weight = module[0].weight
    nn.init.constant_(module[0].weight, 1.0)
    average = Average(module, 0.999)
    module[0].weight.data += 1
    for _ in range(400):
        average.after_step()
    with average.shown():  # a step of bfloat16 beside 2 is 2^-7, to which no thousandth part comes
        assert module[1].weight is module[0].weight and float(module[0].weight[0, 0].detach()) > 1.98


def test_what_is_kept_and_told_is_the_average(digits: DataSource) -> None:
    module = network()
    records = fit(module, digits, digits.normalization, settings_of(Recipe(ema=0.9), epochs=3))
    assert not equal(module, trained(digits, Recipe(), epochs=3))
    assert evaluate(module, digits.val, digits.normalization).value == max(record.val_value for record in records)


def test_gradients_are_scaled_down_to_the_norm(digits: DataSource) -> None:
    before = network()
    how = {"optimizer": "sgd", "lr": 1.0, "weight_decay": 0.0, "schedule": "constant", "options": {"momentum": 0.0}}
    module = trained(digits, Recipe(clip_norm=1e-3, warmup=0.0), epochs=1, batch_size=1079, **how)
    pairs = zip(module.parameters(), before.parameters(), strict=True)
    moved = torch.cat([(new - old).flatten() for new, old in pairs]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)


def test_the_warm_up_takes_so_many_epochs() -> None:
    module = network()
    for warmup, first in ((2.0, [1 / 9, 2 / 9, 3 / 9]), (0.0, [1.0, 1.0, 1.0]), (None, [1 / 3, 2 / 3, 1.0])):
        settings = settings_of(Recipe(warmup=warmup), epochs=10, schedule="constant", lr=1.0)
        optimizer = make_optimizer(module, settings, 40)
        schedule, found = make_schedule(optimizer, settings, 40), []
        for _ in range(3):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert found == pytest.approx(first)


# -- trainings ---------------------------------------------------------------------------------------------------------


class Stop(Silent):
    """It is stopped after two epochs and two steps."""

    def advance(self, done: int, total: int, note: str = "") -> None:
        if done == 12:
            raise KeyboardInterrupt


@pytest.mark.parametrize("recipe", [ALL, replace(ALL, augment="trivial")], ids=lambda recipe: recipe.augment)
def test_a_training_by_a_recipe_that_stopped_goes_on_as_if_it_had_not(
    photographs: DataSource, tmp_path: Path, recipe: Recipe
) -> None:
    settings, file = settings_of(recipe, epochs=3, batch_size=64), tmp_path / "state"
    whole = trained(photographs, recipe, epochs=3, batch_size=64)
    assert equal(trained(photographs, recipe, epochs=3, batch_size=64), whole)
    with pytest.raises(KeyboardInterrupt):
        fit(network(0, 3), photographs, photographs.normalization, settings, Stop(), checkpoint=StateFile(file, {}))
    resumed = network(9, 3)
    kept = file.read_bytes()
    fit(resumed, photographs, photographs.normalization, settings, checkpoint=StateFile(file, {}, resume=True))
    assert equal(resumed, whole)
    content = torch.load(io.BytesIO(kept), weights_only=True)
    content["average"]["average"]["5.bias"] = torch.zeros(3)
    torch.save(content, file)
    with pytest.raises(InputError, match=r"got a damaged one: average.average.5.bias: expected torch.float32 \(10,\)"):
        fit(resumed, photographs, photographs.normalization, settings, checkpoint=StateFile(file, {}, resume=True))


def test_a_plain_state_has_no_average_and_is_none_of_a_recipe(digits: DataSource, tmp_path: Path) -> None:
    settings = settings_of(Recipe(ema=0.5))
    own, other = (identity("net", "digits", digits, s) for s in (settings, replace(settings, recipe=Recipe())))
    file = tmp_path / "state"
    fit(network(), digits, digits.normalization, settings_of(Recipe()), checkpoint=StateFile(file, other))
    assert "average" not in torch.load(file, weights_only=True)
    for asked, told in ((own, "recipe ema: expected 0.5, got None"), ({}, "arch: expected None, got 'net'")):
        with pytest.raises(InputError, match=f"state of another training; {told}"):
            StateFile(file, asked).read(file.read_bytes())
    hostile = StateFile(file, {"\x1b[2J" * 99: 1})
    fit(network(), digits, digits.normalization, settings_of(Recipe()), checkpoint=hostile)
    with pytest.raises(InputError) as refused:
        StateFile(file, {}).read(file.read_bytes())
    assert "\x1b" not in str(refused.value) and len(str(refused.value)) < len(str(file)) + 200


def test_a_teacher_sees_what_is_trained_on(digits: DataSource) -> None:
    module, recipe = network(), replace(ALL, ema=0.0)
    records = fit(module, digits, digits.normalization, settings_of(recipe), teacher=network(1))
    assert records[-1].loss > 0 and not equal(module, trained(digits, recipe))
    answers = network()
    fit(answers, digits, digits.normalization, settings_of(Recipe("crop-flip")), teacher=network(1), task=Match())
    assert not equal(answers, network())


class Own:
    """A task of the user's, whose loss takes shares of the classes where it says so."""

    metric, ignored = Metric("share right"), 255

    def __init__(self, takes_shares: bool, by_reference: bool = False) -> None:
        self.takes_shares, self.by_reference = takes_shares, by_reference
        self.seen: set[torch.dtype] = set()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.seen.add(targets.dtype)
        return F.cross_entropy(outputs, targets)

    def outcomes(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.argmax(dim=1) == targets

    def value(self, outcomes: Any) -> float:
        return float(np.mean(outcomes))


def test_a_task_of_the_users_takes_shares_where_it_says_so(digits: DataSource) -> None:
    own = Own(takes_shares=True)
    task = UserTask(own, "own.py:task")
    fit(network(), digits, digits.normalization, settings_of(ALL), task=task)
    assert own.seen == {torch.float32, torch.int64}  # trained on, and validated by
    assert task.ignored == 255
    for other in (Own(takes_shares=False), Own(takes_shares=True, by_reference=True)):
        with pytest.raises(InputError, match=r"^mixup: expected a task whose targets may be shares .* got own.py:task"):
            task = UserTask(other, "own.py:task")
            fit(network(), digits, digits.normalization, settings_of(ALL), teacher=network(1), task=task)


def _other(data: DataSource, **changed: Any) -> DataSource:
    return replace(data, **changed)


MASKS, FLAGS = Targets("masks", (8, 8)), Targets("flags", (10,))
REFUSED: dict[str, tuple[Recipe, dict[str, Any], dict[str, Any], Any]] = {
    r"augment: expected images \(channels, height, width\), got inputs of shape \(64,\)": (
        Recipe("crop-flip"), {"input_shape": (64,)}, {}, CLASSIFICATION,
    ),
    "augment: expected images of at least 8x8 pixels, got 9x7": (
        Recipe("crop-flip"), {"input_shape": (1, 7, 9)}, {}, CLASSIFICATION,
    ),
    "augment: expected a task with a value for pixels that do not count, .* got none": (
        Recipe("crop-flip"), {"targets": MASKS}, {}, Segmentation(ignore=None),
    ),
    r"augment: expected masks of the size of their images, \(8, 8\), got \(4, 4\)": (
        Recipe("crop-flip"), {"targets": Targets("masks", (4, 4))}, {}, Segmentation(),
    ),
    r"augment: expected targets that do not depend on places in the image, got maps \(8, 8\)": (
        Recipe("crop-flip"), {"targets": Targets("values", (8, 8))}, {}, CLASSIFICATION,
    ),
    "augment: expected targets that do not depend on places .* only the task knows": (
        Recipe("crop-flip"), {"targets": Targets("other")}, {}, CLASSIFICATION,
    ),
    "augment: expected bytes from 0 to 255, got none above 16": (Recipe("trivial"), {}, {}, CLASSIFICATION),
    "augment: expected images of bytes, got values whose range": (
        Recipe("rand"), {"byte_scale": None}, {}, CLASSIFICATION,
    ),
    "augment: expected grey or colour images, got 4 channels": (
        Recipe("rand"), {"input_shape": (4, 8, 8)}, {}, CLASSIFICATION,
    ),
    "mixup: expected a task whose targets may be shares of classes, .* got multilabel": (
        Recipe(mixup=0.2), {"targets": FLAGS}, {}, Multilabel(),
    ),
    r"cutmix: expected images .* got inputs of shape \(64,\)": (
        Recipe(cutmix=1.0), {"input_shape": (64,)}, {}, CLASSIFICATION,
    ),
    "label smoothing: expected a task whose .* got match": (Recipe(label_smoothing=0.1), {}, {}, Match()),
    "warmup: expected at most the 2 epochs that are trained, got 2.5": (Recipe(warmup=2.5), {}, {}, CLASSIFICATION),
    "warmup: expected the optimizer adamw or sgd, got xrda": (
        Recipe(warmup=1), {}, {"optimizer": "xrda"}, CLASSIFICATION,
    ),
    "ema: expected a training without zeros, .* got xrda": (
        Recipe(ema=0.9), {}, {"optimizer": "xrda"}, CLASSIFICATION,
    ),
    "ema: expected a training without zeros, .* got gradual": (
        Recipe(ema=0.9), {}, {"method": "gradual"}, CLASSIFICATION,
    ),
    r"ema: expected a number in \[0, 1\), got 1": (Recipe(ema=1), {}, {}, CLASSIFICATION),
    "augment: expected one of none, crop-flip, trivial, rand, got flip": (Recipe("flip"), {}, {}, CLASSIFICATION),
    "mixup: expected a number of at least 0, got -1": (Recipe(mixup=-1), {}, {}, CLASSIFICATION),
    "clip_norm: expected a number of at least 0, got nan": (Recipe(clip_norm=float("nan")), {}, {}, CLASSIFICATION),
}  # fmt: skip


@pytest.mark.parametrize("told", REFUSED)
def test_what_a_recipe_cannot_do_is_refused(digits: DataSource, told: str) -> None:
    recipe, changed, how, task = REFUSED[told]
    module = network()
    with pytest.raises(InputError, match=f"^{told}"):
        fit(module, _other(digits, **changed), digits.normalization, settings_of(recipe, **how), task=task)
    assert equal(module, network())


def test_segmentation_trains_on_masks_that_moved(digits: DataSource) -> None:
    found = {name: split_of(digits, name)[0] for name in ("train", "val", "test")}
    data = from_arrays("masks", {name: (x.numpy(), (x[:, 0] > 7).long().numpy()) for name, x in found.items()})
    judge = Judge(Segmentation(n_classes=2), IDENTITY)
    samples = Samples(data, judge, settings_of(Recipe("crop-flip")), Share(), torch.device("cpu"), torch.float32)
    for x, masks in samples.of([torch.arange(64), torch.arange(64, 99)], seed=1):
        inside = masks != 255
        assert 0 < (~inside).float().mean() < 0.5
        assert torch.equal(masks[inside], (x[:, 0] > 7).long()[inside])
        assert judge.task.loss(torch.stack([x[:, 0] * 0 + 7, x[:, 0]], dim=1), masks) < 0.4
