"""Training, evaluation, and the networks in models/digits.py."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from edgeprune.data import normalize
from edgeprune.data.arrays import from_arrays
from edgeprune.errors import InputError, TrainingError
from edgeprune.graph.capture import capture
from edgeprune.progress import Silent
from edgeprune.records import DataSource
from edgeprune.settings import TrainSettings
from edgeprune.training import StateFile, evaluate, fit, predict
from edgeprune.training.optimizer import cosine, lr_factor
from edgeprune.training.team import Team

MODELS = Path(__file__).resolve().parent.parent / "models" / "digits.py"
TWO_EPOCHS = TrainSettings(epochs=2, threads=1)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def zoo():
    spec = importlib.util.spec_from_file_location("digits_zoo", MODELS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_mlp(seed: int = 0, dropout: float = 0.1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 10))


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


class Told(Silent):
    """Progress that remembers."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int, str]] = []

    def stage(self, title: str) -> None: ...

    def say(self, message: str) -> None: ...

    def advance(self, done: int, total: int, note: str = "") -> None:
        self.told.append((done, total, note))

    def measured(self, figures: Mapping[str, float]) -> None: ...


class NanInEval(nn.Module):
    """Good logits in training, NaN afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_mlp()

    def forward(self, x):
        return self.net(x) * (1.0 if self.training else float("nan"))


class RunningMean(nn.Module):
    """Takes off a running mean that it writes itself; `lets_go` of the gradients that it is made of, or does not."""

    def __init__(self, lets_go: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.lets_go = nn.Linear(64, 16), nn.Linear(16, 10), lets_go
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x):
        h = self.first(x.flatten(1)).relu()
        if self.lets_go:
            self.mean = self.mean.detach()
        self.mean = 0.9 * self.mean + 0.1 * h.mean(0)
        return self.last(h - self.mean)


class NanAfter(nn.Module):
    """Logits that become NaN in the `n`-th training step."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.net, self.n = small_mlp(), n

    def forward(self, x):
        self.n -= self.training
        return self.net(x) * (float("nan") if self.n <= 0 else 1.0)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_fit_learns_digits(digits, optimizer):
    module = small_mlp()
    records = fit(module, digits, digits.normalization, TrainSettings(epochs=25, optimizer=optimizer))
    assert [record.epoch for record in records] == list(range(1, 26))
    assert records[-1].loss < 0.3 * records[0].loss
    assert evaluate(module, digits.test, digits.normalization).value > 0.9
    assert not module.training


@pytest.mark.parametrize("make", ["mlp", "cnn"])
def test_the_shipped_networks_train(digits, zoo, make):
    torch.manual_seed(0)
    module = getattr(zoo, make)()
    fit(module, digits, digits.normalization, TrainSettings(epochs={"mlp": 15, "cnn": 5}[make]))
    assert evaluate(module, digits.val, digits.normalization).value > 0.93


def test_a_state_that_a_forward_leaves_is_numbers_to_the_next_one(digits):
    settings = TrainSettings(epochs=2, threads=1, accumulate=2)
    modules = [RunningMean(lets_go) for lets_go in (True, False)]
    for module in modules:
        fit(module, digits, digits.normalization, settings)
    assert equal(state(modules[0]), state(modules[1])) and modules[1].mean.any()


def test_the_same_seed_gives_the_same_weights(digits):
    settings = TrainSettings(epochs=2, seed=5, threads=1)
    modules = [small_mlp() for _ in range(3)]
    first, second = (fit(module, digits, digits.normalization, settings) for module in modules[:2])
    assert first == second
    assert equal(state(modules[0]), state(modules[1]))
    fit(modules[2], digits, digits.normalization, TrainSettings(epochs=2, seed=6, threads=1))
    assert not equal(state(modules[0]), state(modules[2]))


