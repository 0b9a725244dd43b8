"""The search for the smallest network within the budgets: prune, prove, finetune, look, and again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import fx

from edgeprune.cost.macs import macs
from edgeprune.errors import BudgetError, InputError
from edgeprune.formats.digests import digest
from edgeprune.graph.capture import Program, reexport_like
from edgeprune.importance import score
from edgeprune.pruning.dead_units import plan_dead
from edgeprune.pruning.folding import has_zeros, is_constant
from edgeprune.pruning.plan import PruningPlan, compose
from edgeprune.pruning.planner import make_plan
from edgeprune.pruning.planner import plan as make_step_plan
from edgeprune.pruning.surgery import cut
from edgeprune.results import FeatureCount
from edgeprune.search.candidate import Candidate, Measured
from edgeprune.search.descent import FEATURE_EFFORT, Descent
from edgeprune.search.landing import Shares, Targets
from edgeprune.search.step import FACTOR, kept_features
from edgeprune.training import fit

_FEATURE_FACTOR = 0.5  # share of the features that one step keeps
_SELECTION = 2  # how many times as long as a finetuning it is trained while features are chosen
_FEATURE_SHARE = 0.5  # of the accuracy budget may go into dropping input features; channels need the rest
_TRIALS = 6  # cuts that are measured to land on a budget


class Search(Descent):
    """Shrinks a dense program step by step."""

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

    def front(self, count: int, least: float) -> list[Candidate]:
        """Networks of ever less cost, each pruned on from the one before; the last keeps the share `least`.

        The cost is that of the device, where there is one, else MACs; the shares fall evenly, in proportion. Fewer are
        given where nothing smaller can be built.

        Raises:
            BudgetError: not even the first can be built.
        """
        best = self._without_dead(self._measured_dense())
        if self.budgets.n_features is not None:
            best = self._down_to_features(best, self.budgets.n_features)
        found: list[Candidate] = []
        for number in range(1, count + 1):
            share = least ** (number / count)
            shares = Shares(latency=share) if self.budgets.device is not None else Shares(macs=share)
            try:
                smaller = self._down_to_shares(best, shares)
            except BudgetError as error:
                if not found:
                    raise
                self.progress.say(f"{len(found)} networks, not {count}: {error}")
                break
            if smaller is not best:
                found.append(smaller)
            best = smaller
        return found

    def replay(self, plan: PruningPlan) -> Candidate:
        """Cut by a given plan, prove it and finetune; the budgets are judged as those of a search are.

        Raises:
            PlanError: the plan does not fit.
            BudgetError: the network that it makes is not within a budget.
        """
        dense = self._measured_dense()
        slim = self._cut_by(plan)
        best = self._rescued(self._finetuned(self._fresh(dense, slim, plan, self._proved(dense.program, slim, plan))))
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
            self.dense = replace(self.dense, val_accuracy=self.trainer.val_accuracy(self.dense.program.frozen_module()))
        return self.dense

    def _without_dead(self, dense: Candidate) -> Candidate:
        """The network without units that are dead, as sparse training leaves them; its outputs are the dense one's."""
        asked = self.budgets
        if asked.appliable or asked.leave:
            return dense  # dead units matter least, and go with the others where they may
        plan = plan_dead(dense.program, inputs=asked.features, attention=asked.attention, rules=asked.rules)
        if plan is None:
            return dense
        slim = cut(dense.program, plan)
        dead = sum(group.before - group.after for group in plan.groups)
        self.progress.say(f"{dead} units are dead: they go without a change of the output")
        error = self._proved(dense.program, slim, plan)
        candidate = Candidate(slim, plan, macs(slim), kept_features(dense, plan), dense.val_accuracy, error)
        self._record(candidate, accepted=True)
        return candidate

    def _cut_by(self, plan: PruningPlan) -> Program:
        return cut(self.dense.program, plan, self.graph if not plan.inputs or self.dense.n_features else None)

    def check(self, plan: PruningPlan | None = None) -> None:
        """Refuse at once what no search can reach, or a plan that does not fit.

        Raises:
            PlanError: the plan does not fit.
            InputError: features are asked for that the network has not, or nothing in it has an influence on its
                outputs, as before a last layer that starts at zero is trained.
            BudgetError: nothing can be pruned, or not down to the MACs asked for; says which groups stand in the way.
        """
        self._check_features()
        if plan is not None:
            self._cut_by(plan)
            return
        self._check_influence()
        if not self.graph.groups:
            reasons = sorted({f"{lock.name}: {lock.reason}" for lock in self.graph.locked})
            raise BudgetError(f"nothing can be pruned; {'; '.join(reasons[:4]) or 'the network has no channels'}")
        if self.budgets.keep_macs is not None:
            keep_macs, align, n_features = self.budgets.keep_macs, self.budgets.align, self.budgets.n_features
            make_step_plan(
                self.dense.program,
                self.graph,
                keep_macs,
                "l2",
                align,
                n_features=n_features,
                appliable=self.budgets.appliable,
                leave=self.budgets.leave,
            )

    def _check_influence(self) -> None:
        program = self.dense.program
        if has_zeros(program) and is_constant(program):
            zero = [name for name, p in program.named_parameters() if p.dim() > 1 and not p.any()]
            raise InputError(
                "the network gives the same outputs whatever comes in, so that nothing would be left of it: expected "
                f"trained weights, got zeros (all of {', '.join(zero) or 'none'}); train it first"
            )

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
            best = self._rescued(self._with_features(best, least), _FEATURE_SHARE, rounds=1)
            self._record(best, accepted=True)
        return best

    def _fewest_features(self, start: Candidate) -> Candidate:
        """Remove features for as long as half of the accuracy budget lasts."""

        def fewer(best: Candidate, factor: float) -> Candidate | None:
            least = self._least_features()
            if best.n_features is None or best.n_features <= least:
                return None
            if not self.effort.affords(_SELECTION, FEATURE_EFFORT):
                return None
            return self._with_features(best, max(least, min(best.n_features - 1, int(best.n_features * factor))))

        return self._shrunk(start, fewer, _FEATURE_SHARE, _FEATURE_FACTOR)

    def _least_features(self) -> int:
        """How few features can be left at best."""
        return max(1, self.graph.features()[0])

    def _with_features(self, best: Candidate, n_features: int) -> Candidate:
        """The network with fewer features: chosen while it is trained, or by their scores where it is not."""
        if not self._trains:
            return self._try(best, n_features=n_features, shares=Shares())
        trained = self._selected(best, n_features)
        graph = self._analyzed(trained)
        keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
        for group, scores in zip(graph.groups, score(trained, graph, "l1"), strict=True):
            if group.is_input:
                keep[group.units[scores == 0]] = False
        step = make_plan(trained, graph, keep)
        slim = cut(trained, step, graph)
        error = max(self._proved(trained, slim, step), best.proof_error)
        same = replace(step, source_sha256=digest(best.program))  # the untrained network, which it is to be replayed on
        plan = same if best.plan is None else compose(best.plan, same)
        assert self.trainer is not None
        accuracy = self.trainer.val_accuracy(slim.frozen_module())
        return Candidate(slim, plan, macs(slim), kept_features(best, plan), accuracy, error)

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
        self.effort.take(settings.epochs)
        module, graph = best.program.own_module(), self._graph_of(best)
        epochs = fit(module, trainer.data, trainer.normalization, settings, self.progress, self._teacher, graph=graph)
        self.selection += [FeatureCount(epoch.n_features or 0, epoch.val_accuracy) for epoch in epochs]
        assert isinstance(module, fx.GraphModule)
        return reexport_like(module, best.program)

    # -- MACs ------------------------------------------------------------------------------------------------------

    def _smallest(self, start: Candidate) -> Candidate:
        """Shrink the MACs to the budget, or for as long as the accuracy holds where there is none."""
        if self.budgets.has_costs:
            best = self._down_to_costs(start)
        else:
            best = self._smallest_that_holds(start)
        if not self._within(best):
            raise BudgetError(self._missed(best))
        return best

    def _down_to_costs(self, start: Candidate) -> Candidate:
        """Shrink to what the network may cost; what is measured is measured, and the plan mended until it holds."""
        targets = Targets(self.budgets, self._measure(self.dense))
        self._aim(start, targets)
        best = self._down_to_shares(start, targets.shares)
        for _ in range(_TRIALS):
            if not targets.goals:
                break
            targets.see(self._measured(best))
            if not targets.over():
                break
            targets.move()
            best = self._down_to_shares(best, targets.shares)
        else:
            raise BudgetError(self._not_met(targets, best))
        return best

    def _aim(self, start: Candidate, targets: Targets) -> None:
        """Find the shares to plan for by cuts that are measured and thrown away; weights do not matter here."""
        if not targets.goals:
            return
        graph = self._graph_of(start)
        for trial in range(_TRIALS):
            self.progress.stage(f"measure a trial cut ({trial + 1})")
            try:
                plan = self._plan(start, graph, shares=self._toward(start, targets.shares))
            except BudgetError as error:
                raise BudgetError(f"{', '.join(goal.what for goal in targets.goals.values())}: {error}") from error
            slim = cut(start.program, plan, graph)
            candidate = Candidate(slim, plan, macs(slim), None, None)
            targets.see(self._measured(candidate, surely=False))
            if targets.is_settled(candidate.macs / self.dense.macs):
                return
            if targets.is_hopeless:
                raise BudgetError(self._not_met(targets, candidate))
            targets.move()
        targets.settle()

    def _measure(self, candidate: Candidate, surely: bool = True) -> Measured | None:
        """What it takes as a file; `surely`: again on a busy machine. None where no budget asks for it."""
        if self.gauge is None or not self.budgets.is_measured:
            return None
        return self.gauge(candidate.program, surely)

    def _measured(self, candidate: Candidate, surely: bool = True) -> Measured:
        measured = self._measure(candidate, surely)
        assert measured is not None
        return measured

    def _down_to_shares(self, start: Candidate, shares: Shares) -> Candidate:
        """Shrink in steps to shares of the dense network's costs; the accuracy is judged there, not on the way."""
        best = start
        while best.plan is None or self._is_over(best, shares):
            best = self._try(best, n_features=None, shares=self._toward(best, shares, FACTOR if self.trainer else 0.0))
            reached = not self._is_over(best, shares)
            if reached:
                best = self._rescued(best)
            self._record(best, accepted=not reached or self._within(best))
        return best

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

    def _not_met(self, targets: Targets, best: Candidate) -> str:
        missed = "; ".join(f"{goal.what}: {goal.measured / goal.most:.2f} times that" for goal in targets.over())
        return (
            f"the budgets cannot be met: the closest network, at {best.macs / self.dense.macs:.1%} of the MACs, has "
            f"{missed}; allow more, or a lower --align"
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
