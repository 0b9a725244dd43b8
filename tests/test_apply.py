"""Slim programs put back into the modules that they were captured from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune import compat  # noqa: F401  (torchvision can be imported after it)
from edgeprune.errors import ApplyError
from edgeprune.formats.load import load
from edgeprune.formats.save import save_program
from edgeprune.graph.apply import Applied
from edgeprune.graph.capture import Program
from edgeprune.records import ModelInfo
from tests.cases import CASES, IMAGE
from tests.cases_recurrent import SERIES
from tests.nets import Net, TiedAutoencoder, cnn, cut_randomly, image_mlp, randomized, relative_error, run, sample

Shapes = tuple[tuple[int, ...], ...]


def slimmed(model: nn.Module, shapes: Shapes, share: float = 0.6) -> Program:
    """A random cut of a network in float64, whose weights are random."""
    program = edgeprune.capture(randomized(model).double(), sample(shapes, 2))
    return cut_randomly(program, edgeprune.analyze(program), share).slim


def applied(model: nn.Module, shapes: Shapes, share: float = 0.6) -> Applied:
    """Cut a network at random, put the result back, and compare at another batch size."""
    slim = slimmed(model, shapes, share)
    result = slim.apply_to(model)
    inputs = sample(shapes, 5)
    assert relative_error(run(slim.module(), inputs), run(model.eval(), inputs)) <= 1e-10
    assert result.error <= 1e-10
    return result


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a module that `apply_to` may touch: its tensors with their identity, its plain attributes."""
    tensors = {name: (id(t), t.detach().clone()) for name, t in model.state_dict(keep_vars=True).items()}
    plain = {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, (int, float, str, tuple))
    }
    return {"tensors": tensors, "plain": plain}


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    tensors = before["tensors"].keys() == after["tensors"].keys() and all(
        before["tensors"][name][0] == number and torch.equal(before["tensors"][name][1], value)
        for name, (number, value) in after["tensors"].items()
    )
    return tensors and before["plain"] == after["plain"]


# -- what applies -----------------------------------------------------------------------------------------------------

APPLIES = (
    "bilinear_form embedding shared cnn residual depthwise depth_multiplier whole_groups offset_in_groups conv3d "
    "transposed transposed_depthwise transposed_groups standardised squeeze-excite flatten_to_linear batch_norm_1d "
    "instance_norm layer_norm rms_norm group_norm pixel_shuffle chunk prelu layer_scale buffer_as_value two_inputs "
    "several_outputs"
).split()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", APPLIES)
def test_a_network_is_sliced(name: str) -> None:
    case = CASES[name.replace("_", " ")]
    model = case.build()
    before = sum(p.numel() for p in model.parameters())
    result = applied(model, case.shapes)
    assert sum(p.numel() for p in model.parameters()) < before
    assert result.tensors and not result.unread


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("build", "width"),
    [
        (lambda: nn.LSTM(5, 8, batch_first=True), 8),
        (lambda: nn.LSTM(5, 8, batch_first=True, bidirectional=True), 16),
        (lambda: nn.LSTM(5, 8, proj_size=4, batch_first=True), 4),
        (lambda: nn.GRU(5, 8, batch_first=True), 8),
        (lambda: nn.RNN(5, 8, batch_first=True), 8),
    ],
)
def test_recurrent_layers_say_their_new_size(build: Callable[[], nn.RNNBase], width: int) -> None:
    model = Net(
        lambda m, x: m.head(m.rnn(m.first(x))[0].mean(1)),
        first=nn.Linear(5, 5), rnn=build(), head=nn.Linear(width, 3),
    )  # fmt: skip
    applied(model, (SERIES,))
    rnn = model.rnn
    assert isinstance(rnn, nn.RNNBase)
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[type(rnn).__name__]
    assert rnn.hidden_size < 8 and rnn.weight_hh_l0.shape[0] == gates * rnn.hidden_size
    assert rnn.input_size == rnn.weight_ih_l0.shape[1] < 5
    assert rnn.proj_size == (rnn.weight_hr_l0.shape[0] if rnn.proj_size else 0)


