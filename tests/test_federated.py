"""Federated sparse training: densities, masks, averages, messages, splits, and rounds in one process."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgeprune
from edgeprune.cli.app import main
from edgeprune.commands.federate import federate
from edgeprune.errors import InputError, TrainingError
from edgeprune.federated.averaging import averaged
from edgeprune.federated.erk import densities, random_masks
from edgeprune.federated.masks import Global, initial, largest, moved_share, put, readjusted, state_of
from edgeprune.federated.messages import Order, Reply, Update, packed, size_bytes, unpacked
from edgeprune.federated.server import chosen, merged, order_of
from edgeprune.federated.split import dirichlet, even
from edgeprune.progress import Silent
from edgeprune.requests import FederateRequest
from edgeprune.settings import FederatedSettings

MLP = "models/mlp.py:mlp?hidden=32,32&n_inputs=64"
QUICK = FederatedSettings(clients=8, per_round=4, rounds=6, alpha=0.5, readjust_every=2, lr=0.1)


class Told(Silent):
    """Keeps the lines that stay."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


# -- densities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8, 0.95, 0.999])
@pytest.mark.parametrize(
    "shapes",
    [
        {"a": (300, 784), "b": (100, 300), "c": (10, 100)},
        {"conv": (64, 3, 3, 3), "wide": (512, 512, 3, 3), "head": (10, 512)},
        {"only": (7, 5)},
        {"one": (1, 1), "two": (40, 40)},
    ],
)
def test_densities_give_the_sparsity_of_all_layers_together(
    shapes: dict[str, tuple[int, ...]], sparsity: float
) -> None:
    found, total = densities(shapes, sparsity), sum(math.prod(shape) for shape in shapes.values())
    kept = sum(found[name] * math.prod(shape) for name, shape in shapes.items())
    least = sum(math.prod(shape) for name, shape in shapes.items() if found[name] == 1)
    assert kept == pytest.approx(max((1 - sparsity) * total, least))
    assert all(0 < density <= 1 for density in found.values())
    below = [(found[name], sum(shape) / math.prod(shape)) for name, shape in shapes.items() if found[name] < 1]
    ratios = [density / raw for density, raw in below]
    assert ratios == pytest.approx([ratios[0]] * len(ratios) if ratios else [])


def test_masks_keep_so_many_of_each_layer_and_one_at_least() -> None:
    shapes = {"a": (300, 784), "c": (10, 100), "tiny": (1, 2)}
    masks = random_masks(shapes, 0.99999, seed=3)
    for name, density in densities(shapes, 0.99999).items():
        assert masks[name].sum() == max(1, round(density * math.prod(shapes[name])))
        assert masks[name].shape == shapes[name]
    assert not torch.equal(masks["a"], random_masks(shapes, 0.99999, seed=4)["a"])


# -- masks --------------------------------------------------------------------------------------------------------


def test_the_smallest_weights_make_place_for_the_largest_gradients() -> None:
    weight = torch.tensor([[5.0, -1.0, 3.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, False, False, False]])
    gradient = torch.tensor([[9.0, 0.0, 0.0, 0.1, -7.0, 2.0]])
    found = readjusted({"w": weight}, {"w": mask}, {"w": gradient}, share=0.4)
    assert found["w"].tolist() == [[True, False, True, False, True, False]]
    assert mask.tolist() == [[True, True, True, False, False, False]], "the masks that went in stay what they were"


def test_fewer_and_fewer_weights_move_and_none_at_the_end() -> None:
    shares = [moved_share(number, 8, 0.3) for number in range(1, 11)]
    assert shares[0] == 0.3
    assert shares == sorted(shares, reverse=True)
    assert shares[7:] == [0, 0, 0]


def test_of_the_candidates_the_largest_stay() -> None:
    state = {"w": torch.tensor([1.0, -4.0, 9.0, 2.0, 3.0])}
    candidates = {"w": torch.tensor([True, True, False, True, True])}
    like = {"w": torch.tensor([True, True, False, False, False])}
    assert largest(state, candidates, like)["w"].tolist() == [False, True, False, False, True]


def test_tied_weights_are_trained_and_sent_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.second = nn.Linear(6, 6)
            self.second.weight = self.first.weight

    module = Tied()
    network = initial(module, 0.5, seed=0)
    assert set(network.state) == {"first.weight", "first.bias", "second.bias"}
    put(module, network.state)
    assert int((module.second.weight != 0).sum()) == 18


