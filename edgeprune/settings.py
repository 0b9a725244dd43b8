"""How a network is trained, how much of that a search takes, and what it must respect, as plain records; no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edgeprune.catalog import RECIPE, SHARED_WEIGHTS, check_options, check_values, find, names
from edgeprune.errors import InputError

_CLIENTS, _PER_ROUND = 100, 10  # of a federation, where nobody says how many

ALLOCATIONS = ("greedy", "sensitivity", "predictor")  # how the widths of all groups are found together
DISTILLATIONS = ("outputs", "features", "off")
MOST_FINETUNINGS = 10  # finetunings' worth of training that a search takes where nothing is said


@dataclass(frozen=True, slots=True)
class Recipe:
    """What training does beside its optimizer; 0 leaves a thing out.

    `augment` is `"none"`, `"crop-flip"`, `"trivial"` or `"rand"`; `mixup` and `cutmix` are the shape of the Beta
    distribution that the share of each sample is drawn from; `label_smoothing` the share of the target that is spread
    over all classes. `warmup` counts the epochs in which the learning rate rises, None for a twentieth of the training.
    `ema` is the decay of the moving average of the weights that is kept; `clip_norm` the largest norm of the gradient.
    """

    augment: str = "none"
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    warmup: float | None = None
    ema: float = 0.0
    clip_norm: float = 0.0

    @property
    def asked(self) -> dict[str, Any]:
        """What it asks for, by name: all that is not at its default."""
        plain = Recipe()
        return {name: value for name, value in asdict(self).items() if value != getattr(plain, name)}

    @property
    def as_options(self) -> str:
        """As on the command line, e.g. "--augment crop-flip --ema 0.999"."""
        numbers = {name: value if isinstance(value, str) else f"{value:g}" for name, value in self.asked.items()}
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in numbers.items())

    def check(self) -> None:
        """Raise InputError where a value is out of its range in the catalog."""
        check_values({name: value for name, value in asdict(self).items() if (name, value) != ("warmup", None)}, RECIPE)


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to train. `lr` is the schedule's peak; None takes the optimizer's usual value.

    `batch_size` counts the samples of a whole batch, over all processes; each reads and computes it in `accumulate`
    parts, one after the other. The best epoch is looked for after the share `best_from` of the epochs.

    `schedule` is the learning rate's: `"cosine"` (None), `"step"` or `"constant"`; `method` makes zeros beside the
    optimizer, or shares weights. `options` are those that belong to the optimizer or the method, by name, see
    `catalog.py`. The `recipe` is what is done beside.

    How it is run: CPU `threads` and reading `workers` of each process, the `device` (`"auto"`, `"cpu"`, `"cuda"`), the
    `precision` (`"fp32"`, or `"bf16"` or `"fp16"` where an operator can), images with their `channels_last` in memory.
    """

    epochs: int = 20
    optimizer: str = "adamw"
    lr: float | None = None
    weight_decay: float | None = None
    batch_size: int = 128
    seed: int = 0
    threads: int | None = None
    best_from: float = 0.0
    accumulate: int = 1
    precision: str = "fp32"
    channels_last: bool = False
    workers: int = 0
    device: str = "auto"
    schedule: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    method: str | None = None
    recipe: Recipe = Recipe()

    @property
    def makes_zeros(self) -> bool:
        """Whether weights are set to zero while it trains, ever more of them until the last epoch."""
        return self.method not in (None, SHARED_WEIGHTS) or find("optimizer", self.optimizer).sparse

    @property
    def keeps_last(self) -> bool:
        """Whether the last epoch is kept and not the best: the one with most zeros, or the one with the templates."""
        return self.makes_zeros or self.method is not None

    @property
    def assumed(self) -> dict[str, Any]:
        """The method's options that are left out, with what is taken for them."""
        defaults = find("method", self.method).defaults if self.method is not None else {}
        return {name: value for name, value in defaults.items() if name not in self.options}

    def check(self) -> None:
        """Refuse what the catalog does not have, or has otherwise.

        Raises:
            InputError: an unknown optimizer, schedule or method, an option that belongs to another one or is out of
                range, or a method beside an optimizer that makes zeros of its own.
        """
        self.recipe.check()
        chosen = [find("optimizer", self.optimizer)]
        if self.schedule is not None:
            find("lr-schedule", self.schedule)
        if self.method is not None:
            if chosen[0].sparse:
                dense = " or ".join(name for name in names("optimizer") if not find("optimizer", name).sparse)
                got = f"{self.optimizer}, which makes zeros of its own"
                raise InputError(f"method {self.method}: expected the optimizer {dense}, got {got}")
            chosen.append(find("method", self.method))
        check_options(self.options, chosen)

    @property
    def as_plain(self) -> dict[str, Any]:
        """All fields as plain values, of the recipe what it asks for; without it where that is nothing, as ever."""
        plain = asdict(self)
        del plain["recipe"]
        return {**plain, "recipe": self.recipe.asked} if self.recipe.asked else plain

    def for_finetuning(self) -> TrainSettings:
        """The same without what goes with a machine: how it is run is left at its defaults.

        What was trained to zeros is finetuned as a network that does not say how it was trained, but for its recipe:
        its zeros are cut out then, and what is left is to be dense. What was trained with shared weights is finetuned
        as it was trained, each weight by itself.
        """
        plain = replace(self, accumulate=1, precision="fp32", channels_last=False, workers=0, device="auto")
        if self.makes_zeros:
            return replace(plain, optimizer="adamw", lr=1e-3, weight_decay=None, schedule=None, options={}, method=None)
        own = find("optimizer", self.optimizer).options
        options = {name: value for name, value in self.options.items() if name in own}
        return plain if self.method is None else replace(plain, method=None, options=options)


