"""The server's side: whom it asks, what it asks, and what it makes of the replies, whatever these are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeprune.errors import InputError
from edgeprune.federated.averaging import averaged
from edgeprune.federated.masks import Global, moved_share
from edgeprune.federated.messages import Order, Reply, Update, packed, size_bytes, unpacked
from edgeprune.settings import FederatedSettings

_MOVING = 0.75  # of the rounds: from then on the masks stay


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """What became of a round: the network, the mean loss of those that were taken, and who was left out, and why."""

    network: Global
    n_taken: int
    loss: float | None
    left_out: tuple[str, ...]
    uploaded_bytes: int


def chosen(candidates: Sequence[int], n: int, number: int, seed: int) -> list[int]:
    """So many of the candidates, drawn anew in each round; ascending."""
    draws = np.random.default_rng(np.random.SeedSequence((seed, number)))
    return sorted(int(one) for one in draws.choice(np.asarray(candidates), size=n, replace=False))


def order_of(network: Global, number: int, settings: FederatedSettings) -> Order:
    """What the clients of a round, counted from 1, are asked."""
    moves = bool(network.masks) and number % settings.readjust_every == 0
    last = max(2, round(_MOVING * settings.rounds))
    return Order(number, packed(network), moved_share(number, last, settings.moved) if moves else 0.0)


def merged(network: Global, replies: Sequence[Reply]) -> Merged:
    """The average of what can be used; the network as it was, where nothing can.

    Who sent nothing, NaN, or arrays of another network is left out and named.
    """
    updates, left_out = [], []
    for reply in replies:
        try:
            updates.append(_update(reply, network))
        except InputError as error:
            left_out.append(f"client {reply.client}: {error}")
    n_samples = sum(update.n_samples for update in updates)
    return Merged(
        network=averaged(updates, network) if updates else network,
        n_taken=len(updates),
        loss=sum(update.loss * update.n_samples for update in updates) / n_samples if updates else None,
        left_out=tuple(left_out),
        uploaded_bytes=sum(size_bytes(reply.arrays) for reply in replies if reply.arrays is not None),
    )


def _update(reply: Reply, like: Global) -> Update:
    """The reply as it is averaged; InputError where it cannot be."""
    if reply.arrays is None:
        raise InputError(reply.problem or "expected a reply, got none")
    if reply.n_samples < 1:
        raise InputError(f"expected a number of samples of at least 1, got {reply.n_samples}")
    if not math.isfinite(reply.loss):
        raise InputError(f"expected a finite loss, got {reply.loss}")
    return Update(unpacked(reply.arrays, like), reply.n_samples, reply.loss)
