"""Reconstruction: what is left of a network takes over what was removed, as far as that is a linear function of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edgeprune
from edgeprune.errors import InputError
from edgeprune.graph.capture import Program
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.planner import make_plan
from edgeprune.reconstruction import reconstruct as module_of_reconstruct
from edgeprune.reconstruction.moments import Change, Moments, solved
from edgeprune.reconstruction.readers import readers_of
from edgeprune.reconstruction.reconstruct import reconstructed
from edgeprune.reconstruction.rows import inputs_at, n_rows, outputs_at
from edgeprune.records import Reconstruction


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cut_of(program: Program, removed: dict[str, list[int]]) -> tuple[Program, PruningPlan]:
    """The network without some units, by the names of their groups."""
    graph = edgeprune.analyze(program)
    keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
    for group in graph.groups:
        keep[group.units[removed.get(group.name, [])]] = False
    assert removed.keys() <= {group.name for group in graph.groups}
    plan = make_plan(program, graph, keep)
    return edgeprune.cut(program, plan, graph), plan


def mended(model: nn.Module, x: Tensor, removed: dict[str, list[int]]) -> tuple[float, float, Reconstruction]:
    """How far the outputs are off on other inputs, before and after, relative to their size."""
    program = edgeprune.capture(model, x[:2])
    slim, plan = cut_of(program, removed)
    assert edgeprune.prove(program, slim, plan) < 1e-9
    found = reconstructed(program, slim, plan, [x])
    other = torch.flip(x, (0,)) * 1.1
    want = model(other)
    with torch.no_grad():
        errors = [float((one.module()(other) - want).norm() / want.norm()) for one in (slim, found.program)]
    return errors[0], errors[1], found.record


def double(model: nn.Module, seed: int = 0) -> nn.Module:
    """In float64, every parameter drawn."""
    model = model.double().eval()
    for number, parameter in enumerate(model.parameters()):
        parameter.data = random(*parameter.shape, seed=seed + number) / max(1, parameter[0].numel()) ** 0.5
    return model


# -- what a layer is computed from --

GEOMETRIES: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.Linear(5, 3), (4, 6, 5)),
    (lambda: nn.Conv1d(4, 6, 3, 2, 1), (3, 4, 9)),
    (lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), bias=False), (3, 4, 7, 6)),
    (lambda: nn.Conv2d(4, 6, 3, dilation=2, groups=2), (3, 4, 7, 8)),
    (lambda: nn.Conv2d(4, 6, (2, 4), padding="same"), (3, 4, 7, 8)),
    (lambda: nn.Conv2d(4, 8, 3, padding="valid", groups=4), (3, 4, 7, 8)),
    (lambda: nn.Conv3d(2, 3, 2, (1, 2, 1)), (2, 2, 4, 5, 3)),
    (lambda: nn.ConvTranspose1d(4, 6, 4, 3, 1, output_padding=2, groups=2), (3, 4, 5)),
    (lambda: nn.ConvTranspose2d(4, 6, (3, 2), (2, 1), (2, 0), dilation=(1, 2), bias=False), (3, 4, 5, 6)),
    (lambda: nn.ConvTranspose2d(3, 2, 1, 1, padding=0), (3, 3, 5, 6)),
]


@pytest.mark.parametrize(("make", "shape"), GEOMETRIES)
def test_a_layer_is_a_product_of_rows(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model, x = double(nn.Sequential(make())), random(*shape)
    module = edgeprune.capture(model, x).own_module()
    [reader] = readers_of(module).values()
    weight, bias = (dict(module.named_parameters()).get(name or "") for name in (reader.weight, reader.bias))
    assert weight is not None
    with torch.no_grad():
        y, matrix = model(x), reader.matrix(weight)
        index = torch.arange(0, n_rows(y, reader), 3)
        rows = inputs_at(x, reader, index)
        product = torch.einsum("ngi,gio->ngo", rows, matrix).flatten(1)
    torch.testing.assert_close(product if bias is None else product + bias, outputs_at(y, reader, index))
    torch.testing.assert_close(reader.weight_of(matrix, weight), weight)


# -- nothing is lost, nothing changes --


class Residual(nn.Module):
    """Convolutions, a depthwise one among them, around a sum that a pooled linear layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.deep = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.norm(self.mix(x))
        return self.head(self.wide(self.deep(x)).mean((2, 3)))


