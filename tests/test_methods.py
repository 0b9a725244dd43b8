"""Methods of sparse training: what each promises, on real digits and on tensors worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune import catalog
from edgeprune.errors import InputError
from edgeprune.graph.comparison import outputs, relative_error
from edgeprune.methods import METHODS, SCHEDULES, Method, Subject, make_method
from edgeprune.methods.masks import keep_highest
from edgeprune.progress import Silent
from edgeprune.records import DataSource
from edgeprune.settings import TrainSettings
from edgeprune.training import StateFile, evaluate, fit, layer_zeros
from tests.cases import CASES

pytestmark = pytest.mark.usefixtures("one_thread")


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def cnn(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def wanted(method: str, epochs: int = 15, optimizer: str = "sgd", **options: object) -> TrainSettings:
    return TrainSettings(epochs=epochs, optimizer=optimizer, threads=1, method=method, options=options)


def trained(module: nn.Module, data: DataSource, settings: TrainSettings) -> float:
    """Its accuracy after training."""
    fit(module, data, data.normalization, settings)
    return evaluate(module, data.test, data.normalization).value


def zeros(module: nn.Module) -> list[int]:
    return [layer.zeros for layer in layer_zeros(module)]


SIZES = [64 * 32, 32 * 32, 32 * 10]

# -- what the methods promise ------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("criterion", ["l1", "l2", "random"])
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_gradual_pruning_ends_with_the_share_in_every_layer(digits: DataSource, criterion: str, schedule: str) -> None:
    module = mlp()
    accuracy = trained(module, digits, wanted("gradual", sparsity=0.8, criterion=criterion, prune_schedule=schedule))
    assert zeros(module) == [round(0.8 * size) for size in SIZES]
    assert accuracy > (0.25 if criterion == "random" else 0.85)


@pytest.mark.parametrize(
    ("method", "options"),
    [("gradual", {"criterion": "lamp"}), ("gradual", {"criterion": "taylor"}), ("weight-mom", {})],
    ids=str,
)
def test_what_compares_layers_ends_with_the_share_over_all(
    digits: DataSource, method: str, options: dict[str, object]
) -> None:
    module = mlp()
    assert trained(module, digits, wanted(method, sparsity=0.8, **options)) > 0.85
    found = zeros(module)
    assert sum(found) == round(0.8 * sum(SIZES))
    assert found[2] / SIZES[2] < 0.79  # the last layer is small and needed


@pytest.mark.sampled(2)
@pytest.mark.parametrize("regrow", ["gradient", "momentum", "random"])
def test_regrowing_keeps_the_share_all_the_time(digits: DataSource, regrow: str) -> None:
    module, seen = mlp(), []
    module[1].register_forward_hook(lambda layer, args, out: seen.append(layer.weight.detach() != 0))
    assert trained(module, digits, wanted("regrow", 25, sparsity=0.8, regrow=regrow)) > (
        0.4 if regrow == "random" else 0.75
    )
    assert zeros(module) == [round(0.8 * size) for size in SIZES]
    # What has just come back is zero still, so there is at most the share; and the places do change.
    assert max(int(inside.sum()) for inside in seen) == SIZES[0] - round(0.8 * SIZES[0])
    assert (seen[0] & ~seen[-1]).any() and (seen[-1] & ~seen[0]).any()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 8)])
def test_n_of_m_weights_are_left_everywhere(digits: DataSource, n: int, m: int) -> None:
    module = cnn()
    assert trained(module, digits, wanted("n-m", 6, n_m=f"{n}:{m}")) > 0.8
    assert (module[0].weight != 0).all()  # one input channel makes no row of M
    for weight in (module[3].weight, module[8].weight):
        rows = weight.detach().movedim(1, -1).reshape(-1, m)
        assert ((rows != 0).sum(1) == n).all()


def test_learned_shrinkage_leaves_more_zeros_the_stronger_it_is(digits: DataSource) -> None:
    found = []
    for lam in (0.01, 0.03):
        module = mlp()
        assert trained(module, digits, wanted("halo", 20, lam=lam)) > 0.88
        found.append(sum(zeros(module)) / sum(SIZES))
    assert 0.1 < found[0] < found[1] and found[1] > 0.4


@pytest.mark.sampled(2)
@pytest.mark.parametrize("structure", ["kernel", "input-column", "channel-group"])
@pytest.mark.parametrize("method", ["gradual", "halo"])
def test_groups_vanish_whole(digits: DataSource, method: str, structure: str) -> None:
    module = cnn()
    options = {"sparsity": 0.5} if method == "gradual" else {"lam": 0.3 if structure == "input-column" else 0.1}
    trained(module, digits, wanted(method, 6, structure=structure, **options))
    weight = module[3].weight.detach()  # (16, 8, 3, 3)
    dims = {"kernel": (2, 3), "input-column": (0, 2, 3), "channel-group": (1, 2, 3)}[structure]
    gone = (weight == 0).all(dims[2]).all(dims[1]) if structure != "kernel" else (weight == 0).all(3).all(2)
    if structure != "kernel":
        gone = gone.all(dims[0])
    assert 0 < gone.sum() < gone.numel()
    if method == "gradual":
        assert gone.sum() == gone.numel() // 2
    if structure == "channel-group":
        assert (module[4].weight[gone] == 0).all() and (module[4].bias[gone] == 0).all()
        assert (module[3].bias[gone] == 0).all()
        assert (module[8].weight.view(10, 16, 16)[:, gone] == 0).all()
        assert (module[8].weight.view(10, 16, 16)[:, ~gone] != 0).any()


@pytest.mark.sampled(2)
@pytest.mark.parametrize("criterion", ["bn-scale", "fpgm", "lamp", "taylor", "random"])
def test_channel_groups_go_by_every_criterion_that_needs_no_other_data(digits: DataSource, criterion: str) -> None:
    module = cnn()
    trained(module, digits, wanted("gradual", 3, sparsity=0.5, structure="channel-group", criterion=criterion))
    closed = [int((norm.weight == 0).sum()) for norm in (module[1], module[4])]
    assert sum(closed) == 12 and max(closed) < 16
    if criterion not in ("lamp", "taylor"):
        assert closed == [4, 8]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("gates", ["channels", "inputs", "both"])
def test_gates_end_open_or_closed_and_closed_units_are_zero_everywhere(digits: DataSource, gates: str) -> None:
    module = mlp()
    assert trained(module, digits, wanted("gumbel-gates", 15, sparsity=0.5, gates=gates)) > 0.6
    columns = (module[1].weight == 0).all(0)
    units = [(module[1].weight == 0).all(1), (module[3].weight == 0).all(1)]
    for unit, layer, reader in zip(units, (module[1], module[3]), (module[3], module[5]), strict=True):
        assert (layer.bias[unit] == 0).all() and (reader.weight[:, unit] == 0).all()
        assert (reader.weight[:, ~unit].abs().sum(0) > 0).all() and (layer.bias[~unit] != 0).any()
    n_units = int(sum(unit.sum() for unit in units))
    expected = {"channels": (32, 0), "inputs": (0, 32), "both": (64, None)}[gates]
    assert n_units + (int(columns.sum()) if gates != "channels" else 0) == expected[0] + (expected[1] or 0)
    assert all(unit.sum() < len(unit) for unit in units)


def test_closing_for_good_changes_nothing_of_what_was_measured() -> None:
    module = cnn()
    graph = edgeprune.analyze(edgeprune.capture(module, torch.randn(2, 1, 8, 8)), inputs=True)
    method = make_method("gumbel-gates", Subject(module, graph, 10, {"sparsity": 0.5}))
    torch.manual_seed(1)
    method.state["logits"].normal_()
    method.step = 9
    with torch.no_grad():
        for norm in (module[1], module[4]):
            norm.bias.normal_()
            norm.running_mean.normal_()
    module.eval()
    x = torch.randn(4, 1, 8, 8)
    before = [param.detach().clone() for param in module.parameters()]
    with method.shown():
        shown = module(x)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert not torch.allclose(shown, module(x))
    method.finish()
    torch.testing.assert_close(module(x), shown, rtol=1e-5, atol=1e-6)
    assert sum(int((norm.weight == 0).sum()) for norm in (module[1], module[4])) == 12


@pytest.mark.parametrize(
    "name", ["mean over channels", "norm over channels", "several outputs", "attention", "mlp inputs"]
)
def test_closed_units_are_as_removed_whatever_reads_them(name: str) -> None:
    """Where not weights alone read a unit, closing the weights that do would not do."""
    case = CASES[name]
    torch.manual_seed(0)
    module = case.build().double().eval()
    inputs = tuple(torch.randn(2, *shape, dtype=torch.float64) for shape in case.shapes)
    graph = edgeprune.analyze(edgeprune.capture(module, inputs), inputs=True)
    method = make_method("gumbel-gates", Subject(module, graph, 10, {"sparsity": 0.5, "gates": "both"}))
    method.state["logits"].normal_()
    method.step = 9
    dense = outputs(module, inputs)
    with method.shown():
        shown = outputs(module, inputs)
    assert relative_error(dense, outputs(module, inputs)) == 0
    method.finish()
    assert relative_error(dense, shown) > 1e-3
    assert relative_error(outputs(module, inputs), shown) < 1e-10


def test_gates_find_the_features_that_matter() -> None:
    """A table whose classes depend on 3 of 12 columns: the gates leave those open."""
    from edgeprune.data.arrays import from_arrays

    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 12)).astype(np.float32)
    y = (x[:, 2] + x[:, 5] - 1.5 * x[:, 9] > 0).astype(np.int64)
    table = from_arrays("table", {"all": (x, y)})
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))
    assert trained(module, table, wanted("gumbel-gates", 20, gates="inputs", sparsity=0.75)) > 0.93
    assert torch.nonzero((module[0].weight != 0).any(0)).flatten().tolist() == [2, 5, 9]


# -- by hand -----------------------------------------------------------------------------------------------------------


def single(weight: list[list[float]]) -> nn.Module:
    module = nn.Linear(len(weight[0]), len(weight), bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weight))
    return module


def step(method: Method, module: nn.Module, grad: list[list[float]], lr: float = 0.0) -> None:
    """A step of the loop whose optimizer does nothing."""
    method.begin(training=True)
    module.weight.grad = torch.tensor(grad)
    method.end(1.0)
    method.after_step(lr)


def test_the_schedules_follow_their_formulas() -> None:
    for x in np.linspace(0, 1, 21):
        part = min(1.0, max(0.0, (x - 0.1) / 0.65))
        assert SCHEDULES["one-shot"](x) == (x >= 0.5)
        assert SCHEDULES["linear"](x) == pytest.approx(part)
        assert SCHEDULES["cubic"](x) == pytest.approx(1 - (1 - part) ** 3)
        assert SCHEDULES["one-cycle"](x) == pytest.approx((1 + math.exp(-8)) / (1 + math.exp(-14 * x + 6)))
    for schedule in SCHEDULES.values():
        values = [schedule(x) for x in np.linspace(0, 1, 101)]
        assert 0 <= values[0] < 0.01 and values[-1] == 1.0
        assert all(a <= b for a, b in zip(values, values[1:], strict=False))


def test_gradual_pruning_follows_the_schedule_and_what_is_out_stays_out() -> None:
    module = single([[0.1, 0.5, 0.3, 0.2, 0.9, 0.8, 0.7, 0.6, 1.0, 0.4]])
    options = {"sparsity": 0.9, "prune_schedule": "linear", "prune_every": 5}
    method = make_method("gradual", Subject(module, None, 20, options))
    counts = []
    for _ in range(20):
        with torch.no_grad():
            module.weight.add_(0.05)  # as an optimizer would, also where it is out
        step(method, module, [[1.0] * 10])
        counts.append(int((module.weight == 0).sum()))
        assert torch.equal(module.weight.grad, (module.weight != 0).float())
    shares = [0.9 * SCHEDULES["linear"](done / 20) for done in (5, 10, 15, 20)]
    assert counts[4::5] == [round(share * 10) for share in shares] and counts[3] == 0
    assert torch.nonzero(module.weight.flatten()).flatten().tolist() == [8]


def test_of_equal_blocks_one_group_always_stays() -> None:
    inside = [torch.ones(4, dtype=torch.bool), torch.ones(2, dtype=torch.bool)]
    for together in (False, True):
        kept = keep_highest([torch.zeros(4), torch.ones(2)], inside, 0.99, together)
        assert [int(own.sum()) for own in kept] == [1, 1]
    scores = [torch.tensor([3.0, 1.0, 2.0, 4.0]), torch.tensor([0.5, 5.0])]
    apart, together = (keep_highest(scores, inside, 0.5, flag) for flag in (False, True))
    assert [own.tolist() for own in apart] == [[True, False, False, True], [False, True]]
    assert [own.tolist() for own in together] == [[True, False, False, True], [False, True]]
    together = keep_highest(scores, inside, 0.34, True)
    assert [own.tolist() for own in together] == [[True, False, True, True], [False, True]]


def test_momentum_scores_remember() -> None:
    module = single([[1.0, 1.0, 0.2, 0.2]])
    method = make_method("weight-mom", Subject(module, None, 40, {"sparsity": 0.5, "prune_schedule": "one-shot"}))
    for _ in range(18):
        step(method, module, [[0.0] * 4])
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[0.1, 1.0, 0.3, 0.3]]))  # small just now
    for _ in range(2):
        step(method, module, [[0.0] * 4])
    assert (module.weight != 0).tolist() == [[True, True, False, False]]


def test_what_has_the_largest_gradient_comes_back() -> None:
    module = single([[float(i) for i in range(1, 41)]])
    method = make_method("regrow", Subject(module, None, 100, {"sparsity": 0.5, "prune_every": 1}))
    before = method.inside["weight"].flatten().clone()
    assert int(before.sum()) == 20
    out = torch.nonzero(~before).flatten()
    grad = torch.zeros(40)
    grad[out[:7]] = torch.arange(1.0, 8.0)
    moved = int(0.15 * (1 + math.cos(math.pi * 0.01 / 0.75)) * 20)
    step(method, module, [grad.tolist()])
    after = method.inside["weight"].flatten()
    smallest = torch.nonzero(before).flatten()[:moved]
    assert torch.nonzero(before & ~after).flatten().tolist() == smallest.tolist()
    assert torch.nonzero(~before & after).flatten().tolist() == out[7 - moved : 7].tolist()
    assert module.weight.flatten()[out].abs().sum() == 0  # from zero
    assert (module.weight.grad.flatten() != 0).tolist() == (after & (grad != 0)).tolist()


def test_sr_ste_gives_all_weights_the_gradient_and_lets_the_unseen_decay() -> None:
    module = single([[1.0, -3.0, 2.0, 0.5]])
    method = make_method("n-m", Subject(module, None, 10, {"n_m": "2:4"}))
    method.begin(training=True)
    assert module.weight.tolist() == [[0.0, -3.0, 2.0, 0.0]]
    module.weight.grad = torch.tensor([[1.0, 2.0, 3.0, 4.0]]) * 8
    method.end(8.0)
    assert module.weight.tolist() == [[1.0, -3.0, 2.0, 0.5]]
    expected = torch.tensor([[1.0 + 2e-4, 2.0, 3.0, 4.0 + 1e-4]]) * 8
    torch.testing.assert_close(module.weight.grad, expected)


def test_halo_makes_the_proximal_step_of_its_penalty() -> None:
    module = single([[0.5, -2.0, 0.001]])
    method = make_method("halo", Subject(module, None, 10, {"lam": 0.1}))
    step(method, module, [[0.0] * 3], lr=0.1)  # all coefficients are 1
    torch.testing.assert_close(module.weight.detach(), torch.tensor([[0.49, -1.99, 0.0]]))
    roots = torch.tensor([[0.5, 2.0, 0.001]]) ** (1 / 3)
    expected = 1 + 0.01 * (roots / roots.mean() - 1)
    torch.testing.assert_close(method.coefficients["weight"], expected)
    before = module.weight.detach().clone()
    step(method, module, [[0.0] * 3], lr=0.1)
    torch.testing.assert_close(module.weight.detach(), before.sign() * (before.abs() - 0.01 / expected**2).clamp(min=0))


def test_halo_has_one_budget_over_all_layers() -> None:
    """A layer of large weights earns large coefficients, and is shrunk less than one of small weights."""
    module = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        module[0].weight.uniform_(0.5, 1.0)
        module[1].weight.uniform_(0.05, 0.1)
    method = make_method("halo", Subject(module, None, 10, {"lam": 1e-9}))
    weights = [param.detach().clone() for param in module.parameters()]
    for _ in range(600):
        method.after_step(0.1)
    roots = [weight ** (1 / 3) for weight in weights]
    mean = torch.cat([root.flatten() for root in roots]).mean()
    for found, root in zip(method.coefficients.values(), roots, strict=True):
        torch.testing.assert_close(found, root / mean, rtol=5e-3, atol=0)
    first, last = (own.mean() for own in method.coefficients.values())
    assert first > 1 > last


# -- resume ------------------------------------------------------------------------------------------------------------


class Stop(Silent):
    def stage(self, title: str) -> None: ...
    def say(self, message: str) -> None: ...
    def advance(self, done: int, total: int, note: str = "") -> None:
        if done == 24:
            raise KeyboardInterrupt


RESUMED = [
    wanted("gradual", 4, "adamw", sparsity=0.8, criterion="taylor"),
    wanted("gradual", 4, sparsity=0.5, structure="channel-group", criterion="random"),
    wanted("weight-mom", 4, sparsity=0.8),
    wanted("regrow", 4, sparsity=0.8, regrow="momentum"),
    wanted("regrow", 4, "adamw", sparsity=0.8, regrow="random"),
    wanted("n-m", 4, "adamw"),
    wanted("halo", 4, lam=0.03, structure="channel-group"),
    wanted("gumbel-gates", 4, "adamw", gates="both"),
    wanted("shared-budget", 4, "adamw", keep_params=0.3),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("settings", RESUMED, ids=lambda s: f"{s.method} {s.options.get('regrow', '')}")
def test_a_method_goes_on_as_if_it_had_not_stopped(digits: DataSource, tmp_path: Path, settings: TrainSettings) -> None:
    whole, stopped, resumed = mlp(), mlp(), mlp(9)
    file = tmp_path / "state"
    expected = fit(whole, digits, digits.normalization, settings)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, digits, digits.normalization, settings, Stop(), checkpoint=StateFile(file, {}))
    again = fit(resumed, digits, digits.normalization, settings, checkpoint=StateFile(file, {}, resume=True))
    assert again == expected
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_state_of_another_network_is_refused(digits: DataSource, tmp_path: Path) -> None:
    file, settings = tmp_path / "state", wanted("gradual", 4)
    with pytest.raises(KeyboardInterrupt):
        fit(mlp(), digits, digits.normalization, settings, Stop(), checkpoint=StateFile(file, {}))
    other = torch.load(file, weights_only=True)
    other["method"]["inside"]["1.weight"] = other["method"]["inside"]["1.weight"][:5]
    torch.save(other, file)
    with pytest.raises(InputError, match="expected this training's whole state, got a damaged one: gradual inside"):
        fit(mlp(), digits, digits.normalization, settings, checkpoint=StateFile(file, {}, resume=True))


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (wanted("prune"), "method: expected one of gradual, .*, got 'prune'"),
        (wanted("halo", optimizer="xrda"), "method halo: expected the optimizer adamw or sgd, got xrda, which makes"),
        (wanted("gradual", sparsity=1.0), r"sparsity: expected a number in \(0, 1\), got 1.0"),
        (wanted("gradual", sparsity=0.0), r"sparsity: expected a number in \(0, 1\), got 0.0"),
        (wanted("gradual", sparsity=float("nan")), r"sparsity: expected a number in \(0, 1\), got nan"),
        (wanted("gradual", prune_every=0), "prune_every: expected a whole number of at least 1, got 0"),
        (wanted("gradual", prune_every=1.5), "prune_every: expected a whole number of at least 1, got 1.5"),
        (wanted("gradual", prune_schedule="fast"), "prune_schedule: expected one of one-shot, linear, .*, got fast"),
        (wanted("gradual", criterion="size"), "criterion: expected one of l1, .*, got size"),
        (wanted("gradual", criterion="fpgm"), "criterion fpgm: expected structure channel-group, got element"),
        (wanted("gradual", criterion="activation"), "criterion activation: expected one of l1, .*, got element"),
        (wanted("gradual", structure="channel"), "expected structure element, .*, got channel, by which the outputs"),
        (wanted("gradual", n_m="2:4"), "n_m: belongs to n-m, got optimizer sgd and method gradual"),
        (wanted("n-m", sparsity=0.5), "sparsity: belongs to gradual, .*, got optimizer sgd and method n-m"),
        (wanted("halo", tau=1.0), "tau: belongs to xrda, got"),
        (wanted("regrow", regrow="size"), "regrow: expected one of gradient, momentum, random, got size"),
        (wanted("n-m", n_m="4:4"), "n_m: expected N:M with 1 <= N < M, such as 2:4, got 4:4"),
        (wanted("n-m", n_m="0:4"), "n_m: expected N:M with 1 <= N < M"),
        (wanted("n-m", n_m="2-4"), "n_m: expected N:M with 1 <= N < M"),
        (wanted("n-m", n_m="2:5"), "method n-m: 1.weight: expected inputs that 5 divides, got 64"),
        (wanted("n-m", n_m="2:100"), "method n-m: expected layers with at least 100 inputs, got none"),
        (wanted("shared-budget"), "method shared-budget: expected keep_macs or keep_params, got neither"),
        (wanted("shared-budget", keep_macs=0.0), r"keep_macs: expected a number in \(0, 1\], got 0.0"),
        (wanted("shared-budget", keep_macs=float("nan")), r"keep_macs: expected a number in \(0, 1\], got nan"),
        (
            wanted("shared-budget", keep_macs=0.5, input_features="some"),
            "input_features: expected one of auto, off, got",
        ),
        (
            wanted("shared-budget", keep_macs=0.5, input_features="off", feature_price="2"),
            "--feature-price: expected input features that may go, got --input-features off",
        ),
        (
            wanted("shared-budget", keep_macs=0.5, feature_price="-1"),
            "--feature-price: expected a price above 0, got -1",
        ),
        (wanted("gumbel-gates", gates="weights"), "gates: expected one of channels, inputs, both, got weights"),
    ],
)
def test_what_does_not_fit_is_refused(digits: DataSource, settings: TrainSettings, message: str) -> None:
    module = mlp()
    before = [param.detach().clone() for param in module.parameters()]
    with pytest.raises(InputError, match=message):
        fit(module, digits, digits.normalization, settings)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_a_method_that_fits_no_layer_is_refused(digits: DataSource) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(10))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :10] * self.scale

    for method in ("gradual", "regrow", "halo", "weight-mom"):
        message = f"method {method}: expected a network with weights for element, got none in Scaled"
        with pytest.raises(InputError, match=message):
            fit(Scaled(), digits, digits.normalization, wanted(method))
    one = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(InputError, match="expected a network with channels that can be removed, got none"):
        fit(one, digits, digits.normalization, wanted("gumbel-gates"))
    with pytest.raises(InputError, match="expected a network with input features that can be removed, got none"):
        fit(cnn(), digits, digits.normalization, wanted("gumbel-gates", gates="inputs"))


def test_the_catalog_names_every_method_and_schedule() -> None:
    assert set(catalog.names("method")) == set(METHODS)
    assert set(catalog.names("schedule")) == set(SCHEDULES) == set(catalog.OPTIONS["prune_schedule"].choices)
    assert catalog.names("criterion") == catalog.OPTIONS["criterion"].choices
