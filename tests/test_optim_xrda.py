"""xRDA against a plain transcription of the equations in DESIGN.md, its schedules, its state, and what it refuses."""

from __future__ import annotations

import copy
import io
import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from edgeprune.errors import InputError
from edgeprune.optim import XRDA, Element, InputColumn, OutputChannel, transposed_weights

SHAPES = {
    "conv1d": (6, 4, 3),
    "conv2d": (5, 3, 3, 3),
    "conv3d": (3, 2, 2, 3, 2),
    "depthwise": (6, 1, 3, 3),
    "linear": (7, 5),
    "zero": (4, 3),
    "bias": (7,),
    "scale": (),
}
MODES = ("element", "kernel", "channel")
STEPS = 100
OPTIONS = {"lam": 1e-3, "tau": 5.0, "tau_b": 3.0, "max_factor": 500.0, "weight_decay": 1e-2}


pytestmark = pytest.mark.usefixtures("one_thread")


class Plain:
    """One tensor, as the equations are written; z is kept as it is."""

    def __init__(self, p: Tensor, mode: str, lam: float, tau: float, tau_b: float, max_factor: float, wd: float):
        self.p, self.z = p.clone(), p.clone()
        self.v, self.r, self.b = torch.zeros_like(p), torch.zeros_like(p), torch.zeros_like(p)
        self.mode, self.lam, self.tau, self.tau_b, self.big, self.wd = mode, lam, tau, tau_b, max_factor, wd

    def magnitudes(self) -> tuple[Tensor, float]:
        """N and c."""
        size, p = 1, self.p.abs()
        if self.mode == "kernel" and p.dim() > 2:
            size = math.prod(p.shape[2:])
            p = p.flatten(2).mean(2).reshape(*p.shape[:2], *[1] * (p.dim() - 2)).expand(p.shape)
        if self.mode == "channel":
            size = math.prod(p.shape[1:])
            p = torch.stack([row.mean().expand(row.shape) for row in p])
        return p, math.sqrt(size)

    def step(self, grad: Tensor, s: float, a: float) -> None:
        g = grad + self.wd * self.p
        w = torch.zeros_like(self.p)
        if self.p.dim() > 1:
            n, c = self.magnitudes()
            self.r = math.exp(-s / self.tau_b) * self.r + (1 - math.exp(-s / self.tau_b)) * n
            top = self.r.max()
            w = torch.full_like(n, c * self.big) if top == 0 else c * self.big / (1 + (self.big - 1) * self.r / top)
        self.b = a * self.b + s * w
        self.z = a * self.z + (1 - a) * self.p
        self.v = math.exp(-s / self.tau) * self.v + (1 - math.exp(-s / self.tau)) * g
        self.z = self.z - s * self.v
        self.p = torch.sign(self.z) * torch.clamp(self.z.abs() - self.lam * self.b, min=0)


def parameters(dtype: torch.dtype = torch.float64) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, shape in SHAPES.items():
        value = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        made[name] = nn.Parameter((torch.zeros(shape) if name == "zero" else value).to(dtype))
    return made