class Attention(nn.Module):
    """Two heads more than are told apart: the last two compute what the first two do."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(6, 48), nn.Linear(16, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, 4, 4).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], -1, 16)
        return self.head(F.relu(x + self.out(y)))


@pytest.mark.parametrize(("model", "shape"), [(Residual(), (16, 2, 8, 8)), (Attention(), (16, 5, 6))])
def test_with_all_units_kept_nothing_changes(model: nn.Module, shape: tuple[int, ...]) -> None:
    program = edgeprune.capture(double(model), random(*shape))
    slim, plan = cut_of(program, {})
    found = reconstructed(program, slim, plan, [random(*shape, seed=5)])
    for name, tensor in slim.state_dict.items():
        torch.testing.assert_close(found.program.state_dict[name], tensor, rtol=1e-12, atol=1e-13)
    assert found.record.before == 0 and {layer.before for layer in found.record.layers} == {0.0}
    assert found.record.outputs_before < 1e-12


# -- what the others tell is taken over --


def as_mixture(weight: Tensor, unit: int, of: list[int], seed: int = 9) -> None:
    """Let a unit's row be a linear combination of others'."""
    with torch.no_grad():
        shares = random(len(of), seed=seed)
        weight[unit] = torch.tensordot(shares, weight[of], 1)


def mixed(tensors: list[Tensor], unit: int, of: list[int]) -> None:
    for tensor in tensors:
        as_mixture(tensor, unit, of)


def test_a_linear_layer_takes_over() -> None:
    model = double(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)))
    mixed([model[0].weight, model[0].bias], 1, [0, 3])
    mixed([model[1].weight, model[1].bias], 3, [0, 1, 2])
    before, after, record = mended(model, random(64, 6), {"0": [1], "1": [3]})
    assert before > 0.1 and after < 1e-9
    assert [layer.layer for layer in record.layers] == ["0", "1", "2"] and record.after < 1e-12 < record.before


@pytest.mark.parametrize("after_it", [nn.ReLU(), nn.Sequential(nn.BatchNorm2d(5), nn.ReLU())])
@pytest.mark.parametrize("second", [nn.Conv2d(5, 4, 3, 2, 1), nn.ConvTranspose2d(5, 4, 3, 2, 1, bias=False)])
def test_a_convolution_takes_over_what_is_rectified(after_it: nn.Module, second: nn.Module) -> None:
    model = double(nn.Sequential(nn.Conv2d(2, 5, 3), after_it, second))
    with torch.no_grad():
        for parameter in [*model[0].parameters(), *after_it.parameters()]:
            parameter[4] = parameter[2] * (2 if isinstance(after_it, nn.ReLU) else 1)
    before, after, _ = mended(model, random(16, 2, 9, 9), {"0": [4]})
    assert before > 0.1 and after < 1e-9


def test_readers_behind_a_residual_sum_take_over() -> None:
    model = double(Residual())
    with torch.no_grad():  # the sum is another channel's, and so is what the depthwise layer makes of it
        for layer in (model.stem, model.mix, model.norm):
            for parameter in layer.parameters():
                parameter[5] = parameter[2]
        for parameter in model.deep.parameters():
            parameter[5] = 0.7 * parameter[2]
    before, after, record = mended(model, random(16, 2, 9, 9), {"stem": [5]})
    assert before > 0.01 and after < 1e-9
    assert {layer.layer for layer in record.layers if layer.before > 1e-9} == {"mix", "wide"}


def test_attention_takes_over_a_head() -> None:
    model = double(Attention())
    with torch.no_grad():
        for part in (model.qkv.weight, model.qkv.bias):
            heads = part.view(3, 4, 4, *part.shape[1:])
            heads[:, 2:] = heads[:, :2]
    program = edgeprune.capture(model, random(2, 5, 6))
    [heads_group] = [group.name for group in edgeprune.analyze(program).groups if group.n_units == 4]
    before, after, _ = mended(model, random(32, 5, 6), {heads_group: [2, 3]})
    assert before > 0.01 and after < 1e-9


def test_attention_reads_what_is_left_of_its_inputs() -> None:
    model = double(nn.Sequential(nn.Linear(7, 8), nn.LayerNorm(8), nn.Linear(8, 6), Attention()))
    mixed([model[2].weight, model[2].bias], 4, [1, 3])
    model[3] = double(AttentionAlone(), seed=20)
    before, after, _ = mended(model, random(32, 5, 7), {"2": [4]})
    assert before > 0.01 and after < 1e-9


class AttentionAlone(nn.MultiheadAttention):
    """PyTorch's own, of one tensor."""

    def __init__(self) -> None:
        super().__init__(6, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x, need_weights=False)[0]


