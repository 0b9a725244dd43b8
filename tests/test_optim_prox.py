"""Prox maps against numerical minimisation; ProxSGD and RMDA against plain transcriptions and known solutions."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize, minimize_scalar
from torch import Tensor, nn
from torch.optim import lr_scheduler

from edgeprune.errors import InputError
from edgeprune.optim import RMDA, Element, GroupLasso, InputColumn, Kernel, Lasso, LogPenalty, OutputChannel, ProxSGD
from edgeprune.optim.prox import log_threshold, prox_of

pytestmark = pytest.mark.usefixtures("one_thread")


norms = st.floats(0.0, 5.0)
amounts = st.floats(1e-4, 3.0)


def shrunk(prox: Lasso | LogPenalty, norm: float, amount: float) -> float:
    return norm * float(prox.factor(torch.tensor(norm, dtype=torch.float64), amount))


def cost(x: float, norm: float, amount: float, eps: float | None) -> float:
    return (x - norm) ** 2 / 2 + amount * (x if eps is None else math.log1p(x / eps))


@given(norms, amounts, st.sampled_from([None, 0.01, 0.3, 2.0]))
def test_no_point_is_better_than_the_prox(norm: float, amount: float, eps: float | None) -> None:
    """The minimum over a fine grid, polished, for the scalar problem that every group comes down to."""
    found = shrunk(Lasso() if eps is None else LogPenalty(eps), norm, amount)
    grid = np.linspace(0.0, norm, 400)
    values = np.array([cost(x, norm, amount, eps) for x in grid])
    best = int(values.argmin())
    bounds = (grid[max(best - 1, 0)], max(grid[min(best + 1, 399)], 1e-12))
    polished = minimize_scalar(lambda x: cost(x, norm, amount, eps), bounds=bounds, method="bounded")
    least = min(float(polished.fun), float(values.min()))
    assert 0 <= found <= norm
    assert cost(found, norm, amount, eps) <= least + 1e-9


@given(st.lists(st.floats(-3.0, 3.0), min_size=1, max_size=4), amounts)
def test_the_norms_factor_solves_the_vector_problem(values: list[float], amount: float) -> None:
    start = np.array(values)
    norm = torch.tensor(float(np.linalg.norm(start)), dtype=torch.float64)
    found = start * float(GroupLasso().factor(norm, amount))

    def objective(x: np.ndarray) -> float:
        return float(((x - start) ** 2).sum() / 2 + amount * np.linalg.norm(x))

    numeric = min((minimize(objective, s, method="Nelder-Mead") for s in (start, 0 * start)), key=lambda r: r.fun)
    assert objective(found) <= min(numeric.fun, objective(0 * start)) + 1e-9


@pytest.mark.parametrize("amount", [5e-5, 1e-4, 1e-2, 1.0])
def test_the_log_penaltys_threshold_is_where_it_jumps(amount: float) -> None:
    eps = 0.01
    at = log_threshold(amount, eps)
    below, above = shrunk(LogPenalty(eps), at * (1 - 1e-9), amount), shrunk(LogPenalty(eps), at * (1 + 1e-9), amount)
    assert below == 0 < above
    assert cost(above, at, amount, eps) == pytest.approx(cost(0.0, at, amount, eps), rel=1e-6)
    assert (above > 1e-3) == (amount > eps**2 * 1.01)  # a jump only where the problem is not convex


def test_amounts_may_differ_between_groups() -> None:
    values = torch.tensor([0.5, 0.5, 2.0, 0.0], dtype=torch.float64)
    each = torch.tensor([0.1, 0.8, 0.1, 0.1], dtype=torch.float64)
    for prox in (Lasso(), LogPenalty(0.2)):
        expected = [float(prox.factor(value, float(amount))) for value, amount in zip(values, each, strict=True)]
        assert torch.equal(prox.factor(values, each), torch.tensor(expected, dtype=torch.float64))


def test_penalties_are_found_by_name() -> None:
    assert [prox_of(name, 0.5).name for name in ("l1", "group-lasso", "log")] == ["l1", "group-lasso", "log"]
    with pytest.raises(InputError, match="penalty: expected group-lasso, l1, log, got 'l0'"):
        prox_of("l0", 0.1)
    with pytest.raises(InputError, match="eps: expected a number above 0, got nan"):
        LogPenalty(math.nan)


def test_groupers_measure_and_spread() -> None:
    weight = torch.arange(1.0, 25.0, dtype=torch.float64).view(2, 3, 2, 2)
    for structure, dims in (
        (Element(), ()),
        (Kernel(), (2, 3)),
        (OutputChannel(), (1, 2, 3)),
        (InputColumn(), (0, 2, 3)),
    ):
        groups = structure.bind([None], [weight])
        one = weight.abs() if not dims else weight.sum(dims, keepdim=True)
        two = weight.abs() if not dims else weight.square().sum(dims, keepdim=True).sqrt()
        assert torch.allclose(groups.norms([weight], 1)[0], one)
        assert torch.allclose(groups.norms([weight], 2)[0], two)
        assert groups.sizes[0] == weight.numel() / one.numel()
        spread = groups.spread_product([one])[0]
        assert spread is not None and torch.equal(spread.expand_as(weight), one.expand_as(weight))
        assert not structure.covers("bias", torch.ones(4))
    assert not InputColumn().covers(None, torch.ones(8, 1, 3, 3))  # depthwise: no columns to choose from


# --- ProxSGD

SHAPES = {"conv": (4, 3, 3, 3), "linear": (5, 6), "bias": (5,)}


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    shapes = SHAPES.items()
    return {
        name: nn.Parameter(0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)) for name, shape in shapes
    }


def gradient(step: int, name: str, p: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + len(name))
    return 0.3 * p + 0.05 * torch.randn(p.shape, generator=generator, dtype=torch.float64)


def block_soft(p: Tensor, amount: float, structure: str) -> Tensor:
    """Row by row (channel), kernel by kernel or weight by weight, in loops."""
    if p.dim() < 2:
        return p
    if structure == "element":
        return torch.sign(p) * (p.abs() - amount).clamp(min=0)
    flat = p.flatten(1) if structure == "channel" else p.reshape(p.shape[0] * p.shape[1], -1)
    rows = []
    for row in flat:
        norm = math.sqrt(float((row * row).sum()))
        strength = amount * math.sqrt(row.numel())
        rows.append(row * max(0.0, 1 - strength / norm) if norm > 0 else row)
    return torch.stack(rows).view(p.shape)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    ("penalty", "structure"), [("l1", "element"), ("group-lasso", "channel"), ("group-lasso", "kernel")]
)
def test_prox_sgd_follows_its_equations(penalty: str, structure: str, momentum: float) -> None:
    params, decay = parameters(), 1e-2
    lam = (4e-3 if penalty == "l1" else 4e-2) * (1 if momentum else 10)
    optimizer = ProxSGD(params.values(), 0.05, momentum, decay, lam, penalty, structure)
    schedule = lr_scheduler.CosineAnnealingLR(optimizer, 60)
    plain = {name: param.detach().clone() for name, param in params.items()}
    velocity = {name: torch.zeros_like(value) for name, value in plain.items()}
    zeros = 0
    for step in range(60):
        lr = optimizer.param_groups[0]["lr"]
        for name, param in params.items():
            param.grad = gradient(step, name, plain[name])
            velocity[name] = momentum * velocity[name] + param.grad + decay * plain[name]
            moved = plain[name] - lr * velocity[name]
            plain[name] = block_soft(moved, lr / (1 - momentum) * lam, structure)
        optimizer.step()
        schedule.step()
        zeros += sum(int((value == 0).sum()) for value in plain.values())
        for name, param in params.items():
            assert torch.allclose(param, plain[name], rtol=0, atol=1e-12), (name, step)
            assert torch.equal(param == 0, plain[name] == 0)
    assert zeros > 0


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("method", ["prox-sgd", "rmda"])
def test_it_finds_the_solution_of_a_lasso(method: str, momentum: float) -> None:
    """With orthonormal features the solution is the soft threshold of the least-squares one."""
    torch.manual_seed(0)
    features = torch.linalg.qr(torch.randn(40, 6, dtype=torch.float64))[0]
    truth = torch.tensor([[2.0, -1.0, 0.05, 0.0, 0.3, -0.02]], dtype=torch.float64)
    target = features @ truth.T
    weight = nn.Parameter(torch.zeros_like(truth))
    if method == "prox-sgd":
        optimizer: torch.optim.Optimizer = ProxSGD([weight], 0.2 * (1 - momentum), momentum, lam=0.1, penalty="l1")
    else:
        optimizer = RMDA([weight], 1.0, 1 - momentum, lam=0.1, penalty="l1", release=300)
    for _ in range(600):
        optimizer.zero_grad()
        (0.5 * (features @ weight.T - target).square().sum()).backward()
        optimizer.step()
    expected = torch.sign(truth) * (truth.abs() - 0.1).clamp(min=0)
    assert torch.equal(weight == 0, expected == 0)
    assert torch.allclose(weight, expected, atol=1e-6 if method == "prox-sgd" else 2e-2)


def test_it_finds_the_solution_of_a_group_lasso() -> None:
    """Rows of an orthonormal problem shrink by lam sqrt(size) in norm, or vanish."""
    torch.manual_seed(0)
    truth = torch.randn(5, 4, dtype=torch.float64) * torch.tensor([2.0, 1.0, 0.2, 0.05, 0.0]).view(5, 1)
    weight = nn.Parameter(torch.ones_like(truth))
    optimizer = ProxSGD([weight], 0.05, 0.8, lam=0.2)
    for _ in range(400):
        weight.grad = weight.detach() - truth
        optimizer.step()
    size = truth.norm(dim=1, keepdim=True)
    expected = truth * (1 - 0.2 * 2 / size.clamp(min=1e-12)).clamp(min=0)
    assert torch.allclose(weight, expected, atol=1e-9)
    assert 0 < int((weight == 0).all(1).sum()) < 5


def test_the_log_penalty_leaves_large_weights_alone() -> None:
    truth = torch.tensor([[3.0, 0.5, 0.05]], dtype=torch.float64)
    kept = {}
    for penalty in ("l1", "log"):
        weight = nn.Parameter(truth.clone())
        optimizer = ProxSGD([weight], 0.05, 0.5, lam=0.1, penalty=penalty, eps=0.2)
        for _ in range(300):
            weight.grad = weight.detach() - truth
            optimizer.step()
        kept[penalty] = weight.detach()
    assert kept["l1"][0, 2] == kept["log"][0, 2] == 0
    assert kept["l1"][0, 0] == pytest.approx(2.9)
    assert kept["log"][0, 0] > 2.96


# --- RMDA


@pytest.mark.parametrize("release", [None, 15])
@pytest.mark.parametrize(("penalty", "structure"), [("l1", "element"), ("group-lasso", "channel")])
def test_rmda_follows_the_paper(penalty: str, structure: str, release: int | None) -> None:
    """With a restart where lr is divided by ten, and none where it only slides."""
    params, lam, decay, c0 = parameters(), 2e-2 if penalty == "l1" else 1e-1, 1e-2, 0.2
    optimizer = RMDA(params.values(), 0.2, c0, decay, lam, penalty, structure, release=release)
    lrs = [0.2 * (1 - 0.01 * step) for step in range(20)] + [0.02] * 20
    plain = {name: param.detach().clone() for name, param in params.items()}
    start, sums, alpha, t = dict(plain), {name: torch.zeros_like(p) for name, p in plain.items()}, 0.0, 0
    for step, lr in enumerate(lrs):
        if step == 20:
            start, sums, alpha, t = dict(plain), {name: torch.zeros_like(p) for name, p in plain.items()}, 0.0, 0
        t += 1
        s, beta = lr * math.sqrt(t), math.sqrt(t)
        alpha += s
        c = c0 if release is None else min(1.0, math.sqrt(c0**2 + (1 - c0**2) * t / release))
        for name, param in params.items():
            param.grad = gradient(step, name, plain[name])
            sums[name] = sums[name] + s * (param.grad + decay * plain[name])
            proposal = block_soft(start[name] - sums[name] / beta, alpha / beta * lam, structure)
            plain[name] = (1 - c) * plain[name] + c * proposal
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        for name, param in params.items():
            assert torch.allclose(param, plain[name], rtol=0, atol=1e-12), (name, step)
    if release is not None:
        assert any((param == 0).any() and (param != 0).any() for param in params.values())
        assert all(torch.equal(param == 0, plain[name] == 0) for name, param in params.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["prox-sgd", "rmda"])
def test_they_resume_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    def build(params: dict[str, nn.Parameter]) -> tuple[torch.optim.Optimizer, lr_scheduler.LRScheduler]:
        if kind == "rmda":
            optimizer: torch.optim.Optimizer = RMDA(params.items(), lam=1e-2, release=7)
        else:
            optimizer = ProxSGD(params.items(), lam=1e-2, structure=Kernel())
        return optimizer, lr_scheduler.StepLR(optimizer, 12, gamma=0.1)

    def half_way(resume: bool) -> dict[str, nn.Parameter]:
        params = {name: nn.Parameter(param.detach().to(dtype)) for name, param in parameters().items()}
        optimizer, schedule = build(params)
        for step in range(30):
            if resume and step == 15:
                file = io.BytesIO()
                torch.save((optimizer.state_dict(), schedule.state_dict()), file)
                file.seek(0)
                states = torch.load(file, weights_only=True)
                params = {name: nn.Parameter(param.detach().clone()) for name, param in params.items()}
                optimizer, schedule = build(params)
                optimizer.load_state_dict(states[0])
                schedule.load_state_dict(states[1])
            for name, param in params.items():
                param.grad = gradient(step, name, param.detach().double()).to(dtype)
            optimizer.step()
            schedule.step()
        return params

    whole, parts = half_way(False), half_way(True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ProxSGD, {"lam": 0.0}, "lam: expected a number above 0"),
        (ProxSGD, {"momentum": 1.0}, "momentum: expected a number at least 0 and below 1, got 1.0"),
        (ProxSGD, {"lr": math.nan}, "lr"),
        (ProxSGD, {"penalty": "ridge"}, "penalty"),
        (ProxSGD, {"penalty": "l1", "structure": "channel"}, "penalty l1: expected structure element, got channel"),
        (ProxSGD, {"structure": "row"}, "structure: expected element, kernel, channel, input-column or a grouper"),
        (RMDA, {"momentum": 0.0}, "momentum: expected a number above 0 and at most 1, got 0.0"),
        (RMDA, {"release": 0}, "release: expected a number above 0"),
        (RMDA, {"restart": 2.0}, "restart"),
        (RMDA, {"eps": -1.0}, "eps"),
    ],
)
def test_bad_options(kind: type, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind([nn.Parameter(torch.ones(2, 2))], **options)


def test_prox_sgd_and_rmda_do_not_take_each_others_state() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    sgd, rmda = ProxSGD([weight]), RMDA([weight])
    sgd.step()
    rmda.step()
    with pytest.raises(InputError, match="expected that of RMDA, got one without release"):
        rmda.load_state_dict(sgd.state_dict())
    with pytest.raises(InputError, match="expected velocity with shape"):
        sgd.load_state_dict(rmda.state_dict())