# -- averages -----------------------------------------------------------------------------------------------------


def update_of(values: list[float], mask: list[bool], n_samples: int) -> Update:
    own = torch.tensor(mask)
    state = {"w": torch.tensor(values) * own, "bias": torch.tensor([values[0]])}
    return Update(Global(state, {"w": own}), n_samples, 0.0)


def test_a_weight_is_the_mean_over_those_that_have_it() -> None:
    like = Global({"w": torch.zeros(4), "bias": torch.zeros(1)}, {"w": torch.tensor([True, True, False, False])})
    updates = [update_of([1.0, 8.0, 0, 0], [True, True, False, False], 1)]
    updates.append(update_of([5.0, 0, -6.0, 0], [True, False, True, False], 3))
    found = averaged(updates, like)
    assert found.state["w"].tolist() == [0.0, 8.0, -6.0, 0.0], "1 * 1 + 3 * 5 over 4 is 4, the third largest of two"
    assert found.masks["w"].tolist() == [False, True, True, False]
    assert found.state["bias"].tolist() == [4.0]


def test_without_masks_it_is_federated_averaging() -> None:
    module = small_net()
    like = initial(module, 0.0, seed=0)
    states = [{name: torch.randn_like(own) for name, own in like.state.items()} for _ in range(3)]
    found = averaged([Update(Global(own, {}), n, 0.0) for own, n in zip(states, (5, 2, 3), strict=True)], like)
    for name in like.state:
        wanted = 0.5 * states[0][name] + 0.2 * states[1][name] + 0.3 * states[2][name]
        assert torch.allclose(found.state[name], wanted, atol=1e-6)


def test_what_all_agree_on_stays_to_the_bit() -> None:
    network = initial(small_net(), 0.7, seed=1)
    found = averaged([Update(network, n, 0.0) for n in (3, 7, 11, 13)], network)
    assert all(torch.equal(found.state[name], own) for name, own in network.state.items())
    assert all(torch.equal(found.masks[name], own) for name, own in network.masks.items())


# -- messages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_what_is_packed_comes_out_the_same(sparsity: float) -> None:
    network = initial(small_net(), sparsity, seed=2)
    found = unpacked(packed(network), initial(small_net(), sparsity, seed=5))
    assert all(torch.equal(found.state[name], own) for name, own in network.state.items())
    assert all(torch.equal(found.masks[name], own) for name, own in network.masks.items())


