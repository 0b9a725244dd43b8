"""Principal components: a linear layer whose inputs lie near a small space becomes two smaller ones."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgeprune.errors import InputError
from edgeprune.graph.capture import Program


@dataclass(frozen=True, slots=True)
class LowRank:
    """What became of one layer: how many components are kept of its inputs, and the share of their variance."""

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
    """A copy of a network in which linear layers first project their input on its principal components.

    Waleffe and Rekatsinas, Principal Component Networks, arXiv 2006.13347, for linear layers. With the mean m of a
    layer's inputs and V `(n_inputs, k)` the k directions of largest variance, W x + b becomes
    W V (V^T x) + b + W (m - V V^T m): what is left out is taken for its mean. With all components it is the same
    layer to rounding.

    Args:
        network: a module, or a captured program; left as it was.
        batches: normalised inputs, real ones.
        keep_variance: so many components are kept that they have at least this share of the variance, in (0, 1].
        layers: the names of linear layers; None for all that become smaller.

    Raises:
        InputError: no batches, a share out of range, or a layer that is not there, not linear or not reached.

    Example:
        >>> small, report = principal_components(model, (x for x, _ in batches), keep_variance=0.95)
    """
    if not 0 < keep_variance <= 1:
        raise InputError(f"keep_variance: expected a share in (0, 1], got {keep_variance}")
    module = _as_layers(network) if isinstance(network, (ExportedProgram, fx.GraphModule)) else network
    names = _linear_layers(module) if layers is None else [_checked(module, name) for name in layers]
    moments = _moments(module, names, batches)
    small, report = copy.deepcopy(module), []
    for name in names:
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        mean, basis, kept = _components(moments[name], keep_variance)
        k = basis.shape[1]
        if layers is None and k * (layer.in_features + layer.out_features) >= layer.weight.numel():
            continue
        _put(small, name, _two_layers(layer, mean, basis))
        report.append(LowRank(name, layer.in_features, k, kept))
    return small, tuple(report)


def _as_layers(network: ExportedProgram | fx.GraphModule) -> fx.GraphModule:
    """A graph whose linear operators are layers under the names of their weights; tied weights stay as they are."""
    found = copy.deepcopy(network) if isinstance(network, fx.GraphModule) else Program.adopt(network).own_module()
    users: dict[str, int] = {}
    for node in found.graph.nodes:
        if node.op == "get_attr":
            users[node.target] = users.get(node.target, 0) + len(node.users)
    for node in list(found.graph.nodes):
        weight = node.args[1] if node.target is torch.ops.aten.linear.default else None
        name = str(weight.target).removesuffix(".weight") if isinstance(weight, fx.Node) else ""
        if f"{name}.weight" not in users or users[f"{name}.weight"] > 1:
            continue
        held = found.get_submodule(name)
        out_features, in_features = held.weight.shape  # type: ignore[misc]
        layer = nn.Linear(in_features, out_features, bias=False)
        layer.weight, bias = held.weight, node.args[2] if len(node.args) > 2 else None  # type: ignore[assignment]
        layer.register_parameter("bias", None if bias is None else found.get_parameter(str(bias.target)))
        _put(found, name, layer)
        with found.graph.inserting_before(node):
            node.replace_all_uses_with(found.graph.call_module(name, (node.args[0],)))
        found.graph.erase_node(node)
    found.graph.eliminate_dead_code()
    found.recompile()
    return found


def _linear_layers(module: nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if name and type(layer) is nn.Linear]


def _checked(module: nn.Module, name: str) -> str:
    found = dict(module.named_modules()).get(name) if name else None
    if type(found) is not nn.Linear:
        got = "none of that name" if found is None else f"a {type(found).__name__}"
        raise InputError(f"layer {name!r}: expected a linear layer of {type(module).__name__}, got {got}")
    return name


@dataclass(slots=True)
class _Moments:
    """Sums over all inputs of a layer, in float64: how many, of x, of x x^T around the first input."""

    count: int = 0
    origin: Tensor | None = None
    total: Tensor | None = None
    products: Tensor | None = None

    def add(self, x: Tensor) -> None:
        rows = x.detach().double().reshape(-1, x.shape[-1])
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
        return lambda layer, args: found[name].add(args[0])

    place = next((param.device for param in module.parameters()), torch.device("cpu"))
    was_training = module.training
    hooks = [module.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    n_batches = 0
    try:
        module.eval()
        with torch.no_grad():
            for x in batches:
                module(x.to(place))
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


def _two_layers(layer: nn.Linear, mean: Tensor, basis: Tensor) -> nn.Sequential:
    """In the layer's type and place."""
    weight = layer.weight.detach().double()
    left_out = weight @ (mean - basis @ (basis.T @ mean))
    bias = left_out if layer.bias is None else layer.bias.detach().double() + left_out
    down = nn.Linear(layer.in_features, basis.shape[1], bias=False).to(basis)
    up = nn.Linear(basis.shape[1], layer.out_features).to(basis)
    with torch.no_grad():
        down.weight.copy_(basis.T)
        up.weight.copy_(weight @ basis)
        up.bias.copy_(bias)
    return nn.Sequential(down, up).to(layer.weight).train(layer.training)


def _put(module: nn.Module, name: str, layer: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, layer)
