"""Principal components: a layer whose inputs lie near a small space becomes two smaller ones."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgeprune.data.inputs import fed
from edgeprune.errors import InputError
from edgeprune.graph.capture import Program

_CONVOLUTIONS: dict[Any, type[nn.Module]] = {
    torch.ops.aten.conv1d: nn.Conv1d,
    torch.ops.aten.conv2d: nn.Conv2d,
    torch.ops.aten.conv3d: nn.Conv3d,
}
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_ROWS = 2**16  # of a layer's inputs that are taken in at a time
_NOTHING = 1e-6  # of the mean's length: what is left of it by rounding alone
_Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


@dataclass(frozen=True, slots=True)
class LowRank:
    """What became of one layer: how many components are kept of its inputs (channels), and of their variance."""

    layer: str
    n_inputs: int
    n_components: int
    kept_variance: float


def principal_components(
    network: nn.Module | ExportedProgram,
    batches: Iterable[Tensor],
    keep_variance: float = 0.99,
    layers: Sequence[str] | None = None,
) -> tuple[nn.Module, tuple[LowRank, ...]]:
    """A copy of a network in which layers first project their input on its principal components.

    Waleffe and Rekatsinas, Principal Component Networks, arXiv 2006.13347. With the mean m of a linear layer's inputs
    and V `(n_inputs, k)` the k directions of largest variance, W x + b becomes W V (V^T x) + b + W (m - V V^T m): what
    is left out is taken for its mean. A convolution becomes a 1x1 projection of its channels and one of its own kernel,
    stride and padding on the k that are left; where it pads with zeros, which are not the mean, what V lacks of m
    is one more direction instead of a part of the bias. With all components it is the same layer to rounding.

    Args:
        network: a module, or a captured program; left as it was.
        batches: normalised inputs, real ones.
        keep_variance: so many components are kept that they have at least this share of the variance, in (0, 1].
        layers: the names of linear layers and convolutions of one group; None for all that become smaller, in
            parameters and in arithmetic.

    Raises:
        InputError: no batches, a share out of range, or a layer that is not there, of another kind or not reached.

    Example:
        >>> small, report = principal_components(model, (x for x, _ in batches), keep_variance=0.95)
    """
    if not 0 < keep_variance <= 1:
        raise InputError(f"keep_variance: expected a share in (0, 1], got {keep_variance}")
    module = _as_layers(network) if isinstance(network, (ExportedProgram, fx.GraphModule)) else network
    names = _every_layer(module) if layers is None else [_checked(module, name) for name in layers]
    moments = _moments(module, names, batches)
    small, report = copy.deepcopy(module), []
    for name in names:
        layer = module.get_submodule(name)
        assert isinstance(layer, _LAYERS)
        mean, basis, kept = _components(moments[name], keep_variance)
        if _pads_zeros(layer):
            basis = _with_mean(mean, basis)
        k = basis.shape[1]
        if layers is None and _cost_of_two(layer, k) >= layer.weight.numel():
            continue
        _put(small, name, _two_layers(layer, mean, basis))
        report.append(LowRank(name, layer.weight.shape[1], k, kept))
    return small, tuple(report)


def _as_layers(network: ExportedProgram | fx.GraphModule) -> fx.GraphModule:
    """A graph whose linear operators and convolutions are layers by the names of their weights, but for tied ones."""
    found = copy.deepcopy(network) if isinstance(network, fx.GraphModule) else Program.adopt(network).own_module()
    users: dict[str, int] = {}
    for node in found.graph.nodes:
        if node.op == "get_attr":
            users[node.target] = users.get(node.target, 0) + len(node.users)
    for node in list(found.graph.nodes):
        given = _arguments(node)
        weight = given.get("weight")
        name = str(weight.target).removesuffix(".weight") if isinstance(weight, fx.Node) else ""
        if f"{name}.weight" not in users or users[f"{name}.weight"] > 1:
            continue
        held, bias = found.get_parameter(f"{name}.weight"), given.get("bias")
        layer = _layer_of(node, held, given)
        layer.weight = held
        layer.register_parameter("bias", None if bias is None else found.get_parameter(str(bias.target)))
        _put(found, name, layer)
        with found.graph.inserting_before(node):
            node.replace_all_uses_with(found.graph.call_module(name, (given["input"],)))
        found.graph.erase_node(node)
    found.graph.eliminate_dead_code()
    found.recompile()
    return found


def _arguments(node: fx.Node) -> dict[str, Any]:
    """What a linear operator or a convolution is given, by name; empty for another node."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet not in _CONVOLUTIONS and packet is not torch.ops.aten.linear:
        return {}
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _layer_of(node: fx.Node, weight: Tensor, given: dict[str, Any]) -> _Layer:
    """The layer without its weights, nor any memory for them."""
    kind = _CONVOLUTIONS.get(node.target.overloadpacket)  # type: ignore[union-attr]
    if kind is None:
        return nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    groups, n_dims = given.get("groups", 1), weight.dim() - 2
    how = {name: given.get(name, start) for name, start in (("stride", 1), ("padding", 0), ("dilation", 1))}
    how = {
        name: tuple(value) * (n_dims // len(value)) if isinstance(value, (list, tuple)) else value
        for name, value in how.items()
    }
    layer: _Layer = kind(  # type: ignore[assignment]
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        groups=groups,
        bias=False,
        device="meta",
        **how,
    )
    return layer


def _every_layer(module: nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if name and _is_taken(layer)]


def _is_taken(layer: nn.Module | None) -> bool:
    return type(layer) in _LAYERS and getattr(layer, "groups", 1) == 1


def _checked(module: nn.Module, name: str) -> str:
    found = dict(module.named_modules()).get(name) if name else None
    if not _is_taken(found):
        got = "none of that name" if found is None else f"a {type(found).__name__}"
        if type(found) in _LAYERS:
            got += f" of {found.groups} groups"  # type: ignore[union-attr]
        wanted = f"a linear layer or a convolution of one group of {type(module).__name__}"
        raise InputError(f"layer {name!r}: expected {wanted}, got {got}")
    return name


@dataclass(slots=True)
class _Moments:
    """Sums over all inputs of a layer, in float64: how many, of x, of x x^T around the first input."""

    count: int = 0
    origin: Tensor | None = None
    total: Tensor | None = None
    products: Tensor | None = None

    def add(self, x: Tensor, dim: int) -> None:
        """The inputs of a layer whose features lie along `dim`."""
        for rows in x.detach().movedim(dim, -1).reshape(-1, x.shape[dim]).split(_ROWS):
            self._add(rows.double())

    def _add(self, rows: Tensor) -> None:
        if self.origin is None or self.total is None or self.products is None:
            n = rows.shape[1]
            self.origin, self.total, self.products = rows[0].clone(), rows.new_zeros(n), rows.new_zeros(n, n)
        rows = rows - self.origin
        self.count += len(rows)
        self.total += rows.sum(0)
        self.products += rows.T @ rows


def _moments(module: nn.Module, names: Sequence[str], batches: Iterable[Tensor]) -> dict[str, _Moments]:
    found = {name: _Moments() for name in names}

    def watch(name: str) -> Any:
        return lambda layer, args: found[name].add(args[0], 1 - layer.weight.dim())

    place = next((param.device for param in module.parameters()), torch.device("cpu"))
    was_training = module.training
    hooks = [module.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    n_batches = 0
    try:
        module.eval()
        with torch.no_grad():
            for x in batches:
                fed(module, x.to(place))
                n_batches += 1
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    if n_batches == 0:
        raise InputError("principal components: expected at least one batch of real inputs, got none")
    for name, moments in found.items():
        if moments.count == 0:
            raise InputError(f"layer {name!r}: expected a layer that the network runs, got one that it does not")
    return found


def _components(moments: _Moments, keep_variance: float) -> tuple[Tensor, Tensor, float]:
    """Mean `(n,)`, basis `(n, k)` and the share of the variance that it has."""
    assert moments.origin is not None and moments.total is not None and moments.products is not None
    shift = moments.total / moments.count
    values, vectors = torch.linalg.eigh(moments.products / moments.count - torch.outer(shift, shift))
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    shares = values.cumsum(0) / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    k = len(values) if keep_variance == 1 else int((shares < keep_variance).sum()) + 1
    k = min(k, len(values))
    return moments.origin + shift, vectors[:, :k], float(shares[k - 1])


def _pads_zeros(layer: _Layer) -> bool:
    """Whether zeros come in at the border, where the mean of the inputs does not hold."""
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros":
        return False
    if isinstance(layer.padding, str):
        return layer.padding == "same" and any(size > 1 for size in layer.kernel_size)
    return any(width > 0 for width in layer.padding)


def _with_mean(mean: Tensor, basis: Tensor) -> Tensor:
    """The basis with what it lacks of the mean as one more direction."""
    rest = mean - basis @ (basis.T @ mean)
    length = rest.norm()
    if length <= _NOTHING * mean.norm():
        return basis
    return torch.cat([basis, (rest / length)[:, None]], 1)


def _cost_of_two(layer: _Layer, k: int) -> int:
    """The multiplications of both layers for one output, which are no fewer than their parameters."""
    strides = () if isinstance(layer, nn.Linear) else layer.stride
    n_out, n_in, *kernel = layer.weight.shape
    return k * (n_in * math.prod(strides) + n_out * math.prod(kernel))


def _two_layers(layer: _Layer, mean: Tensor, basis: Tensor) -> nn.Sequential:
    """In the layer's type and place."""
    weight = layer.weight.detach().double()
    kernel_sums = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    left_out = torch.zeros_like(kernel_sums[:, 0])
    if not _pads_zeros(layer):
        left_out = kernel_sums @ (mean - basis @ (basis.T @ mean))
    bias = left_out if layer.bias is None else layer.bias.detach().double() + left_out
    down, up = _empty_pair(layer, basis.shape[1])
    down, up = down.to(basis), up.to(basis)
    with torch.no_grad():
        down.weight.copy_(basis.T.reshape(down.weight.shape))
        up.weight.copy_(torch.einsum("oi...,ik->ok...", weight, basis))
        up.bias.copy_(bias)  # type: ignore[union-attr]
    return nn.Sequential(down, up).to(layer.weight).train(layer.training)


def _empty_pair(layer: _Layer, k: int) -> tuple[_Layer, _Layer]:
    """The projection on k features and the layer on them, with any weights."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, k, bias=False), nn.Linear(k, layer.out_features)
    kind: Any = type(layer)
    how = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")}
    return kind(layer.in_channels, k, 1, bias=False), kind(k, layer.out_channels, layer.kernel_size, **how)


def _put(module: nn.Module, name: str, layer: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, layer)
