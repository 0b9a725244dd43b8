"""The experiments, as the files of configs/ describe them, and the runs that each consists of; no torch."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune.errors import InputError

CONFIGS = Path(__file__).resolve().parent / "configs"
AXES = ("zeros", "features", "bytes")
GOALS = {
    "zeros": "{} % zeros",
    "features": "{} features",
    "macs": "{} % of the MACs removed",
    "bytes": "{} % of the bytes",
    "parameters": "parameters as with {} features",
}
_CONTENDER_KEYS = {"label", "recipe", "goal", "at", "seeds", "train", "how"}


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to the same end.

    `at` are the points that it aims at, so many of its `goal`, None for a contender without one; `train` goes to
    TrainSettings, `how` to the recipe. Of a value that is a table by points, `{ 90 = 1e-6, 95 = 2e-6 }`, each run takes
    its own.
    """

    name: str
    label: str
    recipe: str
    goal: str
    at: tuple[int | None, ...]
    seeds: int
    train: Mapping[str, Any]
    how: Mapping[str, Any]

    def goal_at(self, at: int | None) -> str:
        """In words, e.g. "95 % zeros"; empty for None."""
        return "" if at is None else GOALS[self.goal].format(at)


@dataclass(frozen=True, slots=True)
class Run:
    """One training of one contender."""

    experiment: str
    contender: str
    at: int | None
    seed: int
    arch: str
    data: str
    recipe: str
    train: Mapping[str, Any]
    how: Mapping[str, Any]
    quick: bool = False

    @property
    def name(self) -> str:
        """For people, e.g. "xrda-lenet: xrda at 95, seed 0"."""
        at = "" if self.at is None else f" at {self.at}"
        return f"{self.experiment}: {self.contender}{at}, seed {self.seed}"

    @property
    def digest(self) -> str:
        """Of everything that its result depends on: a run of another config is another run."""
        content = [getattr(self, name) for name in self.__slots__]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Experiment:
    """Contenders that train one network on one data set for as many epochs each.

    `states` is what the paper says, `differs` what is not as in the paper; `axis` is what accuracy is looked at over.
    """

    name: str
    title: str
    paper: str
    states: str
    differs: str
    arch: str
    data: str
    seeds: int
    axis: str
    train: Mapping[str, Any]
    contenders: tuple[Contender, ...]
    needs_gpu: bool = False

    @property
    def epochs(self) -> int:
        """Of every contender."""
        return int(self.train["epochs"])

    def runs(self, quick: bool = False) -> list[Run]:
        """All runs; the first seed of every contender comes first, so that a part of them shows the whole."""
        found = []
        for seed in range(max(contender.seeds for contender in self.contenders)):
            for contender in self.contenders:
                if seed < contender.seeds:
                    found += [self.run(contender, at, seed, quick) for at in contender.at]
        return found

    def run(self, contender: Contender, at: int | None, seed: int, quick: bool = False) -> Run:
        """One of them, with the values that belong to its point."""
        where = f"{self.name}, contender {contender.name}"
        train, how = (_resolved(table, at, where) for table in ({**self.train, **contender.train}, contender.how))
        return Run(self.name, contender.name, at, seed, self.arch, self.data, contender.recipe, train, how, quick)


def names() -> list[str]:
    """The names of all experiments."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml"))


def read(name: str, folder: Path = CONFIGS) -> Experiment:
    """The experiment of this name.

    Raises:
        InputError: there is none, or its file is not as it should be; says what is wrong.
    """
    path = folder / f"{name}.toml"
    if not path.is_file():
        raise InputError(f"experiment: expected one of {', '.join(names())}, got {name!r}")
    try:
        return _experiment(name, tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path.name}: expected an experiment, got {type(error).__name__}: {error}") from error


def _experiment(name: str, table: dict[str, Any]) -> Experiment:
    contenders = table.pop("contenders")
    common = {"at": table.pop("at", ()), "seeds": table["seeds"], "goal": table["axis"]}
    found = tuple(_contender(key, {**common, **own}) for key, own in contenders.items())
    experiment = Experiment(name=name, contenders=found, **table)
    if experiment.axis not in AXES:
        raise ValueError(f"axis: expected {' or '.join(AXES)}, got {experiment.axis!r}")
    if min(experiment.epochs, *(contender.seeds for contender in found)) < 1:
        raise ValueError("epochs and seeds: expected at least 1")
    return experiment


def _contender(name: str, table: Mapping[str, Any]) -> Contender:
    unknown = set(table) - _CONTENDER_KEYS
    if unknown:
        raise ValueError(f"contender {name}: expected {', '.join(sorted(_CONTENDER_KEYS))}, got {unknown.pop()!r}")
    if table["goal"] not in GOALS:
        raise ValueError(f"contender {name}: goal: expected one of {', '.join(GOALS)}, got {table['goal']!r}")
    return Contender(
        name=name,
        label=table.get("label", name),
        recipe=table.get("recipe", "train"),
        goal=table["goal"],
        at=tuple(table["at"]) or (None,),
        seeds=int(table["seeds"]),
        train=table.get("train", {}),
        how=table.get("how", {}),
    )


def _resolved(value: Any, at: int | None, where: str) -> Any:
    """The value with every table by points replaced by what it has for this one."""
    if not isinstance(value, Mapping):
        return value
    if not value or not all(key.isdigit() for key in value):
        return {key: _resolved(own, at, f"{where}, {key}") for key, own in value.items()}
    if str(at) not in value:
        raise InputError(f"{where}: expected a value for {at}, got those for {', '.join(value)}")
    return value[str(at)]
