"""Certificates: bounds against the truth, which small networks can be asked for.

The truth is had by enumeration: where the pattern of the ReLUs is fixed a network is affine, so that its least value in
a box is a linear programme for each pattern.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from edgeprune import capture
from edgeprune.certify.attack import gradient, least_margin
from edgeprune.certify.crown import crown_bounds, lower_bound
from edgeprune.certify.equivalence import Pair
from edgeprune.certify.forms import MixesSamplesError
from edgeprune.certify.intervals import Bounds, Box, affine_interval, interval_bounds
from edgeprune.certify.judging import METHODS, check_method, judge, margins_of, raised_all
from edgeprune.certify.lagrangian import Lagrangian, Multipliers, from_crown
from edgeprune.certify.lanczos import SMALL, largest_eigenpair
from edgeprune.certify.network import Affine, Network
from edgeprune.certify.proof import proved_bound
from edgeprune.certify.ranges import parse_range
from edgeprune.certify.reading import read_network
from edgeprune.certify.sdp import dual_bound
from edgeprune.errors import InputError, InternalError
from edgeprune.records import Normalization

STEPS = 60


def made(module: nn.Module, *shape: int, how: Normalization | None = None) -> Network:
    return read_network(capture(module.eval(), torch.randn(2, *shape)), how)


def mlp(seed: int, *widths: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def box_at(network: Network, seed: int, eps: float) -> Box:
    x = np.random.default_rng(seed).uniform(-1, 1, network.n_inputs)
    return Box(x - eps, x + eps)


def least_of_patterns(network: Network, c: Affine, box: Box) -> float:
    """The least of the one row of `c` in the box: a linear programme for each pattern of the ReLUs."""
    sizes = [layer.size for layer in network.layers]
    best = np.inf
    for pattern in itertools.product((0.0, 1.0), repeat=sum(sizes)):
        on = np.split(np.array(pattern), np.cumsum(sizes)[:-1])
        n = network.n_inputs
        values = [(np.eye(n), np.zeros(n))]  # each as a matrix and an offset of the input
        rows, limits = [], []
        for layer, active in zip(network.layers, on, strict=True):
            a = sum(np.asarray(m @ values[j][0]) for j, m in layer.affine.weights.items())
            b = layer.affine.bias + sum(m @ values[j][1] for j, m in layer.affine.weights.items())
            sign = 1 - 2 * active[:, None]
            rows.append(sign * a)
            limits.append(-sign[:, 0] * b)
            values.append((active[:, None] * a, active * b))
        slope = sum(np.asarray(m @ values[j][0]) for j, m in c.weights.items())[0]
        offset = float(c.bias[0] + sum(m @ values[j][1] for j, m in c.weights.items())[0])
        found = linprog(
            slope, np.vstack(rows), np.concatenate(limits), bounds=list(zip(box.lower, box.upper, strict=True))
        )
        if found.status == 0:
            best = min(best, found.fun + offset)
    return float(best)


def lower_of(network: Network, c: Affine, box: Box, method: str) -> float:
    bounds = interval_bounds(network, box) if method == "interval" else crown_bounds(network, box)
    lower = affine_interval(c, bounds)[0]
    if method != "interval":
        lower = np.maximum(lower, lower_bound(c, network, bounds))
    if method == "sdp":
        lower = raised_all(network, c, bounds, lower, STEPS)
    return float(lower.min())


# -- never above the truth ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "eps"), [(0, 0.3), (1, 0.6), (2, 1.0)])
def test_bounds_are_in_order_and_below_the_truth_of_all_patterns(seed: int, eps: float) -> None:
    network = made(mlp(seed, 3, 4, 3, 2), 3)
    c, box = margins_of(network, 0), box_at(network, seed, eps)
    truth = least_of_patterns(network, c, box)
    interval, crown, sdp = (lower_of(network, c, box, method) for method in METHODS)
    assert interval <= crown <= sdp <= truth + 1e-7
    attacked, x = least_margin(network, c, box)
    assert truth - 1e-7 <= attacked
    assert (box.lower <= x).all() and (x <= box.upper).all()
    assert c(network.pre_activations(x)[0])[0] == pytest.approx(attacked)


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(12))
def test_bounds_are_below_the_truth_of_more_networks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    convolution = nn.Sequential(
        nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)
    )
    network = made(convolution, 1, 4) if seed % 2 else made(mlp(seed, 4, 3, 3, 3, 2), 4)
    for eps in rng.uniform(0.05, 2, 2):
        c, box = margins_of(network, int(rng.integers(2))), box_at(network, seed, eps)
        truth = least_of_patterns(network, c, box)
        lower = [lower_of(network, c, box, method) for method in METHODS]
        assert lower == sorted(lower) and lower[-1] <= truth + 1e-7 <= least_margin(network, c, box)[0] + 2e-7


def test_the_dual_closes_most_of_what_crown_leaves_open() -> None:
    closed = []
    for seed in range(3):
        network = made(mlp(seed, 3, 4, 3, 2), 3)
        c, box = margins_of(network, 0), box_at(network, seed, 0.6)
        truth, crown, sdp = least_of_patterns(network, c, box), *(lower_of(network, c, box, m) for m in METHODS[1:])
        closed.append((sdp - crown) / (truth - crown) if truth - crown > 1e-3 else 1.0)
    assert np.mean(closed) > 0.3


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), eps=st.floats(0, 3), depth=st.integers(0, 3), width=st.integers(1, 6))
def test_no_bound_is_above_what_a_sample_shows(seed: int, eps: float, depth: int, width: int) -> None:
    module = mlp(seed, 4, *[width] * depth, 3)
    network = made(module, 4)
    box = box_at(network, seed, eps)
    x = np.random.default_rng(seed).uniform(box.lower[:, None], box.upper[:, None], (4, 200))
    c = margins_of(network, seed % 3)
    shown = c(network.pre_activations(x)[0]).min(axis=1)
    for bounds in (interval_bounds(network, box), crown_bounds(network, box)):
        holds(network, bounds, x)
        assert (affine_interval(c, bounds)[0] <= shown).all()
        assert (lower_bound(c, network, bounds) <= shown).all()
    row = c.rows(np.eye(2)[[0]])
    lagrangian = Lagrangian(network, bounds, row)
    assert proved_bound(lagrangian, dual_bound(lagrangian, 10), bounds, row) <= shown[0]


def holds(network: Network, bounds: Bounds, x: np.ndarray) -> None:
    """Every value of every sample lies within its bounds."""
    values, before, _ = network.pre_activations(x)
    for value, low, high in zip(values, bounds.lower, bounds.upper, strict=True):
        assert (low[:, None] <= value).all() and (value <= high[:, None]).all()
    for z, (low, high) in zip(before, bounds.before, strict=True):
        assert (low[:, None] <= z).all() and (z <= high[:, None]).all()


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(0, 3))
def test_any_multipliers_prove_what_is_true(seed: int, spread: float) -> None:
    """Sound whatever the steps have come to: the proof mends kappa, and multipliers need only be of the right sign."""
    network = made(mlp(seed, 4, 5, 4, 2), 4)
    box, rng = box_at(network, seed, 0.5), np.random.default_rng(seed)
    bounds, c = crown_bounds(network, box), margins_of(network, 0)
    lagrangian = Lagrangian(network, bounds, c)
    point = dual_bound(lagrangian, 3)
    for kind in point.m.all():
        for held in kind:
            held += spread * rng.random(held.shape)
    shown = c(network.pre_activations(rng.uniform(box.lower[:, None], box.upper[:, None], (4, 200)))[0]).min()
    assert proved_bound(lagrangian, point, bounds, c) <= shown
    point.m.b[0][0] = -1e-9
    with pytest.raises(InternalError, match="prove nothing"):
        proved_bound(lagrangian, point, bounds, c)


# -- every kind of operator ---------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        self.head = nn.Linear(8, 3)
        self.register_buffer("kept", torch.tensor([0, 2, 3, 1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.stem(x), 2)
        x = torch.relu(x + self.body(x)) / 2
        x = torch.cat([nn.functional.avg_pool2d(x, 2), x[:, :, ::2, ::2]], dim=1)
        x = nn.functional.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)
        return self.head(nn.functional.dropout(x, 0.5, self.training))


def networks() -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    torch.manual_seed(0)
    yield "residual", Residual(), (2, 8, 8)
    yield (
        "max pool with padding",
        nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)),
        (1, 8, 8),
    )
    yield (
        "one dimension",
        nn.Sequential(
            nn.Conv1d(2, 3, 3),
            nn.BatchNorm1d(3),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.AvgPool1d(2),
            nn.Flatten(),
            nn.Linear(3, 3),
        ),
        (2, 8),
    )
    yield (
        "global max",
        nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(3, 3)),
        (1, 5, 5),
    )
    yield (
        "groups",
        nn.Sequential(
            nn.Conv2d(4, 4, 3, groups=4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 1),
            nn.ReLU(),
            nn.Flatten(2),
            nn.Flatten(),
            nn.Linear(24, 3),
        ),
        (4, 4, 4),
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("module", "shape"), [pytest.param(m, s, id=name) for name, m, s in networks()])
def test_operators_are_read_and_bounded(module: nn.Module, shape: tuple[int, ...]) -> None:
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 2)
    network = made(module, *shape, how=Normalization((0.5,), (2.0,)))
    rng = np.random.default_rng(0)
    x = rng.random((5, *shape))
    with torch.no_grad():
        want = module.double()((torch.from_numpy(x) - 0.5) / 2).numpy()
    module.float()
    np.testing.assert_allclose(network(x.reshape(5, -1).T).T, want, atol=1e-12)
    box = Box(x[0].ravel() - 0.2, x[0].ravel() + 0.2)
    inside = rng.uniform(box.lower[:, None], box.upper[:, None], (network.n_inputs, 100))
    c = margins_of(network, 1)
    shown = c(network.pre_activations(inside)[0]).min()
    holds(network, crown_bounds(network, box), inside)
    found = [lower_of(network, c, box, "interval"), lower_of(network, c, box, "crown")]
    row = c.rows(np.eye(2)[[0]])
    bounds = crown_bounds(network, box)
    lagrangian = Lagrangian(network, bounds, row)
    first = proved_bound(lagrangian, dual_bound(lagrangian, 0), bounds, row)
    assert first == pytest.approx(lower_bound(row, network, bounds)[0], abs=0.01)  # the steps begin at CROWN's bound
    later = proved_bound(lagrangian, dual_bound(lagrangian, 30), bounds, row)
    assert first <= later + 1e-6 and later <= row(network.pre_activations(inside)[0]).min()
    assert found[0] <= found[1] <= shown


def test_the_lagrangian_is_the_matrix_and_the_constant() -> None:
    network = made(mlp(0, 3, 5, 4, 2), 3)
    box, rng = box_at(network, 0, 0.5), np.random.default_rng(0)
    lagrangian = Lagrangian(network, crown_bounds(network, box), margins_of(network, 0))
    m = Multipliers(*([rng.random(layer.size) for layer in network.layers] for _ in range(4)))
    hidden, across = lagrangian.matrix(m)
    values, before, _ = network.pre_activations(rng.uniform(box.lower, box.upper))
    w = [
        (v - mid) / np.where(rad > 0, rad, 1)
        for v, mid, rad in zip(values, lagrangian.mid, lagrangian.rad, strict=True)
    ]
    u = np.concatenate([[1.0], *w[1:]])
    got = lagrangian.constant(m) + u @ hidden @ u + 2 * u @ across @ w[0]
    want = -float(lagrangian.margin(values)[0])
    for k, (v, z, line) in enumerate(zip(values[1:], before, lagrangian.lines, strict=True)):
        above = line.high * z + line.above - v
        want += float(m.a[k] @ v + m.b[k] @ (v - z) + m.t[k] @ above - m.q[k] @ (v * (v - z)))
    assert got == pytest.approx(want)
    assert all((x == 0).all() for x in from_crown(lagrangian).q)


def test_gradients_are_those_of_the_network() -> None:
    network = made(Residual(), 2, 8, 8)
    c = margins_of(network, 0)
    x = np.random.default_rng(0).random((network.n_inputs, 1))
    values, before, _ = network.pre_activations(x)
    slope = gradient(network, c, before, np.array([1]))[:, 0]
    step = 1e-6 * np.random.default_rng(1).normal(size=x.shape)
    ahead, behind = (c(network.pre_activations(x + sign * step)[0])[1, 0] for sign in (1, -1))
    assert (ahead - behind) / 2 == pytest.approx(float(slope @ step[:, 0]), rel=1e-4)


@pytest.mark.parametrize("n", [1, 7, SMALL + 20])
def test_the_largest_eigenvalue_is_found_by_either_way(n: int) -> None:
    matrix = np.random.default_rng(0).normal(size=(n, n))
    matrix = matrix + matrix.T
    value, vector = largest_eigenpair(matrix)
    assert value == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-5)
    np.testing.assert_allclose(matrix @ vector, value * vector, atol=1e-3 * abs(value))


# -- uses ---------------------------------------------------------------------------------------------------------


def test_two_networks_are_never_further_apart_than_proved() -> None:
    one, other = mlp(0, 4, 6, 2), mlp(0, 4, 6, 2)
    with torch.no_grad():
        other[0].weight += 0.01 * torch.randn(6, 4)
    dense, slim = made(one, 4), made(other, 4)
    x = np.random.default_rng(0).uniform(-1, 1, 4)
    box = Box(x - 0.3, x + 0.3)
    inside = np.random.default_rng(1).uniform(box.lower[:, None], box.upper[:, None], (4, 500))
    apart = np.abs(dense(inside) - slim(inside)).max()
    bounds = []
    for method in METHODS:
        found = Pair(dense, slim).difference(x, box, method)
        assert apart <= found.bound and found.here <= found.found <= found.bound
        bounds.append(found.bound)
    assert bounds[0] >= bounds[1] >= bounds[2]
    same = Pair(dense, dense).difference(x, Box(x, x), "crown")
    assert same.here == 0 and same.bound < 1e-9
    with pytest.raises(InputError, match="outputs"):
        Pair(dense, made(mlp(0, 4, 3), 4))


def test_a_point_is_verified_as_it_is_decided() -> None:
    network = made(mlp(0, 4, 6, 3), 4)
    x = np.random.default_rng(0).uniform(-1, 1, 4)
    decided = int(network(x).argmax())
    for method in METHODS:
        assert judge(network, margins_of(network, decided), Box(x, x), method).is_verified
    other = judge(network, margins_of(network, (decided + 1) % 3), Box(x, x), "sdp")
    assert other.is_attacked and not other.is_verified


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "shape", "words"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 2)), (3,), "sigmoid"),
        (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), (3,), "layer_norm"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten()), (1, 7, 7), "max_pool2d"),
        (nn.Sequential(nn.Linear(9000, 2)), (9000,), "at most 8,192"),
    ],
    ids=["sigmoid", "layer norm", "ceil mode", "size"],
)
def test_what_no_bound_covers_is_named(module: nn.Module, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        made(module, *shape)


class Product(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.relu(x)


class OverSamples(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True)


def test_the_program_that_is_read_stays_as_it_is() -> None:
    batch = torch.export.Dim("batch")
    plain = torch.export.export(mlp(0, 3, 4, 2), (torch.randn(2, 3),), dynamic_shapes=({0: batch},))
    read_network(plain)
    assert {tensor.dtype for tensor in plain.state_dict.values()} == {torch.float32}


class Two(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class Looked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids).sum(1)


@pytest.mark.parametrize(
    ("module", "inputs", "words"),
    [
        (Product(), (torch.randn(2, 3),), "mul"),
        (OverSamples(), (torch.randn(2, 3),), "samples of a batch apart"),
        (Two(), (torch.randn(2, 3), torch.randn(2, 3)), "one input"),
        (Looked(), (torch.randint(0, 5, (2, 4)),), "expected floats, got int64"),
    ],
)
def test_networks_that_are_no_such_function_are_refused(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], words: str
) -> None:
    with pytest.raises((InputError, MixesSamplesError), match=words):
        read_network(capture(module, inputs))


def test_the_dual_is_refused_where_it_would_not_fit() -> None:
    network = made(nn.Sequential(nn.Linear(4200, 2)), 4200)
    check_method(network, "crown")
    with pytest.raises(InputError, match="crown"):
        check_method(network, "sdp")


@pytest.mark.parametrize("text", ["1", "1:0", "nan:1", "0:inf", "a:b", "0:1:2"])
def test_a_range_has_two_ends(text: str) -> None:
    with pytest.raises(InputError, match="LOW:HIGH"):
        parse_range(text)
    assert parse_range("-1:2.5") == (-1.0, 2.5)