def test_fit_leaves_random_state_and_threads_alone(digits):
    torch.manual_seed(11)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    module = small_mlp()
    torch.set_rng_state(before)
    fit(module, digits, digits.normalization, TrainSettings(epochs=1, threads=threads + 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_the_best_epoch_is_restored(digits):
    module = small_mlp(dropout=0.5)
    # So high a rate that accuracy goes up and down.
    records = fit(module, digits, digits.normalization, TrainSettings(epochs=6, lr=0.2))
    accuracies = [record.val_value for record in records]
    assert len(set(accuracies)) > 1
    assert evaluate(module, digits.val, digits.normalization).value == max(accuracies)


def test_no_epochs_change_nothing(digits):
    module = small_mlp()
    before = state(module)
    assert fit(module, digits, digits.normalization, TrainSettings(epochs=0)) == ()
    assert equal(before, state(module)) and not module.training


def test_an_exported_network_trains_with_its_dropout_and_batch_norm(digits):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2))
    net = nn.Sequential(*net, nn.Linear(32, 10))
    module = capture(net, torch.zeros(2, 1, 8, 8)).module()
    mean_before = next(value.clone() for name, value in module.state_dict().items() if "running_mean" in name)
    fit(module, digits, digits.normalization, TrainSettings(epochs=10))
    mean_after = next(value for name, value in module.state_dict().items() if "running_mean" in name)
    assert not torch.equal(mean_before, mean_after)
    assert evaluate(module, digits.test, digits.normalization).value > 0.9


def test_progress_counts_batches_and_tells_accuracy(digits):
    told = Told()
    fit(small_mlp(), digits, digits.normalization, TrainSettings(epochs=3, batch_size=200), told)
    assert [done for done, _, _ in told.told] == list(range(1, 19))
    assert {total for _, total, _ in told.told} == {18}
    note = told.told[-1][2]
    assert note.startswith("epoch 3/3 loss ") and note.endswith(" %") and " val " in note


@pytest.mark.parametrize(("step", "message"), [(1, "epoch 1, step 1"), (14, "epoch 2, step 5")])
def test_a_loss_that_is_not_a_number_ends_training(digits, step, message):
    with pytest.raises(TrainingError, match=message):
        fit(NanAfter(step), digits, digits.normalization, TrainSettings(epochs=3))


def test_a_validation_loss_that_is_not_a_number_ends_training(digits):
    with pytest.raises(TrainingError, match="validation loss nan after epoch 1"):
        fit(NanInEval(), digits, digits.normalization, TrainSettings(epochs=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            TrainSettings(optimizer="adam"),
            "optimizer: expected one of adamw, sgd, xrda, rda, rmda, prox-sgd, got 'adam'",
        ),
        (TrainSettings(lr=-1.0), "learning rate: expected more than 0"),
        (TrainSettings(lr=float("nan")), "learning rate: expected more than 0"),
        (TrainSettings(lr=1e300), "learning rate: expected at most 1e.30, got 1e.300"),
        (TrainSettings(weight_decay=1e31), "weight decay: expected at most 1e.30, got 1e.31"),
        (TrainSettings(batch_size=0), "batch size: expected more than 0"),
        (TrainSettings(epochs=-1), "epochs: expected 0 or more"),
        (TrainSettings(threads=0), "threads: expected more than 0"),
        (TrainSettings(accumulate=0), "accumulate: expected more than 0"),
        (TrainSettings(workers=-1), "workers: expected 0 or more"),
        (TrainSettings(precision="fp8"), "precision: expected one of fp32, bf16, fp16, got 'fp8'"),
        (TrainSettings(device="tpu"), "device: expected one of auto, cpu, cuda, got 'tpu'"),
        (TrainSettings(precision="fp16", device="cpu"), "precision fp16: expected a GPU to train on, got a CPU"),
    ],
)
def test_settings_out_of_range_are_refused(digits, settings, message):
    with pytest.raises(InputError, match=message):
        fit(small_mlp(), digits, digits.normalization, settings)


