"""Masks over a network's weights: which are in, how they move, and a network's state without the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeprune.federated.erk import random_masks
from edgeprune.methods.masks import exchanged, highest

State = Mapping[str, Tensor]
Masks = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """The network that the server holds: what is trained and measured, zero where the `masks` have nothing.

    `masks` are bool, for weights of two dims or more; there are none where the training is dense.
    """

    state: State
    masks: Masks


def initial(module: nn.Module, sparsity: float, seed: int) -> Global:
    """A network as it is, with random masks of Erdős-Rényi-Kernel densities; without masks at sparsity 0."""
    state = state_of(module)
    shapes = {name: tuple(param.shape) for name, param in trained(module).items() if param.dim() > 1}
    masks = random_masks(shapes, sparsity, seed) if sparsity > 0 else {}
    return Global(masked(state, masks), masks)


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained; a tied one once, by its first name."""
    return {name: param for name, param in module.named_parameters() if param.requires_grad}


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of what training changes: parameters, and buffers of floats, which are statistics; tied ones once."""
    return {name: tensor.detach().cpu().clone() for name, tensor in _changing(module).items()}


def put(module: nn.Module, state: State) -> None:
    """Write a state, as `state_of` gives it, into its network."""
    with torch.no_grad():
        for name, tensor in _changing(module).items():
            tensor.copy_(state[name])


def _changing(module: nn.Module) -> dict[str, Tensor]:
    kept = module.state_dict(keep_vars=True)
    buffers = {name: own for name, own in module.named_buffers() if name in kept and own.is_floating_point()}
    return {**trained(module), **buffers}


def masked(state: State, masks: Masks) -> dict[str, Tensor]:
    """The state with zeros where nothing is in."""
    return {name: torch.where(masks[name], own, 0.0) if name in masks else own for name, own in state.items()}


def moved_share(number: int, last: int, first_share: float) -> float:
    """The share of weights that changes places in a round, counted from 1: a cosine from `first_share` to 0 at `last`.

    Bibikar et al., arXiv 2112.09824, after RigL.
    """
    return 0.0 if number >= last else first_share / 2 * (1 + math.cos(math.pi * (number - 1) / max(1, last - 1)))


def readjusted(state: State, masks: Masks, gradients: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The masks after this share of each layer's smallest weights has given its places to the largest gradients."""
    return {
        name: exchanged(state[name], own, gradients[name].abs(), int(share * own.sum())) for name, own in masks.items()
    }


def largest(state: State, candidates: Masks, like: Masks) -> dict[str, Tensor]:
    """Of the candidates the largest weights: of each layer as many as `like` has."""
    found = {}
    for name, own in candidates.items():
        ranks = torch.where(own, state[name].abs().double(), -torch.inf)
        found[name] = highest(ranks, own.numel() - int(like[name].sum()))
    return found
