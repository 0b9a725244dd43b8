"""The search for the smallest network within the budgets: prune, prove, finetune, look, and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from torch import fx

from edgeprune.candidate import Budgets, Candidate, Trainer
from edgeprune.cost import macs
from edgeprune.digests import digest
from edgeprune.errors import BudgetError, InputError
from edgeprune.graph.capture import Program, reexport_like
from edgeprune.graph.groups import ChannelGraph, analyze
from edgeprune.importance import score
from edgeprune.planner import make_plan, plan_dead
from edgeprune.planner import plan as make_step_plan
from edgeprune.progress import Progress
from edgeprune.proof import prove
from edgeprune.pruning_plan import PruningPlan, compose
from edgeprune.records import FeatureCount, StepRecord
from edgeprune.surgery import cut
from edgeprune.training import fit, recalibrate

_FACTOR = 0.7  # share of the MACs that one step keeps
_FEATURE_FACTOR = 0.5  # share of the features that one step keeps
_SELECTION = 2  # how many times as long as a finetuning it is trained while features are chosen
_FEATURE_SHARE = 0.5  # of the accuracy budget may go into dropping input features; channels need the rest
_PATIENCE = 2  # how often a step that lost too much is tried again at half its size
_ROUNDS = 2  # how often what lost too much is finetuned again before it is given up


class Search:
    """Shrinks a dense program step by step; `steps` tells what was tried, `selection` how the features became fewer."""

    def __init__(self, dense: Program, budgets: Budgets, trainer: Trainer | None, progress: Progress) -> None:
        self.trainer = trainer
        self.progress = progress
        self.steps: list[StepRecord] = []
        self.selection: list[FeatureCount] = []
        self._teacher = dense.module() if trainer and trainer.distill else None
        self.budgets = budgets
        self.graph = self._analyzed(dense)
        available = _count_features(self.graph)
        self.dense = Candidate(dense, None, macs(dense), available, None)
        if budgets.feature_ratio is not None and available:
            self.budgets = replace(budgets, n_features=max(1, round(budgets.feature_ratio * available)))

    def _analyzed(self, program: Program) -> ChannelGraph:
        asked = self.budgets
        return analyze(program, inputs=asked.features, attention=asked.attention, rules=asked.rules)

    def _graph_of(self, candidate: Candidate) -> ChannelGraph:
        """Its channel groups; those of the dense network are known."""
        return self.graph if candidate.plan is None else self._analyzed(candidate.program)

    @property
    def _trains(self) -> bool:
        return self.trainer is not None and self.trainer.settings.epochs > 0

    # -- the whole search ------------------------------------------------------------------------------------------

    def run(self) -> Candidate:
        """The smallest network found within the budgets, which `check` has passed.

        Raises:
            BudgetError: none was found; says what stood in the way and the closest that was reached.
        """
        best = self._without_dead(self._measured_dense())
        if self.budgets.n_features is not None:
            best = self._down_to_features(best, self.budgets.n_features)
        elif self.budgets.prune_features and self.budgets.max_drop is not None and self.dense.n_features:
            best = self._fewest_features(best)
        best = self._smallest(best)
        if best.plan is None:
            raise BudgetError(self._nothing_found())
        return best

    def replay(self, plan: PruningPlan) -> Candidate:
        """Cut by a given plan, prove it and finetune; the budgets are judged as those of a search are.

        Raises:
            PlanError: the plan does not fit.
            BudgetError: the network that it makes is not within a budget.
        """
        dense = self._measured_dense()
        slim = self._cut_by(plan)
        best = self._rescued(self._finished(dense, slim, plan, prove(dense.program, slim, plan)))
        share, wanted = best.macs / dense.macs, self.budgets.n_features
        if self.budgets.keep_macs is not None and share > self.budgets.keep_macs:
            raise BudgetError(f"--plan: expected at most {self.budgets.keep_macs:g} of the MACs, got {share:.4f}")
        if wanted is not None and best.n_features is not None and best.n_features > wanted:
            raise BudgetError(f"--plan: expected at most {wanted} input features, got {best.n_features}")
        if not self._within(best):
            raise BudgetError(self._missed(best))
        return best

    def _measured_dense(self) -> Candidate:
        """The dense network with its accuracy; what follows is compared with it."""
        if self.trainer is not None:
            self.progress.stage("measure the dense network")
            self.dense = replace(self.dense, val_accuracy=self.trainer.val_accuracy(self.dense.program.module()))
        return self.dense

    def _without_dead(self, dense: Candidate) -> Candidate:
        """The network without units that are dead, as sparse training leaves them; its outputs are the dense one's."""
        asked = self.budgets
        plan = plan_dead(dense.program, inputs=asked.features, attention=asked.attention, rules=asked.rules)
        if plan is None:
            return dense
        slim = cut(dense.program, plan)
        dead = sum(group.before - group.after for group in plan.groups)
        self.progress.say(f"{dead} units are dead: they go without a change of the output")
        error = prove(dense.program, slim, plan)
        candidate = Candidate(slim, plan, macs(slim), _kept_features(dense, plan), dense.val_accuracy, error)
        self._record(candidate, accepted=True)
        return candidate

    def _cut_by(self, plan: PruningPlan) -> Program:
        return cut(self.dense.program, plan, self.graph if not plan.inputs or self.dense.n_features else None)

    def check(self, plan: PruningPlan | None = None) -> None:
        """Refuse at once what no search can reach, or a plan that does not fit.

        Raises:
            PlanError: the plan does not fit.
            InputError: features are asked for that the network has not.
            BudgetError: nothing can be pruned, or not down to the MACs asked for; says which groups stand in the way.
        """
        self._check_features()
        if plan is not None:
            self._cut_by(plan)
            return
        if not self.graph.groups:
            reasons = sorted({f"{lock.name}: {lock.reason}" for lock in self.graph.locked})
            raise BudgetError(f"nothing can be pruned; {'; '.join(reasons[:4]) or 'the network has no channels'}")
        if self.budgets.keep_macs is not None:
            keep_macs, align, n_features = self.budgets.keep_macs, self.budgets.align, self.budgets.n_features
            make_step_plan(self.dense.program, self.graph, keep_macs, "l2", align, n_features=n_features)

    def _check_features(self) -> None:
        wanted, available = self.budgets.n_features, self.dense.n_features
        if wanted is None and self.budgets.feature_ratio is None:
            return
        if not available:
            raise InputError(
                "--input-features: the network has no input feature that can be removed (a convolution shares its "
                "weights over all positions, so that single pixels cannot go); use --input-features off, or auto, "
                "which tells what border of the images never matters"
            )
        if wanted is None or not self._least_features() <= wanted <= available:
            of = ", ".join(group.name for group in self.graph.groups if group.is_input)
            raise InputError(
                f"--input-features: expected {self._least_features()} to {available} (of {of}), got {wanted}"
            )

    # -- features --------------------------------------------------------------------------------------------------

    def _down_to_features(self, start: Candidate, wanted: int) -> Candidate:
        """Remove features until `wanted` are left; the drop is judged at the end."""
        best = start
        while best.n_features is not None and best.n_features > wanted:
            least = wanted if self._trains else max(wanted, int(best.n_features * _FEATURE_FACTOR))
            best = self._rescued(self._with_features(best, least), _FEATURE_SHARE)
            self._record(best, accepted=True)
        return best

    def _fewest_features(self, start: Candidate) -> Candidate:
        """Remove features for as long as half of the accuracy budget lasts."""

        def fewer(best: Candidate, factor: float) -> Candidate | None:
            least = self._least_features()
            if best.n_features is None or best.n_features <= least:
                return None
            return self._with_features(best, max(least, min(best.n_features - 1, int(best.n_features * factor))))

        return self._shrunk(start, fewer, _FEATURE_SHARE, _FEATURE_FACTOR)

    def _least_features(self) -> int:
        """How few features can be left at best."""
        return max(1, self.graph.features()[0])

    def _with_features(self, best: Candidate, n_features: int) -> Candidate:
        """The network with fewer features: chosen while it is trained, or by their scores where it is not."""
        if not self._trains:
            return self._try(best, n_features=n_features, keep_macs=None)
        trained = self._selected(best, n_features)
        graph = self._analyzed(trained)
        keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
        for group, scores in zip(graph.groups, score(trained, graph, "l1"), strict=True):
            if group.is_input:
                keep[group.units[scores == 0]] = False
        step = make_plan(trained, graph, keep)
        slim = cut(trained, step, graph)
        error = max(prove(trained, slim, step), best.proof_error)
        same = replace(step, source_sha256=digest(best.program))  # the untrained network, which it is to be replayed on
        plan = same if best.plan is None else compose(best.plan, same)
        assert self.trainer is not None
        accuracy = self.trainer.val_accuracy(slim.module())
        return Candidate(slim, plan, macs(slim), _kept_features(best, plan), accuracy, error)

    def _selected(self, best: Candidate, n_features: int) -> Program:
        """Train while the features become ever fewer; the weights that read the others are zero."""
        trainer = self.trainer
        assert trainer is not None
        self.progress.stage(f"step {len(self.steps) + 1}: train down to {n_features} input features")
        settings = replace(
            trainer.settings,
            epochs=_SELECTION * trainer.settings.epochs,
            method="feature-selection",
            options={**trainer.settings.options, "n_features": n_features},
        )
        module, graph = best.program.module(), self._graph_of(best)
        epochs = fit(module, trainer.data, trainer.normalization, settings, self.progress, self._teacher, graph=graph)
        self.selection += [FeatureCount(epoch.n_features or 0, epoch.val_accuracy) for epoch in epochs]
        assert isinstance(module, fx.GraphModule)
        return reexport_like(module, best.program)

    def _shrunk(
        self, start: Candidate, propose: Callable[[Candidate, float], Candidate | None], share: float, factor: float
    ) -> Candidate:
        """Take what `propose` makes while the accuracy holds; a step that lost too much makes the next one smaller."""
        best, failures = start, 0
        while failures <= _PATIENCE:
            candidate = propose(best, factor)
            if candidate is None:
                break
            accepted = self._judged(candidate, share)
            if accepted is not None:
                best = accepted
                continue
            failures += 1
            factor = (1 + factor) / 2
        return best

    # -- MACs ------------------------------------------------------------------------------------------------------

    def _smallest(self, start: Candidate) -> Candidate:
        """Shrink the MACs to the budget, or for as long as the accuracy holds where there is none."""
        if self.budgets.keep_macs is not None:
            best = self._down_to_macs(start, self.budgets.keep_macs * self.dense.macs)
        else:
            best = self._shrunk(start, self._next, 1.0, _FACTOR)
        if not self._within(best):
            raise BudgetError(self._missed(best))
        return best

    def _down_to_macs(self, start: Candidate, floor: float) -> Candidate:
        """Shrink in steps to the budget; the accuracy is judged there, not on the way."""
        best = start
        while best.macs > floor or best.plan is None:
            ratio = max(floor / best.macs, _FACTOR) if self.trainer else floor / best.macs
            best = self._try(best, n_features=None, keep_macs=ratio)
            if best.macs <= floor:
                best = self._rescued(best)
            self._record(best, accepted=best.macs > floor or self._within(best))
        return best

    def _next(self, best: Candidate, ratio: float) -> Candidate | None:
        """The next smaller network, or None where nothing smaller can be built."""
        try:
            candidate = self._try(best, n_features=None, keep_macs=ratio)
        except BudgetError:
            return None
        return candidate if candidate.macs < best.macs else None

    def _rescued(self, candidate: Candidate, share: float = 1.0) -> Candidate:
        """Finetune again what lost too much, twice as long each time; the best of all rounds."""
        best = candidate
        for extra in range(1, _ROUNDS + 1):
            if self._within(best, share) or self.trainer is None or self.trainer.settings.epochs == 0:
                break
            again = self._finetuned(candidate, extra)
            best = again if (again.val_accuracy or 0) > (best.val_accuracy or 0) else best
        return best

    # -- one step --------------------------------------------------------------------------------------------------

    def _try(self, best: Candidate, *, n_features: int | None, keep_macs: float | None) -> Candidate:
        """Prune what was accepted once more, prove the cut, finetune, look."""
        compete = self.budgets.prune_features and self.budgets.max_drop is None and self.budgets.n_features is None
        graph = self._graph_of(best)
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
        """Finetune a fresh cut and look at it."""
        return self._finetuned(Candidate(slim, plan, macs(slim), _kept_features(before, plan), None, error))

    def _finetuned(self, candidate: Candidate, extra: int = 0) -> Candidate:
        """Train a candidate's weights on, and look at it; `extra` counts further rounds, which see another order.

        Without training, batch norm's statistics are estimated again all the same.
        """
        trainer = self.trainer
        if trainer is None:
            return candidate
        module = candidate.program.module()
        assert isinstance(module, fx.GraphModule)
        if not self._trains:
            if recalibrate(module, trainer.data, trainer.normalization):
                candidate = replace(candidate, program=reexport_like(module, candidate.program))
        else:
            share = candidate.macs / self.dense.macs
            again = f", round {extra + 1}" if extra else ""
            self.progress.stage(f"step {len(self.steps) + 1}: finetune at {share:.0%} of MACs{again}")
            epochs = trainer.settings.epochs * 2**extra
            settings = replace(trainer.settings, epochs=epochs, seed=trainer.settings.seed + extra)
            fit(module, trainer.data, trainer.normalization, settings, self.progress, self._teacher)
            candidate = replace(candidate, program=reexport_like(module, candidate.program))
        return replace(candidate, val_accuracy=trainer.val_accuracy(module))

    def _within(self, candidate: Candidate, share: float = 1.0) -> bool:
        """Whether the accuracy budget, or a share of it, holds."""
        limit, dense, slim = self.budgets.max_drop, self.dense.val_accuracy, candidate.val_accuracy
        if limit is None or dense is None or slim is None:
            return True
        return (dense - slim) * 100 <= share * limit + 1e-9

    def _judged(self, candidate: Candidate, share: float) -> Candidate | None:
        """The candidate, finetuned once more if need be, or None where it loses too much all the same."""
        candidate = self._rescued(candidate, share)
        accepted = self._within(candidate, share)
        self._record(candidate, accepted)
        return candidate if accepted else None

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

    def _missed(self, best: Candidate) -> str:
        floor = (self.dense.val_accuracy or 0.0) - (self.budgets.max_drop or 0.0) / 100
        held = [step for step in self.steps if step.val_accuracy is not None and step.val_accuracy >= floor]
        closest = min(held, key=lambda step: step.macs_ratio, default=None)
        told = f"; within it were {closest.macs_ratio:.1%} of the MACs" if closest else ""
        return (
            f"the budgets cannot be met together: expected a drop of at most {self.budgets.max_drop:g} points on the "
            f"validation split, got {self._drop(best):.2f} at {best.macs / self.dense.macs:.1%} of the MACs{told}; "
            f"allow a larger --max-drop or --keep-macs, or more --finetune-epochs"
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
            f"{tried.macs_ratio:.1%} of the MACs, loses {drop:.2f} on the validation split; "
            f"allow a larger --max-drop or more --finetune-epochs"
        )

    def _drop(self, candidate: Candidate) -> float:
        assert self.dense.val_accuracy is not None
        assert candidate.val_accuracy is not None
        return (self.dense.val_accuracy - candidate.val_accuracy) * 100


def _kept_features(before: Candidate, plan: PruningPlan) -> int | None:
    """How many input features are left after a plan, counted over the dense inputs."""
    return sum(len(features.keep) for features in plan.inputs.values()) if plan.inputs else before.n_features


def _count_features(graph: ChannelGraph) -> int | None:
    """How many input features there are; None where none of them can be removed."""
    fixed, sizes = graph.features()
    return fixed + int(sum(size.sum() for size in sizes)) if any(group.is_input for group in graph.groups) else None