def test_weight_decay_spares_biases(digits):
    module = small_mlp()
    biases = [module[1].bias.clone(), module[4].bias.clone()]
    norm = module[1].weight.norm().item()
    # So strong a decay that, at this rate, it is all that a single epoch does to a weight.
    settings = TrainSettings(epochs=1, lr=1e-6, weight_decay=1e4)
    fit(module, digits, digits.normalization, settings)
    assert module[1].weight.norm().item() < 0.97 * norm
    for before, layer in zip(biases, (module[1], module[4]), strict=True):
        assert (layer.bias - before).abs().max() < 1e-4


def test_a_teacher_teaches_what_labels_do_not(digits):
    teacher = small_mlp(1)
    fit(teacher, digits, digits.normalization, TrainSettings(epochs=20))
    before, mode = state(teacher), teacher.train().training
    rng = np.random.default_rng(0)
    x = np.concatenate([x.numpy()[None] for x, _ in digits.train])
    noisy = from_arrays(
        "noisy", {"train": (x, rng.integers(0, 10, len(x))), "val": (x, rng.integers(0, 10, len(x))),
                  "test": (x, rng.integers(0, 10, len(x)))},
    )  # fmt: skip
    settings = TrainSettings(epochs=10, best_from=0.9)  # a best epoch by labels that are noise would be luck
    alone, taught = small_mlp(2), small_mlp(2)
    fit(alone, noisy, digits.normalization, settings)
    fit(taught, noisy, digits.normalization, settings, teacher=teacher)
    scores = [evaluate(module, digits.test, digits.normalization).value for module in (alone, taught)]
    assert scores[0] < 0.3 and scores[1] > 0.7
    assert equal(before, state(teacher)) and teacher.training is mode is True


def test_predict_and_evaluate_agree_and_keep_the_mode(digits):
    module = small_mlp(dropout=0.5).train()
    logits = predict(module, digits.val, digits.normalization, batch_size=100)
    outcome = evaluate(module, digits.val, digits.normalization)
    assert module.training
    assert logits.shape == (359, 10) and logits.dtype == np.float32
    x = normalize(torch.stack([x for x, _ in digits.val]), digits.normalization)
    y = torch.tensor([y for _, y in digits.val])
    with torch.no_grad():
        expected = module.eval()(x)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-5)
    assert outcome.outcomes.tolist() == (expected.argmax(1) == y).tolist()
    assert outcome.loss == pytest.approx(nn.functional.cross_entropy(expected, y).item(), rel=1e-5)


def test_what_does_not_give_logits_is_refused(digits):
    with pytest.raises(InputError, match=r"expected logits \(batch, n_classes\) as output, got \(359, 1, 8, 8\)"):
        evaluate(nn.Identity(), digits.val, digits.normalization)


def test_the_schedule_warms_up_and_ends_at_zero():
    factors = [lr_factor(cosine, step, 100, 5) for step in range(101)]
    assert factors[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])
    assert all(later < earlier for earlier, later in zip(factors[5:], factors[6:], strict=False))
    assert factors[-1] == pytest.approx(0.0)


# -- how it is run -----------------------------------------------------------------------------------------------------


def convolutions(batch_norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    norm = [nn.BatchNorm2d(8)] if batch_norm else []
    return nn.Sequential(nn.Conv2d(1, 8, 3), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))


def trained(module: nn.Module, data: DataSource, **settings: object) -> dict[str, torch.Tensor]:
    settings = {"epochs": 2, "optimizer": "sgd", "threads": 1, **settings}
    fit(module, data, data.normalization, TrainSettings(**settings))
    return state(module)


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max((value - second[name]).abs().max().item() for name, value in first.items())