# -- what cannot be taken over --


def untrained(kind: str = "relu") -> nn.Module:
    torch.manual_seed(0)
    middle = {"relu": nn.ReLU(), "norm": nn.BatchNorm1d(12)}[kind]
    return nn.Sequential(nn.Linear(6, 12), middle, nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)).eval()


def wide() -> nn.Module:
    """Of more units than there are samples."""
    layers = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4))
    return double(layers).float()


def drawn_convolution() -> nn.Module:
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    return double(layers).float()


def off(model: nn.Module, program: Program, *shape: int) -> float:
    """How far a program is from a model on inputs that neither has seen."""
    x = random(400, *(shape or (6,)), seed=77).float()
    with torch.no_grad():
        return float((program.module()(x) - model(x)).square().sum())


def reconstruction(model: nn.Module, batches: Any, **options: Any) -> tuple[Program, Program, Reconstruction]:
    """The cut network, the same after reconstruction, and its record."""
    program = edgeprune.capture(model, torch.zeros(2, 6))
    slim, plan = cut_of(program, {"0": [1, 4, 5, 6], "2": [0, 3]})
    found = reconstructed(program, slim, plan, batches, **options)
    return slim, found.program, found.record


def test_less_is_missing_on_samples_held_out_and_on_others() -> None:
    model, x = untrained(), torch.randn(600, 6, generator=torch.Generator().manual_seed(3))
    slim, better, record = reconstruction(model, x[:512].split(100))
    want = model(x[512:])
    errors = [float((one.module()(x[512:]) - want).square().sum()) for one in (slim, better)]
    assert errors[1] < errors[0] / 2
    assert record.n_samples == 512 and all(layer.after <= layer.before for layer in record.layers)
    assert record.helps and record.outputs_after < record.outputs_before / 1.4


def test_it_is_the_same_every_time_and_the_cut_network_is_left_as_it_was() -> None:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(3))
    slim, better, record = reconstruction(untrained(), [x])
    again, same, other = reconstruction(untrained(), [x])
    assert all(torch.equal(slim.state_dict[name], again.state_dict[name]) for name in slim.state_dict)
    assert all(torch.equal(better.state_dict[name], same.state_dict[name]) for name in slim.state_dict)
    assert record.layers == other.layers


def test_the_samples_are_counted() -> None:
    x = torch.randn(90, 6, generator=torch.Generator().manual_seed(3))
    pulled: list[int] = []
    batches = (pulled.append(number) or x[start : start + 30] for number, start in enumerate((0, 30, 60)))
    *_, record = reconstruction(untrained(), batches, n_samples=40)
    assert record.n_samples == 40 and pulled == [0, 1]


@pytest.mark.parametrize("kind", ["relu", "norm"])
def test_constant_inputs_choose_biases_alone(kind: str) -> None:
    model = untrained(kind)
    slim, better, record = reconstruction(model, [torch.ones(64, 6)])
    torch.testing.assert_close(better.module()(torch.ones(2, 6)), model(torch.ones(2, 6)))
    weights = [name for name in slim.state_dict if name.endswith("weight") and slim.state_dict[name].dim() > 1]
    for name in weights:
        torch.testing.assert_close(better.state_dict[name], slim.state_dict[name], atol=1e-6, rtol=0)
    assert record.after < 1e-9 < record.before


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused(wrong: float) -> None:
    x = torch.ones(8, 6)
    x[3, 2] = wrong
    with pytest.raises(InputError, match="expected finite inputs, got NaN or infinity in batch 1"):
        reconstruction(untrained(), [torch.ones(8, 6), x])


