"""RDA against a plain numpy transcription: where it starts, its threshold, its schedule, its rounds, its state."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

import edgeprune
from edgeprune.errors import InputError
from edgeprune.optim import RDA, ChannelGroups, make
from edgeprune.optim.rda import round_starts
from edgeprune.settings import TrainSettings
from edgeprune.training.optimizer import make_schedule

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = {"conv": (4, 3, 3, 3), "linear": (5, 6), "bias": (5,)}
LAM = {"element": 0.01, "kernel": 0.01, "channel": 0.015}  # for some zeros and some not


def parameters(dtype: torch.dtype = torch.float64) -> dict[str, nn.Parameter]:
    draws = torch.Generator().manual_seed(3)
    return {name: nn.Parameter(0.3 * torch.randn(s, generator=draws, dtype=dtype)) for name, s in SHAPES.items()}


def gradient(step: int, name: str, p: Tensor) -> Tensor:
    draws = torch.Generator().manual_seed(100 * step + len(name))
    return 0.3 * p.detach() + 0.05 * torch.randn(p.shape, generator=draws, dtype=torch.float64).to(p.dtype)


def steps(optimizer: torch.optim.Optimizer, params: dict[str, nn.Parameter], which: range) -> None:
    for step in which:
        optimizer.param_groups[0]["lr"] = 2.0 * (1 - step / 40)
        for name, param in params.items():
            param.grad = gradient(step, name, param)
        optimizer.step()


def grouped(mean: np.ndarray, structure: str) -> np.ndarray:
    """Norms of its groups over the root of their size, so that it broadcasts to `mean`."""
    if structure == "element":
        return np.abs(mean)
    dims = tuple(range(2, mean.ndim)) if structure == "kernel" else tuple(range(1, mean.ndim))
    size = math.prod(mean.shape[dim] for dim in dims)
    return np.sqrt((mean**2).sum(dims, keepdims=True)) / math.sqrt(size)


class Oracle:
    """One parameter in float64, from the formulas alone."""

    def __init__(self, w: np.ndarray, structure: str, lam: float, head_start: float) -> None:
        self.w, self.w_0, self.structure, self.lam, self.head_start = w, w.copy(), structure, lam, head_start
        self.total = head_start
        self.mean = -w / (2.0 * math.sqrt(head_start)) if w.ndim > 1 else np.zeros_like(w)

    def step(self, lr: float, g: np.ndarray) -> None:
        a = lr / 2.0
        self.total += a
        self.mean = self.mean + a / self.total * (g - self.mean)
        scale = 2.0 * math.sqrt(self.total)
        if self.w.ndim < 2:
            self.w = self.w_0 - scale * self.mean
            return
        norms = np.maximum(grouped(self.mean, self.structure), 1e-300)
        self.w = -scale * self.mean * np.maximum(1 - (1 - self.head_start / self.total) * self.lam / norms, 0)


@pytest.mark.parametrize("structure", ["element", "kernel", "channel"])
def test_steps_are_the_formulas(structure: str) -> None:
    """Also where the learning rate falls, and with weight decay."""
    params = parameters()
    oracles = {name: Oracle(p.detach().numpy().copy(), structure, LAM[structure], 7.0) for name, p in params.items()}
    optimizer = RDA(params.items(), lr=2.0, lam=LAM[structure], weight_decay=0.1, structure=structure, head_start=7.0)
    for step in range(12):
        for name, own in oracles.items():
            g = gradient(step, name, params[name]).numpy() + 0.1 * own.w
            own.step(2.0 * (1 - step / 40), g)
        steps(optimizer, params, range(step, step + 1))
        for name, own in oracles.items():
            assert np.allclose(params[name].detach().numpy(), own.w, rtol=1e-9, atol=1e-12), (step, name)
            assert np.array_equal(params[name].detach().numpy() == 0, own.w == 0)
    shares = [(params[name] == 0).double().mean().item() for name in ("conv", "linear")]
    assert all(0 <= share < 1 for share in shares) and max(shares) > 0


def test_from_zero_and_without_a_head_start_it_is_xiaos_method() -> None:
    """w = -(sqrt(t) / gamma) shrink(mean gradient, lam)."""
    w, total, gamma, lam = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64)), np.zeros((4, 3)), 0.5, 0.2
    optimizer = RDA([w], lr=1 / gamma, lam=lam, head_start=1e-15)
    for t in range(1, 10):
        g = torch.randn(4, 3, generator=torch.Generator().manual_seed(t), dtype=torch.float64)
        w.grad, total = g, total + g.numpy()
        optimizer.step()
        mean = total / t
        expected = -math.sqrt(t) / gamma * np.sign(mean) * np.maximum(np.abs(mean) - lam, 0)
        assert np.allclose(w.detach().numpy(), expected, rtol=1e-9, atol=1e-12)
    assert 0 < (w == 0).sum() < 12


@given(
    st.sampled_from(["element", "kernel", "channel", "input-column"]),
    st.floats(1e-5, 1.0),
    st.floats(1.0, 1e4),
    st.floats(0.1, 20.0),
)
def test_the_start_gives_the_initial_weights(structure: str, lam: float, head_start: float, lr: float) -> None:
    """A step of length zero leaves the mean as it started, and the weights are what it gives; zeros stay zero."""
    params = parameters()
    with torch.no_grad():
        params["linear"][:, 2] = 0.0
    before = {name: param.detach().clone() for name, param in params.items()}
    optimizer = RDA(params.items(), lr=lr, lam=lam, structure=structure, head_start=head_start)
    optimizer.param_groups[0]["lr"] = 0.0
    for param in params.values():
        param.grad = torch.ones_like(param)
    optimizer.step()
    for name, param in params.items():
        assert torch.allclose(param, before[name], rtol=1e-9, atol=1e-10), name
        assert torch.equal(param == 0, before[name] == 0)


@example([0.2890625], 0.2890625)
@given(st.lists(st.floats(-1.0, 1.0, allow_subnormal=False), min_size=1, max_size=8), st.floats(1e-3, 0.5))
def test_the_threshold_is_exact(means: list[float], lam: float) -> None:
    """Whatever the mean gradient, a weight is zero exactly where that is at most lam of the steps with a penalty.

    Where both are the same number, how they were added up decides.
    """
    w = nn.Parameter(torch.zeros(1, len(means), dtype=torch.float64))
    optimizer = RDA([w], lr=3.0, lam=lam, head_start=1.0)
    for _ in range(2):
        w.grad = torch.tensor([means], dtype=torch.float64)
        optimizer.step()
    state = optimizer.state[w]
    mean, limit = state["mean"], (1 - 1 / state["total"]) * lam
    apart = (mean.abs() - limit).abs() > 1e-12
    assert torch.equal((w == 0)[apart], (mean.abs() <= limit)[apart])
    shrunk = mean.sign() * (mean.abs() - limit).clamp(min=0)
    assert torch.allclose(w, -3.0 * math.sqrt(state["total"]) * shrunk, rtol=1e-9, atol=1e-12)


class Coupled(nn.Module):
    """Hidden channels that are written, normalised and read: groups that overlap in the middle layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.middle, self.last = nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.middle(hidden)))