def test_attributes_say_the_new_sizes() -> None:
    model = Net(
        lambda m, x: m.head(m.norm(m.deep(m.bn(m.conv(x)).relu())).mean((2, 3))),
        conv=nn.Conv2d(3, 8, 3, padding=1), bn=nn.BatchNorm2d(8), deep=nn.Conv2d(8, 8, 3, groups=8),
        norm=nn.GroupNorm(4, 8), head=nn.Linear(8, 4),
    )  # fmt: skip
    result = applied(model, (IMAGE,), share=0.5)
    width = model.conv.weight.shape[0]
    assert width == 4
    assert model.conv.out_channels == model.bn.num_features == model.head.in_features == model.norm.num_channels == 4
    assert (model.deep.groups, model.deep.in_channels, model.deep.out_channels) == (4, 4, 4)
    assert model.norm.num_groups == 2
    assert result.attributes["conv.out_channels"] == (8, 4)
    assert result.attributes["deep.groups"] == (8, 4)
    assert "conv.in_channels" not in result.attributes


@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm])
def test_weights_that_are_made_from_others(wrap: Any) -> None:
    model = Net(lambda m, x: m.head(m.deep(m.conv(x).relu()).mean((2, 3))), conv=wrap(nn.Conv2d(3, 8, 3)),
                deep=wrap(nn.Conv2d(8, 8, 3, groups=8)), head=nn.Linear(8, 4))  # fmt: skip
    result = applied(model, (IMAGE,), share=0.5)
    assert (model.deep.groups, model.deep.in_channels, model.deep.out_channels) == (4, 4, 4)
    assert result.attributes["conv.out_channels"] == (8, 4)


def test_a_norm_without_weights_takes_the_width_that_comes_in() -> None:
    model = Net(lambda m, x: m.head(m.norm(m.first(x))), first=nn.Linear(5, 8),
                norm=nn.LayerNorm(8, elementwise_affine=False), head=nn.Linear(8, 4))  # fmt: skip
    assert applied(model, ((6, 5),), share=0.5).attributes["norm.normalized_shape"] == ((8,), (4,))
    assert not model.norm._forward_pre_hooks


class Attention(nn.Module):
    """As vision transformers write it."""

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = num_heads, head_dim, num_heads * head_dim
        self.scale = head_dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * self.attn_dim), nn.Linear(self.attn_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(x.shape[0], x.shape[1], self.attn_dim))


def attending() -> nn.Module:
    return Net(lambda m, x: m.head(m.attention(m.first(x))), first=nn.Linear(5, 8), attention=Attention(8, 4, 6),
               head=nn.Linear(8, 3))  # fmt: skip


@pytest.mark.parametrize("attention", ["heads", "head-dim"])
def test_heads_go_or_become_smaller(attention: str) -> None:
    model = randomized(attending()).double()
    program = edgeprune.capture(model, sample(((7, 5),), 2))
    graph = edgeprune.analyze(program, attention=attention)
    cut = cut_randomly(program, graph, 0.5)
    result = cut.slim.apply_to(model)
    block = model.attention
    assert block.attn_dim == block.num_heads * block.head_dim == block.proj.in_features == block.proj.weight.shape[1]
    assert (block.num_heads, block.head_dim) == ((2, 6) if attention == "heads" else (4, 3))
    assert block.scale == 6**-0.5  # of the dense network: the scores are what they were
    assert result.error <= 1e-10


def test_multihead_attention_with_heads_as_wide_as_its_input() -> None:
    """PyTorch's module takes embed_dim / num_heads channels for a head, so heads and input have to shrink alike."""
    model = Net(lambda m, x: m.head(m.mha(m.first(x), m.first(x), m.first(x))[0]), first=nn.Linear(5, 8),
                mha=nn.MultiheadAttention(8, 4, batch_first=True), head=nn.Linear(8, 3))  # fmt: skip
    applied(model, ((7, 5),), share=0.5)
    assert (model.mha.embed_dim, model.mha.num_heads, model.mha.head_dim, model.mha.kdim) == (4, 2, 2, 4)


def test_tied_tensors_stay_tied_and_frozen_ones_frozen() -> None:
    model = TiedAutoencoder()
    model.head.bias.requires_grad_(False)
    applied(model, ((8,),))
    assert model.a.weight is model.b.weight
    assert isinstance(model.a.weight, nn.Parameter) and model.a.weight.requires_grad
    assert not model.head.bias.requires_grad