@pytest.mark.parametrize(
    ("batches", "refusal"),
    [([], "expected at least one batch, got none"), ([torch.ones(3, 5)], r"expected \(\*, 6\), got \(3, 5\)")],
)
def test_what_are_no_inputs_is_refused(batches: Any, refusal: str) -> None:
    with pytest.raises(InputError, match=f"reconstruct: .*{refusal}"):
        reconstruction(untrained(), batches)


@pytest.mark.parametrize("count", [12, 13, 15])
def test_fewer_samples_than_units_are_regularised_and_it_is_said(count: int) -> None:
    slim, better, record = reconstruction(wide(), [random(count, 6, seed=3).float()])
    assert off(wide(), better) < 1.01 * off(wide(), slim)
    notes = [layer.note for layer in record.layers if layer.before > 0]
    assert notes and all(re.search(r"rows for \d+ unknowns|keeps its weights", note) for note in notes)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_layers_with_too_few_rows_to_judge_by_are_left_alone_and_it_is_said(count: int) -> None:
    slim, better, record = reconstruction(untrained(), [random(count, 6, seed=3).float()])
    assert better is slim and not record.helps
    assert [layer.note for layer in record.layers][1:] == [
        f"left alone: {max(1, count // 4)} rows held out are too few"
    ] * 2


@pytest.mark.parametrize("count", [2, 3])
def test_a_convolution_has_rows_enough_in_two_images(count: int) -> None:
    model = drawn_convolution()
    program = edgeprune.capture(model, torch.zeros(2, 3, 10, 10))
    slim, plan = cut_of(program, {"0": [1, 2, 5], "2": [0, 3]})
    better = edgeprune.reconstruct(program, slim, plan, [random(count, 3, 10, 10).float()])
    assert off(model, better, 3, 10, 10) < 0.9 * off(model, slim, 3, 10, 10)


def test_of_one_sample_none_can_be_held_out() -> None:
    program = edgeprune.capture(untrained(), torch.zeros(2, 6))
    slim, plan = cut_of(program, {"0": [1, 4, 5, 6], "2": [0, 3]})
    x = random(1, 6).float()
    found = reconstructed(program, slim, plan, [x])
    assert found.program is slim and not found.record.helps and not found.record.layers
    assert found.record.outputs_before == found.record.outputs_after > 0
    with pytest.raises(InputError, match=r"reconstruct: expected at least 2 samples .* held out .*; got 1"):
        edgeprune.reconstruct(program, slim, plan, [x])


def test_a_layer_that_hardly_varies_is_not_said_to_lack_many_times_what_it_has() -> None:
    """Its inputs differ by rounding alone, so that shares of their variance tell nothing."""
    x = (1 + 1e-7 * random(64, 6)).float()
    _, _, record = reconstruction(untrained(), [x])
    assert 0 < record.before < 100 and 0 < record.outputs_before < 100
    assert all(layer.before < 100 for layer in record.layers)


def test_weights_that_several_calls_share_are_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.two(F.relu(self.two(F.relu(self.one(x)))))))

    torch.manual_seed(0)
    program = edgeprune.capture(Twice(), torch.zeros(2, 6))
    slim, plan = cut_of(program, {"one": [1, 2]})
    found = reconstructed(program, slim, plan, [random(64, 6).float()])
    assert torch.equal(found.program.state_dict["two.weight"], slim.state_dict["two.weight"])
    assert [layer.layer for layer in found.record.layers] == ["one", "head"]
    assert not torch.equal(found.program.state_dict["head.weight"], slim.state_dict["head.weight"])


def test_a_recurrent_layer_is_left_alone_and_what_reads_it_is_not() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0])

    torch.manual_seed(0)
    program = edgeprune.capture(Recurrent().eval(), torch.zeros(2, 4, 5))
    [group] = edgeprune.analyze(program).groups
    slim, plan = cut_of(program, {group.name: [0, 5]})
    found = reconstructed(program, slim, plan, [random(64, 4, 5).float()])
    [layer] = found.record.layers
    assert layer.layer == "head" and layer.after < layer.before
    changed = {name for name, was in slim.state_dict.items() if not torch.equal(found.program.state_dict[name], was)}
    assert changed == {"head.weight", "head.bias"}