def gradients(step: int, params: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Noise and a pull towards fixed targets, so that weights move, vanish and come back."""
    generator = torch.Generator().manual_seed(1000 + step)
    found = {}
    for name, param in params.items():
        noise = 0.1 * torch.randn(param.shape, generator=generator, dtype=torch.float64)
        found[name] = (noise + 0.2 * param.detach().double() - (0.05 if name == "linear" else 0.0)).to(param.dtype)
    found["zero"].mul_(0.0 if step < 30 else 1.0)
    return found


def cosine(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.CosineAnnealingLR(optimizer, STEPS)


def halving(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.StepLR(optimizer, 25, gamma=0.5)


def warm_up(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 10, 1.0) * (1 - step / (STEPS + 1)))


Schedule = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]


def run(
    optimizer: torch.optim.Optimizer, params: dict[str, nn.Parameter], schedule: Schedule, steps: range
) -> list[float]:
    """Step, and say with which lr."""
    scheduler = schedule(optimizer)
    used = []
    for step in steps:
        for name, grad in gradients(step, params).items():
            params[name].grad = grad
        used.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return used


def transcribed(
    mode: str, lrs: list[float], averaging: float | None, dtype: torch.dtype = torch.float64
) -> dict[str, Plain]:
    """With p, and nothing else, rounded to a type."""
    params = parameters(dtype)
    plain = {name: Plain(param.detach().double(), mode, *OPTIONS.values()) for name, param in params.items()}
    for step, s in enumerate(lrs):
        for name, grad in gradients(step, params).items():
            plain[name].step(grad.double(), s, 1 - s / 1.0 if averaging is None else averaging)
            plain[name].p = plain[name].p.to(dtype).double()
        for name, param in params.items():
            param.data.copy_(plain[name].p)
    return plain


@pytest.mark.sampled(4)
@pytest.mark.parametrize("averaging", [None, 0.0, 0.7, 1.0])
@pytest.mark.parametrize("schedule", [cosine, halving, warm_up])
@pytest.mark.parametrize("mode", MODES)
def test_it_follows_the_equations(mode: str, schedule: Schedule, averaging: float | None) -> None:
    params = parameters()
    optimizer = XRDA(params.values(), structure=mode, averaging=averaging, **OPTIONS)
    plain = transcribed(mode, run(optimizer, params, schedule, range(STEPS)), averaging)
    for name, param in params.items():
        assert torch.allclose(param, plain[name].p, rtol=0, atol=1e-12), name
        if param.dim() > 1:
            assert torch.equal(param == 0, plain[name].p == 0), name
    zeros = [(params[name] == 0).double().mean().item() for name in ("conv1d", "conv2d", "depthwise")]
    if averaging != 0.0:  # proximal SGD hardly thresholds once the steps are small
        assert all(0.03 < share < 0.98 for share in zeros)
    assert (params["bias"] != 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_float32_stays_near(mode: str) -> None:
    params = parameters(torch.float32)
    optimizer = XRDA(params.values(), structure=mode, **OPTIONS)
    plain = transcribed(mode, run(optimizer, params, cosine, range(STEPS)), None)
    for name, param in params.items():
        assert torch.allclose(param.double(), plain[name].p, rtol=0, atol=2e-6), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_state_in_float32(dtype: torch.dtype) -> None:
    params = parameters(dtype)
    optimizer = XRDA(params.values(), **OPTIONS)
    plain = transcribed("element", run(optimizer, params, cosine, range(STEPS)), None, dtype)
    for name, param in params.items():
        assert optimizer.state[param]["velocity"].dtype == torch.float32
        assert (param.double() - plain[name].p).abs().mean() < 0.02 * torch.finfo(dtype).eps, name


@pytest.mark.parametrize("shape", [(2, 2), (3,)])
def test_half_precision_adds_up_small_steps(shape: tuple[int, ...]) -> None:
    """With averaging, steps far below the spacing of bfloat16 add up in the residual."""
    weight = nn.Parameter(torch.ones(shape, dtype=torch.bfloat16))
    optimizer = XRDA([weight], lr=1e-2, lam=1e-12, tau=1e-3, weight_decay=0.0, averaging=1.0)
    for _ in range(200):
        weight.grad = torch.full_like(weight, 0.05)
        optimizer.step()
    assert torch.allclose(weight.float(), torch.tensor(0.9), atol=4e-3)


def test_all_zero_weights_get_the_largest_threshold() -> None:
    weight = nn.Parameter(torch.zeros(3, 4, dtype=torch.float64))
    optimizer = XRDA([weight], structure="channel", lam=1e-5, max_factor=100.0)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert torch.equal(weight, torch.zeros_like(weight))
    threshold = optimizer.state[weight]["threshold"]
    assert torch.allclose(threshold, torch.full_like(threshold, 1e-5 * 2 * 100.0))  # lam c M, c = sqrt(4)


def moved_weights(start: list[torch.Tensor], **options: object) -> list[torch.Tensor]:
    """The weights after eight steps on a cosine schedule."""
    params = [nn.Parameter(value.clone()) for value in start]
    optimizer = XRDA(params, lam=1e-4, **options)  # type: ignore[arg-type]
    schedule = lr_scheduler.CosineAnnealingLR(optimizer, 8)
    for step in range(8):
        generator = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = torch.empty_like(param).copy_(0.1 * torch.randn(param.shape, generator=generator))
        optimizer.step()
        schedule.step()
    return [param.detach() for param in params]


def large() -> list[torch.Tensor]:
    """Tensors of many tiles with a remainder, of which the first is worth several threads."""
    torch.manual_seed(0)
    return [0.1 * torch.randn(shape) for shape in [(1000, 1100), (70, 67, 3, 3), (7,)]]


@pytest.mark.parametrize("structure", MODES)
def test_compiled_functions_and_lists_agree(structure: str) -> None:
    one, other = (moved_weights(large(), structure=structure, foreach=foreach) for foreach in (False, True))
    for compiled, listed in zip(one, other, strict=True):
        assert torch.allclose(compiled, listed, rtol=1e-5, atol=1e-6)
    if structure != "channel":
        assert 0.05 < (one[0] == 0).double().mean() < 1


@pytest.mark.parametrize("structure", [*MODES, InputColumn()])
def test_threads_do_not_matter(structure: object) -> None:
    before, results = torch.get_num_threads(), []
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            results.append(moved_weights(large(), structure=structure))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("structure", [*MODES, InputColumn()])
@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (8, 4, 1, 1), (8, 1, 3, 3)])
def test_memory_format_does_not_matter(structure: object, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    start, results = 0.1 * torch.randn(shape), []
    for layout in ("contiguous", "channels last", "changed later", "with holes"):
        wide = torch.zeros(*shape[:-1], 2 * shape[-1])
        value = wide[..., ::2].copy_(start) if layout == "with holes" else start.clone()
        param = nn.Parameter(value.to(memory_format=torch.channels_last) if layout == "channels last" else value)
        optimizer = XRDA([param], lam=1e-5, structure=structure)
        for step in range(6):
            if layout == "changed later" and step == 3:
                param.data = param.data.to(memory_format=torch.channels_last)
            param.grad = torch.randn(start.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        results.append(param.detach())
    for other in results[1:]:
        assert torch.allclose(results[0], other, rtol=1e-5, atol=1e-7)  # the mean over a group rounds by its order


def test_the_compiler_is_imported_by_the_first_step_alone() -> None:
    code = "import sys, edgeprune.optim; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def saved(optimizer: torch.optim.Optimizer) -> dict:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("structure", [*MODES, InputColumn(), Element()])
def test_it_resumes_bit_for_bit(structure: object, dtype: torch.dtype) -> None:
    def halves(first: dict[str, nn.Parameter], resume: bool) -> dict[str, nn.Parameter]:
        optimizer = XRDA(first.items(), structure=structure, averaging=lambda ratio: (1 - ratio) ** 2, **OPTIONS)
        scheduler = cosine(optimizer)
        for step in range(40):
            if resume and step == 20:
                states = saved(optimizer), saved(scheduler)  # type: ignore[arg-type]
                first = {name: nn.Parameter(param.detach().clone()) for name, param in first.items()}
                optimizer = XRDA(first.items(), lr=3.0, structure=structure, averaging=lambda r: (1 - r) ** 2)
                scheduler = cosine(optimizer)
                optimizer.load_state_dict(states[0])
                scheduler.load_state_dict(states[1])
            for name, grad in gradients(step, first).items():
                first[name].grad = grad
            optimizer.step()
            scheduler.step()
        return first

    whole, parts = halves(parameters(dtype), False), halves(parameters(dtype), True)
    assert any((param == 0).any() and param.any() for param in whole.values())
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


def test_param_groups_have_their_own_options() -> None:
    params = parameters()
    first = [params["conv2d"], params["bias"]]
    optimizer = XRDA([{"params": first, "structure": "channel", "lam": 5e-3, "weight_decay": 0.0}], **OPTIONS)
    optimizer.add_param_group({"params": [params["linear"]], "lr": 0.5})
    plain = {
        "conv2d": Plain(params["conv2d"].detach(), "channel", 5e-3, *list(OPTIONS.values())[1:4], 0.0),
        "bias": Plain(params["bias"].detach(), "channel", 5e-3, *list(OPTIONS.values())[1:4], 0.0),
        "linear": Plain(params["linear"].detach(), "element", *OPTIONS.values()),
    }
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 30)
    for step in range(20):
        share = 1 - step / 30
        for name, grad in gradients(step, params).items():
            params[name].grad = grad
            if name in plain:
                plain[name].step(grad, share * (0.5 if name == "linear" else 1.0), 1 - share)
        optimizer.step()
        scheduler.step()
    for name, expected in plain.items():
        assert torch.allclose(params[name], expected.p, rtol=0, atol=1e-12), name


def test_parameters_without_a_gradient_stay() -> None:
    params = parameters()
    optimizer = XRDA(params.values(), **OPTIONS)
    params["none"] = nn.Parameter(torch.zeros(0, 3, dtype=torch.float64))
    optimizer.add_param_group({"params": [params["none"]]})
    before = params["linear"].detach().clone()
    for step in range(3):
        for name, grad in gradients(step, params).items():
            params[name].grad = None if name == "linear" else grad
        optimizer.step()
    assert torch.equal(params["linear"], before)
    assert not optimizer.state[params["linear"]]
    again = XRDA([param for name, param in params.items() if name != "none"], **OPTIONS)
    again.add_param_group({"params": [params["none"]]})
    again.load_state_dict(saved(optimizer))


def test_a_closure_is_called_with_gradients_on() -> None:
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = XRDA([weight], lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(30)]
    assert losses[0] == 9.0
    assert losses[-1] < losses[0]


def test_long_dead_weights_stay_numbers() -> None:
    """Histories decay for thousands of steps without becoming subnormal or the thresholds infinite."""
    weight = nn.Parameter(torch.cat([torch.full((1, 40), 0.5), torch.full((1, 40), 1e-4)]))
    dead = nn.Parameter(torch.full((2, 3), 1e-6))
    optimizer = XRDA([weight, dead], lam=1e-6, averaging=0.9)
    for _ in range(3000):
        weight.grad, dead.grad = torch.zeros_like(weight), torch.zeros_like(dead)
        weight.grad[0] = -1e-3
        optimizer.step()
    assert (weight[1] == 0).all() and (weight[0] > 0).all() and (dead == 0).all()
    history = torch.cat([optimizer.state[param]["history"].flatten() for param in (weight, dead)])
    assert ((history == 0) | (history > torch.finfo(torch.float32).tiny)).all()
    assert torch.isfinite(optimizer.state[dead]["threshold"]).all()


def test_lr_may_end_at_zero() -> None:
    params = parameters()
    optimizer = XRDA(params.values(), **OPTIONS)
    run(optimizer, params, lambda o: lr_scheduler.LambdaLR(o, lambda step: max(0.0, 1 - step / 5)), range(10))
    before = {name: param.detach().clone() for name, param in params.items()}
    optimizer.step()
    assert all(torch.allclose(before[name], param, rtol=0, atol=1e-15) for name, param in params.items())


def test_transposed_convolutions_are_told_by_name() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 3))
    transposed = transposed_weights(module)
    assert transposed == {"1.weight"}
    names, weights = zip(*module.named_parameters(), strict=True)
    groups = OutputChannel(transposed).bind(["0.weight", "1.weight"], [weights[0], weights[2]])
    assert [norm.numel() for norm in groups.norms([weights[0], weights[2]], 1)] == [4, 2]
    assert names[2] == "1.weight"


def test_a_scheduler_may_not_raise_lr_above_the_first() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = XRDA([weight], lr=0.5)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()), weight.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.6
    with pytest.raises(InputError, match=r"lr: expected at most lr_0 = 0\.5.*got 0\.6"):
        optimizer.step()
    assert torch.equal(weight, before[1])
    assert torch.equal(optimizer.state_dict()["state"][0]["velocity"], before[0]["state"][0]["velocity"])


def test_one_cycle_is_refused_unless_averaging_is_given() -> None:
    for averaging, refused in ((None, True), (0.5, False)):
        weight = nn.Parameter(torch.ones(2, 2))
        optimizer = XRDA([weight], averaging=averaging)
        schedule = lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10, cycle_momentum=False)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        schedule.step()
        if refused:
            with pytest.raises(InputError, match="lr_0"):
                optimizer.step()
        else:
            optimizer.step()


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, "1", None, True])
@pytest.mark.parametrize("option", ["lam", "tau", "lr", "max_factor", "tau_b"])
def test_options_must_be_positive(option: str, value: object) -> None:
    if option == "tau_b" and value is None:
        return  # stands for tau
    with pytest.raises(InputError, match=f"{option}: expected a number above 0"):
        XRDA([nn.Parameter(torch.ones(2, 2))], **{option: value})


def test_options_are_checked_at_each_step() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = XRDA([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.param_groups[0]["lam"] = math.nan
    with pytest.raises(InputError, match="lam"):
        optimizer.step()
    assert torch.equal(weight, torch.ones(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "row"}, "structure: expected element, kernel, channel or a grouper, got 'row'"),
        ({"structure": 3}, "structure"),
        ({"weight_decay": -1e-4}, "weight_decay: expected a number at least 0"),
        ({"averaging": 1.5}, "averaging: expected a number at least 0 and at most 1, got 1.5"),
        ({"averaging": math.nan}, "averaging"),
    ],
)
def test_other_bad_options(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        XRDA([nn.Parameter(torch.ones(2, 2))], **options)


def test_a_bad_param_group_is_not_added() -> None:
    optimizer = XRDA([nn.Parameter(torch.ones(2, 2))])
    with pytest.raises(InputError, match="lam"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lam": -1.0})
    assert len(optimizer.param_groups) == 1


def test_an_averaging_function_must_stay_in_range() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = XRDA([weight], averaging=lambda ratio: 2.0)
    weight.grad = torch.ones_like(weight)
    with pytest.raises(InputError, match="averaging"):
        optimizer.step()


def test_complex_parameters_and_sparse_gradients_are_refused() -> None:
    with pytest.raises(InputError, match="parameter w: expected float64.*got torch.complex64"):
        XRDA([("w", nn.Parameter(torch.ones(2, 2, dtype=torch.complex64)))])
    table = nn.Embedding(4, 3, sparse=True)
    optimizer = XRDA(table.named_parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(InputError, match="weight: expected a dense gradient, got torch.sparse_coo"):
        optimizer.step()


def test_foreign_state_is_refused() -> None:
    def stepped(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> dict:
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        return optimizer.state_dict()

    weight, wider = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 4))
    optimizer = XRDA([weight])
    before = copy.deepcopy(stepped(optimizer, weight))
    foreign = {
        "expected that of XRDA": stepped(torch.optim.SGD([weight], lr=0.1, momentum=0.9), weight),
        "structure element, got channel": stepped(XRDA([weight], structure="channel"), weight),
        "velocity with shape": stepped(XRDA([wider]), wider),
        r"\[1\] parameters, got \[2\]": stepped(XRDA([weight, wider]), weight),
        "state and param_groups": {"weights": 1},
    }
    for message, state in foreign.items():
        with pytest.raises(InputError, match=message):
            optimizer.load_state_dict(state)
    after = optimizer.state_dict()
    assert torch.equal(after["state"][0]["velocity"], before["state"][0]["velocity"])
    assert after["param_groups"] == before["param_groups"]
