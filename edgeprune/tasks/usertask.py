"""A task of the user's own: what it raises, or gives that no stage can use, is told by its file and line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.lines import is_name, shown
from edgeprune.records import DataSource, Metric, MetricComparison
from edgeprune.tasks.outputs import Named, by_attribute, leaves, mapped, number_in
from edgeprune.tasks.task import Guess, Outcomes, compared, standard_error_of, with_distillation
from edgeprune.usercode import RandomStateKept, calling_user_code, place_of

_NEEDED = ("loss", "outcomes", "value")
_MAY_SEED = ("value", "beside", "compare")  # as who draws samples anew does; others may draw while a network trains
_RESAMPLES = 200  # each calls the user's `value` twice
_FIELDS = {"name": str, "unit": str, "scale": (int, float), "higher_is_better": bool}


class UserTask:
    """A task whose every answer is looked at; of what it leaves out, what can be is made up from the rest.

    It needs `metric` (an `edgeprune.records.Metric`, or anything with its fields), `loss(outputs, targets)`,
    `outcomes(outputs, targets)` and `value(outcomes)`. It may have `check`, `targets`, `distillation`, `scoring`,
    `beside`, `guess`, `compare` and `agrees`, and say `by_reference`, `takes_shares` and `ignored`.

    Raises:
        InputError: one of those that it needs is missing, or its metric is none.
    """

    def __init__(self, own: Any, where: str) -> None:
        self._own, self._where = own, where
        self.name, self.in_training = where, False  # a network may give out something else while it is trained
        missing = [name for name in _NEEDED if not callable(self._attribute(name))]
        if missing:
            raise InputError(
                f"{where}: expected a task with metric, {', '.join(_NEEDED)}; got {type(own).__name__} without "
                f"{', '.join(missing)}"
            )
        self.metric = self._metric()
        self.by_reference = self._attribute("by_reference") is True
        self.takes_shares = self._attribute("takes_shares") is True
        ignored = self._attribute("ignored")
        self.ignored = ignored if type(ignored) is int else None

    def check(self, outputs: Any, data: DataSource) -> None:
        if self._has("check"):
            self._call("check", _as_tensors(outputs), data)

    def targets(self, raw: Any) -> Any:
        return self._call("targets", raw) if self._has("targets") else raw

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return self._scalar("loss", outputs, self._call("loss", by_attribute(outputs), self._wanted(targets)))

    def summed_loss(self, outputs: Any, targets: Any, n: int) -> float:
        return n * self.loss(outputs, targets).item()

    def distillation(self, outputs: Any, teacher_outputs: Any) -> Tensor | None:
        if not self._has("distillation"):
            return None
        found = self._call("distillation", by_attribute(outputs), by_attribute(teacher_outputs))
        return None if found is None else self._scalar("distillation", outputs, found)

    def taught_loss(self, outputs: Any, targets: Any, teacher_outputs: Any) -> Tensor:
        return with_distillation(self, outputs, targets, teacher_outputs)

    def scoring(self, outputs: Any, targets: Any, seed: int) -> Tensor:
        if not self._has("scoring"):
            return self.loss(outputs, targets)
        found = self._call("scoring", by_attribute(outputs), self._wanted(targets), seed)
        return self._scalar("scoring", outputs, found)

    def outcomes(self, outputs: Any, targets: Any) -> Outcomes:
        wanted = _as_tensors(targets) if self.by_reference else targets
        found = self._call("outcomes", _as_tensors(outputs), wanted)
        if isinstance(found, Tensor):
            found = found.detach().cpu().numpy()
        is_sequence = isinstance(found, (Sequence, np.ndarray)) and not isinstance(found, str)
        expected = next((len(value) for _, value in leaves(outputs) if value.ndim), None)
        if not is_sequence or (expected is not None and len(found) != expected):
            got = f"{len(found)} of them" if is_sequence else type(found).__name__
            raise self._refusal("outcomes", f"a sequence with one outcome for each of {expected} samples", got)
        return found

    def value(self, outcomes: Outcomes) -> float:
        return self._number("value", self._call("value", outcomes))

    def beside(self, outcomes: Outcomes) -> Mapping[str, float]:
        if not self._has("beside"):
            return {}
        found = self._call("beside", outcomes)
        if not isinstance(found, Mapping):
            raise self._refusal("beside", "figures by name", type(found).__name__)
        return {str(name): self._number("beside", value) for name, value in found.items()}

    def guess(self, outcomes: Outcomes) -> Guess | None:
        """What the user says that a constant answer comes to."""
        if not self._has("guess"):
            return None
        return Guess(self.metric, self.value(outcomes), self._number("guess", self._call("guess", outcomes)))

    def compare(self, dense: Outcomes, slim: Outcomes) -> MetricComparison:
        """The user's own comparison; else by the bootstrap, over samples drawn anew 200 times."""
        if self._has("compare"):
            found = self._call("compare", dense, slim)
            if not isinstance(found, MetricComparison):
                raise self._refusal("compare", "a MetricComparison", type(found).__name__)
            return found

        def resampled(counts: np.ndarray) -> list[np.ndarray]:
            drawn = [np.repeat(np.arange(len(row)), row) for row in counts]
            return [np.array([self.value(_chosen(own, index)) for index in drawn]) for own in (dense, slim)]

        return compared(self, dense, slim, resampled, _RESAMPLES)

    def standard_error(self, dense: Outcomes, slim: Outcomes) -> float:
        return standard_error_of(self.compare(dense, slim))

    def agrees(self, want: Any, got: Any) -> float | None:
        found = self._call("agrees", _as_tensors(want), _as_tensors(got)) if self._has("agrees") else None
        return None if found is None else self._number("agrees", found)

    def n_changed(self, want: np.ndarray, got: np.ndarray, allowed: float) -> int:
        """None: what decides is the user's to say, and `agrees` tells of it."""
        return 0

    # -- what the user's code gives ----------------------------------------------------------------------------------

    def _wanted(self, targets: Any) -> Any:
        """Targets, which another network's outputs are for some tasks."""
        return by_attribute(targets) if self.by_reference else targets

    def _has(self, name: str) -> bool:
        return callable(self._attribute(name))

    def _attribute(self, name: str) -> Any:
        with calling_user_code(f"{self._where}: {name} raised"):
            return getattr(self._own, name, None)

    def _call(self, name: str, *arguments: Any) -> Any:
        apart = RandomStateKept() if name in _MAY_SEED else nullcontext()
        with calling_user_code(f"{self._where}: {name} raised"), apart:
            return getattr(self._own, name)(*arguments)

    def _metric(self) -> Metric:
        own = self._attribute("metric")
        if isinstance(own, Metric):
            return self._usable(own)
        given: dict[str, Any] = {}
        for name, kind in _FIELDS.items():
            with calling_user_code(f"{self._where}: metric.{name} raised"):
                value = getattr(own, name, None)
            if isinstance(value, kind):  # type: ignore[arg-type]  # a type or a tuple of them
                given[name] = value
        if set(given) != set(_FIELDS):
            missing = ", ".join(name for name in _FIELDS if name not in given)
            raise InputError(f"{self._where}: expected a metric with {', '.join(_FIELDS)}, got one without {missing}")
        return self._usable(Metric(given["name"], given["unit"], float(given["scale"]), given["higher_is_better"]))

    def _usable(self, metric: Metric) -> Metric:
        """A metric that can be told in one line, and in whose unit a drop counts."""
        if not is_name(metric.name):
            raise InputError(f"{self._where}: metric.name: expected a name in one line, got {shown(metric.name)}")
        if metric.unit and not is_name(metric.unit):
            raise InputError(f"{self._where}: metric.unit: expected a unit in one line, got {shown(metric.unit)}")
        if not (math.isfinite(metric.scale) and metric.scale > 0):
            raise InputError(f"{self._where}: metric.scale: expected a number above 0, got {shown(metric.scale)}")
        return metric

    def _scalar(self, name: str, outputs: Any, found: Any) -> Tensor:
        """A loss that can be trained for; NaN is the task's fault where the outputs are finite."""
        if not isinstance(found, Tensor) or found.numel() != 1 or not found.is_floating_point():
            got = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
            raise self._refusal(name, "a float tensor with one number, the mean over the batch", got)
        if not bool(found.detach().isfinite().all()) and _are_finite(outputs):
            raise self._refusal(name, "a finite number for finite outputs", shown(found.detach().item()))
        if _can_be_trained(outputs) and not found.requires_grad:
            raise self._refusal(name, "a number that gradients go back from to the outputs", "one without")
        return found.reshape(())

    def _number(self, name: str, found: Any) -> float:
        number = number_in(found)
        if number is None:
            raise self._refusal(name, "a number", type(found).__name__)
        if not math.isfinite(number):
            raise self._refusal(name, "a finite number", shown(number))
        return number

    def _refusal(self, name: str, expected: str, got: str) -> InputError:
        return InputError(f"{self._where}: {name}: expected {expected}, got {got}{place_of(getattr(self._own, name))}")


def _as_tensors(value: Any) -> Any:
    """What a file gives comes as arrays; the user's code has tensors before it, whatever gave them."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if type(value) in (list, Named):
        return mapped(value, _as_tensors)
    return by_attribute(value)


def _are_finite(outputs: Any) -> bool:
    values = [value for _, value in leaves(outputs)]
    return all(bool(torch.isfinite(value).all()) for value in values if isinstance(value, Tensor))


def _can_be_trained(outputs: Any) -> bool:
    """Whether gradients are asked for just now."""
    values = [value for _, value in leaves(outputs)]
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in values)


def _chosen(outcomes: Outcomes, index: np.ndarray) -> Outcomes:
    return outcomes[index] if isinstance(outcomes, np.ndarray) else [outcomes[i] for i in index]
