"""The peak of live activations: the best order against all orders, networks counted by hand, and the budget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

import edgeprune
from edgeprune.cli.app import app, main
from edgeprune.cost.activations import peak_activations, peak_int8_activations
from edgeprune.cost.liveness import Lifetimes, Operation
from edgeprune.errors import BudgetError
from edgeprune.formats.save import save_program
from edgeprune.graph.capture import capture
from edgeprune.measure.peaks import device_peak, device_peaks
from edgeprune.records import ModelInfo
from edgeprune.results import PeakActivations
from edgeprune.search.aiming import Trial, aim
from edgeprune.search.candidate import Budgets, Measured
from edgeprune.search.landing import Targets

# --- orders


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], list[Operation]]:
    """Sizes, what is given, what stays and up to seven operations over it."""
    n_given = draw(st.integers(1, 2))
    sizes, operations = draw(st.lists(st.integers(1, 9), min_size=n_given, max_size=n_given)), []
    for _ in range(draw(st.integers(0, 7))):
        reads = draw(st.frozensets(st.integers(0, len(sizes) - 1), min_size=1, max_size=3))
        written = draw(st.lists(st.integers(0, 9), min_size=1, max_size=2))
        writes = tuple(range(len(sizes), len(sizes) + len(written)))
        sizes += written
        operations.append(Operation(reads, writes, reads if draw(st.booleans()) else frozenset()))
    kept = draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=2, unique=True))
    return sizes, list(range(n_given)), kept, operations


def orders(given: list[int], operations: list[Operation]) -> Iterator[tuple[int, ...]]:
    def after(order: tuple[int, ...], there: frozenset[int]) -> Iterator[tuple[int, ...]]:
        if len(order) == len(operations):
            yield order
        for number, operation in enumerate(operations):
            if number not in order and operation.reads <= there:
                yield from after((*order, number), there | set(operation.writes))

    yield from after((), frozenset(given))


def peak_of(order: tuple[int, ...], sizes: list[int], given: list[int], kept: list[int], ops: list[Operation]) -> int:
    """Every moment of an order, written out: what is there and what is read later."""
    there, most = set(given), sum(sizes[v] for v in given)
    for at, number in enumerate(order):
        later = set(kept).union(*(ops[k].reads for k in order[at + 1 :]))
        operation = ops[number]
        alive = {v for v in there if v in later or v in operation.reads}
        made = sum(sizes[v] for v in operation.writes)
        over = [v for v in operation.reuses if v not in later and sizes[v] >= made]
        most = max(most, sum(sizes[v] for v in alive) + (0 if over and len(operation.writes) == 1 else made))
        there = {v for v in alive | set(operation.writes) if v in later}
    return most


@settings(max_examples=300, deadline=None)
@given(graph=graphs())
def test_no_order_takes_less_than_the_best(graph: tuple[list[int], list[int], list[int], list[Operation]]) -> None:
    sizes, given_values, kept, operations = graph
    lifetimes = Lifetimes(sizes, given_values, kept, operations)
    best = lifetimes.best()
    peaks = {order: peak_of(order, *graph) for order in orders(given_values, operations)}
    assert best.is_best and best.n_bytes == min(peaks.values()) == peaks[best.order]
    assert all(lifetimes.peak_of(order) == peak for order, peak in peaks.items())
    shown = sum(sizes[value] for value in best.live)
    assert shown >= best.n_bytes, "what is alive then, and what is written over one of it"


def test_a_search_that_is_too_long_says_so() -> None:
    """A branch whose large values are best made small one after the other, and no set to look at."""
    branches = 4
    sizes, operations = [1], []
    for _ in range(branches):
        sizes += [10, 1]
        operations.append(Operation(frozenset({0}), (len(sizes) - 2,)))
    for k in range(branches):
        operations.append(Operation(frozenset({1 + 2 * k}), (2 + 2 * k,)))
    sizes.append(5)
    operations.append(Operation(frozenset(range(2, 2 * branches + 1, 2)), (len(sizes) - 1,)))
    lifetimes = Lifetimes(sizes, [0], [len(sizes) - 1], operations)
    best, hasty = lifetimes.best(), lifetimes.best(most_sets=0)
    assert best.is_best and best.n_bytes == 14 < lifetimes.peak_of(range(len(operations)))
    assert hasty.n_bytes >= best.n_bytes and not hasty.is_best


# --- networks


def peaks(net: nn.Module, *shape: int) -> tuple[PeakActivations, PeakActivations]:
    program = capture(net.eval(), torch.randn(3, *shape))
    return peak_activations(program), peak_int8_activations(program)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).relu())


class Views(nn.Module):
    """What shows the same numbers takes no memory; nor does a table that is made of weights alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 6, 1000))

    def forward(self, x: Tensor) -> Tensor:
        turned = x.reshape(-1, 4, 6).transpose(1, 2).flatten(1)
        return turned[:, :8].unsqueeze(1) @ (self.table * 2).sum(1)[:, :8].unsqueeze(2)