@dataclass(frozen=True, slots=True)
class FederatedSettings:
    """How clients train a network together, with `sparsity` of its weights out at any time; 0 is federated averaging.

    `alpha` is that of the Dirichlet distribution which classes are shared out by, None shares samples out evenly. In
    each of the `rounds` `per_round` of the `clients` train for `local_epochs` with SGD; None are as many as usual, or
    as there can be. Every `readjust_every` rounds, in the first three quarters, they move a share of their weights, at
    first `moved`. `leaving` of them, a share, do not come to the end of a round.
    """

    clients: int | None = None
    per_round: int | None = None
    rounds: int = 100
    sparsity: float = 0.8
    alpha: float | None = None
    local_epochs: int = 2
    batch_size: int = 32
    lr: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    readjust_every: int = 5
    moved: float = 0.3
    leaving: float = 0.0
    seed: int = 0

    @property
    def n_clients(self) -> int:
        """How many clients there are."""
        return _CLIENTS if self.clients is None else self.clients

    @property
    def n_per_round(self) -> int:
        """How many of them train in each round."""
        return min(_PER_ROUND, self.n_clients) if self.per_round is None else self.per_round

    def fitted(self, n_samples: int) -> tuple[FederatedSettings, tuple[str, ...]]:
        """The settings for so many samples to train with, two for each client, and what is assumed but not as usual.

        What was asked for stays as it is.

        Raises:
            InputError: more are asked for in a round than there are clients.
        """
        clients = max(1, min(_CLIENTS, n_samples // 2)) if self.clients is None else self.clients
        per_round = min(_PER_ROUND, clients) if self.per_round is None else self.per_round
        found = replace(self, clients=clients, per_round=per_round)
        found.check()
        fewer = clients < _CLIENTS and self.clients is None
        told: tuple[str, ...] = (
            (f"--clients {clients}, as there are {n_samples} samples to train with",) if fewer else ()
        )
        if self.per_round is None and per_round < _PER_ROUND:
            told += (f"--per-round {per_round}, all clients",)
        return found, told

    def check(self) -> None:
        """Raise InputError where a value is out of its range."""
        counts = ("clients", "per_round", "rounds", "local_epochs", "batch_size", "readjust_every")
        for name in counts:
            self._check(name, getattr(self, name) is None or getattr(self, name) >= 1, "a number of at least 1")
        self._check("per_round", self.n_per_round <= self.n_clients, f"at most the number of clients, {self.n_clients}")
        self._check("sparsity", 0 <= self.sparsity < 1, "a share of at least 0 and below 1")
        self._check("alpha", self.alpha is None or 0 < self.alpha < math.inf, "a number above 0")
        self._check("lr", 0 < self.lr < math.inf, "a number above 0")
        self._check("weight_decay", 0 <= self.weight_decay < math.inf, "a number of at least 0")
        for name in ("momentum", "leaving"):
            self._check(name, 0 <= getattr(self, name) < 1, "a number of at least 0 and below 1")
        self._check("moved", 0 <= self.moved <= 1, "a share from 0 to 1")

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"--{name.replace('_', '-')}: expected {expected}, got {getattr(self, name):g}")


@dataclass(frozen=True, slots=True)
class FeatureRules:
    """What a choice of input features must respect, by their numbers over the dense network's inputs in their order.

    `always_keep` lists features that stay, `together` features that stay or go as one: a sensor's axes, say; `names`
    are what those groups are called, where they are. `prices`, one for each feature or none, say how many times dearer
    it is than its arithmetic.
    """

    always_keep: tuple[int, ...] = ()
    together: tuple[tuple[int, ...], ...] = ()
    names: tuple[str, ...] = ()
    prices: tuple[float, ...] = ()
