"""`edgeprune train` for each task, from the files to the checkpoint: what is learnt, told and refused."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from edgeprune.cli.app import app
from edgeprune.data import open_data
from edgeprune.formats.load import load
from edgeprune.graph.capture import capture
from edgeprune.graph.groups import analyze
from edgeprune.importance import score
from edgeprune.pruning.planner import plan
from edgeprune.settings import TrainSettings
from edgeprune.tasks.match import Match
from edgeprune.tasks.regression import Regression
from edgeprune.training import Judge, evaluate, fit

NETS = """
import torch
from torch import nn

class Shifted(nn.Module):
    def __init__(self, n_in, n_out, mean, std):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n_in, 24), nn.ReLU(), nn.Linear(24, n_out))
        self.mean, self.std = mean, std
    def forward(self, x):
        return self.net(x) * self.std + self.mean

def table(n_in=10, n_out=1, mean=152.0, std=77.0):
    return Shifted(n_in, n_out, mean, std)

def flags():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))

def pixels(n_classes=2):
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, n_classes, 3, padding=1)
    )

def classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = classes()
    def forward(self, x):
        return {"scores": self.inner(x)}

def named():
    return Named()
"""
TASK = """
import numpy as np, torch
from types import SimpleNamespace

class Quantile:
    metric = SimpleNamespace(name="pinball", unit="", scale=1.0, higher_is_better=False)
    def __init__(self, q):
        self.q = q
    def loss(self, outputs, targets):
        off = targets - outputs[:, 0]
        return torch.maximum(self.q * off, (self.q - 1) * off).mean()
    def outcomes(self, outputs, targets):
        off = targets - outputs[:, 0]
        return torch.maximum(self.q * off, (self.q - 1) * off)
    def value(self, outcomes):
        return float(np.mean(outcomes))

def quantile(q=0.5):
    return Quantile(q)

class Odd(Quantile):
    def loss(self, outputs, targets):
        return super().loss(outputs, targets) * float("nan")

def odd():
    return Odd(0.5)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "nets.py").write_text(NETS)
    (folder / "tasks.py").write_text(TASK)
    from sklearn.datasets import load_diabetes, load_digits

    diabetes = load_diabetes(as_frame=True)
    diabetes.frame.to_csv(folder / "diabetes.csv", index=False)
    digits = load_digits()
    images = digits.images.astype(np.float32)[:, None]
    masks = (digits.images > 8).astype(np.uint8)
    masks[:, 0, 0] = 255  # nobody knows
    np.savez(folder / "masks.npz", x=images, y=masks)
    bits = (digits.target[:, None] >> np.arange(4)) & 1
    np.savez(folder / "flags.npz", x=images, y=bits, class_names=np.array(["one", "two", "four", "eight"]))
    np.savez(folder / "none.npz", x=images[:200])
    return folder


def train(place, *arguments: str, expect: int = 0):
    out = place / "model.pt"
    command = ["train", "--out", str(out), "--force", "--threads", "1", *arguments]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == expect, found.output
    return found


def told(place, *arguments: str) -> dict:
    return json.loads(train(place, *arguments, "--json").stdout)


def test_regression_of_a_table(place):
    arguments = ["--arch", f"{place}/nets.py:table", "--data", f"csv:{place}/diabetes.csv?target=target"]
    record = told(place, *arguments, "--epochs", "40")
    assert record["metric"] == {"name": "MAE", "unit": "", "scale": 1.0, "higher_is_better": False}
    assert record["test_MAE"] < 55 and "accuracy" not in json.dumps(record)  # 66 is what the mean gives
    values = [epoch["val_MAE"] for epoch in record["epochs"]]
    assert record["val_MAE"] == values[record["best_epoch"] - 1] == min(values)
    assert all(epoch["train_MAE"] > 0 for epoch in record["epochs"])
    beside = {figure["name"]: figure["value"] for figure in record["beside"]}
    data, model = open_data(f"csv:{place}/diabetes.csv?target=target"), load(place / "model.pt")
    assert model.info.classes == () and model.info.task is None
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    x = (data.test.x - torch.tensor(model.info.normalization.mean)) / torch.tensor(model.info.normalization.std)
    got, want = model.program.module()(x)[:, 0].detach().numpy(), data.test.y.numpy()
    assert record["test_MAE"] == pytest.approx(mean_absolute_error(want, got), rel=1e-5)
    assert beside["R2"] == pytest.approx(r2_score(want, got), abs=1e-5)
    assert beside["RMSE"] == pytest.approx(root_mean_squared_error(want, got), rel=1e-5)


