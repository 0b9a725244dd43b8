"""The networks of models/: their sizes beside the published ones, and that every one of them can be cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgeprune import analyze, capture, cut, plan, prove
from edgeprune.cost.macs import count_parameters, macs
from edgeprune.errors import InputError
from edgeprune.formats.architectures import build

MODELS = Path(__file__).resolve().parent.parent / "models"
GREY, COLOUR = (1, 28, 28), (3, 32, 32)
# Architecture, parameters counted here, and as they are published: the number and its unit.
PUBLISHED = [
    ("lenet.py:lenet_300_100", 266_610, 267, 1e3),  # Han et al., NeurIPS 2015, table 1
    ("mlp.py:mlp", 1_333_770, 1_333_770, 1),  # 784 * 1024 + 1024 * 512 + 512 * 10, and biases
    ("cifar_resnet.py:resnet20?shortcut=pad", 269_722, 0.27, 1e6),  # He et al., CVPR 2016, table 6
    ("cifar_resnet.py:resnet56?shortcut=pad", 853_018, 0.85, 1e6),  # He et al., CVPR 2016, table 6
    ("cifar_resnet.py:resnet20", 272_474, 0.27, 1e6),
    ("cifar_resnet.py:resnet56", 855_770, 0.86, 1e6),
    ("cifar_resnet.py:resnet18", 11_173_962, 11.17, 1e6),  # as ResNet18 with a 3x3 stem is usually given
    ("cifar_vgg.py:vgg16_bn", 14_724_042, 14.72, 1e6),
    ("cifar_vgg.py:vgg19_bn", 20_035_018, 20.04, 1e6),  # Liu et al., ICCV 2017, table 1
    ("cifar_densenet.py:densenet40", 1_019_722, 1.0, 1e6),  # Huang et al., CVPR 2017, table 2
]
FLAT = ("lenet.py:lenet_300_100", "mlp.py:mlp")
DEEP = ("cifar_resnet.py:resnet56", "cifar_densenet.py:densenet40")
IMAGE = tuple(arch for arch, *_ in PUBLISHED if arch not in FLAT)


def network(arch: str, **arguments: object) -> nn.Module:
    """A network of models/ with its initial weights."""
    torch.manual_seed(0)
    return build(f"{MODELS}/{arch}", **arguments)


def with_statistics(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """The network in eval mode with the statistics of `x`: at first a deep one has outputs that hardly depend on it."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    return model.eval()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("arch", "shape"), [("tasks.py:regressor", (10,)), ("tasks.py:unet", (1, 8, 8)), ("pitch.py:crepe", (1024,))]
)
def test_networks_of_other_tasks_are_cut_to_half(arch: str, shape: tuple[int, ...], one_thread: None) -> None:
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(1))
    model = with_statistics(network(arch), x)
    program = capture(model, x[:2])
    pruning = plan(program, analyze(program), keep_macs=0.5)
    slim = cut(program, pruning)
    assert macs(slim) <= 0.5 * macs(program) and prove(program, slim, pruning) <= 1e-4
    with torch.no_grad():
        assert slim.module()(x).shape == model(x).shape


@pytest.mark.parametrize(("arch", "count", "published", "unit"), PUBLISHED)
def test_as_many_parameters_as_published(arch: str, count: int, published: float, unit: float) -> None:
    """Exactly as many as counted by hand, and the published number in the digits it is given with."""
    digits = len(str(published).partition(".")[2])
    assert sum(param.numel() for param in network(arch).parameters()) == count
    assert round(count / unit, digits) == published


@pytest.mark.parametrize("arch", IMAGE)
def test_grey_images_and_other_classes(arch: str) -> None:
    """28x28 with one channel goes through every pooling."""
    model = network(arch, in_channels=1, n_classes=7).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, *GREY)).shape == (2, 7)


def test_widths_are_chosen_in_the_name() -> None:
    """What follows the question mark, for networks over flattened images and over tables."""
    model = network("mlp.py:mlp?hidden=256,128&n_inputs=64&dropout=0.3&input_dropout=0.1")
    assert [layer.out_features for layer in model if isinstance(layer, nn.Linear)] == [256, 128, 10]
    assert [layer.p for layer in model if isinstance(layer, nn.Dropout)] == [0.1, 0.3, 0.3]
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert network("lenet.py:lenet_300_100?n_inputs=30&n_classes=3")(torch.zeros(2, 30)).shape == (2, 3)


def test_the_mlp_for_digits_is_that_of_digits_py() -> None:
    """Experiments on some of the pixels need its widths with other numbers of inputs."""
    ours = network("mlp.py:mlp?hidden=256,128&n_inputs=64&dropout=0.3&input_dropout=0.1").state_dict()
    theirs = network("digits.py:mlp").state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_unknown_shortcut_is_refused() -> None:
    """Says what there is."""
    with pytest.raises(InputError, match="shortcut: expected projection or pad, got 'conv'"):
        network("cifar_resnet.py:resnet20?shortcut=conv")


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=pytest.mark.slow if arch.startswith(DEEP) else ()) for arch, *_ in PUBLISHED]
)
def test_half_of_the_network_is_cut_and_proved(arch: str, one_thread: None) -> None:
    """Captured, planned to half of the MACs, cut; the proof holds, and the cut does change the outputs."""
    shape = GREY if arch in FLAT else COLOUR
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(1))
    model = with_statistics(network(arch), x)
    program = capture(model, x[:2])
    pruning = plan(program, analyze(program), keep_macs=0.5)
    slim = cut(program, pruning)
    assert macs(slim) <= 0.5 * macs(program)
    assert count_parameters(slim) < 0.75 * count_parameters(program)
    assert prove(program, slim, pruning) <= 1e-4
    with torch.no_grad():
        assert (model(x) - slim.module()(x)).abs().max() > 1e-2 * model(x).abs().max()
