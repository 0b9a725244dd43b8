"""Federated sparse training on Flower: `server_app` and `client_app`, which Flower's own commands run.

The app's pyproject.toml names them, and its run config has what `edgeprune federate` takes:

    [tool.flwr.app.components]
    serverapp = "app:server_app"  # app.py: from edgeprune.integrations.flower import client_app, server_app
    clientapp = "app:client_app"

    [tool.flwr.app.config]
    arch = "model:net"
    data = "mnist:/data"
    out = "/runs/model.pt"
    clients = 10
    per-round = 5
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeprune.commands.federate import finished, prepared_rounds, request_of
from edgeprune.commands.train import begun
from edgeprune.errors import InputError
from edgeprune.federated.client import Client
from edgeprune.federated.masks import Global, initial
from edgeprune.federated.messages import Order, Reply, size_bytes
from edgeprune.federated.server import chosen, merged, order_of
from edgeprune.federated.simulation import Rounds, shared_out
from edgeprune.lines import one_line
from edgeprune.progress import Silent
from edgeprune.results import RoundRecord
from edgeprune.runrecord import to_dict
from edgeprune.training import Judge, threads_set

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import Strategy
except ImportError as error:
    raise ImportError(
        "edgeprune.integrations.flower: expected the package flwr, got none; docs/FEDERATED.md says how to install it"
    ) from error

_POLL_SECONDS = 1.0
_ROUND_SECONDS = 600.0  # how long a round waits for its clients where the run config has no round-timeout
_BESIDE = frozenset({"round-timeout", "record"})


class SparseAveraging(Strategy):
    """FedDST as a strategy: clients that fail, are late, or send what cannot be used are left out and named.

    It ends with the last round's network in the module of `rounds`; `records` has what each round came to.
    """

    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds
        settings = rounds.settings
        self.network: Global = initial(rounds.module, settings.sparsity, settings.seed)
        self.records: list[RoundRecord] = []
        self.asked: tuple[int, ...] = ()
        self.downloaded_bytes = 0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the clients of a round; the first one waits until all have come, the others for one."""
        settings = self.rounds.settings
        nodes = _wait_for(settings.n_clients if server_round == 1 else 1, grid)
        self.asked = tuple(chosen(nodes, min(settings.n_per_round, len(nodes)), server_round, settings.seed))
        order = order_of(self.network, server_round, settings)
        self.downloaded_bytes = len(self.asked) * size_bytes(order.arrays)
        asked = ConfigRecord({"round": order.number, "moved": order.moved})
        content = RecordDict({"arrays": _record_of(order.arrays), "order": asked})
        return [Message(content=content, message_type="train", dst_node_id=node) for node in self.asked]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what can be used, measure it, tell of the others."""
        came = {message.metadata.src_node_id: _reply_of(message) for message in replies}
        missing = [Reply(str(node), problem="left in mid-round") for node in self.asked if node not in came]
        found = merged(self.network, [*came.values(), *missing])
        self.network = found.network
        before = self.records[-1] if self.records else None
        record = self.rounds.measured(server_round, found, self.downloaded_bytes, before)
        self.records.append(record)
        return None, MetricRecord({"value": record.val_value, "uploaded-bytes": record.uploaded_bytes})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The server measures; clients are asked nothing."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As nothing was asked, nothing is told."""
        return None

    def summary(self) -> None:
        """Tell Flower's log what is trained."""
        logging.getLogger("flwr").info("FedDST: %s", self.rounds.settings)


class _Logged(Silent):
    """What is said goes to Flower's log."""

    def say(self, message: str) -> None:
        logging.getLogger("flwr").info(message)


def serve(grid: Grid, context: Context) -> None:
    """The server's part of a run: its rounds, the checkpoint, and the record where the run config names a file.

    Raises:
        InputError: the run config, the data or the output place is wrong.
        TrainingError: no client's update could be used in any round.
    """
    start, config = time.perf_counter(), context.run_config
    request = request_of(config, _BESIDE)
    rounds, info, threads = prepared_rounds(request, _Logged())
    with threads_set(threads):
        strategy = SparseAveraging(rounds)
        timeout = float(config.get("round-timeout", _ROUND_SECONDS))
        strategy.start(grid, ArrayRecord(), num_rounds=request.settings.rounds, timeout=timeout)
        records = tuple(strategy.records)
        rounds.check(records)
        record = finished(request, rounds, info, records, start)
    if "record" in config:
        Path(str(config["record"])).write_text(json.dumps(to_dict(record), indent=2) + "\n", encoding="utf-8")


def train(message: Message, context: Context) -> Message:
    """A client's part of a round.

    Its samples are those of the node's `partition-id`, or, where the node's config names `data`, all of these.

    Raises:
        InputError: the configs or the data are wrong, or the server's network is another one.
    """
    client, threads = _client(context)
    order = message.content["order"]
    with threads_set(threads):
        reply = client(Order(int(order["round"]), _arrays_of(message.content["arrays"]), float(order["moved"])))
    assert reply.arrays is not None
    metrics = MetricRecord({"n-samples": reply.n_samples, "loss": reply.loss})
    content = RecordDict({"arrays": _record_of(reply.arrays), "metrics": metrics})
    return Message(content=content, reply_to=message)


def _client(context: Context) -> tuple[Client, int | None]:
    request, node = request_of(context.run_config, _BESIDE), context.node_config
    own = "data" in node
    if own:
        if request.normalize == "data":
            expected = "none, weights or mean=...;std=... in the run config"
            raise InputError(f"normalize: expected {expected}, as each client's data would be normalised otherwise")
        request = replace(request, data=str(node["data"]))
    model, _, data, task, _ = begun(request.as_training)
    settings = request.settings
    if own:
        name, indices = str(context.node_id), np.arange(len(data.train))  # type: ignore[arg-type]
    else:
        settings, _ = settings.fitted(len(data.train))  # type: ignore[arg-type]  # as the server does
        name = str(_partition(node, settings.n_clients))
        indices = shared_out(data, settings)[int(name)]
    like = initial(model, settings.sparsity, settings.seed)
    judge = Judge(task, data.normalization)
    return Client(name, model, data.train, torch.from_numpy(indices), judge, settings, like), request.threads


def _partition(node: Mapping[str, Any], n_clients: int) -> int:
    number = node.get("partition-id")
    if not isinstance(number, int) or not 0 <= number < n_clients:
        expected = f"partition-id from 0 to {n_clients - 1}, or data, in the node's config"
        raise InputError(f"--node-config: expected {expected}, got {number!r}")
    return number


def _wait_for(n_nodes: int, grid: Grid) -> Sequence[int]:
    while len(nodes := sorted(grid.get_node_ids())) < n_nodes:
        time.sleep(_POLL_SECONDS)
    return nodes


def _record_of(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def _arrays_of(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in record.items()}


def _reply_of(message: Message) -> Reply:
    """What a client sent; a problem where Flower has an error in its place, or it is not what was asked for."""
    client = str(message.metadata.src_node_id)
    if message.has_error():
        return Reply(client, problem=one_line(f"failed: {message.error.reason}", 200))
    try:
        content = message.content
        arrays, metrics = _arrays_of(content["arrays"]), content["metrics"]
        return Reply(client, arrays, int(metrics["n-samples"]), float(metrics["loss"]))
    except (KeyError, TypeError, ValueError, AttributeError, OSError, EOFError) as error:
        return Reply(client, problem=one_line(f"expected arrays and metrics, got {type(error).__name__}: {error}", 200))


server_app = ServerApp()
server_app.main()(serve)
client_app = ClientApp()
client_app.train()(train)
