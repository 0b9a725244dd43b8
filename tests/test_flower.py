"""Federated training on Flower: its messages through the apps in one process, and its own commands over loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeprune
from edgeprune.errors import InputError

flwr = pytest.importorskip("flwr.app", reason="needs flwr, whose pins are at odds with Typer's: see docs/FEDERATED.md")
flower = pytest.importorskip("edgeprune.integrations.flower")

ROOT = Path(edgeprune.__file__).resolve().parent.parent
CONFIG = {
    "arch": f"{ROOT}/models/mlp.py:mlp?hidden=32,32&n_inputs=64",
    "data": "digits",
    "clients": 3,
    "per-round": 3,
    "rounds": 2,
    "lr": 0.3,
    "readjust-every": 1,
    "threads": 1,
}
Answer = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def in_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages say by whom they are sent, which its own processes know."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Nodes:
    """A grid whose nodes answer in this process: node 10 + i is partition i unless another answer is given."""

    def __init__(self, config: dict[str, Any], answers: dict[int, Answer]) -> None:
        self.config, self.answers = config, answers

    def get_node_ids(self) -> Iterable[int]:
        return [10, 11, 12]

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> Iterable[Any]:
        asked = [(message, message.metadata.dst_node_id) for message in messages]
        replies = [self.answers.get(node, self.trained)(message) for message, node in asked]
        return [reply for reply in replies if reply is not None]

    def trained(self, message: Any) -> Any:
        node = message.metadata.dst_node_id
        return flower.client_app(message, context(self.config, node, {"partition-id": node - 10}))


def context(config: dict[str, Any], node: int, node_config: dict[str, Any]) -> Any:
    return flwr.Context(1, node, node_config, flwr.RecordDict(), config)


def reply_with(arrays: dict[str, np.ndarray]) -> Answer:
    record = flwr.ArrayRecord({name: flwr.Array(array) for name, array in arrays.items()})
    metrics = flwr.MetricRecord({"n-samples": 5, "loss": 1.0})
    content = flwr.RecordDict({"arrays": record, "metrics": metrics})
    return lambda message: flwr.Message(content=content, reply_to=message)


def failed(message: Any) -> Any:
    return flwr.Message(flwr.Error(code=2, reason="out of memory"), reply_to=message)


BAD: dict[str, tuple[Answer, str]] = {
    "gone": (lambda message: None, "left in mid-round"),
    "failed": (failed, "failed: out of memory"),
    "empty": (lambda message: flwr.Message(content=flwr.RecordDict(), reply_to=message), "expected arrays and metrics"),
    "other": (reply_with({"0.weight": np.zeros((2, 2), np.float32)}), "expected"),
}


@pytest.mark.parametrize("kind", BAD)
def test_who_fails_is_left_out_and_the_others_train_on(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answer, reason = BAD[kind]
    config = {**CONFIG, "out": str(tmp_path / "model.pt"), "record": str(tmp_path / "record.json"), "rounds": 1}
    flower.serve(Nodes(config, {11: answer}), context(config, 0, {}))
    (only,) = json.loads((tmp_path / "record.json").read_text())["rounds"]
    assert only["n_taken"] == 2
    assert len(only["left_out"]) == 1
    assert only["left_out"][0].startswith("client 11: ") and reason in only["left_out"][0]
    assert edgeprune.load_model(str(tmp_path / "model.pt")).info.data == "digits"


def test_a_node_without_data_of_its_own_needs_its_partition() -> None:
    config = {**CONFIG, "out": "model.pt"}
    for node in ({}, {"partition-id": 3}, {"partition-id": -1}, {"partition-id": "0"}):
        with pytest.raises(InputError, match="--node-config: expected partition-id from 0 to 2, or data"):
            flower.train(flwr.Message(flwr.RecordDict(), 11, "train"), context(config, 11, node))
    with pytest.raises(InputError, match="normalize: expected none, weights or mean"):
        flower.train(flwr.Message(flwr.RecordDict(), 11, "train"), context(config, 11, {"data": "digits"}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"arch": "net:net", "data": "digits"}, "got no out"),
        ({**CONFIG, "out": "model.pt", "sparcity": 0.5}, "got sparcity"),
        ({**CONFIG, "out": "model.pt", "sparsity": 1.0}, "--sparsity"),
    ],
)
def test_a_run_config_that_is_wrong_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        flower.serve(Nodes(config, {}), context(config, 0, {}))


# -- Flower's own commands ----------------------------------------------------------------------------------------


APP = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "sparse"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "nobody"

[tool.flwr.app.components]
serverapp = "edgeprune.integrations.flower:server_app"
clientapp = "edgeprune.integrations.flower:client_app"

[tool.flwr.app.config]
"""
NET = """from torch import nn


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
"""


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])


@contextmanager
def started(env: dict[str, str], *arguments: str) -> Iterator[None]:
    """A command of Flower's, which ends with its whole group."""
    with subprocess.Popen(arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)


@pytest.mark.sweep
def test_two_clients_and_a_server_over_loopback(tmp_path: Path) -> None:
    own = Path(sys.executable).parent
    app, home = tmp_path / "app", tmp_path / "home"
    app.mkdir()
    home.mkdir()
    config = {**CONFIG, "arch": "net:net", "clients": 2, "per-round": 2}
    config |= {"out": str(tmp_path / "model.pt"), "record": str(tmp_path / "record.json")}
    (app / "pyproject.toml").write_text(APP + "".join(f"{name} = {json.dumps(v)}\n" for name, v in config.items()))
    (app / "net.py").write_text(NET)
    port = free_port()
    here = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(here)
    paths = {"PATH": f"{own}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    env = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1", **paths}
    link = (str(own / "flower-superlink"), "--insecure", "--port", str(port))
    node = (str(own / "flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{port}", "--port")
    with started(env, *link, "--disable-runtime-dependency-installation"):
        with started(env, *node, str(free_port()), "--node-config", "partition-id=0"):
            with started(env, *node, str(free_port()), "--node-config", "partition-id=1"):
                wait_for(port)
                run = subprocess.run(
                    [str(own / "flwr"), "run", str(app), "here", "--stream"],
                    env=env,
                    capture_output=True,
                    text=True,
                    timeout=1200,
                )
    # --stream ends with 0 however the run ended: what it said is all that tells why.
    assert run.returncode == 0 and (tmp_path / "record.json").is_file(), run.stdout + run.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert [one["n_taken"] for one in record["rounds"]] == [2, 2]
    assert record["zero_share"] == pytest.approx(0.8, abs=0.01)
    assert record["test_accuracy"] > 0.5
    n_weights, n_biases = 64 * 32 + 32 * 10, 32 + 10
    n_kept = n_weights - round(record["zero_share"] * n_weights)
    assert record["rounds"][-1]["uploaded_bytes"] >= 2 * 2 * 4 * (n_kept + n_biases)
    assert edgeprune.load_model(str(tmp_path / "model.pt")).info.arch == "net:net"


def wait_for(port: int) -> None:
    """Until somebody listens there."""
    for _ in range(600):
        with socket.socket() as own:
            own.settimeout(1)
            if own.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"port {port}: nobody listens")
