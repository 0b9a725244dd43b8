"""What a Pruner keeps beside a checkpoint: tensors and plain values, which `torch.load(weights_only=True)` takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.formats.digests import digest
from edgeprune.graph.capture import Program
from edgeprune.lines import shown
from edgeprune.pruner.asked import Asked
from edgeprune.pruner.course import goals_of
from edgeprune.pruner.network import Network, replayed
from edgeprune.pruner.observing import Observed
from edgeprune.pruning.plan import PruningPlan
from edgeprune.results import StepRecord
from edgeprune.search.landing import Goal

FORMAT = "edgeprune-pruner/1"
_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "asked": str, "source_sha256": str, "plan": (str, type(None)), "proof_error": float, "dense": dict, "weights": dict,
    "records": list, "goals": dict, "observed": dict, "seconds": float,
}  # fmt: skip


def state_of(asked: Asked, dense: Program, network: Network) -> dict[str, Any]:
    """Both networks and what was asked, as tensors and texts."""
    return {
        "format": FORMAT,
        "asked": _text(asked),
        "source_sha256": digest(dense),
        "plan": None if network.plan is None else network.plan.to_json(),
        "proof_error": float(network.proof_error),
        "dense": _tensors_of(dense),
        "weights": _tensors_of(network.program),
    }


@dataclass(frozen=True, slots=True, eq=False)
class Progressed:
    """How far a Pruner has come, beside its networks."""

    records: tuple[StepRecord, ...]
    goals: dict[str, Goal]
    observed: Observed
    seconds: float


def progress_of(state: Mapping[str, Any]) -> Progressed:
    """What a state says of that.

    Raises:
        InputError: it is damaged.
    """
    try:
        records = tuple(
            StepRecord(number, float(ratio), None if count is None else int(count), None, True)
            for number, (ratio, count) in enumerate(state["records"], 1)
        )
        return Progressed(records, goals_of(state["goals"]), Observed.of(state["observed"]), float(state["seconds"]))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"load_state_dict: expected a whole state of a Pruner, got a damaged one ({error!r})"
        ) from error


def networks_of(state: Mapping[str, Any], asked: Asked, dense: Program) -> tuple[Program, Network]:
    """The dense program and the network of a state, with their weights.

    Args:
        state: as `state_of` gave it, with what the Pruner adds.
        asked: what the Pruner is asked that goes on with it.
        dense: a program of the same class, whatever its weights.

    Raises:
        InputError: it is no such state, or of another network or other options.
    """
    _check(state, asked)
    dense = _with_tensors(dense, state["dense"], "dense")
    if digest(dense) != state["source_sha256"]:
        raise InputError(
            f"load_state_dict: expected the state of this network, {digest(dense)[:12]}..., got one of another, "
            f"{state['source_sha256'][:12]}..."
        )
    whole = None if state["plan"] is None else PruningPlan.from_json(state["plan"])
    network = replayed(dense, whole, state["proof_error"])
    return dense, Network(_with_tensors(network.program, state["weights"], "weights"), whole, network.proof_error)


def _text(asked: Asked) -> str:
    return json.dumps(dict(asked.given), sort_keys=True)


def _check(state: Any, asked: Asked) -> None:
    """Raise InputError where this is no state, or one of other options."""
    if not isinstance(state, Mapping) or state.get("format") != FORMAT:
        got = state.get("format") if isinstance(state, Mapping) else type(state).__name__
        raise InputError(f"load_state_dict: expected the state of a Pruner, {FORMAT!r}, got {got!r}")
    for name, kind in _FIELDS.items():
        if not isinstance(state.get(name), kind):
            raise InputError(f"load_state_dict: {name}: expected another value, got a {type(state.get(name)).__name__}")
    if state["asked"] != _text(asked):
        before, now = json.loads(state["asked"]), dict(asked.given)
        name = next(name for name in sorted({*before, *now}) if before.get(name) != now.get(name))
        raise InputError(
            f"load_state_dict: expected a Pruner with the options of the state, {name} {shown(before.get(name))}, "
            f"got {shown(now.get(name))}"
        )


def _tensors_of(program: Program) -> dict[str, Tensor]:
    """Parameters, buffers and constants by name, as plain copies."""
    module = program.frozen_module()
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: tensor.detach().clone() for name, tensor in named}


def _with_tensors(program: Program, tensors: Mapping[str, Any], what: str) -> Program:
    """The program with these values of its tensors."""
    module = program.own_module()
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    own = dict(named)
    if own.keys() != tensors.keys():
        name = min(own.keys() ^ tensors.keys())
        got = name if name in tensors else f"no {name}"
        raise InputError(f"load_state_dict: {what}: expected the tensors of this network, got {got}")
    with torch.no_grad():
        for name, tensor in own.items():
            given = tensors[name]
            if not isinstance(given, Tensor) or given.shape != tensor.shape or given.dtype != tensor.dtype:
                shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
                raise InputError(
                    f"load_state_dict: {what}: {name!r}: expected {tensor.dtype} {tuple(tensor.shape)}, got {shape}"
                )
            tensor.copy_(given)
    return program.with_weights(module)
