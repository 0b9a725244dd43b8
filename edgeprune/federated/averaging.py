"""Masked averaging: each weight is the mean over the clients that have it in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeprune.federated.masks import Global, largest, masked
from edgeprune.federated.messages import Update


def averaged(updates: Sequence[Update], like: Global) -> Global:
    """The mean over the samples of all clients, then the largest weights of each layer, as many as before.

    A client that has a weight out does not count for it (Bibikar et al., arXiv 2112.09824); without masks it is
    federated averaging (McMahan et al., arXiv 1602.05629). Sums are taken in float64, so that what all agree on stays
    what it is.
    """
    state = {name: _mean(updates, name, own) for name, own in like.state.items()}
    anywhere = {name: torch.stack([update.network.masks[name] for update in updates]).any(dim=0) for name in like.masks}
    masks = largest(state, anywhere, like.masks)
    return Global(masked(state, masks), masks)


def _mean(updates: Sequence[Update], name: str, like: Tensor) -> Tensor:
    total = torch.zeros(like.shape, dtype=torch.float64)
    weight = torch.zeros(like.shape, dtype=torch.float64)
    for update in updates:
        mask = update.network.masks.get(name)
        share = torch.full_like(weight, update.n_samples) if mask is None else update.n_samples * mask.double()
        total += share * update.network.state[name].double()
        weight += share
    return torch.where(weight > 0, total / weight.clamp(min=1), 0.0).to(like.dtype)