def test_a_part_of_a_training_has_its_epochs_and_learning_rates(digits, monkeypatch):
    rates: list[float] = []

    def stepped(optimizer, *args, **kwargs):
        rates.append(optimizer.param_groups[0]["lr"])
        return plain(optimizer, *args, **kwargs)

    plain = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    settings = TrainSettings(epochs=4, lr=1e-2, batch_size=256)
    whole, _ = trained_part(digits, settings, rates, None)
    first, epochs = trained_part(digits, settings, rates, (0, 1))
    rest, further = trained_part(digits, settings, rates, (1, 4))
    assert first + rest == pytest.approx(whole) and len(first) * 3 == len(rest)
    assert [record.epoch for record in epochs + further] == [1, 2, 3, 4]


def trained_part(digits, settings, rates, part):
    rates.clear()
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    records = fit(module, digits, digits.normalization, settings, part=part)
    return list(rates), records


@pytest.mark.parametrize("parts", [3, 1000])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(digits, parts):
    whole = trained(convolutions().double(), digits, batch_size=180)
    # 1,079 samples: the last batch holds 179, so that no two parts need be of one size.
    assert largest_difference(whole, trained(convolutions().double(), digits, batch_size=180, accumulate=parts)) < 1e-12


def test_no_part_of_a_batch_is_too_small_for_batch_norm(digits):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    assert all(value.isfinite().all() for value in trained(module, digits, batch_size=5, accumulate=4).values())


def test_channels_last_changes_no_weight_and_ends_as_it_began(digits):
    module = convolutions(batch_norm=True).double()
    plain = trained(convolutions(batch_norm=True).double(), digits)
    assert largest_difference(trained(module, digits, channels_last=True), plain) < 1e-9
    assert all(value.is_contiguous() for value in module.state_dict().values())


def test_channels_last_needs_images(digits):
    table = from_arrays("table", {"all": (np.random.default_rng(0).normal(size=(50, 4)), np.arange(50) % 2)})
    with pytest.raises(InputError, match=r"channels last: expected images .*, got inputs of shape \(4,\)"):
        fit(nn.Linear(4, 2), table, table.normalization, TrainSettings(epochs=1, channels_last=True))


def test_half_precision_learns_with_weights_of_full_precision(digits):
    module, seen = small_mlp(), []
    module[1].register_forward_hook(lambda layer, args, output: seen.append((layer.training, output.dtype)))
    records = fit(module, digits, digits.normalization, TrainSettings(epochs=8, precision="bf16"))
    assert records[-1].val_value > 0.85
    assert set(seen) == {(True, torch.bfloat16), (False, torch.float32)}  # what is kept is measured as it is shipped
    assert {value.dtype for value in module.state_dict().values()} == {torch.float32}
    full = fit(small_mlp(), digits, digits.normalization, TrainSettings(epochs=8))
    assert records != full and records[-1].val_value == pytest.approx(full[-1].val_value, abs=0.05)


class Read(Dataset):
    """Samples that come one by one, as from files; the last one may be damaged."""

    def __init__(self, split, damaged: bool = False) -> None:
        self.split, self.damaged = split, damaged

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int):
        if self.damaged and index == len(self) - 1:
            raise InputError("sample 1078: expected an image, got a damaged one")
        return self.split[index]


def test_workers_read_the_same_samples(digits):
    read = DataSource(**{**{name: getattr(digits, name) for name in digits.__slots__}, "train": Read(digits.train)})
    assert equal(trained(small_mlp(), read, workers=2), trained(small_mlp(), digits))


