"""Functions of the user's that train a network or say how good it is; what they do and give is looked at."""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import InputError
from edgeprune.graph.weights import inside, taken_weights
from edgeprune.lines import is_name, shown
from edgeprune.records import Metric
from edgeprune.search.trainer import Round
from edgeprune.tasks.outputs import number_in
from edgeprune.training.placement import is_movable, seeded
from edgeprune.usercode import calling_user_code, place_of

FINETUNE_TOLD = ("step", "share", "macs", "epochs", "seed", "device")
EVALUATE_TOLD = ("seed", "device")
_ERRORS = re.compile(
    r"(.*[\W_])?(loss|error|err|mae|mse|rmse|nll|perplexity|ppl|wer|cer|fid|eer)([\W_].*)?", re.IGNORECASE
)
_MOST_NAMED = 6
_ROUNDS_APART = 4  # seeds: as many as the longest round calls a function
_CPU = torch.device("cpu")


class OwnFunction:
    """A function of the user's whose first argument is a network; it gets those of its other arguments that are known.

    Args:
        where: its file and name, which refusals begin with.
        told: the names of what it may ask for.

    Raises:
        InputError: it takes no network, or asks for something else.
    """

    def __init__(self, function: Callable[..., Any], where: str, told: Collection[str]) -> None:
        self._function, self.where = function, where
        with calling_user_code(f"{where}: looking at its arguments raised"):
            parameters = list(inspect.signature(function).parameters.values())
        if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
            raise self.refusal("a function of the module", "one that takes none")
        others = _named(parameters[1:])
        unknown = [one.name for one in others if one.name not in told and one.default is one.empty]
        if unknown:
            raise self.refusal(
                f"a function of the module and what it names among {', '.join(told)}",
                f"one that asks for {', '.join(unknown[:_MOST_NAMED])}",
            )
        self.defaults = {one.name: one.default for one in others if one.name in told}

    def __call__(self, module: nn.Module, told: Mapping[str, Any]) -> Any:
        """What it gives, called with the network and what it asks for.

        Raises:
            InputError: whatever it raised; or it only makes something that would run later.
        """
        with calling_user_code(f"{self.where}: it raised"):
            found = self._function(module, **{name: told[name] for name in self.defaults})
        if inspect.iscoroutine(found) or inspect.isgenerator(found):
            found.close()
            raise self.refusal("a function that runs when it is called", f"a {type(found).__name__}")
        return found

    def refusal(self, expected: str, got: str) -> InputError:
        """What it did or gave that cannot be used, with its place."""
        return InputError(f"{self.where}: expected {expected}, got {got}{self.place}")

    @property
    def place(self) -> str:
        """E.g. " (at script.py:12 in train)"."""
        return place_of(self._function)


@dataclass(frozen=True, slots=True, eq=False)
class OwnFinetuning:
    """A function of the user's that trains a network in place.

    `epochs` is how many a finetuning has, for a function that asks; one that does not is called as many times as a
    round is longer.
    """

    function: OwnFunction
    epochs: int | None
    seed: int

    def __call__(self, module: nn.Module, training: Round) -> bool:
        """Train a network's weights on; the function gets a copy, and nothing but weights and statistics is taken.

        Returns:
            Whether any weight has changed.

        Raises:
            InputError: the function raised, gave another module, or left weights that are missing, of another shape or
                type, or not finite.
        """
        given = copy.deepcopy(module).train()
        calls = training.units if self.epochs is None else 1
        for call in range(calls):
            seed = self.seed + _ROUNDS_APART * training.number + call
            told = {
                "step": training.step,
                "share": training.share,
                "macs": training.macs,
                "epochs": None if self.epochs is None else self.epochs * training.units,
                "seed": seed,
                "device": device_for(module),
            }
            with seeded(seed, 0, _CPU), torch.enable_grad():
                found = self.function(given, told)
            if isinstance(found, nn.Module) and not _is_same(found, given):
                raise self.function.refusal(
                    "the module to be trained in place", f"another one, a {type(found).__name__}"
                )
        return self._taken(module, given)

    def _taken(self, module: nn.Module, given: nn.Module) -> bool:
        expected = f"{self.function.where}: expected the module that it was given, trained in place"
        try:
            taken = taken_weights(module, given, expected=expected)
        except InputError as error:
            raise InputError(f"{error}{self.function.place}") from error
        own: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        changed = False
        with torch.no_grad():
            for name, tensor in own.items():
                changed = changed or not torch.equal(tensor, taken[name])
                tensor.copy_(taken[name])
        return changed


