"""What a Pruner was asked, checked: its budgets, how many steps it takes and how far each of them goes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgeprune.catalog import find
from edgeprune.cost.device import Device, read_device
from edgeprune.errors import InputError
from edgeprune.graph.capture import Program
from edgeprune.importance import BY_DATA
from edgeprune.methods.schedules import LEFT
from edgeprune.pruner.ids import KeptIds
from edgeprune.pruning.plan import ATTENTION
from edgeprune.search.candidate import Budgets, Manner
from edgeprune.units import LatencyLimit, parse_latency, parse_size

_STEPS = 4
_MOST_STEPS = 1000
_FED = "taylor"  # what `observe` accumulates


@dataclass(frozen=True, slots=True)
class Asked:
    """The choices of a Pruner.

    `ways` says how much of the way is done after each step, ascending, the last 1; `given` has the choices as they were
    given, where they were. `ids` are those of token inputs that stay, which `on` has the manner say of a network.
    """

    budgets: Budgets
    manner: Manner
    schedule: str
    ways: tuple[float, ...]
    threads: int
    given: Mapping[str, Any]
    ids: KeptIds

    @property
    def is_fed(self) -> bool:
        """Whether the scores come from the loop's own gradients."""
        return self.manner.criterion == _FED

    def on(self, dense: Program) -> Asked:
        """The same of this network; InputError where it has no such ids."""
        return replace(self, manner=replace(self.manner, vocabularies=self.ids.of(dense)))

    def share_after(self, step: int, final: float) -> float:
        """What is left of a cost after `step` steps, where a share `final` of it is left in the end."""
        done = self.ways[step - 1]
        return final if done == 1 else LEFT[self.schedule](final, done)


def asked(choices: Mapping[str, Any]) -> Asked:
    """The choices of `Pruner(...)` by name, checked.

    Raises:
        InputError: one of them is of another kind or out of range, two do not go together, or no budget is among them.
    """
    ids = KeptIds.asked(choices["vocabularies"], choices["unknown_ids"])
    features = _features(choices["input_features"])
    budgets = Budgets(
        keep_macs=None if choices["keep_macs"] is None else _share("keep_macs", choices["keep_macs"]),
        **features,
        max_latency=None if choices["keep_latency"] is None else _latency(choices["keep_latency"]),
        max_bytes=None if choices["max_size"] is None else _size("max_size", choices["max_size"]),
        max_ram=None if choices["max_ram"] is None else _size("max_ram", choices["max_ram"]),
    )
    manner = Manner(
        criterion=_criterion(choices["criterion"]),
        align=None if choices["align"] is None else _whole("align", choices["align"], 1),
        seed=_whole("seed", choices["seed"], 0),
        attention=_one_of("attention", choices["attention"], ATTENTION),
        features=budgets.features,
        appliable=bool(choices["appliable"]),
        leave=_names(choices["leave"]),
        layer_ratios=_ratios(choices["layer_ratios"]),
        device=_device(choices["device"]),
    )
    counted = budgets.n_features is not None or budgets.feature_ratio is not None
    has_budget = budgets.has_costs or counted
    if not has_budget and not ids.keep:
        raise InputError(
            "Pruner: expected a budget, keep_macs, keep_latency, max_size, max_ram, a count of input_features or "
            "vocabularies, got none"
        )
    steps, ways, schedule = _course(choices["steps"], choices["schedule"], _STEPS if has_budget else 1)
    given = {**_given(choices), **ids.texts, "steps": steps}
    return Asked(budgets, manner, schedule, ways, _whole("threads", choices["threads"], 1), given, ids)


def _given(choices: Mapping[str, Any]) -> dict[str, Any]:
    """The choices that were made, as JSON holds them; ids tell themselves."""
    others = {name: value for name, value in choices.items() if name not in ("vocabularies", "unknown_ids")}
    return {name: _plain(value) for name, value in others.items() if value is not None and value not in ((), False)}


def _plain(value: Any) -> Any:
    """A choice as JSON holds it."""
    if isinstance(value, Device):
        return f"{value.runtime} on {value.cpu}"
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    return value if isinstance(value, bool | int | float | str) else str(value)