def test_buffers_that_are_not_saved_are_sliced() -> None:
    model = Net(lambda m, x: m.head((m.conv(x) * m.gain).mean((2, 3))), conv=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 4))
    model.register_buffer("gain", torch.rand(8, 1, 1) + 0.5, persistent=False)
    applied(model, (IMAGE,), share=0.5)
    assert model.gain.shape == (4, 1, 1)
    assert "gain" not in model.state_dict()


def test_finetuned_weights_come_along(tmp_path: Path) -> None:
    model = randomized(cnn()).float()
    program = edgeprune.capture(model, torch.zeros(2, *IMAGE))
    slim = edgeprune.cut(program, edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.5, align=1))
    trained = slim.module()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1)
    tuned = edgeprune.capture(trained, torch.zeros(2, *IMAGE))
    save_program(tmp_path / "slim.pt2", tuned, ModelInfo(IMAGE))
    model.train()
    Program.adopt(load(tmp_path / "slim.pt2").program).apply_to(model)
    assert model.training
    assert all(torch.equal(value, tuned.state_dict[name]) for name, value in model.state_dict().items())
    again = edgeprune.capture(model, torch.zeros(2, *IMAGE))
    assert edgeprune.analyze(again).groups[0].n_units < edgeprune.analyze(program).groups[0].n_units


