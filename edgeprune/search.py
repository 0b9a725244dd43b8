"""The search for the smallest network within the budgets: prune, prove, finetune, look; again from what was accepted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor, fx, nn

from edgeprune.cost import macs
from edgeprune.data import batches, normalize
from edgeprune.errors import BudgetError, InputError
from edgeprune.graph.capture import Program, example_inputs, reexport
from edgeprune.graph.groups import ChannelGraph, analyze
from edgeprune.planner import plan as make_step_plan
from edgeprune.progress import Progress
from edgeprune.proof import prove
from edgeprune.pruning_plan import PlannedGroup, PruningPlan
from edgeprune.records import DataSource, Normalization, StepRecord, TrainSettings
from edgeprune.surgery import cut
from edgeprune.train import evaluate, fit

_TAYLOR_BATCHES = 16
_FACTOR = 0.7  # share of the MACs (or features) that one step keeps
_PATIENCE = 2  # how often a step that lost too much is tried again at half its size


@dataclass(frozen=True, slots=True)
class Budgets:
    """What the search must meet, and how it goes about it.

    `keep_macs` is a share of the dense MACs, `max_drop` is in accuracy points on the validation split, `n_features`
    a count of input features; each may be None. `prune_features` lets features go without a count of their own.
    """

    keep_macs: float | None
    max_drop: float | None
    n_features: int | None
    prune_features: bool
    criterion: str
    align: int
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Trainer:
    """The data and settings that finetuning and scoring use."""

    data: DataSource
    normalization: Normalization
    settings: TrainSettings

    def score_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """A few normalised training batches for the Taylor criterion."""
        stream = batches(self.data.train, self.settings.batch_size, shuffle=True, seed=self.settings.seed)
        for x, y in itertools.islice(stream, _TAYLOR_BATCHES):
            yield normalize(x, self.normalization), y

    def val_accuracy(self, module: nn.Module) -> float:
        """Accuracy on the validation split, in [0, 1]."""
        return evaluate(module, self.data.val, self.normalization).accuracy


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A network on the way: the program, the plan that leads to it from the dense one, and what it does."""

    program: Program
    plan: PruningPlan | None
    macs: int
    n_features: int | None
    val_accuracy: float | None
    proof_error: float = 0.0