def _course(steps: Any, schedule: Any, usual: int) -> tuple[int, tuple[float, ...], str]:
    """How many steps there are, `usual` where nobody says, how much is done after each, and the schedule's name."""
    n_steps = usual if steps is None else _whole("steps", steps, 1)
    if n_steps > _MOST_STEPS:
        raise InputError(f"steps: expected at most {_MOST_STEPS}, got {n_steps}")
    if isinstance(schedule, str):
        name = _one_of("schedule", schedule, tuple(LEFT))
        return n_steps, tuple(step / n_steps for step in range(1, n_steps + 1)), name
    ways = _ways(schedule)
    if steps is not None and len(ways) != n_steps:
        raise InputError(
            f"steps and schedule: expected as many of both, got {n_steps} steps and {len(ways)} in schedule"
        )
    return len(ways), ways, "geometric"


def _ways(schedule: Any) -> tuple[float, ...]:
    """How much of the way is done after each step, as it is given in numbers."""
    are_numbers = isinstance(schedule, Sequence) and len(schedule) > 0 and all(map(_is_number, schedule))
    ways = tuple(map(float, schedule)) if are_numbers else ()
    rising = all(before < after for before, after in pairwise((0.0, *ways)))
    if not ways or not rising or ways[-1] != 1:
        raise InputError(
            f"schedule: expected {', '.join(LEFT)}, or how much of the way is done after each step, rising from "
            f"above 0 to 1, as (0.5, 1), got {schedule!r}"
        )
    return ways


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _share(name: str, value: Any) -> float:
    if not _is_number(value) or not 0 < value <= 1:
        raise InputError(f"{name}: expected a share in (0, 1], got {value!r}")
    return float(value)


def _whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}: expected a whole number from {least}, got {value!r}")
    return value


def _one_of(name: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise InputError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    return str(value)


def _criterion(value: Any) -> str:
    """One that needs the weights alone, or that the loop feeds."""
    find("criterion", value)
    if value in BY_DATA and value != _FED:
        raise InputError(f"criterion: expected one of the weights, or taylor, which observe() feeds, got {value!r}")
    return str(value)


def _names(value: Any) -> tuple[str, ...]:
    named = isinstance(value, Collection) and not isinstance(value, str)
    if not named or not all(isinstance(name, str) for name in value):
        raise InputError(f"leave: expected the names of layers or groups in a list, got {value!r}")
    return tuple(value)


def _ratios(value: Any) -> dict[str, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise InputError(f"layer_ratios: expected a share for each of some layers, by name, got {value!r}")
    return {name: _share(f"layer_ratios: {name}", share) for name, share in value.items()}


def _latency(value: Any) -> LatencyLimit:
    """A share of the dense network's time, or a text such as `5ms` or `0.5x`."""
    if isinstance(value, str):
        return parse_latency(value, "keep_latency")
    return LatencyLimit(ratio=_share("keep_latency", value))


def _size(name: str, value: Any) -> int:
    """Bytes, or a text such as `500kB`."""
    if isinstance(value, str):
        return parse_size(value, name)
    return _whole(name, value, 1)


def _device(value: Any) -> Device | None:
    if value is None or isinstance(value, Device):
        return value
    if isinstance(value, str | Path):
        return read_device(str(value))
    raise InputError(f"device: expected the file of a profile, as `edgeprune profile` writes it, got {value!r}")


def _features(value: Any) -> dict[str, Any]:
    """The budget's fields for `off`, `auto`, a count or a ratio of input features."""
    fields: dict[str, Any] = {"n_features": None, "feature_ratio": None, "prune_features": value == "auto"}
    if value in ("auto", "off"):
        return fields
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return {**fields, "n_features": value}
    if isinstance(value, float) and 0 < value <= 1:
        return {**fields, "feature_ratio": value}
    raise InputError(f"input_features: expected auto, off, a count from 1 or a ratio in (0, 1], got {value!r}")
