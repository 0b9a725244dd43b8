"""What the callbacks of all trainers share: the trainer's own module shrinks in place, at chosen epochs or steps."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from edgeprune.errors import InputError
from edgeprune.pruner import Pruner
from edgeprune.pruner.modules import check_not_compiled

_MAX_NAMED = 3


class InPlace:
    """Shrinks one module step by step, with the optimizers that train it.

    `pruner` is None before the module is known.
    """

    def __init__(
        self,
        example_inputs: Any,
        at_epochs: Sequence[int] | None,
        at_steps: Sequence[int] | None,
        out: str | Path | None,
        choices: Mapping[str, Any],
    ) -> None:
        self.pruner: Pruner | None = None
        self.example_inputs = example_inputs
        self._at = {"epoch": _ascending("at_epochs", at_epochs), "step": _ascending("at_steps", at_steps)}
        given = [places for places in self._at.values() if places]
        if len(given) != 1:
            raise InputError(
                f"PruningCallback: expected at_epochs or at_steps, one of them, got {'both' if given else 'none'}"
            )
        self._n_steps = len(given[0])
        if choices.get("steps", self._n_steps) != self._n_steps:
            raise InputError(
                f"PruningCallback: steps: expected {self._n_steps}, as many as places to prune at, "
                f"got {choices['steps']}"
            )
        _check_ids(choices)
        self._choices = {"appliable": True, **choices}
        if choices.get("schedule") is None or isinstance(choices["schedule"], str):
            self._choices["steps"] = self._n_steps
        self.is_fed = choices.get("criterion") == "taylor"
        if self.is_fed and given[0][0] == 0:
            raise InputError(
                "PruningCallback: criterion taylor: expected some training before the first step, got none"
            )
        self._out = out
        check_out(out)

    @property
    def begun(self) -> Pruner:
        """The Pruner; InputError where no training has begun."""
        if self.pruner is None:
            raise InputError("PruningCallback: expected a training that has begun, got none")
        return self.pruner

    def begin(self, module: nn.Module) -> Pruner:
        """The Pruner of this module, which is dense when it is first asked for.

        Raises:
            InputError: it is compiled or cannot be captured, or there are no example inputs.
            BudgetError: the budgets cannot be met.
        """
        if self.pruner is None:
            check_not_compiled(module, "PruningCallback")
            if self.example_inputs is None:
                raise InputError("PruningCallback: expected example_inputs, got none, and the module has none either")
            with _plain_forward(module):
                self.pruner = Pruner(module, positional(module, self.example_inputs), **self._choices)
            module.register_load_state_dict_pre_hook(_check_sizes)
        return self.pruner

    def reach(self, unit: str, count: int, module: nn.Module, optimizers: Iterable[Optimizer]) -> None:
        """Make the steps that are due when so many epochs or optimizer steps are over."""
        pruner = self.begin(module)
        due = sum(place <= count for place in self._at[unit])
        while pruner.step < due:
            with _plain_forward(module):
                pruner.shrink(module)
            for optimizer in optimizers:
                if pruner.trains_before(optimizer):
                    _tell(pruner.migrate(optimizer).afresh)

    def restore(self, module: nn.Module, state: Mapping[str, Any]) -> None:
        """Make the module as small as it was when `state` was made; its weights are the trainer's to load.

        Raises:
            InputError: the state is of another network or other options, or the module is smaller already.
        """
        pruner = self.begin(module)
        step = pruner.step
        pruner.load_state_dict(state)
        if pruner.step < step:
            raise InputError(
                f"PruningCallback: the checkpoint holds the network of step {pruner.step}, and the module is that of "
                f"step {step} already: expected a new module, and a new callback for it"
            )
        if pruner.step > step:
            with _plain_forward(module):
                pruner.program.apply_to(module)

    def finish(self, module: nn.Module) -> None:
        """Take what was learnt, and write the run folder where one was asked for."""
        pruner = self.begin(module)
        with _plain_forward(module):
            pruner.take(module)
        if pruner.step < pruner.steps:
            warnings.warn(
                f"PruningCallback: the training ended after {pruner.step} of {pruner.steps} steps: the budgets are not "
                "reached",
                stacklevel=2,
            )
        if self._out is not None and pruner.step:
            pruner.save(self._out)


def check_out(out: str | Path | None) -> None:
    """Raise InputError where the run folder is there already: before the training, and not after it."""
    if out is not None and Path(out).exists():
        raise InputError(f"{out}: expected a new folder for out, got one that exists")


def positional(module: nn.Module, inputs: Any) -> Any:
    """Example inputs as positional arguments; those by name in the order of the module's forward.

    Raises:
        InputError: the forward takes none of a name.
    """
    if not isinstance(inputs, Mapping):
        return inputs
    parameters = inspect.signature(module.forward).parameters
    unknown = [str(name) for name in inputs if name not in parameters]
    if unknown:
        raise InputError(
            f"example_inputs: expected names of arguments that {type(module).__name__}.forward takes, got "
            f"{', '.join(unknown)}"
        )
    last = max((list(parameters).index(name) for name in inputs), default=-1)
    return tuple(inputs.get(name, parameters[name].default) for name in list(parameters)[: last + 1])


def _ascending(name: str, places: Sequence[int] | None) -> tuple[int, ...]:
    if places is None:
        return ()
    whole = isinstance(places, Sequence) and all(type(place) is int and place >= 0 for place in places)
    if not whole or not places or any(a >= b for a, b in zip(places, places[1:], strict=False)):
        raise InputError(f"{name}: expected whole numbers from 0, ascending, got {places!r}")
    return tuple(places)


def _tell(afresh: Sequence[str]) -> None:
    if afresh:
        more = f" and {len(afresh) - _MAX_NAMED} more" if len(afresh) > _MAX_NAMED else ""
        warnings.warn(
            f"PruningCallback: what the optimizer keeps of {', '.join(afresh[:_MAX_NAMED])}{more} cannot be cut, and "
            "begins afresh",
            stacklevel=2,
        )


@contextmanager
def _plain_forward(module: nn.Module) -> Iterator[None]:
    """The module's own forward, where accelerate put one with autocast in its place."""
    wrapped, original = module.__dict__.get("forward"), getattr(module, "_original_forward", None)
    if wrapped is None or original is None:
        yield
        return
    module.__dict__["forward"] = original
    try:
        yield
    finally:
        module.__dict__["forward"] = wrapped


def _check_sizes(module: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Refuse weights of other sizes than the module has now, before PyTorch lists them all."""
    for name, own in module.state_dict(keep_vars=True).items():
        given = state.get(prefix + name)
        if isinstance(given, Tensor) and isinstance(own, Tensor) and given.shape != own.shape:
            raise InputError(
                f"PruningCallback: {name!r}: expected weights of the network as it is now, {list(own.shape)}, got "
                f"{list(given.shape)}: those of another step, which the callback was not told of"
            )


def _check_ids(choices: Mapping[str, Any]) -> None:
    """Refuse a vocabulary: the trainer's own class goes on with the batches' old ids."""
    if choices.get("vocabularies"):
        raise InputError(
            "PruningCallback: vocabularies: expected none, as the trainer's batches hold the old ids, which its own "
            "class would look up in a table of new ones; cut them in a loop over edgeprune.Pruner"
        )