def test_the_terminal_speaks_the_metrics_name(place):
    arguments = ["--arch", f"{place}/nets.py:table", "--data", f"csv:{place}/diabetes.csv?target=target"]
    found = train(place, *arguments, "--epochs", "1", "--task", "regression?unit=mg/dl")
    assert "validation MAE" in found.stdout and "mg/dl" in found.stdout and "test R2" in found.stdout
    assert "accuracy" not in found.output and "assumed: --task" not in found.output
    assert load(place / "model.pt").info.task == "regression?unit=mg/dl"


def test_whole_numbers_are_values_where_a_regression_is_asked_for(place):
    rows = "".join(f"{i % 7},{i % 5},{3 * (i % 7) - 2 * (i % 5)}\n" for i in range(200))
    (place / "whole.csv").write_text("a,b,y\n" + rows)
    arguments = [
        "--arch",
        f"{place}/nets.py:table?n_in=2&mean=5.0&std=7.0",
        "--data",
        f"csv:{place}/whole.csv?target=y",
    ]
    assert told(place, *arguments, "--epochs", "30", "--task", "regression", "--lr", "0.01")["test_MAE"] < 2


def test_segmentation_of_images(place):
    arguments = [
        "--arch",
        f"{place}/nets.py:pixels",
        "--data",
        f"npz:{place}/masks.npz",
        "--epochs",
        "5",
        "--lr",
        "0.02",
    ]
    record = told(place, *arguments)
    assert record["test_mIoU"] > 0.8 and record["metric"]["unit"] == "points"
    single = told(place, *arguments, "--arch", f"{place}/nets.py:pixels?n_classes=1")
    assert single["test_mIoU"] > 0.8


def test_multilabel(place):
    arguments = [
        "--arch",
        f"{place}/nets.py:flags",
        "--data",
        f"npz:{place}/flags.npz",
        "--epochs",
        "3",
        "--lr",
        "0.01",
    ]
    found = train(place, *arguments)
    assert "assumed: --task multilabel, as the targets are" in found.output and "test mAP" in found.stdout
    assert load(place / "model.pt").info.classes == ("one", "two", "four", "eight")
    assert told(place, *arguments)["test_mAP"] > 0.8


def test_a_task_of_the_users_own(place):
    arguments = ["--arch", f"{place}/nets.py:table", "--data", f"csv:{place}/diabetes.csv?target=target"]
    high = told(place, *arguments, "--epochs", "60", "--lr", "0.01", "--task", f"{place}/tasks.py:quantile?q=0.9")
    assert 0 < high["test_pinball"] < 40 and high["epochs"][0]["train_pinball"] is None
    data, model = open_data(f"csv:{place}/diabetes.csv?target=target"), load(place / "model.pt")
    x = (data.train.x - torch.tensor(model.info.normalization.mean)) / torch.tensor(model.info.normalization.std)
    below = (data.train.y < model.program.module()(x)[:, 0]).float().mean()
    assert below > 0.75, "a high quantile is above most"


def test_one_output_in_a_dict_is_taken(place):
    record = told(place, "--arch", f"{place}/nets.py:named", "--data", "digits", "--epochs", "4", "--lr", "0.01")
    assert record["test_accuracy"] > 0.85 and "metric" not in record and "beside" not in record


