"""Sparse optimizers in training: real digits, exact zeros, resume, and options that belong to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgeprune import catalog
from edgeprune.cli.app import main
from edgeprune.errors import InputError
from edgeprune.formats.info import info_from_dict, info_to_dict
from edgeprune.formats.load import load
from edgeprune.optim import OPTIMIZERS
from edgeprune.progress import Silent
from edgeprune.records import DataSource, ModelInfo
from edgeprune.settings import TrainSettings
from edgeprune.training import StateFile, evaluate, fit, layer_zeros
from edgeprune.training.optimizer import SHAPES, make_optimizer, make_schedule

NETS = Path(__file__).parents[1] / "models" / "digits.py"


pytestmark = pytest.mark.usefixtures("one_thread")


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def zero_share(module: nn.Module) -> float:
    layers = layer_zeros(module)
    return sum(layer.zeros for layer in layers) / sum(layer.size for layer in layers)


def settings(optimizer: str, epochs: int = 15, **options: object) -> TrainSettings:
    return TrainSettings(epochs=epochs, optimizer=optimizer, threads=1, options=options)


TRAINED = [
    settings("xrda", lam=3e-4),
    settings("rda", lam=4e-3),
    settings("rmda", 25, lam=5e-3, structure="element", penalty="l1"),
    settings("prox-sgd", 25, lam=3e-3, structure="element", penalty="l1"),
]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("wanted", TRAINED, ids=lambda wanted: wanted.optimizer)
def test_sparse_optimizers_train_to_exact_zeros(digits: DataSource, wanted: TrainSettings) -> None:
    module = mlp()
    records = fit(module, digits, digits.normalization, wanted)
    assert zero_share(module) > 0.5
    assert evaluate(module, digits.test, digits.normalization).value > 0.88
    # The last epoch is kept: zeros become ever more until then.
    assert evaluate(module, digits.val, digits.normalization).value == records[-1].val_value


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("optimizer", "structure", "epochs", "lam"),
    [
        ("xrda", "channel", 10, 3e-4),
        ("xrda", "input-column", 10, 3e-4),
        ("xrda", "channel-group", 10, 3e-4),
        ("rda", "channel", 15, 4e-3),
        ("rda", "channel-group", 15, 3e-3),
        ("rmda", "channel", 25, 6e-3),
        ("rmda", "input-column", 25, 6e-3),
        ("rmda", "channel-group", 25, 4e-3),
        ("prox-sgd", "channel", 10, 4e-3),
        ("prox-sgd", "input-column", 10, 4e-3),
        ("prox-sgd", "channel-group", 10, 3e-3),
    ],
)
def test_whole_groups_vanish(digits: DataSource, optimizer: str, structure: str, epochs: int, lam: float) -> None:
    module = mlp()
    fit(module, digits, digits.normalization, settings(optimizer, epochs, lam=lam, structure=structure))
    weight = module[3].weight.detach()  # 32 hidden units to 32 others
    rows, columns = (weight == 0).all(1), (weight == 0).all(0)
    gone = {"channel": rows, "input-column": columns, "channel-group": rows}[structure]
    assert 0 < gone.sum() < 32
    if structure == "channel-group" and optimizer != "xrda":  # which leaves 1-D parameters alone
        assert (module[3].bias[gone] == 0).all() and (module[5].weight[:, gone] == 0).all()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("wanted", TRAINED, ids=lambda wanted: wanted.optimizer)
def test_sparse_training_goes_on_as_if_it_had_not_stopped(
    digits: DataSource, tmp_path: Path, wanted: TrainSettings
) -> None:
    class Stop(Silent):
        def stage(self, title: str) -> None: ...
        def say(self, message: str) -> None: ...
        def advance(self, done: int, total: int, note: str = "") -> None:
            if done == 40:
                raise KeyboardInterrupt

    whole, stopped, resumed = mlp(), mlp(), mlp(9)
    file = tmp_path / "state"
    expected = fit(whole, digits, digits.normalization, wanted)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, digits, digits.normalization, wanted, Stop(), checkpoint=StateFile(file, {}))
    again = fit(resumed, digits, digits.normalization, wanted, checkpoint=StateFile(file, {}, resume=True))
    assert again == expected
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (settings("adamw", lam=1e-6), "lam: belongs to xrda, rda, rmda, prox-sgd.*, got optimizer adamw"),
        (settings("rmda", tau=9.5), "tau: belongs to xrda, got optimizer rmda"),
        (settings("xrda", penalty="l1"), "penalty: belongs to rda, rmda, prox-sgd, got optimizer xrda"),
        (settings("xrda", lam=0.0), "lam: expected a number above 0, got 0"),
        (settings("xrda", lam=float("nan")), "lam: expected a number above 0, got nan"),
        (settings("xrda", lam="much"), "lam: expected a number above 0, got much"),
        (settings("xrda", structure="row"), "structure: expected one of element, .*, got row"),
        (settings("xrda", speed=1.0), "option speed: expected one of lam, "),
        (settings("prox-sgd", momentum=1.0), "momentum: expected a number at least 0 and below 1, got 1"),
        (settings("rmda", penalty="l1", structure="channel"), "penalty l1: expected structure element, got channel"),
        (TrainSettings(schedule="steps"), "lr-schedule: expected one of cosine, step, constant, got 'steps'"),
    ],
)
def test_options_out_of_place_are_refused(digits: DataSource, wanted: TrainSettings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(mlp(), digits, digits.normalization, wanted)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("schedule", list(SHAPES))
def test_learning_rates_of_sparse_optimizers_only_fall(optimizer: str, schedule: str) -> None:
    wanted = TrainSettings(optimizer=optimizer, schedule=schedule)
    made = make_optimizer(mlp(), wanted, 110)
    steps = make_schedule(made, wanted, 110)
    rates = []
    for _ in range(110):
        rates.append(made.param_groups[0]["lr"] / OPTIMIZERS[optimizer].lr)
        made.step()
        steps.step()
    warmup = 0 if OPTIMIZERS[optimizer].sparse else 6
    assert rates[:warmup] == pytest.approx([(i + 1) / 7 for i in range(warmup)])
    assert rates[warmup] == pytest.approx(1.0)
    assert all(after <= before for before, after in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    end = {"cosine": 0.0, "step": 2**-10, "constant": 1.0}[schedule]
    assert made.param_groups[0]["lr"] == pytest.approx(end * OPTIMIZERS[optimizer].lr, abs=1e-12)
    if schedule == "step" and not warmup:
        assert sorted(set(rates)) == pytest.approx([2.0**-k for k in range(10, -1, -1)])


def test_the_catalog_names_every_optimizer_and_schedule() -> None:
    assert set(catalog.names("optimizer")) == set(OPTIMIZERS)
    assert set(catalog.names("lr-schedule")) == set(SHAPES)
    for entry in catalog.ENTRIES:
        assert entry.summary and entry.produces
        assert set(entry.options) <= set(catalog.OPTIONS)
        if entry.kind == "optimizer":
            assert entry.sparse == OPTIMIZERS[entry.name].sparse
    assert {name for entry in catalog.ENTRIES for name in entry.options} == set(catalog.OPTIONS)


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_trains_to_zeros_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    out = tmp_path / "m.pt"
    command = ["train", "--arch", f"{NETS}:mlp", "--data", "digits", "--epochs", "6", "--threads", "1"]
    xrda = ["--optimizer", "xrda", "--lam", "2e-4", "--tau", "9", "--schedule", "step", "--structure", "element"]
    assert main([*command, *xrda, "--out", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    model = load(out)
    weights = [p for p in model.program.module().parameters() if p.dim() > 1]
    assert [layer["size"] for layer in record["layers"]] == [w.numel() for w in weights]
    assert [layer["zeros"] for layer in record["layers"]] == [int((w == 0).sum()) for w in weights]
    assert record["zero_share"] == pytest.approx(
        sum(layer["zeros"] for layer in record["layers"]) / sum(layer["size"] for layer in record["layers"])
    )
    assert record["zero_share"] > 0.1 and record["best_epoch"] == 6
    training = model.info.training
    assert training is not None
    assert training.schedule == "step" and dict(training.options) == {"lam": 2e-4, "tau": 9.0, "structure": "element"}
    assert main([*command, *xrda, "--out", str(out), "--resume", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["layers"] == record["layers"] and done["zero_share"] == record["zero_share"]
    assert training.for_finetuning() == TrainSettings(epochs=6, lr=1e-3, threads=1)  # finetuning is dense


def test_the_table_tells_the_share_of_zeros(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--arch", f"{NETS}:mlp", "--data", "digits", "--epochs", "1", "--threads", "1"]
    assert main([*command, "--optimizer", "xrda", "--lam", "1e-3", "--out", str(tmp_path / "m.pt")]) == 0
    assert "weights exactly zero" in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "n.pt")]) == 0
    assert "weights exactly zero" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lam", "1e-6"], "lam: belongs to xrda, rda, rmda, prox-sgd"),
        (["--optimizer", "xrda", "--lam", "0"], "'--lam': expected a number above 0, got 0.0"),
        (["--optimizer", "xrda", "--lam", "some"], "'--lam': expected a number above 0, got some"),
        (["--optimizer", "xrda", "--structure", "row"], "'--structure': 'row' is not one of element, kernel"),
        (["--schedule", "linear"], "'--schedule': 'linear' is not one of cosine, step, constant"),
    ],
)
def test_the_command_refuses_what_does_not_belong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    out = tmp_path / "m.pt"
    assert main(["train", "--arch", f"{NETS}:mlp", "--data", "digits", *options, "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err.splitlines()[-1] and not out.exists()


def test_settings_survive_a_checkpoint_and_old_ones_still_load() -> None:
    info = ModelInfo(input_shape=(4,), training=settings("xrda", lam=1e-6, structure="channel"))
    fields = info_to_dict(info)
    assert info_from_dict(fields) == info
    for later in ("schedule", "options"):
        del fields["training"][later]
    assert info_from_dict(fields).training == settings("xrda")
    for bad in ({"lam": -1.0}, {"lam": [1]}, {"lam": float("inf")}, {3: 1.0}, [1]):
        with pytest.raises(InputError, match="expected training's options in its range"):
            info_from_dict({**fields, "training": {**fields["training"], "options": bad}})
    with pytest.raises(InputError, match="expected training's optimizer to be known, got 'lion'"):
        info_from_dict({**fields, "training": {**fields["training"], "optimizer": "lion"}})