@pytest.mark.parametrize(
    ("net", "shape", "floats"),
    [
        # the input beside the first layer, whose ReLU and batch norm write over it
        (nn.Sequential(nn.Linear(10, 30), nn.BatchNorm1d(30), nn.ReLU(), nn.Dropout(), nn.Linear(30, 2)), (10,), 40),
        (Residual(), (4, 8, 8), (4 + 16 + 4) * 64),  # the input stays for the sum
        (Views(), (24,), 25),
        (nn.ReLU(), (7,), 7),
    ],
)
def test_networks_counted_by_hand(net: nn.Module, shape: tuple[int, ...], floats: int) -> None:
    found, int8 = peaks(net, *shape)
    assert (found.n_bytes, int8.n_bytes) == (4 * floats, floats) and found.is_best


def test_whole_numbers_keep_their_size_and_the_tensors_are_named() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 6)

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids)

    program = capture(Tokens().eval(), torch.randint(0, 10, (2, 5)))
    found, int8 = peak_activations(program), peak_int8_activations(program)
    assert (found.n_bytes, int8.n_bytes) == (5 * 8 + 30 * 4, 5 * 8 + 30)
    assert found.at == "embedding" and dict(found.tensors) == {"embedding": 120, "ids": 40}


# --- the budget


def trial(width: int) -> Trial:
    return Trial(_Cut({"weight": torch.empty(width, 1)}), (width / 16) ** 2)


class _Cut:
    def __init__(self, state_dict: dict[str, Tensor]) -> None:
        self.state_dict = state_dict


def measured(program: Any, surely: bool = True) -> Measured:
    """An input of 20 bytes that cannot go, and 5 for each unit."""
    width = len(program.state_dict["weight"])
    peak = PeakActivations(20 + 5 * width, "conv", (("relu", 5 * width), ("x", 20)), True)
    return Measured(1.0, 1.0, 1, 1, peak, PeakActivations(100, "conv", (("relu", 80), ("x", 20)), True))


def test_trials_land_on_the_widest_network_within() -> None:
    targets = Targets(Budgets(max_ram=63), measured(trial(16).program))
    aim(targets, measured, lambda shares: trial(max(1, int(16 * shares.ram))))
    assert int(16 * targets.shares.ram) == 8
    asked = Targets(Budgets(max_ram=63, keep_macs=0.1), measured(trial(16).program)).shares
    assert (asked.macs, asked.ram) == (0.1, 0.63)


def test_what_cannot_be_reached_says_what_makes_the_peak() -> None:
    targets = Targets(Budgets(max_ram=15), measured(trial(16).program))
    with pytest.raises(BudgetError, match=r"--max-ram 15B: 1.67 times that .*25 at conv: relu 5, x 20"):
        aim(targets, measured, lambda shares: trial(max(1, int(16 * shares.ram))))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peak") / "net.pt2"
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 4))
    save_program(path, capture(net.eval(), torch.randn(2, 8)), ModelInfo((8,)))
    return path


def invoked(*command: str) -> Any:
    return CliRunner().invoke(app, list(command))


def test_compress_holds_it_and_tells_it(network: Path, tmp_path: Path) -> None:
    told = invoked("compress", str(network), "--max-ram", "300B", "--out", str(tmp_path / "run"))
    assert told.exit_code == 0 and "peak activations, int8" in told.output, told.output
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["dense"]["peak_bytes"] == 4 * (64 + 48) and run["dense"]["peak_int8_bytes"] == 64 + 48
    assert 0.8 * 300 < run["slim"]["peak_bytes"] == 4 * run["slim"]["peak_int8_bytes"] <= 300
    assert run["asked"]["max_ram"] == "300B"
    assert "Peak activations" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        ("0", 2, "--max-ram"),
        ("0kB", 2, "expected a size such as 500kB or 1.5MB, got"),
        ("256", 2, "expected one of the units B, kB"),
        ("20B", 1, "--max-ram 20B"),
    ],
)
def test_a_budget_that_is_none_or_out_of_reach(
    asked: str, code: int, said: str, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", str(network), "--max-ram", asked, "--out", str(tmp_path / "run")]) == code
    text = " ".join(capsys.readouterr().err.split())
    assert said in text and not (tmp_path / "run" / "slim.pt2").exists(), text
    if code == 1:
        assert "live activations take" in text and "linear" in text


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The peak is where few of the MACs are: a wide first layer, and narrow ones behind it that hold the most."""

    def conv(wide: int, narrow: int) -> tuple[nn.Module, nn.Module]:
        return nn.Conv2d(wide, narrow, 3, padding=1), nn.ReLU()

    path = tmp_path_factory.mktemp("deep") / "deep.pt2"
    torch.manual_seed(0)
    layers = [*conv(3, 16), nn.MaxPool2d(4), *conv(16, 64), *conv(64, 64), *conv(64, 64), *conv(64, 64), *conv(64, 64)]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))
    save_program(path, capture(net.eval(), torch.randn(2, 3, 16, 16)), ModelInfo((3, 16, 16)))
    return path


KEPT = [word for name in "579" for word in ("--keep-layer", name)]


def test_a_peak_in_reach_is_held_where_its_share_of_the_macs_is_not(deep: Path, tmp_path: Path) -> None:
    told = invoked("compress", str(deep), "--max-ram", "13kB", *KEPT, "--out", str(tmp_path / "run"))
    assert told.exit_code == 0, told.output
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["slim"]["peak_bytes"] == (3 + 8) * 16 * 16 * 4 < 13_000 < run["dense"]["peak_bytes"], "8: the next is 10"
    assert run["slim"]["macs"] > 0.9 * run["dense"]["macs"], "nothing goes that is not alive at the peak"


def test_a_peak_out_of_reach_is_told_in_bytes(deep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", str(deep), "--max-ram", "2kB", *KEPT, "--out", str(tmp_path / "run")]) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert "--max-ram 2kB: " in text and " times that (live activations take " in text, text
    assert "held: 7, 5;" in text, text  # of what was kept, the layers that stand at the peak


def test_inspect_tells_the_peak(network: Path) -> None:
    told = invoked("inspect", str(network))
    assert "peak activations 448 bytes at linear_1" in " ".join(told.output.split()), told.output
    document = json.loads(invoked("inspect", str(network), "--json").stdout)
    assert document["peak"]["n_bytes"] == 448 and document["peak_int8"]["n_bytes"] == 112


# --- what a device runs


class Sensor(nn.Module):
    """Most of the peak is the input, beside what the first convolution makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv1d(24, 4, 3, padding=1), nn.Conv1d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu().mean(2))


