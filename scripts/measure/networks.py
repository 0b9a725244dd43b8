"""Which networks are measured, how each is built, and random numbers for every parameter that starts as 0 or 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import edgeprune.compat  # noqa: F401  (before torchvision and timm)
from measure.transformers_networks import TRANSFORMERS, settle_batch_norms

TIMM_LIST = Path(__file__).with_name("timm_networks.txt")
_VIDEO = {"s3d": (16, 224), "mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224)}  # frames, side; the others take 8 of 112
_SIDES = {"inception_v3": 299, "ssd300_vgg16": 300, "vit_h_14": 224, "raft_large": 128, "raft_small": 128}
_SIDE_OF = {"segmentation": 128, "detection": 256, "classification": 224}
_NEAR_ZERO = 0.02  # layer scales start at 1e-6 to 1e-2: measured with them, a whole branch could be wrong unseen


@dataclass(frozen=True, slots=True)
class Network:
    """One network to measure: `name` as `--arch` takes it; `family` groups the variants of one architecture."""

    name: str
    source: str
    family: str


def all_networks() -> list[Network]:
    """Every float network of torchvision, the listed ones of timm, and those of transformers."""
    return [*torchvision_networks(), *timm_networks(), *transformers_networks()]


def torchvision_networks() -> list[Network]:
    """Every network of torchvision but the quantized variants."""
    import torchvision.models as models

    quantized = set(models.list_models(models.quantization))
    return [
        Network(f"torchvision:{name}", f"torchvision {kind}", kind)
        for name in models.list_models()
        if name not in quantized
        for kind in [_kind(name)]
    ]


def quantized_networks() -> list[str]:
    """torchvision's networks with integer weights, which edgeprune refuses."""
    import torchvision.models as models

    return [f"torchvision:{name}" for name in models.list_models(models.quantization)]


def timm_networks() -> list[Network]:
    """The networks listed in timm_networks.txt."""
    return [Network(f"timm:{name}", "timm", family) for family, name, *_ in _timm_lines()]


def transformers_networks() -> list[Network]:
    """Networks of the package transformers, built small from their configurations."""
    return [Network(f"transformers:{name}", "transformers", name) for name in TRANSFORMERS]


def find(name: str) -> Network:
    """A network by its name, also one that is not listed."""
    known = {network.name: network for network in all_networks()}
    library, _, bare = name.partition(":")
    return known.get(name) or Network(name, library, bare)


def build(network: Network) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network in eval mode with random weights, and random inputs with a batch of 2."""
    torch.manual_seed(0)
    library, _, name = network.name.partition(":")
    model, inputs = _BUILDERS.get(library, _build_torchvision)(name)
    randomize(model)
    model.eval()
    if library == "transformers":
        settle_batch_norms(model, inputs)
    return model, inputs


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Give what starts as a constant random numbers: statistics, affine parameters, layer scales, zeroed weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        for name, parameter in _affine(model):
            _randomize(name, parameter, generator)


def _affine(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter, and the affine buffers of frozen batch norms."""
    yield from model.named_parameters()
    for owner, module in model.named_modules():
        if type(module).__name__.startswith("Frozen"):
            yield from ((f"{owner}.{name}", b) for name, b in module.named_buffers() if name in ("weight", "bias"))


def _randomize(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    if not tensor.is_floating_point() or not tensor.numel():
        return
    noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    largest = float(tensor.abs().max())
    is_vector = tensor.numel() == max(tensor.shape, default=1)
    constant = float(tensor.max()) == float(tensor.min())
    if is_vector and (constant or largest < _NEAR_ZERO):
        if name.endswith("bias"):
            tensor.copy_(0.2 * noise)
        elif largest < _NEAR_ZERO:
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        else:
            tensor.mul_(1 + 0.2 * noise)
    elif not is_vector and (constant or largest < 1e-3):
        fan_in = tensor.numel() / tensor.shape[0]
        tensor.copy_(noise / math.sqrt(fan_in) if fan_in else noise)


# -- timm ----------------------------------------------------------------------------------------------------------


def _timm_lines() -> list[list[str]]:
    """`family name side [img_size]` of each listed network; `img_size`: the constructor is told the side."""
    lines = TIMM_LIST.read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


def _build_timm(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    import timm

    listed = next((line for line in _timm_lines() if line[1] == name), None)
    arguments: dict[str, Any] = {"img_size": int(listed[2])} if listed and "img_size" in listed[3:] else {}
    model = timm.create_model(name, pretrained=False, **arguments)
    channels, height, width = model.default_cfg["input_size"]
    if listed:
        height = width = int(listed[2])
    return model, (torch.randn(2, channels, height, width),)


# -- torchvision ---------------------------------------------------------------------------------------------------


def _kind(name: str) -> str:
    import torchvision.models as models

    for kind in ("detection", "segmentation", "video", "optical_flow"):
        if name in models.list_models(getattr(models, kind)):
            return kind
    return "classification"


def _build_torchvision(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    from torchvision.models import get_model

    kind = _kind(name)
    arguments: dict[str, Any] = {"weights_backbone": None} if kind in ("segmentation", "detection") else {}
    if name in ("googlenet", "inception_v3"):
        arguments["init_weights"] = False  # the slow truncated normal of scipy's days
    model = get_model(name, weights=None, **arguments)
    if kind == "video":
        frames, side = _VIDEO.get(name, (8, 112))
        return model, (torch.randn(2, 3, frames, side, side),)
    side = _SIDES.get(name, _SIDE_OF.get(kind, 224))
    if kind == "optical_flow":
        return model, (torch.randn(2, 3, side, side), torch.randn(2, 3, side, side))
    return model.backbone if kind == "detection" else model, (torch.randn(2, 3, side, side),)


_BUILDERS: dict[str, Callable[[str], tuple[nn.Module, tuple[Tensor, ...]]]] = {
    "timm": _build_timm,
    "transformers": lambda name: TRANSFORMERS[name](),
}


def build_detector(network: Network) -> tuple[nn.Module, list[Tensor]]:
    """The whole detector, of which `build` gives the backbone, and images `(3, height, width)` for it."""
    from torchvision import extension, ops
    from torchvision.models import get_model

    if not extension._has_ops():  # beside a CPU build of PyTorch: nms is edgeprune.compat's, roi_align is in Python
        ops.boxes._assert_has_ops = lambda: None
    name = network.name.partition(":")[2]
    model = get_model(name, weights=None, weights_backbone=None)
    side = _SIDES.get(name, _SIDE_OF["detection"])
    model.transform.min_size, model.transform.max_size = (side,), side
    return model.eval(), [torch.rand(3, side, side) for _ in range(2)]
