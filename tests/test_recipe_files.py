"""Recipes from the command line and from TOML files: what wins, what is remembered, what finetuning goes by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeprune.cli.app import main
from edgeprune.commands.finetuning import check_recipe, finetuning
from edgeprune.commands.recipefile import read_recipe
from edgeprune.data import open_data
from edgeprune.errors import InputError
from edgeprune.formats.info import info_from_dict, info_to_dict
from edgeprune.formats.load import load
from edgeprune.records import ModelInfo
from edgeprune.requests import CompressRequest
from edgeprune.settings import Recipe, TrainSettings
from edgeprune.tasks.registry import open_task

pytestmark = pytest.mark.usefixtures("one_thread")
MODELS = Path(__file__).resolve().parent.parent / "models"
TRAIN = ("train", "--arch", f"{MODELS / 'digits.py'}:mlp", "--data", "digits", "--threads", "1", "--json")
RECIPE = """
# for the digits
augment = "crop-flip"
label-smoothing = 0.1
cutmix = 1
ema = 0.9
warmup = 1
epochs = 2
finetune-epochs = 1
batch-size = 256
optimizer = "sgd"
momentum = 0.8
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that was trained by the recipe, but for what the command line says."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "recipe.toml").write_text(RECIPE)
    recipe = ("--recipe", str(folder / "recipe.toml"), "--ema", "0.8", "--label-smoothing", "0", "--epochs", "4")
    assert main([*TRAIN, *recipe, "--out", str(folder / "m.pt")]) == 0
    return folder / "m.pt"


def settled(model: Path, **asked: Any) -> tuple[TrainSettings, list[str]]:
    """How a request finetunes, and what is assumed."""
    assumed: list[str] = []
    data, loaded = open_data("digits"), load(model)
    task = open_task(asked.get("task"), data)
    return finetuning(CompressRequest(str(model), **asked), loaded, data, task, assumed.append), assumed


def test_the_command_line_wins_and_the_checkpoint_remembers(trained: Path) -> None:
    training = load(trained).info.training
    assert training is not None
    assert training.recipe == Recipe(augment="crop-flip", cutmix=1, ema=0.8, warmup=1)
    assert (training.epochs, training.batch_size, training.optimizer) == (4, 256, "sgd")
    assert dict(training.options) == {"momentum": 0.8}


def test_a_training_by_another_recipe_is_another_training(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ["--recipe", str(trained.parent / "recipe.toml"), "--ema", "0.8", "--epochs", "4"]
    assert main([*TRAIN, *recipe, "--label-smoothing", "0", "--out", str(trained), "--resume"]) == 0
    assert main([*TRAIN, *recipe, "--out", str(trained), "--resume"]) == 2
    assert "another training; recipe label_smoothing: expected 0.1, got None; --force" in capsys.readouterr().err
    plain = ["--epochs", "4", "--optimizer", "sgd", "--momentum", "0.8", "--batch-size", "256"]
    assert main([*TRAIN, *plain, "--out", str(trained), "--resume"]) == 2
    assert "another training; recipe augment: expected None, got 'crop-flip', recipe" in capsys.readouterr().err


def test_without_a_recipe_a_checkpoint_says_nothing_of_one() -> None:
    plain = info_to_dict(ModelInfo((1, 8, 8), training=TrainSettings()))
    assert "recipe" not in plain["training"]
    assert info_from_dict(plain).training == TrainSettings()


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ({"ema": 2.0}, r"training's recipe: ema: expected a number in \[0, 1\), got 2.0"),
        ({"augment": ["none"]}, "training's recipe: augment: expected one of none, "),
        ({"warmup": "long"}, "training's recipe: warmup: expected a number of at least 0, got long"),
        ({"mixup": None}, "training's recipe: mixup: expected a number"),
        ({"noise": 1}, "expected a recipe with augment, mixup, .*, got {'noise': 1}"),
        ([], r"expected training's recipe in its range, got \[\]"),
    ],
)
def test_a_recipe_that_no_training_had_is_refused(recipe: Any, told: str) -> None:
    plain = info_to_dict(ModelInfo((1, 8, 8), training=TrainSettings(recipe=Recipe(ema=0.5))))
    plain["training"]["recipe"] = recipe
    with pytest.raises(InputError, match=f"^model info: {told}"):
        info_from_dict(plain)