def test_what_a_worker_cannot_read_is_told_as_it_is(digits):
    train = Read(digits.train, damaged=True)
    read = DataSource(**{**{name: getattr(digits, name) for name in digits.__slots__}, "train": train})
    with pytest.raises(
        InputError, match=r"InputError: sample 1078: expected an image, got a damaged one \(at .*py:\d+"
    ):
        trained(small_mlp(), read, workers=1)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_training_that_stopped_goes_on_as_if_it_had_not(digits, tmp_path, optimizer):
    settings = TrainSettings(epochs=5, optimizer=optimizer, threads=1)
    whole = small_mlp(dropout=0.3)
    expected = fit(whole, digits, digits.normalization, settings)
    file = tmp_path / "state"

    class Stop(Told):
        def advance(self, done: int, total: int, note: str = "") -> None:
            if done == 22:
                raise KeyboardInterrupt

    stopped = small_mlp(dropout=0.3)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, digits, digits.normalization, settings, Stop(), checkpoint=StateFile(file, {"net": "mlp"}))
    resumed = small_mlp(seed=9, dropout=0.3)
    told = Told()
    records = fit(
        resumed, digits, digits.normalization, settings, told, checkpoint=StateFile(file, {"net": "mlp"}, resume=True)
    )
    assert records == expected and equal(state(whole), state(resumed))
    assert told.told[0][0] == 19  # two epochs of nine steps were done
    with pytest.raises(InputError, match="state of another training; net: expected 'cnn', got 'mlp'"):
        fit(resumed, digits, digits.normalization, settings, checkpoint=StateFile(file, {"net": "cnn"}, resume=True))


@pytest.fixture(scope="module")
def unfinished(digits, tmp_path_factory):
    """What a training leaves behind that was stopped in its second epoch."""

    class Stop(Told):
        def advance(self, done: int, total: int, note: str = "") -> None:
            if done == 13:
                raise KeyboardInterrupt

    file = tmp_path_factory.mktemp("unfinished") / "state"
    with pytest.raises(KeyboardInterrupt):
        fit(small_mlp(), digits, digits.normalization, TWO_EPOCHS, Stop(), checkpoint=StateFile(file, {}))
    return file.read_bytes()


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("weights", "1.bias"), torch.zeros(3), "1.bias"),
        (("best",), ((0.5, 0.1), {"\x1b[2J": torch.zeros(3)}), r"best\[1\]: expected"),
        (("optimizer", "param_groups", 0, "lr"), "high", r"optimizer\[0\].lr: expected 0"),
        (
            ("optimizer", "state"),
            {0: {"exp_avg": torch.zeros(3)}},
            r"optimizer.exp_avg: expected \(32, 64\), got \(3,\)",
        ),
        (("schedule", "last_epoch"), math.inf, "schedule.last_epoch: expected 0, got inf"),
        (("schedule", "x" * 10**6), 1, "schedule: expected"),
        (("records",), [(1, math.nan, 0.1, 0.1, None)], r"records\[1\]: expected 0.0, got nan"),
        (("epoch",), 10**400, "1 records of"),
    ],
)
def test_a_state_that_this_training_would_not_write_is_refused(digits, tmp_path, unfinished, path, value, told):
    content = torch.load(io.BytesIO(unfinished), weights_only=True)
    inner = content
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    file = tmp_path / "state"
    torch.save(content, file)
    with pytest.raises(InputError, match=f"got a damaged one: .*{told}"):
        fit(small_mlp(), digits, digits.normalization, TWO_EPOCHS, checkpoint=StateFile(file, {}, resume=True))


def test_a_state_of_processes_of_an_earlier_version_is_told_as_such(tmp_path: Path) -> None:
    file, state = StateFile(tmp_path / "state", {}), {"random": torch.zeros(2, 5, dtype=torch.uint8)}
    with pytest.raises(InputError, match=r"state: expected a state of this version, got one .* of an earlier version"):
        file.check_random(state, (2, 5), torch.device("cpu"))
    file.check_random({**state, "drawn": torch.zeros(1)}, (2, 5), torch.device("cpu"))
    file.check_random({"random": state["random"][:1]}, (1, 5), torch.device("cpu"))


def test_an_optimizer_without_a_scale_is_stepped_itself() -> None:
    """The one around it would look for a package on the disk twice a step."""
    team = Team(TrainSettings(device="cpu"))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    assert team.scaler is None and team.optimizer(optimizer) is optimizer