@pytest.mark.parametrize(
    ("arch", "data", "task", "message"),
    [
        ("table?n_out=2", "csv:{}/diabetes.csv?target=target", None, r"like the targets, (batch), got (4, 2) float32"),
        ("table", "csv:{}/diabetes.csv?target=target", "classification", "expected ints or strings as classes"),
        ("pixels?n_classes=3", "npz:{}/flags.npz", None, "(batch, n_labels), a logit for each label, got (4, 3, 8, 8)"),
        ("classes", "npz:{}/masks.npz", None, "scores of each pixel's classes, got (4, 10) float32"),
        ("classes", "npz:{}/none.npz", None, "expected targets to train for, got none"),
        ("classes", "digits", "match", "expected targets to train for, got the task match"),
        ("classes", "digits", "regression", "task regression: expected floats as targets, got class labels"),
        ("classes", "digits", "pose", "task: expected classification, multilabel"),
        ("table", "csv:{}/diabetes.csv?target=target", "{}/tasks.py:odd", "loss: expected a finite number for finite"),
        ("table", "csv:{}/diabetes.csv?target=target", "{}/tasks.py:none", "expected a function 'none'"),
        ("pixels", "digits", None, "expected a network with one output (batch, 10)"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(place, arch, data, task, message):
    arguments = ["--arch", f"{place}/nets.py:{arch}", "--data", data.format(place)]
    more = [] if task is None else ["--task", task.format(place)]
    found = train(place, *arguments, *more, expect=2)
    assert message in found.output.replace("\n", " "), found.output
    assert "epoch" not in found.output


def test_a_training_that_is_resumed_is_of_the_same_task(place):
    arguments = [
        "--arch",
        f"{place}/nets.py:table",
        "--data",
        f"csv:{place}/diabetes.csv?target=target",
        "--epochs",
        "1",
    ]
    whole = told(place, *arguments)
    command = ["train", "--out", str(place / "model.pt"), "--threads", "1", "--resume", *arguments]
    again = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert again["test_MAE"] == whole["test_MAE"] and again["beside"] == whole["beside"]
    other = CliRunner().invoke(app, [*command, "--task", f"{place}/tasks.py:quantile"])
    assert other.exit_code == 2 and "this is the network of another training" in other.output


# -- the parts that a search goes through ------------------------------------------------------------------------------


def linear(n_out: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, n_out))


@pytest.fixture
def unlabelled(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32))
    return open_data(f"npz:{tmp_path / 'x.npz'}")


def test_a_network_is_drawn_to_the_dense_ones_answers_without_any_targets(unlabelled):
    dense, slim = linear().eval(), linear()
    with torch.no_grad():
        slim[0].weight[:4] = 0
    judge = Judge(Match(), unlabelled.normalization, dense)
    assert judge.evaluation(dense, unlabelled.test).value == 1
    before = judge.evaluation(slim, unlabelled.test)
    records = fit(
        slim, unlabelled, unlabelled.normalization, TrainSettings(epochs=20, lr=0.01), teacher=dense, task=Match()
    )
    after = judge.evaluation(slim, unlabelled.test)
    assert before.value + 0.02 < after.value and records[-1].metric == "agreement"
    found = Match().compare(judge.evaluation(dense, unlabelled.test).outcomes, after.outcomes)
    assert found.drop == pytest.approx(100 * (1 - after.value)) and found.drop_interval[0] > 0


def test_who_is_to_answer_as_the_dense_network_trains_without_dropout(unlabelled):
    """The dense network itself learns nothing then, as a class and as a graph; what learns classes does drop."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 8), nn.AlphaDropout(0.5), nn.Linear(8, 4)).eval()
    graph = capture(dense, torch.randn(2, 6)).own_module()
    for module in (copy.deepcopy(dense), graph):
        settings = TrainSettings(epochs=1, lr=0.01, weight_decay=0.0)
        [epoch] = fit(module, unlabelled, unlabelled.normalization, settings, teacher=dense, task=Match())
        assert epoch.loss == 0 and epoch.val_value == 1
        assert all(torch.equal(*pair) for pair in zip(module.parameters(), dense.parameters(), strict=True))
    labelled = open_data("digits")
    wide = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)).eval()
    losses = []
    for rate in (0.5, 0.0):
        wide[1].p = rate
        module = capture(wide, torch.randn(2, 1, 8, 8)).own_module()
        [epoch] = fit(module, labelled, labelled.normalization, TrainSettings(epochs=1, lr=1e-6))
        losses.append(epoch.loss)
    assert losses[0] != losses[1]


def test_the_best_epoch_of_an_error_is_the_one_with_the_least(tmp_path):
    x = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x, y=x[:, :3] * 100)
    data = open_data(f"npz:{tmp_path / 'a.npz'}")
    task = Regression(data.targets.spread)
    net = linear()
    records = fit(net, data, data.normalization, TrainSettings(epochs=12, lr=0.3), task=task)
    values = [record.val_value for record in records]
    assert evaluate(net, data.val, data.normalization, task).value == min(values)
    assert min(values) != values[-1] or values == sorted(values, reverse=True)


def test_taylor_scores_go_by_the_task():
    program = capture(linear().eval(), torch.zeros(2, 6))
    graph, x = analyze(program), torch.randn(64, 6)
    answers = program.module()(x).detach()
    batches = [(x[i : i + 16], answers[i : i + 16]) for i in range(0, 64, 16)]
    (matched,) = score(program, graph, "taylor", batches=batches, task=Match())
    (flat,) = score(program, graph, "taylor", batches=batches, task=Regression())
    assert (matched > 0).sum() > 8 and not flat.any(), "the loss of a network's own answers has no gradient"
    shifted = [(x, y + 1) for x, y in batches]
    (regressed,) = score(program, graph, "taylor", batches=shifted, task=Regression())
    assert regressed.any() and plan(program, graph, 0.5, "taylor", 1, batches=batches, task=Match()).groups