def test_a_network_that_keeps_a_state_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen.add_(1)
            return self.two(F.relu(self.one(x))) + self.seen

    program = edgeprune.capture(Counting(), torch.zeros(2, 6))
    slim, plan = cut_of(program, {"one": [2]})
    with pytest.raises(InputError, match="expected a network that keeps no state"):
        edgeprune.reconstruct(program, slim, plan, [torch.zeros(4, 6)])


def test_values_that_overflow_leave_their_layer_alone() -> None:
    model = untrained()
    model[0].weight.data *= 1e30
    model[2].weight.data *= 1e30
    slim, better, record = reconstruction(model, [torch.randn(64, 6, generator=torch.Generator().manual_seed(3))])
    assert [layer.note for layer in record.layers][1:] == ["left alone: its values are not finite"] * 2
    assert torch.equal(better.state_dict["4.weight"], slim.state_dict["4.weight"])


# -- how it is done --


def test_statistics_move_as_far_as_the_values_do() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10, bias=False), nn.BatchNorm1d(10), nn.ReLU())
    model = double(nn.Sequential(*model, nn.Linear(10, 3)))
    model[3].running_mean, model[3].running_var = random(10, seed=3), 1 + random(10, seed=4).abs()
    x = random(256, 6)
    program = edgeprune.capture(model, x[:2])
    slim, plan = cut_of(program, {"0": [1, 4, 5, 6], "2": [0]})
    found = edgeprune.reconstruct(program, slim, plan, [x])
    narrow, state = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 9, bias=False)).double(), found.state_dict
    narrow.load_state_dict({name: state[name] for name in ("0.weight", "0.bias", "2.weight")})
    dense, now = model[:3](x)[:, 1:], narrow(x)
    torch.testing.assert_close(state["3.running_mean"], model[3].running_mean[1:] + now.mean(0) - dense.mean(0))
    torch.testing.assert_close(state["3.running_var"], model[3].running_var[1:] * now.var(0) / dense.var(0))


def test_a_convolution_of_too_many_unknowns_is_solved_for_its_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeprune.reconstruction import pair

    monkeypatch.setattr(pair, "_MOST_TAPS", 20)
    for second in (nn.Conv2d(5, 4, 3, 2, 1), nn.ConvTranspose2d(5, 4, 3, 2)):
        model = double(nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), second, nn.Conv2d(4, 2, 1)))
        with torch.no_grad():
            for parameter in model[0].parameters():
                parameter[1] = parameter[2] * 3
        before, after, _ = mended(model, random(16, 2, 9, 9), {"0": [1]})
        assert before > 0.1 and after < 1e-9


def test_samples_join_as_the_values_become_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    model = double(nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3, 4), nn.Flatten(), nn.Linear(64, 9)))
    x = random(64, 2, 18, 18)
    program = edgeprune.capture(model, x[:2])
    slim, plan = cut_of(program, {"0": [1, 2]})
    whole = reconstructed(program, slim, plan, [x])
    monkeypatch.setattr(module_of_reconstruct, "_MEMORY", 3 * 10**5)
    n_pieces: Counter[int] = Counter()
    add = Moments.add

    def counted(self: Moments, x: Tensor, r: Tensor) -> None:
        n_pieces[x.shape[-1]] += 1
        add(self, x, r)

    monkeypatch.setattr(Moments, "add", counted)
    tight = reconstructed(program, slim, plan, [x])
    assert [layer.layer for layer in tight.record.layers] == [layer.layer for layer in whole.record.layers]
    assert tight.record.after < tight.record.before / 1.2
    assert n_pieces == {18: 4, 27: 4, 64: 8}


def test_a_solve_that_does_no_better_elsewhere_is_not_taken() -> None:
    moments = [Moments.none(1, 6, 2) for _ in range(2)]
    for number, one in enumerate(moments):  # what is missing has nothing to do with the inputs
        one.add(random(20, 1, 6, seed=number), random(20, 1, 2, seed=10 + number) * (-1) ** number + 3 * (-1) ** number)
    found = solved(moments[0], moments[1], centred=True)
    assert not found.helps and found.before == found.after
    assert isinstance(found.change, Change) and not found.change.matrix.any() and not found.change.bias.any()