def test_bytes_are_those_of_the_weights_that_are_in_and_a_bit_for_each_place() -> None:
    network = initial(small_net(), 0.5, seed=2)
    n_kept = sum(int(mask.sum()) for mask in network.masks.values())
    n_dense = sum(own.numel() for name, own in network.state.items() if name not in network.masks)
    n_bits = sum(-(-mask.numel() // 8) for mask in network.masks.values())
    assert n_kept == pytest.approx((36 + 48) / 2, abs=1)
    assert size_bytes(packed(network, with_masks=False)) == 4 * (n_kept + n_dense)
    assert size_bytes(packed(network)) == 4 * (n_kept + n_dense) + n_bits


Damage = Callable[[dict[str, np.ndarray]], None]


def with_nan(arrays: dict[str, np.ndarray]) -> None:
    arrays["4.bias"] = np.array([0, np.nan, 0], dtype=np.float32)


def with_infinity(arrays: dict[str, np.ndarray]) -> None:
    arrays["4.weight"] = np.full_like(arrays["4.weight"], np.inf)


def with_another_shape(arrays: dict[str, np.ndarray]) -> None:
    arrays["4.weight"] = arrays["4.weight"][:-1]


def with_another_type(arrays: dict[str, np.ndarray]) -> None:
    arrays["4.bias"] = arrays["4.bias"].astype(np.float64)


def with_a_fuller_mask(arrays: dict[str, np.ndarray]) -> None:
    arrays["4.weight#mask"] = np.full_like(arrays["4.weight#mask"], 255)


def with_a_shorter_mask(arrays: dict[str, np.ndarray]) -> None:
    arrays["4.weight#mask"] = arrays["4.weight#mask"][:-1]


def with_a_mask_of_floats(arrays: dict[str, np.ndarray]) -> None:
    arrays["4.weight#mask"] = arrays["4.weight#mask"].astype(np.float32)


def without_a_tensor(arrays: dict[str, np.ndarray]) -> None:
    del arrays["0.bias"]


def with_another_tensor(arrays: dict[str, np.ndarray]) -> None:
    arrays["9.bias"] = arrays["0.bias"]


DAMAGES: dict[Damage, str] = {
    with_nan: "4.bias: expected finite numbers, got NaN or infinity",
    with_infinity: "4.weight: expected finite numbers",
    with_another_shape: r"4.weight: expected float32 \(\d+,\), got float32",
    with_another_type: "4.bias: expected float32",
    with_a_fuller_mask: "mask of 4.weight: expected one that keeps",
    with_a_shorter_mask: "mask of 4.weight: expected 6 bytes",
    with_a_mask_of_floats: "mask of 4.weight: expected 6 bytes, got float32",
    without_a_tensor: "0.bias: expected it",
    with_another_tensor: "9.bias: expected no such array",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_reply_that_cannot_be_used_is_left_out_and_the_round_goes_on(damage: Damage) -> None:
    network = initial(small_net(), 0.5, seed=2)
    arrays = packed(network)
    damage(arrays)
    with pytest.raises(InputError, match=DAMAGES[damage]):
        unpacked(arrays, network)
    good = Reply("good", packed(network), 4, 1.0)
    found = merged(network, [Reply("bad", arrays, 4, 1.0), good])
    assert (found.n_taken, found.loss) == (1, 1.0)
    assert len(found.left_out) == 1 and found.left_out[0].startswith("client bad: ")
    assert all(torch.equal(found.network.state[name], own) for name, own in network.state.items())


@pytest.mark.parametrize(
    "reply",
    [
        Reply("1", problem="left in mid-round"),
        Reply("1", {}, n_samples=0),
        Reply("1", {}, n_samples=-3),
        Reply("1", {}, n_samples=5, loss=math.nan),
    ],
)
def test_without_a_reply_that_can_be_used_the_network_stays(reply: Reply) -> None:
    network = initial(small_net(), 0.5, seed=2)
    found = merged(network, [reply])
    assert (found.n_taken, found.loss, len(found.left_out)) == (0, None, 1)
    assert found.network is network


# -- splits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1e-300, 0.01, 0.1, 1.0, 100.0, 1e12])
def test_each_sample_is_one_clients_and_clients_have_as_many(alpha: float) -> None:
    labels = np.random.default_rng(0).choice(10, size=997, p=np.arange(1, 11) / 55)
    parts = dirichlet(labels, 20, alpha, seed=1)
    assert sorted(np.concatenate(parts)) == list(range(997))
    assert {len(part) for part in parts} == {49, 50}


def test_the_smaller_alpha_the_fewer_classes_a_client_has() -> None:
    labels = np.arange(4000) % 10

    def mean_classes(alpha: float) -> float:
        return float(np.mean([len(np.unique(labels[part])) for part in dirichlet(labels, 20, alpha, seed=2)]))

    assert mean_classes(0.01) < 2.5 < mean_classes(1.0) < 10.5
    assert mean_classes(1000.0) > 9.5


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_alpha_must_be_above_zero(alpha: float) -> None:
    with pytest.raises(InputError, match="--alpha: expected a number above 0"):
        dirichlet(np.arange(100) % 10, 4, alpha, seed=0)


def test_an_even_split_takes_each_sample_once() -> None:
    parts = even(103, 10, seed=0)
    assert sorted(np.concatenate(parts)) == list(range(103))
    with pytest.raises(InputError, match="--clients: expected at most 51, two samples for each, got 52"):
        even(103, 52, seed=0)


# -- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsity": 1.0}, "--sparsity: expected a share of at least 0 and below 1, got 1"),
        ({"sparsity": -0.1}, "--sparsity"),
        ({"sparsity": math.nan}, "--sparsity"),
        ({"alpha": 0.0}, "--alpha: expected a number above 0, got 0"),
        ({"alpha": math.inf}, "--alpha"),
        ({"per_round": 9}, "--per-round: expected at most the number of clients, 8, got 9"),
        ({"rounds": 0}, "--rounds"),
        ({"lr": 0.0}, "--lr"),
        ({"leaving": 1.0}, "--leaving"),
        ({"momentum": 1.0}, "--momentum"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(QUICK, **change).check()  # type: ignore[arg-type]


def test_clients_are_drawn_anew_in_each_round() -> None:
    drawn = [tuple(chosen(range(20), 5, number, seed=0)) for number in range(1, 30)]
    assert len(set(drawn)) > 20
    assert {one for own in drawn for one in own} == set(range(20))
    assert all(len(set(own)) == 5 for own in drawn)


def test_masks_move_every_few_rounds_of_the_first_three_quarters() -> None:
    network = initial(small_net(), 0.5, seed=2)
    settings = replace(QUICK, rounds=20, readjust_every=5)
    moving = [number for number in range(1, 21) if order_of(network, number, settings).moved > 0]
    assert moving == [5, 10]
    assert not any(order_of(Global(network.state, {}), number, settings).moved for number in range(1, 21))


# -- rounds -------------------------------------------------------------------------------------------------------


def request_of(out: Path, settings: FederatedSettings = QUICK) -> FederateRequest:
    return FederateRequest(MLP, "digits", str(out), settings, threads=1)


def test_a_network_is_trained_and_compress_reads_it(tmp_path: Path) -> None:
    settings = replace(QUICK, clients=4, rounds=5, alpha=10.0, local_epochs=3, batch_size=16, lr=0.3)
    record = federate(request_of(tmp_path / "model.pt", settings))
    assert record.test_value > 0.5
    assert record.zero_share == pytest.approx(0.8, abs=0.001)
    assert [one.n_taken for one in record.rounds] == [4] * 5
    model = edgeprune.load_model(str(tmp_path / "model.pt"))
    assert model.info.data == "digits" and model.info.training is None
    weights = [own for own in model.program.state_dict.values() if own.dim() > 1]
    zeros = sum(int((own == 0).sum()) for own in weights) / sum(own.numel() for own in weights)
    assert zeros == pytest.approx(record.zero_share)
    sizes = [b.uploaded_bytes - a.uploaded_bytes for a, b in zip(record.rounds, record.rounds[1:], strict=False)]
    n_bits = sum(-(-own.numel() // 8) for own in weights)
    quiet = record.rounds[0].uploaded_bytes
    assert set(sizes) == {quiet, quiet + 4 * n_bits}, "masks are sent in the rounds in which they move, alone"


def test_the_same_seed_gives_the_same_network(tmp_path: Path) -> None:
    settings = replace(QUICK, rounds=1, leaving=0.3)
    records = [federate(request_of(tmp_path / f"{name}.pt", settings)) for name in "ab"]
    states = [edgeprune.load_model(record.out).program.state_dict for record in records]
    assert records[0].rounds == records[1].rounds
    assert all(torch.equal(own, states[1][name]) for name, own in states[0].items())


def test_a_client_that_leaves_or_sends_nonsense_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    def leaves(asked: Order) -> Reply:
        return Reply("0", problem="left in mid-round")

    def sends_nan(asked: Order) -> Reply:
        return Reply("1", {name: np.full_like(own, np.nan) for name, own in floats(asked).items()}, 5)

    def sends_another_network(asked: Order) -> Reply:
        return Reply("2", {"0.weight": np.zeros((3, 3), np.float32)}, 5)

    def floats(asked: Order) -> dict[str, np.ndarray]:
        return {name: own for name, own in asked.arrays.items() if not name.endswith("#mask")}

    told = Told()
    settings = replace(QUICK, per_round=8, rounds=2)
    bad = {0: leaves, 1: sends_nan, 2: sends_another_network}
    record = federate(request_of(tmp_path / "model.pt", settings), told, bad)
    assert [one.n_taken for one in record.rounds] == [5, 5]
    said = [line for line in told.lines if line.startswith("round 1: left out")]
    assert said[0] == "round 1: left out client 0: left in mid-round"
    assert "client 1: " in said[1] and "NaN" in said[1]
    assert "client 2: " in said[2]
    assert len(said) == 3


def test_where_no_update_can_be_used_it_says_so(tmp_path: Path) -> None:
    settings = replace(QUICK, rounds=2, lr=1e30)
    with pytest.raises(TrainingError, match="none in any round: client .* expected a finite loss, got nan"):
        federate(request_of(tmp_path / "model.pt", settings))
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(
    ("asked", "n_samples", "found", "told"),
    [
        ({}, 50_000, (100, 10), ()),
        ({}, 144, (72, 10), ("--clients 72, as there are 144 samples to train with",)),
        ({}, 9, (4, 4), ("--clients 4, as there are 9 samples to train with", "--per-round 4, all clients")),
        ({"clients": 3}, 144, (3, 3), ("--per-round 3, all clients",)),
        ({"clients": 30, "per_round": 3}, 144, (30, 3), ()),
        ({"per_round": 40}, 144, (72, 40), ("--clients 72, as there are 144 samples to train with",)),
    ],
)
def test_what_nobody_asks_for_is_as_much_as_there_can_be(
    asked: dict[str, int], n_samples: int, found: tuple[int, int], told: tuple[str, ...]
) -> None:
    settings, assumed = FederatedSettings(**asked).fitted(n_samples)  # type: ignore[arg-type]
    assert (settings.clients, settings.per_round) == found
    assert assumed == told
    with pytest.raises(InputError, match="--per-round: expected at most the number of clients, 72, got 73"):
        FederatedSettings(per_round=73).fitted(144)


@pytest.mark.parametrize(("options", "found"), [((), (50, 10)), (("--clients", "3"), (3, 3))])
def test_the_command_takes_as_many_clients_as_the_samples_allow(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: tuple[str, ...], found: tuple[int, int]
) -> None:
    rows = np.random.default_rng(0).normal(size=(168, 5)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=rows, y=(rows[:, 0] > 0).astype(np.int64))
    asked = ["--arch", "models/mlp.py:mlp?hidden=8,8&n_inputs=5&n_classes=2", "--data", f"npz:{tmp_path}/rows.npz"]
    out = ["--rounds", "1", "--threads", "1", "--json", "--out", str(tmp_path / "model.pt")]
    assert main(["federate", *asked, *options, *out]) == 0
    told = capfd.readouterr()
    settings = json.loads(told.out)["settings"]
    assert (settings["clients"], settings["per_round"]) == found
    assert ("assumed: --clients 50, as there are 100 samples" in told.err) == (not options)
    assert ("assumed: --per-round 3, all clients" in told.err) == bool(options)


def test_statistics_of_batch_norm_are_averaged_too() -> None:
    state = state_of(small_net())
    assert {"1.running_mean", "1.running_var"} <= set(state)
    assert "1.num_batches_tracked" not in state


def test_the_command_prints_accuracy_over_bytes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.pt"
    options = "--clients 4 --per-round 2 --rounds 2 --sparsity 0 --leaving 0.4 --threads 1 --json".split()
    assert main(["federate", "--arch", MLP, "--data", "digits", *options, "--out", str(out)]) == 0
    document = json.loads(capfd.readouterr().out)
    n_params = document["params"]
    rounds = document["rounds"]
    assert [one["round"] for one in rounds] == [1, 2]
    assert sum(one["n_taken"] for one in rounds) * 4 * n_params == rounds[-1]["uploaded_bytes"]
    assert rounds[-1]["downloaded_bytes"] == 4 * 4 * n_params
    assert all(0 <= one["val_accuracy"] <= 1 for one in rounds)
    assert main(["federate", "--arch", MLP, "--data", "digits", *options, "--out", str(out)]) == 2
    assert "model.pt" in capfd.readouterr().err


def test_the_command_refuses_a_sparsity_of_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["--sparsity", "1", "--out", str(tmp_path / "model.pt")]
    assert main(["federate", "--arch", MLP, "--data", "digits", *options]) == 2
    assert "--sparsity: expected a share of at least 0 and below 1, got 1" in capfd.readouterr().err


def test_data_without_classes_are_not_shared_out_by_them(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    np.savez(tmp_path / "values.npz", x=rows, y=rows.sum(axis=1))
    arch = "models/mlp.py:mlp?hidden=8,8&n_inputs=5&n_classes=1"
    request = FederateRequest(arch, f"npz:{tmp_path}/values.npz", str(tmp_path / "model.pt"), QUICK, threads=1)
    with pytest.raises(InputError, match="--alpha: data .*: expected classes to share out by, got values"):
        federate(request)
    record = federate(replace(request, settings=replace(QUICK, alpha=None, rounds=2, lr=0.01)))
    assert record.metric.name != "accuracy"
    assert len(record.rounds) == 2
