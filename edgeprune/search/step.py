"""One step of a search, which its strategies hold: a candidate is cut, proved, finetuned, judged and recorded."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from edgeprune.cost.macs import macs
from edgeprune.graph.capture import Program, reexport_like
from edgeprune.graph.groups import ChannelGraph, analyze
from edgeprune.progress import Progress
from edgeprune.pruning.dead_units import plan_dead
from edgeprune.pruning.plan import PruningPlan, compose
from edgeprune.pruning.planner import plan as make_step_plan
from edgeprune.pruning.proof import prove, prove_on_data
from edgeprune.pruning.surgery import cut
from edgeprune.results import FeatureCount, StepRecord
from edgeprune.search.candidate import Candidate, Found, Gauge, Manner, Measured
from edgeprune.search.costs import Costs
from edgeprune.search.effort import Effort
from edgeprune.search.landing import Shares
from edgeprune.search.trainer import FIRST, Round, Trainer
from edgeprune.tasks.drop import drop_points, is_within

FACTOR = 0.7  # share of the MACs that one step keeps
ROUNDS = 3  # how often what lost too much is finetuned again before it is given up


class Step:
    """What a strategy does to one candidate, the same way for all of them; it serves one search.

    It knows no budgets: what a candidate may lose, in points, is handed to it. `records` tells what was tried,
    `selection` how the input features became fewer, `effort` how much was trained. Without a trainer nothing is
    trained and every drop is within any limit; without a gauge nothing is measured as a file.
    """

    def __init__(
        self,
        dense: Program,
        manner: Manner,
        trainer: Trainer | None,
        progress: Progress,
        gauge: Gauge | None = None,
    ) -> None:
        self.manner = manner
        self.trainer = trainer
        self.progress = progress
        self.records: list[StepRecord] = []
        self.selection: list[FeatureCount] = []
        self.effort = Effort(manner.max_finetunings, progress, is_free=not self.trains)
        self.graph = self.analyzed(dense)
        self.dense = Candidate(dense, None, macs(dense), count_features(self.graph), None)
        self.costs = Costs(self.dense, self.graph_of, manner.device)
        self._gauge = gauge
        self._failed: set[str] = set()

    @property
    def trains(self) -> bool:
        """Whether a candidate's weights are trained on."""
        return self.trainer is not None and self.trainer.trains

    @property
    def least_features(self) -> int:
        """How few input features can be left at best."""
        return max(1, self.graph.features()[0])

    def analyzed(self, program: Program) -> ChannelGraph:
        """The channel groups of a program, input features among them where they may go."""
        how = self.manner
        return analyze(program, inputs=how.features, attention=how.attention, rules=how.rules)

    def graph_of(self, candidate: Candidate) -> ChannelGraph:
        """Its channel groups; those of the dense network are known."""
        return self.graph if candidate.plan is None else self.analyzed(candidate.program)

    # -- the dense network -----------------------------------------------------------------------------------------

    def measure_dense(self) -> Candidate:
        """The dense network with its accuracy; what follows is compared with it."""
        if self.trainer is not None:
            self.progress.stage("measure the dense network")
            self.dense = replace(self.dense, val_accuracy=self.trainer.value(self.dense.program.frozen_module()))
        return self.dense

    def without_dead(self) -> Candidate:
        """The dense network without units that are dead, as sparse training leaves them; its outputs are the same."""
        how, dense = self.manner, self.dense
        if how.appliable or how.leave:
            return dense  # dead units matter least, and go with the others where they may
        plan = plan_dead(dense.program, inputs=how.features, attention=how.attention, rules=how.rules)
        if plan is None:
            return dense
        slim = cut(dense.program, plan)
        dead = sum(group.before - group.after for group in plan.groups)
        self.progress.say(f"{dead} units are dead: they go without a change of the output")
        error = self.proved(dense.program, slim, plan)
        candidate = Candidate(slim, plan, macs(slim), kept_features(dense, plan), dense.val_accuracy, error)
        self.record(candidate, accepted=True)
        return candidate

    def cut_by(self, plan: PruningPlan) -> Program:
        """The dense network cut by a plan of somebody else; PlanError where it does not fit."""
        return cut(self.dense.program, plan, self.graph if not plan.inputs or self.dense.n_features else None)

    def made_by(self, plan: PruningPlan) -> Candidate:
        """The same, proved, and finetuned once."""
        slim = self.cut_by(plan)
        error = self.proved(self.dense.program, slim, plan)
        return self.finetuned(Candidate(slim, plan, macs(slim), kept_features(self.dense, plan), None, error))

    # -- one candidate ---------------------------------------------------------------------------------------------

    def tried(self, best: Candidate, shares: Shares, n_features: int | None = None) -> Candidate:
        """Prune what was accepted once more, prove the cut, finetune, look."""
        return self.finetuned(self.pruned(best, shares, n_features))

    def pruned(self, best: Candidate, shares: Shares, n_features: int | None = None) -> Candidate:
        """Prune what was accepted once more and prove the cut; what it loses is not known yet."""
        graph = self.graph_of(best)
        self.progress.stage(f"step {len(self.records) + 1}: score and cut")
        step = self.plan(best, graph, shares, n_features)
        slim = cut(best.program, step, graph)
        error = self.proved(best.program, slim, step)
        plan = step if best.plan is None else compose(best.plan, step)
        return Candidate(slim, plan, macs(slim), kept_features(best, plan), None, max(error, best.proof_error))

    def plan(self, best: Candidate, graph: ChannelGraph, shares: Shares, n_features: int | None = None) -> PruningPlan:
        """Which units of a candidate go, for these shares of its own costs; without a count of features, none of them
        unless they compete."""
        how = self.manner
        if n_features is None and not how.compete:
            n_features = count_features(graph)
        return make_step_plan(
            best.program,
            graph,
            shares.macs,
            how.criterion,
            how.align,
            n_features=n_features,
            batches=self.trainer.score_batches() if self.trainer else (),
            seed=how.seed,
            device=how.device,
            keep_latency=shares.latency,
            keep_bytes=shares.size,
            appliable=how.appliable,
            leave=how.leave,
        )

    def proved(self, program: Program, slim: Program, plan: PruningPlan) -> float:
        """The error of a cut, on real inputs where there are data."""
        if self.trainer is None:
            return prove(program, slim, plan)
        return prove_on_data(program, slim, plan, self.trainer.some_inputs())

    def finetuned(self, candidate: Candidate, training: Round = FIRST) -> Candidate:
        """Train a candidate's weights on, and look at it.

        Without training, batch norm's statistics are estimated again all the same.
        """
        if self.trainer is None:
            return candidate
        module = candidate.program.own_module()
        assert isinstance(module, fx.GraphModule)
        if self.trains:
            share = candidate.macs / self.dense.macs
            again = f", round {training.number + 1}" if training.number else ""
            self.progress.stage(f"step {len(self.records) + 1}: finetune at {share:.0%} of MACs{again}")
            self.effort.take(training.units)
        if self.trainer.finetune(module, training):
            candidate = replace(candidate, program=reexport_like(module, candidate.program))
        return replace(candidate, val_accuracy=self.trainer.value(module))

    def rescued(self, candidate: Candidate, limit: float | None, rounds: int = ROUNDS) -> Candidate:
        """Finetune again what lost too much, longer each time; the best of all rounds."""
        best = candidate
        for number in range(1, rounds + 1):
            if self.is_within(best, limit) or not self.trains:
                break
            again = self.finetuned(candidate, Round(number))
            best = again if (again.val_accuracy or 0) > (best.val_accuracy or 0) else best
        return best

    def measured(self, candidate: Candidate, surely: bool = True) -> Measured | None:
        """What it takes as a file; `surely`: again on a busy machine. None where there is nothing to measure with."""
        return None if self._gauge is None else self._gauge(candidate.program, surely)

    # -- judging ---------------------------------------------------------------------------------------------------

    def drop(self, candidate: Candidate) -> float:
        """What a candidate loses against the dense network, in points; both have been looked at."""
        assert self.dense.val_accuracy is not None
        assert candidate.val_accuracy is not None
        return drop_points(self.dense.val_accuracy, candidate.val_accuracy)

    def is_within(self, candidate: Candidate, limit: float | None) -> bool:
        """Whether it loses at most so many points; what was never looked at loses none."""
        if self.dense.val_accuracy is None or candidate.val_accuracy is None:
            return True
        return is_within(self.drop(candidate), limit)

    def may_be_chance(self, candidate: Candidate, limit: float) -> bool:
        """Whether the drop is above the limit by no more than its standard error."""
        assert self.trainer is not None
        assert self.dense.val_accuracy is not None
        assert candidate.val_accuracy is not None
        error = self.trainer.standard_error(self.dense.val_accuracy, candidate.val_accuracy)
        return is_within(self.drop(candidate), limit + error)

    def judged(self, candidate: Candidate, limit: float | None, rounds: int) -> Candidate | None:
        """The candidate, finetuned again if need be, or None where it loses too much all the same."""
        candidate = self.rescued(candidate, limit, rounds)
        accepted = self.is_within(candidate, limit)
        self.record(candidate, accepted)
        return candidate if accepted else None

    def has_failed(self, candidate: Candidate) -> bool:
        """Whether the very same units were kept by a network that lost too much."""
        return candidate.plan is not None and candidate.plan.to_json() in self._failed

    def record(self, candidate: Candidate, accepted: bool) -> None:
        """Note what was tried, and whether the search goes on from it."""
        if not accepted and candidate.plan is not None:
            self._failed.add(candidate.plan.to_json())
        self.records.append(
            StepRecord(
                step=len(self.records) + 1,
                macs_ratio=candidate.macs / self.dense.macs,
                n_features=candidate.n_features,
                val_accuracy=candidate.val_accuracy,
                accepted=accepted,
            )
        )

    def found(self, *networks: Candidate) -> Found:
        """What the search came to: networks from large to small."""
        return Found(self.dense, networks, tuple(self.records), tuple(self.selection), self.graph)


def kept_features(before: Candidate, plan: PruningPlan) -> int | None:
    """How many input features are left after a plan, counted over the dense inputs."""
    return sum(len(features.keep) for features in plan.inputs.values()) if plan.inputs else before.n_features


def count_features(graph: ChannelGraph) -> int | None:
    """How many input features there are; None where none of them can be removed."""
    fixed, sizes = graph.features()
    return fixed + int(sum(size.sum() for size in sizes)) if any(group.is_input for group in graph.groups) else None