class Transposed(nn.Module):
    """Steps in another order than they come."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(60, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((x * 2).transpose(1, 2).flatten(1))


class Both(nn.Module):
    """A table beside ids."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.words, self.last = nn.Linear(30, 8), nn.Embedding(40, 8), nn.Linear(16, 3)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.words(ids).sum(1), self.table(x).relu()], 1))


def cut(net: nn.Module, *inputs: Tensor, **asked: Any) -> edgeprune.Pruner:
    """What is left when input features and ids alone have gone: no unit is less important than its cost asks for."""
    pruner = edgeprune.Pruner(net, inputs, keep_macs=1.0, steps=1, align=1, **asked)
    for _ in pruner:
        pass
    return pruner


IDS, SIGNAL = torch.randint(0, 9, (2, 20)), torch.randn(2, 24, 16)


@pytest.mark.parametrize(
    ("net", "inputs", "asked", "floats"),
    [
        (Sensor(), (SIGNAL,), {"input_features": 23}, (23 + 4) * 16),
        (Sensor(), (SIGNAL,), {"input_features": 3}, (4 + 4) * 16 - 8),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), (torch.randn(2, 1, 8, 8),), {"input_features": 10}, 10 + 4),
        (Transposed(), (torch.randn(2, 5, 12),), {"input_features": 59}, 59 + 3),
        (Both(), (IDS, torch.randn(2, 30)), {"input_features": 5, "vocabularies": {"ids": range(9)}}, 2 * 20 + 160 + 5),
    ],
    ids=["few go", "most go", "flattened", "transposed", "ids too"],
)
def test_dropped_inputs_never_raise_the_peak(
    net: nn.Module, inputs: tuple[Tensor, ...], asked: dict[str, Any], floats: int
) -> None:
    """Counted is the contract that a device gets, without the whole input beside its Gather."""
    program, dense = cut(net, *inputs, **asked).program, capture(net.eval(), inputs if len(inputs) > 1 else inputs[0])
    slim = edgeprune.slim_contract(program)
    assert device_peak(dense) == peak_activations(dense)
    assert device_peak(program).n_bytes <= device_peak(dense).n_bytes
    assert device_peaks(program) == device_peaks(slim) == (peak_activations(slim), peak_int8_activations(slim))
    assert device_peak(program).n_bytes == 4 * floats


def test_compress_a_pruner_and_inspect_tell_what_a_device_takes(tmp_path: Path) -> None:
    """10 of 24 channels stay: 640 bytes of input, where the whole input alone has 1,536."""
    torch.manual_seed(0)
    net, asked = Sensor(), ("--keep-macs", "1.0", "--align", "1", "--input-features", "10")
    save_program(tmp_path / "net.pt2", capture(net.eval(), SIGNAL), ModelInfo((24, 16)))
    told = invoked("compress", str(tmp_path / "net.pt2"), "--max-ram", "900B", *asked, "--out", str(tmp_path / "run"))
    assert told.exit_code == 0, told.output
    cut(net, SIGNAL, input_features=10, max_ram="900B").save(tmp_path / "loop")
    for run in ("run", "loop"):
        record = json.loads((tmp_path / run / "run.json").read_text())
        peaks = record["slim"]["peak_bytes"], record["slim"]["peak_int8_bytes"]
        assert record["dense"]["peak_bytes"] == 1792 and 640 < peaks[0] <= 900 and peaks[0] == 4 * peaks[1]
        document = json.loads(invoked("inspect", str(tmp_path / run / "slim.pt2"), "--json").stdout)
        assert (document["peak"]["n_bytes"], document["peak_int8"]["n_bytes"]) == peaks
        assert ["x", 640] in document["peak"]["tensors"]