def test_finetuning_goes_by_the_recipe_of_the_training(trained: Path) -> None:
    settings, told = settled(trained, finetune_epochs=2)
    # One of four epochs was the warm-up: the same share of two is half an epoch.
    assert settings.recipe == Recipe("crop-flip", cutmix=1, ema=0.8, warmup=0.5)
    assert told == ["--augment crop-flip --cutmix 1 --warmup 0.5 --ema 0.8 (the recipe that the model was trained by)"]
    assert (settings.optimizer, settings.batch_size, dict(settings.options)) == ("sgd", 256, {"momentum": 0.8})

    settings, told = settled(trained, finetune_epochs=2, recipe={"ema": 0.9, "warmup": 1.0})
    assert settings.recipe == Recipe("crop-flip", cutmix=1, ema=0.9, warmup=1)
    assert told == ["--augment crop-flip --cutmix 1 (the recipe that the model was trained by)"]
    off = {"augment": "none", "cutmix": 0.0, "ema": 0.0, "warmup": 0.0}
    assert settled(trained, finetune_epochs=2, recipe=off)[1] == []


def test_another_optimizer_takes_nothing_over_of_the_trainings(trained: Path) -> None:
    settings, _ = settled(trained, finetune_epochs=1, recipe={"optimizer": "adamw", "lr": 2e-3, "batch_size": 64})
    assert (settings.optimizer, settings.lr, settings.batch_size, settings.options) == ("adamw", 2e-3, 64, {})
    assert settled(trained, finetune_epochs=0)[0].recipe == Recipe()


def test_what_another_task_does_not_take_of_the_models_own_recipe_is_left_out(trained: Path) -> None:
    settings, told = settled(trained, finetune_epochs=1, task="match")
    assert settings.recipe == Recipe("crop-flip", ema=0.8, warmup=0.25)
    assert told[0].startswith("without the cutmix that the model was trained with: expected a task whose targets")
    assert told[1].startswith("--augment crop-flip --warmup 0.25 --ema 0.8 (the recipe")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"ema": 0.9, "epochs": 0}, r"recipe \(ema\): expected epochs to finetune, got --finetune-epochs 0"),
        ({"warmup": 3}, "warmup: expected at most the 2 epochs that are trained, got 3"),
        ({"augment": "trivial"}, "augment: expected bytes from 0 to 255, got none above 16"),
        ({"mixup": 0.2, "task": "match"}, "mixup: expected a task whose targets may be shares of classes"),
        ({"optimizer": "xrda"}, "recipe: expected the optimizer adamw or sgd to finetune with, got xrda"),
        ({"lam": 0.1}, "lam: belongs to xrda, rda, rmda, prox-sgd, halo, got optimizer sgd"),
        ({"ema": 1}, r"ema: expected a number in \[0, 1\), got 1"),
        ({"noise": 1}, "recipe: expected some of augment, .*, got noise"),
    ],
    ids=str,
)
def test_what_finetuning_cannot_follow_is_refused(trained: Path, asked: dict[str, Any], told: str) -> None:
    task, epochs = asked.get("task"), asked.get("epochs", 2)
    recipe = {name: value for name, value in asked.items() if name not in ("task", "epochs")}
    with pytest.raises(InputError, match=f"^{told}"):
        settled(trained, finetune_epochs=epochs, recipe=recipe, task=task)