class Search:
    """Shrinks a dense program step by step; `steps` tells what was tried."""

    def __init__(self, dense: Program, budgets: Budgets, trainer: Trainer | None, progress: Progress) -> None:
        self.budgets = budgets
        self.trainer = trainer
        self.progress = progress
        self.steps: list[StepRecord] = []
        self._teacher = dense.module() if trainer else None
        accuracy = trainer.val_accuracy(self._teacher) if trainer and self._teacher else None
        graph = analyze(dense, inputs=budgets.prune_features or budgets.n_features is not None)
        self.dense = Candidate(dense, None, macs(dense), _count_features(graph), accuracy)
        self.graph = graph

    # -- the whole search ------------------------------------------------------------------------------------------

    def run(self) -> Candidate:
        """The smallest network found within the budgets.

        Raises:
            BudgetError: none was found; says what stood in the way and the closest that was reached.
        """
        self._check()
        best = self.dense
        if self.budgets.n_features is not None:
            best = self._down_to_features(best, self.budgets.n_features)
        elif self.budgets.prune_features and self.budgets.max_drop is not None and self.dense.n_features:
            best = self._fewest_features(best)
        best = self._smallest(best)
        if best.plan is None:
            raise BudgetError(self._nothing_found())
        return best

    def replay(self, plan: PruningPlan) -> Candidate:
        """Cut by a given plan, prove it and finetune."""
        slim = cut(self.dense.program, plan, self.graph if not plan.inputs or self.dense.n_features else None)
        return self._finished(self.dense, slim, plan, prove(self.dense.program, slim, plan))

    def _check(self) -> None:
        if not self.graph.groups:
            reasons = sorted({f"{lock.name}: {lock.reason}" for lock in self.graph.locked})
            raise BudgetError(f"nothing can be pruned; {'; '.join(reasons[:4]) or 'the network has no channels'}")
        wanted = self.budgets.n_features
        if wanted is None:
            return
        available = self.dense.n_features
        if not available:
            raise InputError(
                "--input-features: the network has no input feature that can be removed (a convolution shares its "
                "weights over all positions, so that single pixels cannot go); use --input-features off"
            )
        if not 1 <= wanted <= available:
            raise InputError(f"--input-features: expected 1 to {available} features, got {wanted}")

    # -- features --------------------------------------------------------------------------------------------------

    def _down_to_features(self, start: Candidate, wanted: int) -> Candidate:
        """Remove features in steps until `wanted` are left; the drop is judged at the end."""
        best = start
        while best.n_features is not None and best.n_features > wanted:
            target = max(wanted, int(best.n_features * _FACTOR))
            best = self._try(best, n_features=target, keep_macs=None)
            self._record(best, accepted=True)
        return best

    def _fewest_features(self, start: Candidate) -> Candidate:
        """Remove features for as long as the accuracy holds."""
        best, factor, failures = start, _FACTOR, 0
        while best.n_features is not None and best.n_features > 1 and failures <= _PATIENCE:
            target = min(best.n_features - 1, max(1, int(best.n_features * factor)))
            candidate = self._try(best, n_features=target, keep_macs=None)
            if self._judge(candidate):
                best = candidate
            else:
                failures += 1
                factor = (1 + factor) / 2
        return best

    # -- MACs ------------------------------------------------------------------------------------------------------

    def _smallest(self, start: Candidate) -> Candidate:
        """Shrink the MACs to the budget, or for as long as the accuracy holds where there is none."""
        budget = self.budgets.keep_macs
        floor = 0.0 if budget is None else budget * self.dense.macs
        best, factor, failures = start, _FACTOR, 0
        closest: Candidate | None = None
        while best.macs > floor and failures <= _PATIENCE:
            ratio = max(floor / best.macs, factor if self.trainer else 0.0)
            candidate = self._next(best, ratio)
            if candidate is None:
                break
            if self._judge(candidate):
                best = candidate
                continue
            closest = candidate
            failures += 1
            factor = (1 + factor) / 2
        if best.macs > floor and budget is not None:
            raise BudgetError(self._missed(best, closest))
        return best if self._within(best) else self._refuse(best)

    def _next(self, best: Candidate, ratio: float) -> Candidate | None:
        """The next smaller network, or None where nothing smaller can be built and no budget asks for it."""
        try:
            candidate = self._try(best, n_features=None, keep_macs=ratio)
        except BudgetError:
            if self.budgets.keep_macs is not None:
                raise
            return None
        return candidate if candidate.macs < best.macs else None

    # -- one step --------------------------------------------------------------------------------------------------

    def _try(self, best: Candidate, *, n_features: int | None, keep_macs: float | None) -> Candidate:
        """Prune what was accepted once more, prove the cut, finetune, look."""
        features = self.budgets.prune_features or self.budgets.n_features is not None
        compete = self.budgets.prune_features and self.budgets.max_drop is None and self.budgets.n_features is None
        graph = self.graph if best.plan is None else analyze(best.program, inputs=features)
        held = n_features if n_features is not None else None if compete else _count_features(graph)
        self.progress.stage(f"step {len(self.steps) + 1}: score and cut")
        step = make_step_plan(
            best.program,
            graph,
            keep_macs,
            self.budgets.criterion,
            self.budgets.align,
            n_features=held,
            batches=self.trainer.score_batches() if self.trainer else (),
            seed=self.budgets.seed,
        )
        slim = cut(best.program, step, graph)
        error = prove(best.program, slim, step)
        plan = step if best.plan is None else compose(best.plan, step)
        return self._finished(best, slim, plan, max(error, best.proof_error))

    def _finished(self, before: Candidate, slim: Program, plan: PruningPlan, error: float) -> Candidate:
        """Finetune a fresh cut, with the dense network as the teacher, and look at it."""
        n_features = before.n_features
        if plan.inputs:
            n_features = sum(len(features.keep) for features in plan.inputs.values())
        candidate = Candidate(slim, plan, macs(slim), n_features, None, error)
        if self.trainer is None:
            return candidate
        module = slim.module()
        if self.trainer.settings.epochs > 0:
            self.progress.stage(f"step {len(self.steps) + 1}: finetune at {candidate.macs / self.dense.macs:.0%} of MACs")
            fit(
                module, self.trainer.data, self.trainer.normalization, self.trainer.settings, self.progress, self._teacher
            )
            assert isinstance(module, fx.GraphModule)
            candidate = replace(candidate, program=reexport(module, example_inputs(slim)))
        return replace(candidate, val_accuracy=self.trainer.val_accuracy(module))

    def _within(self, candidate: Candidate) -> bool:
        """Whether the accuracy budget holds."""
        limit, dense, slim = self.budgets.max_drop, self.dense.val_accuracy, candidate.val_accuracy
        if limit is None or dense is None or slim is None:
            return True
        return (dense - slim) * 100 <= limit + 1e-9

    def _judge(self, candidate: Candidate) -> bool:
        accepted = self._within(candidate)
        self._record(candidate, accepted)
        return accepted

    def _record(self, candidate: Candidate, accepted: bool) -> None:
        self.steps.append(
            StepRecord(
                step=len(self.steps) + 1,
                macs_ratio=candidate.macs / self.dense.macs,
                n_features=candidate.n_features,
                val_accuracy=candidate.val_accuracy,
                accepted=accepted,
            )
        )

    # -- refusals --------------------------------------------------------------------------------------------------

    def _refuse(self, candidate: Candidate) -> Candidate:
        raise BudgetError(
            f"the accuracy budget cannot be met: expected a drop of at most {self.budgets.max_drop:g} points on the "
            f"validation split, got {self._drop(candidate):.2f} at {candidate.macs / self.dense.macs:.1%} of the MACs"
        )

    def _missed(self, best: Candidate, closest: Candidate | None) -> str:
        reached = f"{best.macs / self.dense.macs:.1%} of the MACs within the drop"
        if closest is not None:
            reached += f" (at {closest.macs / self.dense.macs:.1%} the drop is {self._drop(closest):.2f} points)"
        return (
            f"both budgets cannot be met: expected at most {self.budgets.keep_macs:.1%} of the MACs with a drop of at most "
            f"{self.budgets.max_drop:g} points on the validation split, got {reached}; allow a larger --max-drop, more "
            f"--finetune-epochs or a larger --keep-macs"
        )

    def _nothing_found(self) -> str:
        tried = min(self.steps, key=lambda step: -step.macs_ratio, default=None)
        if tried is None or tried.val_accuracy is None or self.dense.val_accuracy is None:
            return (
                "nothing smaller can be built: every group is at its least width; a lower --align may help "
                f"(groups: {', '.join(group.name for group in self.graph.groups[:4])})"
            )
        drop = (self.dense.val_accuracy - tried.val_accuracy) * 100
        return (
            f"no smaller network loses at most {self.budgets.max_drop:g} accuracy points: the closest, at "
            f"{tried.macs_ratio:.1%} of the MACs, loses {drop:.2f} on the validation split; allow a larger --max-drop or "
            f"more --finetune-epochs"
        )

    def _drop(self, candidate: Candidate) -> float:
        assert self.dense.val_accuracy is not None
        assert candidate.val_accuracy is not None
        return (self.dense.val_accuracy - candidate.val_accuracy) * 100


def _count_features(graph: ChannelGraph) -> int | None:
    """How many input features can be removed one by one; None where there are none."""
    return sum(group.n_units for group in graph.groups if group.is_input) or None


def compose(first: PruningPlan, second: PruningPlan) -> PruningPlan:
    """The plan that does in one cut of the dense network what two cuts do one after the other."""
    tensors = {name: dict(dims) for name, dims in first.tensors.items()}
    for name, dims in second.tensors.items():
        mine = tensors.setdefault(name, {})
        for dim, kept in dims.items():
            before = mine.get(dim)
            mine[dim] = kept if before is None else tuple(before[k] for k in kept)
    # Features keep their dense numbers: the input is gathered inside, so that every cut sees all of it.
    inputs = {**first.inputs, **second.inputs}
    return PruningPlan(first.source_sha256, tensors, inputs, tuple(_composed_groups(first.groups, second.groups)))


def _composed_groups(
    first: tuple[PlannedGroup, ...], second: tuple[PlannedGroup, ...]
) -> Iterator[PlannedGroup]:
    after = {group.name: group for group in second}
    for group in first:
        later = after.get(group.name)
        if later is None:
            yield group
        else:
            yield PlannedGroup(group.name, group.before, later.after, group.exact and later.exact)
