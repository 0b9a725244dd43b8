"""Clients that train a network together: what it gets right for the bytes that they upload."""

from __future__ import annotations

import tempfile
from dataclasses import fields
from typing import Any

from edgeprune.commands.federate import federate
from edgeprune.errors import InputError
from edgeprune.requests import FederateRequest
from edgeprune.settings import FederatedSettings

from .place import ROOT, Place

_QUICK = {"rounds": 2, "clients": 4, "per_round": 2}


def federated(place: Place, settings: dict[str, Any]) -> dict[str, float]:
    """A training by the settings of `edgeprune federate`; the training's epochs are those of a client in a round.

    Args:
        settings: by name, as `FederatedSettings` has them.
    """
    run = place.run
    known = {field.name for field in fields(FederatedSettings)} - {"seed", "local_epochs"}
    for name in settings:
        if name not in known:
            raise InputError(f"{run.name}: settings: expected {', '.join(sorted(known))}, got {name!r}")
    asked = {**settings, **(_QUICK if run.quick else {}), "local_epochs": place.settings().epochs}
    how = FederatedSettings(seed=run.seed, **asked)
    with tempfile.TemporaryDirectory() as folder:
        request = FederateRequest(
            f"{ROOT}/{run.arch}", run.data, f"{folder}/model.pt", how, threads=place.machine.threads
        )
        record = federate(request, place.progress)
    return {
        "val_accuracy": record.val_value,
        "test_accuracy": record.test_value,
        "zero_share": record.zero_share,
        "uploaded_bytes": float(record.rounds[-1].uploaded_bytes),
    }