def test_nothing_here_finetunes_without_data_or_by_a_script(trained: Path) -> None:
    request = CompressRequest(str(trained), recipe={"clip_norm": 1.0})
    with pytest.raises(InputError, match=r"^recipe \(clip-norm\): expected to finetune on data here, got no data"):
        check_recipe(request, None)
    with pytest.raises(InputError, match="here, got --finetune mine.py:f, which has its own way"):
        check_recipe(replace(request, finetune="mine.py:f"), open_data("digits"))
    check_recipe(request, open_data("digits"))
    check_recipe(replace(request, recipe=None), None)


def test_a_recipe_file_is_for_finetuning_too(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = tmp_path / "recipe.toml", tmp_path / "run"
    file.write_text(RECIPE.replace("sgd", "adamw").replace("momentum = 0.8", "lr = 2e-3"))
    how = ("--keep-macs", "0.6", "--input-features", "off", "--threads", "1", "--out", str(run))
    capsys.readouterr()
    assert main(["compress", str(trained), *how, "--recipe", str(file), "--mixup", "0.2", "--cutmix", "0"]) == 0
    told = capsys.readouterr().err
    assert "--finetune-epochs" not in told and "the recipe that the model" not in told
    asked = json.loads((run / "run.json").read_text())["asked"]
    filed = {"augment": "crop-flip", "label_smoothing": 0.1, "ema": 0.9, "warmup": 1, "batch_size": 256}
    assert asked["recipe"] == {**filed, "optimizer": "adamw", "lr": 0.002, "mixup": 0.2, "cutmix": 0.0}
    assert asked["finetune_epochs"] == 1
    assert main(["compress", str(trained), "--ema", "1", "--out", str(tmp_path / "x")]) == 2
    assert "value for '--ema': expected a number in [0, 1), got 1.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("labelsmoothing = 0.1", "expected keys of a recipe, got 'labelsmoothing'; did you mean label-smoothing?"),
        ("zzz = 1", "expected keys of a recipe, got 'zzz'; there are augment, mixup, cutmix, label-smoothing, "),
        ('"\\u001b[2J" = 1', r"expected keys of a recipe, got '\x1b[2J'; there are augment"),
        ("ema = true", "ema: expected a number in [0, 1), got True"),
        ("mixup = nan", "mixup: expected a number of at least 0, got nan"),
        ("lr = inf", "lr: expected a number above 0, got inf"),
        ("epochs = 1.5", "epochs: expected a whole number of at least 1, got 1.5"),
        ("[train]\nema = 0.5", "expected keys of a recipe, got 'train'; "),
        ("ema = {x = 1}", "ema: expected a number in [0, 1), got {'x': 1}"),
        ('optimizer = "lion"', "optimizer: expected one of adamw, sgd, "),
        ("clip-norm = 1\nclip_norm = 2", "expected each key once, got clip_norm and clip_norm"),
        ("ema = 0.5\nema = 0.6", "expected a recipe in TOML, got TOMLDecodeError: Cannot overwrite a value"),
        ("ema 0.5", "expected a recipe in TOML, got TOMLDecodeError: "),
        ("ema = " + "[" * 9000, "expected a recipe in TOML, got RecursionError"),
        ("ema = " + "9" * 5000, "expected a recipe in TOML, got ValueError: "),
        (b"ema = \xff", "expected a recipe in TOML, got UnicodeDecodeError: "),
        ("#" * 2**20 + "#", "expected a recipe file of at most 1,048,576 bytes, got "),
        ("", "expected a recipe file, got an empty file"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path: Path, content: str | bytes, told: str) -> None:
    file = tmp_path / "recipe.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as refused:
        read_recipe(file)
    message = str(refused.value)
    assert message.startswith(f"{file}: {told}"), message
    assert "\n" not in message and "\x1b" not in message and len(message) < len(str(file)) + 400


def test_the_command_line_tells_of_a_bad_recipe_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "none.toml"
    for command in (("train", "--arch", "nothing", "--data", "nothing"), ("compress", "nothing.pt")):
        assert main([*command, "--out", str(tmp_path / "x"), "--recipe", str(missing)]) == 2
        assert "none.toml: expected a recipe file, got " in " ".join(capsys.readouterr().err.split())