@pytest.mark.parametrize("lam", [1e-4, 1e-2, 1.0])
def test_overlapping_groups_start_at_the_initial_weights_too(lam: float) -> None:
    torch.manual_seed(0)
    net = Coupled().double()
    graph = edgeprune.analyze(edgeprune.capture(Coupled(), (torch.randn(4, 6),)))
    before = [param.detach().clone() for param in net.parameters()]
    optimizer = RDA(net.named_parameters(), lam=lam, structure=ChannelGroups(graph))
    optimizer.param_groups[0]["lr"] = 0.0
    for param in net.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for param, old in zip(net.parameters(), before, strict=True):
        assert torch.allclose(param, old, rtol=1e-6, atol=1e-8)


def test_a_saved_state_goes_on_bit_for_bit() -> None:
    """In the middle of the second round, through a file read with weights_only."""
    options = {"lr": 2.0, "lam": 0.02, "head_start": 7.0, "restarts": 2, "steps": 30}
    whole, first = parameters(torch.float32), parameters(torch.float32)
    steps(RDA(whole.items(), **options), whole, range(30))
    optimizer = RDA(first.items(), **options)
    steps(optimizer, first, range(14))
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), first], file)
    file.seek(0)
    state, weights = torch.load(file, weights_only=True)
    again = {name: nn.Parameter(weight.detach().clone()) for name, weight in weights.items()}
    resumed = RDA(again.items(), **options)
    resumed.load_state_dict(state)
    steps(resumed, again, range(14, 30))
    for name, param in whole.items():
        assert torch.equal(param, again[name]), name
    with pytest.raises(InputError, match=r"optimizer state of conv: expected mean with shape \(4, 3, 3, 3\), got none"):
        state["state"][0].pop("mean")
        resumed.load_state_dict(state)


def test_rounds_keep_the_zeros_and_the_last_has_no_penalty() -> None:
    """Zeros only become more from round to round; in the last their number stands, and weights lose their bias."""
    params = parameters()
    optimizer = RDA(params.items(), lr=2.0, lam=0.02, head_start=7.0, restarts=2, steps=30)
    zeros: dict[int, Tensor] = {}
    for step in range(30):
        steps(optimizer, params, range(step, step + 1))
        zeros[step] = params["conv"].detach() == 0
    assert round_starts(30, 2) == (0, 10, 20)
    for start in (10, 20):
        kept = zeros[start - 1]
        assert 0 < kept.sum() < kept.numel()
        assert all(bool((zeros[step] >= kept).all()) for step in range(start, 30))
    assert torch.equal(zeros[29], zeros[19])
    state = optimizer.state[params["conv"]]
    scale = 2.0 * math.sqrt(state["total"])
    assert torch.allclose(params["conv"], -scale * state["mean"], rtol=1e-12)


def test_the_learning_rate_starts_anew_with_each_round() -> None:
    net = nn.Linear(3, 2)
    settings = TrainSettings(optimizer="rda", options={"restarts": 1})
    optimizer = make("rda", net.named_parameters(), lr=4.0, steps=10, restarts=1)
    schedule = make_schedule(optimizer, settings, 10)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        for param in net.parameters():
            param.grad = torch.zeros_like(param)
        optimizer.step()
        schedule.step()
    assert (
        rates[5:] == rates[:5]
        and rates[0] == 4.0
        and rates[4] == pytest.approx(4.0 * (1 + math.cos(0.8 * math.pi)) / 2)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": "log"}, "penalty: expected group-lasso or l1 with rda, got 'log'"),
        ({"penalty": "l1", "structure": "channel"}, "penalty l1: expected structure element, got channel"),
        ({"head_start": 0.0}, "head_start: expected a number above 0, got 0.0"),
        ({"lr": 0.0}, "lr: expected a number above 0, got 0.0"),
        ({"restarts": 1}, "restarts: expected at most one fewer than the training has steps, None, got 1"),
        ({"restarts": 5, "steps": 5}, "restarts: expected at most one fewer than the training has steps, 5, got 5"),
        ({"restarts": 0.5, "steps": 5}, "restarts: expected a whole number, got 0.5"),
    ],
)
def test_what_it_does_not_take_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RDA(parameters().items(), **options)  # type: ignore[arg-type]
