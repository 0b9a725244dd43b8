"""What `edgeprune federate` reports; no torch."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.records import ACCURACY, Figure, Metric
from edgeprune.results.run import LayerZeros, values_of
from edgeprune.settings import FederatedSettings


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One round, counted from 1: how many clients were taken, and who was left out and why.

    `loss` is the mean over those that were taken, None where there were none; bytes are those of all rounds so far,
    over all clients, and count arrays alone.
    """

    number: int
    n_taken: int
    left_out: tuple[str, ...]
    loss: float | None
    val_value: float
    uploaded_bytes: int
    downloaded_bytes: int
    metric: str = "accuracy"

    @property
    def json_names(self) -> dict[str, str | None]:
        """What the fields are called in JSON: the value by the name of the metric."""
        return {"number": "round", "val_value": f"val_{self.metric}", "metric": None}


@dataclass(frozen=True, slots=True)
class FederateRecord:
    """What `edgeprune federate` did, by the metric of the task; the network is that of the last round.

    `zero_share` is the share of weights that are exactly zero, biases and other 1-D parameters not counted; `layers`
    says it of each tensor. `beside` are the task's further figures on the test split; `task` is what was asked for.
    """

    out: str
    arch: str
    data: str
    params: int
    settings: FederatedSettings
    rounds: tuple[RoundRecord, ...]
    val_value: float
    test_value: float
    seconds: float
    zero_share: float
    layers: tuple[LayerZeros, ...]
    metric: Metric = ACCURACY
    beside: tuple[Figure, ...] = ()
    task: str | None = None

    @property
    def json_names(self) -> dict[str, str | None]:
        """What the fields are called in JSON: values by the name of the metric."""
        return {**values_of(self.metric.name), "task": None}

    @property
    def n_left_out(self) -> int:
        """How many replies could not be used, over all rounds."""
        return sum(len(one.left_out) for one in self.rounds)