@dataclass(frozen=True, slots=True)
class NamedFigure:
    """How a figure was asked for: `name` and whether more of it is better, None where nothing was said of it."""

    name: str | None = None
    higher_is_better: bool | None = None

    @classmethod
    def parse(cls, text: str | None) -> NamedFigure:
        """From `NAME`, `NAME:lower` or `NAME:higher`; from None nothing is known.

        Raises:
            InputError: no name.
        """
        if text is None:
            return cls()
        name, _, direction = text.rpartition(":")
        if direction not in ("lower", "higher"):
            name, direction = text, ""
        if not name.strip():
            raise InputError(f"--metric: expected NAME, NAME:lower or NAME:higher, got {text[:40]!r}")
        return cls(name.strip(), None if not direction else direction == "higher")


@dataclass(frozen=True, slots=True, eq=False)
class OwnFigure:
    """A function of the user's that says by one figure how good a network is, in whatever it counts."""

    function: OwnFunction
    seed: int
    metric: Metric
    by_name: bool  # of several, or of one that the function names

    @classmethod
    def of(cls, function: OwnFunction, seed: int, asked: NamedFigure, dense: nn.Module) -> tuple[OwnFigure, float]:
        """The figure, by what the function gives of the dense network, and what that is.

        Raises:
            InputError: as `value`; or the function gives several and none was chosen.
        """
        found = _figures(function, seed, dense)
        if isinstance(found, Mapping):
            name = asked.name
            if name is None and len(found) != 1:
                named = ", ".join(map(str, [*found][:_MOST_NAMED])) or "none"
                raise function.refusal("one figure, or --metric to name one of several", named)
            name = next(iter(found)) if name is None else name
        else:
            name = asked.name or function.where.rpartition(":")[2]
        if not isinstance(name, str) or not is_name(name):
            raise function.refusal("a figure with a name, in one line", shown(name))
        higher = asked.higher_is_better
        higher = _ERRORS.fullmatch(name) is None if higher is None else higher
        own = cls(function, seed, Metric(name, "", 1.0, higher), isinstance(found, Mapping))
        return own, own._value(found)

    def value(self, module: nn.Module) -> float:
        """The figure of a network; the function gets a copy in eval mode.

        Raises:
            InputError: the function raised, or gave no finite number under the figure's name.
        """
        return self._value(_figures(self.function, self.seed, module))

    def _value(self, found: Any) -> float:
        name = self.metric.name
        if isinstance(found, Mapping) != self.by_name or (self.by_name and name not in found):
            got = ", ".join(map(str, [*found][:_MOST_NAMED])) if isinstance(found, Mapping) else "a bare number"
            expected = f"a figure named {name!r}" if self.by_name else "a bare number, as of the dense network"
            raise self.function.refusal(expected, got or "none")
        given = found[name] if self.by_name else found
        number = number_in(given)
        if number is None:
            raise self.function.refusal("a number, or a dict of numbers by name", type(given).__name__)
        if not math.isfinite(number):
            raise self.function.refusal("a finite number", shown(number))
        return number


def _named(parameters: Sequence[inspect.Parameter]) -> list[inspect.Parameter]:
    """Those that have a name of their own; not *args and **kwargs."""
    return [one for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]


def _figures(function: OwnFunction, seed: int, module: nn.Module) -> Any:
    told = {"seed": seed, "device": device_for(module)}
    with seeded(seed, 0, _CPU), torch.enable_grad():
        found = function(copy.deepcopy(module).eval(), told)
    if not isinstance(found, Mapping):
        return found
    with calling_user_code(f"{function.where}: reading what it gave raised"):
        return {name: found[name] for name in found}


def device_for(module: nn.Module) -> torch.device:
    """Where a network would train: on a GPU where there is one, unless its graph has a device written into it."""
    return torch.device("cuda") if torch.cuda.is_available() and is_movable(module) else _CPU


def _is_same(found: Any, given: nn.Module) -> bool:
    """Whether it is the module that was given, or a wrapper around it."""
    while isinstance(found, nn.Module):
        if found is given:
            return True
        found = inside(found)
    return False