@pytest.mark.parametrize("n_moving", [0, 3])
def test_what_differs_in_its_last_bits_is_constant(n_moving: int) -> None:
    """As kernels give the rows of a batch: the same inputs in other vector lanes are rounded otherwise."""
    eps = float(torch.finfo(torch.float32).eps)
    moments = [Moments.none(1, 6, 2) for _ in range(2)]
    for number, one in enumerate(moments):
        noise = random(40, 1, 6, seed=number) * eps
        level = torch.tensor([1e4, 1.0, -3.0, 1e-2, 5.0, 7.0]).double()
        rows = level * (1 + noise)
        rows[:, :, :n_moving] += random(40, 1, n_moving, seed=20 + number)
        told = noise @ torch.full((6, 2), 1 / eps).double()  # the noise would explain all of it
        one.add(rows, told + rows[:, :, :n_moving].sum(2, keepdim=True) + 3.0)
    found = solved(moments[0], moments[1], centred=True, rounding=(8 * eps) ** 2)
    assert not found.change.matrix[0, n_moving:].any()
    assert bool(found.change.matrix[0, :n_moving].all()) and found.helps


def test_a_network_whose_outputs_come_no_nearer_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_of_reconstruct, "errors", lambda *_: [0.5, 0.5])
    slim, better, record = reconstruction(untrained(), [torch.randn(64, 6)])
    assert better is slim and not record.helps and record.after < record.before


# -- several inputs ---------------------------------------------------------------------------------------------------


class Words(nn.Module):
    """Whole numbers, a mask and a table come in; a dict goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.table, self.mix = nn.Embedding(30, 16), nn.Linear(6, 16), nn.Linear(32, 32)
        self.kind, self.size = nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(self, ids: Tensor, mask: Tensor, table: Tensor) -> dict[str, Tensor]:
        words = (self.words(ids) * mask[..., None]).sum(1)
        mixed = torch.relu(self.mix(torch.cat([words, torch.relu(self.table(table))], 1)))
        return {"kind": self.kind(mixed), "size": self.size(mixed)}


def test_named_inputs_with_cut_ids_and_features() -> None:
    """By name, in another order of names, or as a sequence: the same network, whose outputs come nearer."""
    generator, kept = torch.Generator().manual_seed(0), torch.tensor([0, 3, 6, 9, 12, 15])

    def sample(n: int) -> dict[str, Tensor]:
        ids = kept[torch.randint(0, len(kept), (n, 5), generator=generator)]
        mask = torch.randint(0, 2, (n, 5), generator=generator)
        return {"ids": ids, "mask": mask, "table": torch.randn(n, 6, generator=generator)}

    torch.manual_seed(0)
    program = edgeprune.capture(Words().eval(), tuple(sample(4).values()))
    vocabularies = edgeprune.vocabularies(program, {"ids": kept.tolist()})
    graph = edgeprune.analyze(program, inputs=True, vocabularies=vocabularies)
    plan = edgeprune.plan(program, graph, keep_macs=0.5, align=1)
    slim = edgeprune.cut(program, plan, graph)
    assert edgeprune.prove(program, slim, plan) < 1e-6
    batches = [sample(64) for _ in range(4)]
    turned = [dict(reversed(batch.items())) for batch in batches]
    found = edgeprune.reconstruct(program, slim, plan, batches)
    others = sample(128)

    def outputs(network: Program) -> Tensor:
        with torch.no_grad():
            return torch.cat(list(network.module()(*others.values()).values()), 1)

    for given in (turned, [tuple(batch.values()) for batch in batches]):
        assert torch.equal(outputs(edgeprune.reconstruct(program, slim, plan, given)), outputs(found))
    want = outputs(program)
    before, after = (float((outputs(one) - want).norm() / want.norm()) for one in (slim, found))
    assert after < 0.5 * before and after < 0.4
    with pytest.raises(InputError, match="reconstruct: expected ids, mask, table, got ids, mask"):
        edgeprune.reconstruct(program, slim, plan, [{"ids": others["ids"], "mask": others["mask"]}])
