"""What trains, judges, probes and measures for a search, with its results in a journal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgeprune.cost.limits import Aim
from edgeprune.errors import InputError
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph
from edgeprune.journal.journal import fingerprint, tensors_of
from edgeprune.journal.shared import Results
from edgeprune.records import Evaluation, Metric
from edgeprune.results import FeatureCount
from edgeprune.search.candidate import Gauge, Measured
from edgeprune.search.probing import Prober
from edgeprune.search.trainer import Round, Trainer


@dataclass(frozen=True, slots=True, eq=False)
class KeptTrainer:
    """A trainer whose trainings are kept; what tells of no single samples, as a figure of the user's, is kept too.

    What is judged by samples is judged again: that needs no training, and comes to the same.
    """

    inner: Trainer
    journal: Results

    @property
    def trains(self) -> bool:
        """As the trainer."""
        return self.inner.trains

    @property
    def selects(self) -> bool:
        """As the trainer."""
        return self.inner.selects

    @property
    def metric(self) -> Metric | None:
        """As the trainer."""
        return self.inner.metric

    def finetune(self, module: nn.Module, training: Round) -> bool:
        """Train, or put back what was trained; without training there is nothing worth keeping."""
        if not self.trains:
            return self.inner.finetune(module, training)
        asked = fingerprint(tensors_of(module), training)
        done = self.journal.kept("finetune", asked, lambda: self.inner.finetune(module, training), module)
        module.eval()
        return done is True

    def select(self, module: nn.Module, graph: ChannelGraph, n_features: int, units: int) -> tuple[FeatureCount, ...]:
        """As the trainer, or what it came to."""
        asked = fingerprint(tensors_of(module), n_features, units)
        return self._counted("select", asked, module, lambda: self.inner.select(module, graph, n_features, units))

    def compete(self, module: nn.Module, graph: ChannelGraph, aim: Aim, units: int) -> tuple[FeatureCount, ...]:
        """As the trainer, or what it came to."""
        asked = fingerprint(tensors_of(module), [limit.share for limit in aim.limits], units)
        return self._counted("compete", asked, module, lambda: self.inner.compete(module, graph, aim, units))

    def _counted(
        self, kind: str, asked: str, module: nn.Module, work: Callable[[], tuple[FeatureCount, ...]]
    ) -> tuple[FeatureCount, ...]:
        def done() -> list[list[Any]]:
            return [[count.n_features, _plain(count.val_value)] for count in work()]

        found = self.journal.kept(kind, asked, done, module)
        module.eval()
        rows = [_numbers(row, 2, kind) for row in (found if isinstance(found, list) else [found])]
        return tuple(FeatureCount(int(n_features), value) for n_features, value in rows)

    def evaluation(self, module: nn.Module) -> Evaluation | None:
        """How good the module is."""
        if self.journal.comes_to("evaluation"):
            found = self.journal.kept("evaluation", fingerprint(tensors_of(module)), list)
            return Evaluation((), *_numbers(found, 2, "evaluation"))
        evaluation = self.inner.evaluation(module)
        if evaluation is not None and not len(evaluation.outcomes):
            asked, value = fingerprint(tensors_of(module)), [_plain(evaluation.value), _plain(evaluation.loss)]
            self.journal.kept("evaluation", asked, lambda: value)
        return evaluation

    def standard_error(self, dense: Evaluation, slim: Evaluation) -> float:
        """As the trainer."""
        return self.inner.standard_error(dense, slim)


@dataclass(frozen=True, slots=True, eq=False)
class KeptProber:
    """A prober whose losses are kept."""

    inner: Prober
    journal: Results

    def probed(self, module: nn.Module, settled: bool) -> float:
        """The loss, or what it was."""
        asked = fingerprint(tensors_of(module), settled)
        [loss] = _numbers(
            self.journal.kept("probe", asked, lambda: [_plain(self.inner.probed(module, settled))]), 1, "probe"
        )
        return loss


def kept_gauge(gauge: Gauge, journal: Results) -> Gauge:
    """A gauge of files whose measurements are kept: no two of one file come out alike."""

    def measured(program: Program, surely: bool) -> Measured:
        def work() -> list[Any]:
            found = gauge(program, surely)
            return [_plain(value) for value in (found.ms, found.dense_ms, found.size_bytes, found.dense_bytes)]

        asked = fingerprint(program.state_dict, surely)
        ms, dense_ms, size, dense_size = _numbers(journal.kept("measure", asked, work), 4, "measure")
        return Measured(ms, dense_ms, int(size), int(dense_size))

    return measured


def _plain(value: float) -> float | int | str:
    """A number as JSON has it; one that is none as a text."""
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else str(number)


def _numbers(found: Any, count: int, kind: str) -> Sequence[float]:
    """The numbers of a result; InputError where it holds something else."""
    values = found if isinstance(found, list) else []
    fitting = all(value in ("nan", "inf", "-inf") or type(value) in (int, float) for value in values)
    if len(values) != count or not fitting:
        raise InputError(
            f"the results so far: expected {count} numbers of a {kind}, got something else; --force starts afresh"
        )
    return [float(value) for value in values]
