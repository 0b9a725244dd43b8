"""Server and clients in one process, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from edgeprune.data import order, read
from edgeprune.errors import InputError, TrainingError
from edgeprune.federated.client import Client
from edgeprune.federated.masks import Global, initial, put
from edgeprune.federated.messages import Order, Reply, size_bytes
from edgeprune.federated.server import Merged, chosen, merged, order_of
from edgeprune.federated.split import dirichlet, even
from edgeprune.progress import Progress, Silent
from edgeprune.records import DataSource
from edgeprune.results import RoundRecord
from edgeprune.settings import FederatedSettings
from edgeprune.training.judging import Judge

AClient = Callable[[Order], Reply]
_LABELS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Rounds:
    """What the server goes by from round to round, wherever its clients run: it measures, tells and counts."""

    module: nn.Module
    data: DataSource
    judge: Judge
    settings: FederatedSettings
    progress: Progress = Silent()

    def measured(self, number: int, found: Merged, downloaded_bytes: int, before: RoundRecord | None) -> RoundRecord:
        """The record of a round; the network on the validation split."""
        put(self.module, found.network.state)
        evaluation = self.judge.evaluation(self.module, self.data.val)
        uploaded = found.uploaded_bytes + (before.uploaded_bytes if before else 0)
        downloaded = downloaded_bytes + (before.downloaded_bytes if before else 0)
        record = RoundRecord(
            number=number,
            n_taken=found.n_taken,
            left_out=found.left_out,
            loss=found.loss,
            val_value=evaluation.value,
            uploaded_bytes=uploaded,
            downloaded_bytes=downloaded,
            metric=self.judge.task.metric.name,
        )
        self._tell(record)
        return record

    def check(self, records: tuple[RoundRecord, ...]) -> None:
        """Raise TrainingError where no round came to anything."""
        if not any(record.n_taken for record in records):
            example = next((reason for record in records for reason in record.left_out), "no client replied")
            raise TrainingError(f"expected a client whose update can be used, got none in any round: {example}")

    def _tell(self, record: RoundRecord) -> None:
        name = f"round {record.number}"
        for reason in record.left_out:
            self.progress.say(f"{name}: left out {reason}")
        loss = "" if record.loss is None else f" loss {record.loss:.2f}"
        value = self.judge.task.metric.shown(record.val_value)
        note = f"{name}{loss} val {value}, {record.uploaded_bytes / 1e6:.1f} MB uploaded"
        self.progress.advance(record.number, self.settings.rounds, note)
        self.progress.measured({"val/value": record.val_value, "uploaded/bytes": record.uploaded_bytes})


def simulate(rounds: Rounds, clients: Mapping[int, AClient]) -> tuple[Global, tuple[RoundRecord, ...]]:
    """Train by rounds; the module ends in eval mode with the last round's network.

    Args:
        clients: by their numbers from 0.

    Raises:
        TrainingError: no client's update could be used in any round.
    """
    settings = rounds.settings
    network = initial(rounds.module, settings.sparsity, settings.seed)
    records: list[RoundRecord] = []
    for number in range(1, settings.rounds + 1):
        asked = order_of(network, number, settings)
        who = chosen(list(clients), settings.n_per_round, number, settings.seed)
        leaving = _leaving(settings, number)
        replies = [_left(i) if gone else clients[i](asked) for i, gone in zip(who, leaving, strict=True)]
        found = merged(network, replies)
        network = found.network
        downloaded = len(who) * size_bytes(asked.arrays)
        records.append(rounds.measured(number, found, downloaded, records[-1] if records else None))
    rounds.check(tuple(records))
    rounds.module.eval()
    return network, tuple(records)


def make_clients(rounds: Rounds, like: Global) -> dict[int, Client]:
    """All clients with their samples of the training split, which compute in the server's module in turn."""
    parts = shared_out(rounds.data, rounds.settings)
    own = rounds.module, rounds.data.train
    return {
        i: Client(str(i), *own, torch.from_numpy(part), rounds.judge, rounds.settings, like)
        for i, part in enumerate(parts)
    }


def shared_out(data: DataSource, settings: FederatedSettings) -> list[np.ndarray]:
    """Which samples of the training split each client has, ascending.

    Raises:
        InputError: not two for each, or an alpha for data without classes.
    """
    if settings.alpha is None:
        return even(len(data.train), settings.n_clients, settings.seed)  # type: ignore[arg-type]
    if data.targets.kind != "classes":
        raise InputError(f"--alpha: data {data.name}: expected classes to share out by, got {data.targets.kind}")
    return dirichlet(_labels(data.train), settings.n_clients, settings.alpha, settings.seed)


def _labels(split: Dataset[Any]) -> np.ndarray:
    parts = order(len(split), _LABELS_AT_ONCE)  # type: ignore[arg-type]
    return np.concatenate([np.asarray(targets).reshape(-1) for _, targets in read(split, parts)])


def _leaving(settings: FederatedSettings, number: int) -> np.ndarray:
    """Which of a round's clients leave, `(n_per_round,)`."""
    draws = np.random.default_rng(np.random.SeedSequence((settings.seed, number, 1)))
    return draws.random(settings.n_per_round) < settings.leaving


def _left(client: int) -> Reply:
    return Reply(str(client), problem="left in mid-round")