def test_the_sliced_module_trains() -> None:
    torch.manual_seed(0)
    model = cnn()
    applied(model, (IMAGE,))
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    (x,) = sample((IMAGE,), 8)
    losses = []
    for _ in range(20):
        loss = (model(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_heads_that_only_training_uses_are_named() -> None:
    class WithAuxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.auxiliary, self.head = nn.Linear(4, 6), nn.Linear(6, 9), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            hidden = self.used(x).relu()
            return (self.head(hidden), self.auxiliary(hidden)) if self.training else self.head(hidden)

    result = applied(WithAuxiliary(), ((4,),))
    assert result.unread == ("auxiliary.weight", "auxiliary.bias")


# -- what does not ----------------------------------------------------------------------------------------------------


def written_in(m: Any, x: Tensor) -> Tensor:
    return m.head(m.conv(x).relu().view(-1, 8 * 6 * 6))


def halves(m: Any, x: Tensor) -> Tensor:
    one, other = m.conv(x).split([3, 5], 1)
    return m.head(torch.cat([other, one], 1).mean((2, 3)))


def average(m: Any, x: Tensor) -> Tensor:
    x = m.conv(x).relu()
    return m.head((x * x.mean(1, keepdim=True)).mean((2, 3)))


@pytest.mark.parametrize(
    ("function", "n_features", "parts"),
    [
        (written_in, 8 * 36, ["shape '[-1, 288]' is invalid", "test_apply.py", "in written_in"]),
        (halves, 8, ["split_sizes", "test_apply.py", "in halves"]),
        (average, 8, ["gives other results than the slim program", "expected a relative difference of at most 1e-10"]),
    ],
)
def test_sizes_that_are_written_in_are_refused(function: Any, n_features: int, parts: list[str]) -> None:
    model = Net(function, conv=nn.Conv2d(3, 8, 3), head=nn.Linear(n_features, 4)).train()
    slim = slimmed(model, (IMAGE,))
    before = snapshot(model)
    with pytest.raises(ApplyError) as refusal:
        slim.apply_to(model)
    message = str(refusal.value)
    assert "is left as it was" in message and all(part in message for part in parts), message
    assert same(before, snapshot(model))
    assert model.training and run(model.eval(), sample((IMAGE,), 2))


def test_a_refused_recurrent_layer_runs_as_before() -> None:
    model = Net(lambda m, x: m.head(m.rnn(x, x.new_ones(1, x.shape[0], 8))[0].mean(1)),
                rnn=nn.GRU(5, 8, batch_first=True), head=nn.Linear(8, 3))  # fmt: skip
    slim = slimmed(model.eval(), (SERIES,))
    inputs = sample((SERIES,), 3)
    before, outputs = snapshot(model), run(model, inputs)
    with pytest.raises(ApplyError, match="Expected hidden size"):
        slim.apply_to(model)
    assert same(before, snapshot(model))
    assert relative_error(outputs, run(model, inputs)) == 0


def test_the_heads_of_multihead_attention_alone_are_refused() -> None:
    model = Net(lambda m, x: m.head(m.mha(x, x, x)[0]), mha=nn.MultiheadAttention(8, 4, batch_first=True),
                head=nn.Linear(8, 3))  # fmt: skip
    slim = slimmed(model, ((7, 8),))
    with pytest.raises(ApplyError, match=r"layer 'mha', MultiheadAttention: .*3x embed_dim"):
        slim.apply_to(model)
    assert (model.mha.embed_dim, model.mha.num_heads) == (8, 4)


def test_another_module_is_refused() -> None:
    slim = slimmed(cnn(), (IMAGE,))
    with pytest.raises(ApplyError, match=r"not captured from this Linear: expected a tensor '0\.bias', got none"):
        slim.apply_to(nn.Linear(3, 3))
    whole = nn.ModuleDict({"body": cnn(), "head": nn.Linear(4, 2)}).double()
    with pytest.raises(ApplyError, match="it fits its part 'body'"):
        slim.apply_to(whole)
    with pytest.raises(ApplyError, match=r"tensor '0\.weight': expected one of torch.float64"):
        slim.apply_to(cnn())
    narrow = slimmed(cnn(), (IMAGE,), share=0.3)
    module = cnn().double()
    narrow.apply_to(module)
    with pytest.raises(ApplyError, match="expected one of torch.float64 and at least the program's shape"):
        slim.apply_to(module)


def test_dropped_input_features_need_the_slim_contract() -> None:
    model = randomized(image_mlp()).double()
    program = edgeprune.capture(model, sample(((1, 4, 4),), 2))
    graph = edgeprune.analyze(program, inputs=True)
    slim = edgeprune.cut(program, edgeprune.plan(program, graph, keep_macs=None, n_features=5), graph)
    with pytest.raises(ApplyError, match=r"picks 5 features of input 'input'.*edgeprune\.slim_contract"):
        slim.apply_to(model)
    contract = edgeprune.slim_contract(slim)
    contract.apply_to(model)
    inputs = sample(((5,),), 3)
    assert relative_error(run(contract.module(), inputs), run(model, inputs)) <= 1e-10


# -- torchvision ------------------------------------------------------------------------------------------------------

SWEPT = {
    "resnet18": None, "mobilenet_v2": None, "vgg11": None, "densenet121": None, "efficientnet_b0": None,
    "convnext_tiny": None, "regnet_y_400mf": None, "googlenet": None, "inception_v3": None, "mnasnet1_0": None,
    "squeezenet1_0": None,
    "vit_b_32": "expected `qkv_weight` first dim to be 3x embed_dim",  # of heads alone
    "swin_t": "swin_transformer.py",  # takes the input's channels / num_heads for a head
    "shufflenet_v2_x1_0": "shufflenetv2.py",  # chunks into halves, which differ in width
}  # fmt: skip


def torchvision_network(name: str) -> tuple[nn.Module, Tensor]:
    from torchvision.models import get_model

    torch.manual_seed(0)
    model = get_model(name, weights=None, **({"init_weights": True} if name in ("googlenet", "inception_v3") else {}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model, torch.randn(2, 3, *[224 if name.startswith(("vit", "swin")) else 96] * 2)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "squeezenet1_0" else pytest.mark.sweep) for n in SWEPT]
)
def test_networks_of_torchvision(name: str) -> None:
    model, x = torchvision_network(name)
    program = edgeprune.capture(model, x)
    slim = edgeprune.cut(program, edgeprune.plan(program, edgeprune.analyze(program), keep_macs=0.5))
    expected = SWEPT[name]
    before = snapshot(model)
    if expected is not None:
        with pytest.raises(ApplyError, match=expected):
            slim.apply_to(model)
        assert same(before, snapshot(model))
        return
    slim.apply_to(model)
    assert relative_error(run(slim.module(), (x,)), run(model.eval(), (x,))) <= 1e-5
