"""One step of the search: what a candidate costs, how it is cut, finetuned and judged."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from edgeprune.cost.macs import macs
from edgeprune.cost.models import bytes_model, latency_model
from edgeprune.graph.capture import Program, reexport_like
from edgeprune.graph.groups import ChannelGraph, analyze
from edgeprune.progress import Progress
from edgeprune.pruning.plan import PruningPlan, compose
from edgeprune.pruning.planner import plan as make_step_plan
from edgeprune.pruning.proof import prove, prove_on_data
from edgeprune.pruning.surgery import cut
from edgeprune.results import FeatureCount, StepRecord
from edgeprune.search.candidate import Budgets, Candidate, Gauge, Trainer
from edgeprune.search.effort import Effort
from edgeprune.search.landing import Shares
from edgeprune.settings import TrainSettings
from edgeprune.training import fit, recalibrate

FACTOR = 0.7  # share of the MACs that one step keeps
NO_SHARES = Shares()
_ROUNDS = 3  # how often what lost too much is finetuned again before it is given up
_LONGEST = 4  # times the epochs of a finetuning: a further round
_WANDERS = 2  # from this round on the learning rate stays, and passes by more networks than it does while it falls


class Steps:
    """What a search is made of; `steps` tells what was tried, `selection` how the input features became fewer."""

    def __init__(
        self,
        dense: Program,
        budgets: Budgets,
        trainer: Trainer | None,
        progress: Progress,
        gauge: Gauge | None = None,
    ) -> None:
        self.trainer = trainer
        self.gauge = gauge
        self.progress = progress
        self.steps: list[StepRecord] = []
        self.selection: list[FeatureCount] = []
        self.effort = Effort(trainer.settings.epochs if trainer else 0, budgets.max_finetunings, progress)
        self._failed: set[str] = set()
        self._known_costs: dict[Program, dict[str, float]] = {}
        self._teacher = dense.frozen_module() if trainer and trainer.distill else None
        self.budgets = budgets
        self.graph = self._analyzed(dense)
        available = count_features(self.graph)
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

    def _toward(self, best: Candidate, shares: Shares, least: float = 0.0) -> Shares:
        """The shares of a candidate's own costs that come to these of the dense network's, none below `least`."""
        dense, own = self._costs(self.dense), self._costs(best)

        def step(name: str) -> float | None:
            wanted = getattr(shares, name)
            return None if wanted is None else min(max(wanted * dense[name] / own[name], least), 1.0)

        return Shares(step("macs"), step("latency"), step("size"))

    def _is_over(self, candidate: Candidate, shares: Shares) -> bool:
        dense, own = self._costs(self.dense), self._costs(candidate)
        wanted = {name: getattr(shares, name) for name in own}
        return any(share is not None and own[name] > share * dense[name] for name, share in wanted.items())

    def _costs(self, candidate: Candidate) -> dict[str, float]:
        """What a candidate costs by the models of the planner."""
        if candidate.program not in self._known_costs:
            graph, device = self._graph_of(candidate), self.budgets.device
            self._known_costs[candidate.program] = {
                "macs": float(candidate.macs),
                "latency": latency_model(graph, device).total if device is not None else 0.0,
                "size": bytes_model(candidate.program, graph).total if self.budgets.max_bytes is not None else 0.0,
            }
        return self._known_costs[candidate.program]

    def _rescued(self, candidate: Candidate, share: float = 1.0, rounds: int = _ROUNDS) -> Candidate:
        """Finetune again what lost too much, longer each time; the best of all rounds."""
        best = candidate
        for extra in range(1, rounds + 1):
            if self._within(best, share) or not self._trains:
                break
            again = self._finetuned(candidate, extra)
            best = again if (again.val_accuracy or 0) > (best.val_accuracy or 0) else best
        return best

    def _try(self, best: Candidate, *, n_features: int | None, shares: Shares) -> Candidate:
        """Prune what was accepted once more, prove the cut, finetune, look."""
        return self._finetuned(self._pruned(best, n_features=n_features, shares=shares))

    def _pruned(self, best: Candidate, *, n_features: int | None, shares: Shares) -> Candidate:
        """Prune what was accepted once more and prove the cut; what it loses is not known yet."""
        graph = self._graph_of(best)
        self.progress.stage(f"step {len(self.steps) + 1}: score and cut")
        step = self._plan(best, graph, n_features, shares)
        slim = cut(best.program, step, graph)
        error = self._proved(best.program, slim, step)
        plan = step if best.plan is None else compose(best.plan, step)
        return self._fresh(best, slim, plan, max(error, best.proof_error))

    def _proved(self, program: Program, slim: Program, plan: PruningPlan) -> float:
        """The error of a cut, on real inputs where there are data."""
        if self.trainer is None:
            return prove(program, slim, plan)
        return prove_on_data(program, slim, plan, self.trainer.some_inputs())

    def _plan(
        self, best: Candidate, graph: ChannelGraph, n_features: int | None = None, shares: Shares = NO_SHARES
    ) -> PruningPlan:
        """Which units of a candidate go, for these shares of its own costs."""
        budgets = self.budgets
        compete = budgets.prune_features and budgets.max_drop is None and budgets.n_features is None
        return make_step_plan(
            best.program,
            graph,
            shares.macs,
            budgets.criterion,
            budgets.align,
            n_features=n_features if n_features is not None else None if compete else count_features(graph),
            batches=self.trainer.score_batches() if self.trainer else (),
            seed=budgets.seed,
            device=budgets.device,
            keep_latency=shares.latency,
            keep_bytes=shares.size,
            appliable=budgets.appliable,
            leave=budgets.leave,
        )

    def _fresh(self, before: Candidate, slim: Program, plan: PruningPlan, error: float) -> Candidate:
        """A cut that is not finetuned yet."""
        return Candidate(slim, plan, macs(slim), kept_features(before, plan), None, error)

    def _finetuned(self, candidate: Candidate, extra: int = 0) -> Candidate:
        """Train a candidate's weights on, and look at it; `extra` counts further rounds, which see another order.

        Without training, batch norm's statistics are estimated again all the same.
        """
        trainer = self.trainer
        if trainer is None:
            return candidate
        module = candidate.program.own_module()
        assert isinstance(module, fx.GraphModule)
        if not self._trains:
            if recalibrate(module, trainer.data, trainer.normalization):
                candidate = replace(candidate, program=reexport_like(module, candidate.program))
        else:
            share = candidate.macs / self.dense.macs
            again = f", round {extra + 1}" if extra else ""
            self.progress.stage(f"step {len(self.steps) + 1}: finetune at {share:.0%} of MACs{again}")
            settings = self._round(trainer.settings, extra)
            self.effort.take(settings.epochs)
            fit(module, trainer.data, trainer.normalization, settings, self.progress, self._teacher)
            candidate = replace(candidate, program=reexport_like(module, candidate.program))
        return replace(candidate, val_accuracy=trainer.val_accuracy(module))

    @staticmethod
    def _round(settings: TrainSettings, extra: int) -> TrainSettings:
        """How the further round `extra` trains, 0 being the first finetuning."""
        epochs, seed = settings.epochs * min(2**extra, _LONGEST), settings.seed + extra
        schedule = "constant" if extra >= _WANDERS else settings.schedule
        return replace(settings, epochs=epochs, seed=seed, schedule=schedule)

    def _within(self, candidate: Candidate, share: float = 1.0) -> bool:
        """Whether the accuracy budget, or a share of it, holds."""
        limit, dense, slim = self.budgets.max_drop, self.dense.val_accuracy, candidate.val_accuracy
        if limit is None or dense is None or slim is None:
            return True
        return (dense - slim) * 100 <= share * limit + 1e-9

    def _judged(self, candidate: Candidate, share: float, rounds: int) -> Candidate | None:
        """The candidate, finetuned once more if need be, or None where it loses too much all the same."""
        candidate = self._rescued(candidate, share, rounds)
        accepted = self._within(candidate, share)
        self._record(candidate, accepted)
        return candidate if accepted else None

    def _has_failed(self, candidate: Candidate) -> bool:
        """Whether the very same units were kept by a network that lost too much."""
        return candidate.plan is not None and candidate.plan.to_json() in self._failed

    def _record(self, candidate: Candidate, accepted: bool) -> None:
        if not accepted and candidate.plan is not None:
            self._failed.add(candidate.plan.to_json())
        self.steps.append(
            StepRecord(
                step=len(self.steps) + 1,
                macs_ratio=candidate.macs / self.dense.macs,
                n_features=candidate.n_features,
                val_accuracy=candidate.val_accuracy,
                accepted=accepted,
            )
        )

    def _drop(self, candidate: Candidate) -> float:
        assert self.dense.val_accuracy is not None
        assert candidate.val_accuracy is not None
        return (self.dense.val_accuracy - candidate.val_accuracy) * 100


def kept_features(before: Candidate, plan: PruningPlan) -> int | None:
    """How many input features are left after a plan, counted over the dense inputs."""
    return sum(len(features.keep) for features in plan.inputs.values()) if plan.inputs else before.n_features


def count_features(graph: ChannelGraph) -> int | None:
    """How many input features there are; None where none of them can be removed."""
    fixed, sizes = graph.features()
    return fixed + int(sum(size.sum() for size in sizes)) if any(group.is_input for group in graph.groups) else None
