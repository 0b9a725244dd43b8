"""One step of a search, which its strategies hold: a candidate is cut, proved, finetuned, judged and recorded."""

from __future__ import annotations

import math
from dataclasses import replace

from edgeprune.cost.widths import told as told_widths
from edgeprune.errors import BudgetError
from edgeprune.progress import Progress
from edgeprune.pruning.plan import PruningPlan
from edgeprune.records import ACCURACY, Metric, Reconstruction
from edgeprune.results import FeatureCount, StepRecord
from edgeprune.search.candidate import Budgets, Candidate, Found, Gauge
from edgeprune.search.criterion import CHOICES, OpenCriterion
from edgeprune.search.cutter import Cutter
from edgeprune.search.effort import Effort
from edgeprune.search.landing import Shares
from edgeprune.search.structure import Structure
from edgeprune.search.telling import Teller
from edgeprune.search.trainer import FIRST, Round, Trainer
from edgeprune.tasks.budget import MaxDrop, is_within

FACTOR = 0.7  # share of the MACs that one step keeps
ROUNDS = 3  # how often what lost too much is finetuned again before it is given up
_SURE = 2  # standard errors
_FEWEST, _MOST = 2, 4  # finetunings' worth: a training in which features and channels go together
_SELECTION = 2  # how many times as long as a finetuning it is trained while features are chosen


class Step:
    """What a strategy does to one candidate, the same way for all of them; it serves one search.

    It holds no budgets: what a candidate may lose, in the metric's unit, is handed to it. `records` tells what was
    tried, `selection` how the input features became fewer, `effort` how much was trained. Without a trainer nothing is
    trained and every drop is within any limit; without a gauge nothing is measured as a file; without `structure` no
    block goes whole and no layer is split; with a `criterion` that is open, it is found out for each cut.
    """

    def __init__(  # noqa: PLR0913 - what cuts, what trains, who watches, what measures
        self,
        cutter: Cutter,
        trainer: Trainer | None,
        progress: Progress,
        gauge: Gauge | None = None,
        structure: Structure | None = None,
        criterion: OpenCriterion | None = None,
    ) -> None:
        self.cutter = cutter
        self.trainer = trainer
        self.progress = progress
        self.dense = cutter.dense
        self.records: list[StepRecord] = []
        self.selection: list[FeatureCount] = []
        self.effort = Effort(cutter.manner.max_finetunings, progress, is_free=not self.trains)
        self._teller = Teller(progress, self.effort)
        self.gauge, self._structure, self._criterion = gauge, structure, criterion
        self._failed: set[str] = set()
        self._said: set[str] = set()

    @property
    def metric(self) -> Metric:
        """What candidates are judged by; accuracy where nothing is."""
        return (self.trainer and self.trainer.metric) or ACCURACY

    @property
    def trains(self) -> bool:
        """Whether a candidate's weights are trained on."""
        return self.trainer is not None and self.trainer.trains

    @property
    def selects(self) -> bool:
        """Whether input features are chosen while a candidate is trained."""
        return self.trainer is not None and self.trainer.selects

    @property
    def cuts_at_once(self) -> bool:
        """Whether one cut goes all the way: what lies between is not looked at, or a choice of widths is measured."""
        return self.trainer is None or (self.cutter.measures_cuts and not self.trains)

    def begin(self) -> Candidate:
        """The dense network, looked at: what follows is compared with it."""
        if self.trainer is not None:
            self.progress.stage("measure the dense network")
            self.dense = replace(self.dense, val=self.trainer.evaluation(self.dense.program.frozen_module()))
        return self.dense

    def without_dead(self) -> Candidate:
        """The dense network without what is dead in it, as good as before; itself where nothing is."""
        slim = self.cutter.without_dead()
        if slim is None:
            return self.dense
        assert slim.plan is not None
        dead = sum(group.before - group.after for group in slim.plan.groups)
        self.progress.say(f"{dead} units are dead: they go without a change of the output")
        slim = replace(slim, val=self.dense.val)
        self.record(slim, accepted=True)
        return slim

    def without_cut_ids(self, best: Candidate) -> Candidate:
        """The candidate without the rows of ids that are cut, looked at; itself where none are."""
        if not self.cutter.manner.vocabularies:
            return best
        self.progress.stage("cut the vocabulary")
        slim = self.cutter.without_cut_ids(best)
        if self.trainer is not None and slim is not best:
            slim = replace(slim, val=self.trainer.evaluation(slim.program.frozen_module()))
        return slim

    # -- one candidate ---------------------------------------------------------------------------------------------

    def tried(self, best: Candidate, shares: Shares, n_features: int | None = None) -> Candidate:
        """Prune what was accepted once more, prove the cut, finetune, look."""
        return self.finetuned(self.pruned(best, shares, n_features))

    def pruned(self, best: Candidate, shares: Shares, n_features: int | None = None) -> Candidate:
        """Prune what was accepted once more and prove the cut; what it loses is not known yet."""
        criterion = self._settled(best, shares)
        self.progress.stage(f"step {len(self.records) + 1}: score and cut")
        if self._structure is None or n_features is not None or shares == Shares():
            fresh = self.cutter.pruned(best, shares, n_features)
        else:
            fresh = self._structure.pruned(best, shares)
        for line in told_widths(fresh.plan.aligned if fresh.plan is not None else None):
            self._say_once(line)
        return replace(fresh, criterion=criterion)

    def trial(self, best: Candidate, shares: Shares) -> Candidate:
        """What a cut would come to, to be looked at and thrown away: not proved."""
        self._settled(best, shares)
        return (self._structure or self.cutter).trial(best, shares)

    def _settled(self, best: Candidate, shares: Shares) -> str | None:
        """The criterion for a cut, found out where it is open; None where it is not, or the cut is for no cost."""
        if self._criterion is None or shares == Shares():
            return None
        if self._structure is None:
            kind = "a cut of as much to greedy widths" if self.cutter.measures_cuts else "such a cut"
            return self._criterion.settle(best, shares, kind)
        try:
            return self._criterion.settle(best, shares, "a cut of as much by channels alone")
        except BudgetError:
            self._say_once(f"channels go by {CHOICES[0]} where they alone cannot do it: no such cuts are compared")
            return None

    def replayed(self, plan: PruningPlan) -> Candidate:
        """Cut the dense network by a plan, prove it, finetune, look."""
        return self.finetuned(self.cutter.made_by(plan))

    def selected(self, best: Candidate, n_features: int) -> Candidate:
        """The candidate with so few input features, chosen while it is trained: the weights of the others are zero."""
        assert self.trainer is not None
        self.progress.stage(f"step {len(self.records) + 1}: train down to {n_features} input features")
        self.effort.take(_SELECTION)
        module, graph = best.program.own_module(), self.cutter.graph_of(best)
        self.selection += self.trainer.select(module, graph, n_features, _SELECTION)
        slim = self.cutter.without_unread(best, module)
        return replace(slim, val=self.trainer.evaluation(slim.program.frozen_module()))

    def competes(self, budgets: Budgets) -> bool:
        """Whether input features and channels share one budget, in a training that takes both from the network.

        What leaves that out is said.
        """
        may_go = budgets.prune_features and budgets.n_features is None and bool(self.dense.n_features)
        if not (self.selects and may_go):
            return False
        how, chosen_otherwise = self.cutter.manner, self.cutter.allots
        options = {
            "--keep-equal-chunks": how.appliable,
            "--layer-ratio": bool(how.layer_ratios),
            "--criterion": how.named,
            "--allocation": chosen_otherwise,
            **{option: True for option in (self._structure.options if self._structure else ())},
        }
        beside = [option for option, given in options.items() if given]
        if beside:
            leave = "leaves" if len(beside) == 1 else "leave"
            self._say_once(
                f"input features and channels go cut by cut: {' and '.join(beside)} {leave} out the training that "
                "takes both for one budget"
            )
        return not beside

    def competed(self, best: Candidate, shares: Shares) -> Candidate:
        """The candidate at these shares of its own costs, by a training in which features and channels go together.

        It takes as long as the cuts would that it stands for. Where what is left changes by the cut (the statistics of
        a normalisation), it is finetuned once more.
        """
        assert self.trainer is not None
        told = ", ".join(f"{share:.0%} of the {name}" for name, share in shares.named.items() if share is not None)
        self.progress.stage(f"step {len(self.records) + 1}: train down to {told}, input features and channels together")
        units = _n_cuts(shares)
        self.effort.take(units)
        module, graph = best.program.own_module(), self.cutter.free_graph(best)
        self.selection += self.trainer.compete(module, graph, self.cutter.aim(best, shares), units)
        slim = self.cutter.without_zeros(best, module)
        if slim.plan is not None and not slim.plan.exact:
            return self.finetuned(slim)
        return replace(slim, val=self.trainer.evaluation(slim.program.frozen_module()))

    def affords_selection(self, share: float) -> bool:
        """Whether choosing features once more is within the share of the training that the search may take."""
        return self.effort.affords(_SELECTION, share)

    def finetuned(self, candidate: Candidate, training: Round = FIRST) -> Candidate:
        """Train a candidate's weights on, and look at it.

        Without training, batch norm's statistics are estimated again all the same, unless reconstruction has done it.
        """
        if self.trainer is None:
            return candidate
        module = candidate.program.own_module()
        share = candidate.macs / self.dense.macs
        training = replace(training, step=len(self.records) + 1, macs=candidate.macs, share=share, plan=candidate.plan)
        if self.trains:
            again = f", round {training.number + 1}" if training.number else ""
            self.progress.stage(f"step {training.step}: finetune at {share:.0%} of MACs{again}")
            self.effort.take(training.effort)
        is_done = candidate.reconstruction is not None and candidate.reconstruction.helps and not self.trains
        changed = not is_done and self.trainer.finetune(module, training)
        after = self.trainer.evaluation(module)
        if not changed:
            return replace(candidate, val=after)
        trained = replace(self.cutter.retrained(candidate, module), val=after)
        return trained if training.is_underway else self._unharmed(candidate, trained)

    def _unharmed(self, candidate: Candidate, trained: Candidate) -> Candidate:
        """What was trained, or the candidate as it was where that was better by more than chance, which is said.

        What comes out no worse than the dense network is not asked.
        """
        assert self.trainer is not None
        if trained.val is None or self.dense.val is None or self.drop(trained) <= 0:
            return trained
        before = candidate.val or self.trainer.evaluation(candidate.program.own_module())
        if before is None:
            return trained
        chance = _SURE * self.trainer.standard_error(before, trained.val)
        if self.metric.drop(before.value, trained.val.value) <= chance:
            return trained
        what = "finetuning" if self.trains else "estimating batch norm's statistics again"
        change = f"from {self.metric.shown(before.value)} to {self.metric.shown(trained.val.value)}"
        advice = "; more data, or more --finetune-epochs, may help" if self.trains else ""
        self.progress.say(f"{what} took the {self.metric.name} {change}: the weights of before are kept{advice}")
        return replace(candidate, val=before)

    def rescued(self, candidate: Candidate, limit: float | None, rounds: int = ROUNDS) -> Candidate:
        """Finetune again what lost too much, longer each time; the best of all rounds."""
        best = candidate
        for number in range(1, rounds + 1):
            if self.is_within(best, limit) or not self.trains:
                break
            again = self.finetuned(candidate, Round(number))
            assert again.val is not None
            assert best.val is not None
            best = again if self.metric.better(again.val.value, best.val.value) else best
        return best

    # -- judging ---------------------------------------------------------------------------------------------------

    def drop(self, candidate: Candidate) -> float:
        """What a candidate loses against the dense network, in the metric's unit; both have been looked at."""
        assert self.dense.val is not None
        assert candidate.val is not None
        return self.metric.drop(self.dense.val.value, candidate.val.value)

    def limit(self, max_drop: MaxDrop | None) -> float | None:
        """What may be lost of what the dense network has, in the metric's unit; None for any."""
        if max_drop is None or self.dense.val is None:
            return None
        return max_drop.limit(self.metric, self.dense.val.value)

    def is_within(self, candidate: Candidate, limit: float | None) -> bool:
        """Whether it loses at most so much; what was never looked at loses nothing."""
        if self.dense.val is None or candidate.val is None:
            return True
        return is_within(self.drop(candidate), limit)

    def may_be_chance(self, candidate: Candidate, limit: float) -> bool:
        """Whether the drop is above the limit by no more than its standard error."""
        assert self.trainer is not None
        assert self.dense.val is not None
        assert candidate.val is not None
        error = self.trainer.standard_error(self.dense.val, candidate.val)
        return is_within(self.drop(candidate), limit + error)

    def judged(self, candidate: Candidate, limit: float | None, rounds: int) -> Candidate | None:
        """The candidate, finetuned again if need be, or None where it loses too much all the same."""
        candidate = self.rescued(candidate, limit, rounds)
        accepted = self.is_within(candidate, limit)
        self.record(candidate, accepted)
        return candidate if accepted else None

    def has_failed(self, best: Candidate, shares: Shares) -> bool:
        """Whether the very units that these shares would keep were kept by a network that lost too much."""
        self._settled(best, shares)
        try:
            return bool(self._failed) and self.cutter.kept(best, shares).to_json() in self._failed
        except BudgetError:  # channels alone do not come down so far, whole blocks may
            return False

    def record(self, candidate: Candidate, accepted: bool, n_left: int | None = None) -> None:
        """Note what was tried, and whether the search goes on from it; and say so.

        Args:
            n_left: how many steps come after it, None where that depends on what they lose.
        """
        if not accepted and candidate.plan is not None:
            self._failed.add(candidate.plan.to_json())
        self.records.append(
            StepRecord(
                step=len(self.records) + 1,
                macs_ratio=candidate.macs / self.dense.macs,
                n_features=candidate.n_features,
                val_value=candidate.val_value,
                accepted=accepted,
                reconstruction=self._timed_once(candidate.reconstruction),
                criterion=candidate.criterion,
            )
        )
        self._teller.tell(self.records[-1], self.dense.val_value, self.metric, n_left)

    def _timed_once(self, found: Reconstruction | None) -> Reconstruction | None:
        """What the layers took over; of a cut that is trained once more the time it took stands in the first record."""
        told = found is not None and any(record.reconstruction == found for record in self.records)
        return replace(found, seconds=0.0) if found is not None and told else found

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.progress.say(line)

    def found(self, *networks: Candidate) -> Found:
        """What the search came to: networks from large to small."""
        return Found(self.dense, networks, tuple(self.records), tuple(self.selection), self.cutter.graph)


def _n_cuts(shares: Shares) -> int:
    """How many finetunings a training that prunes takes: as many as there would be cuts, within bounds."""
    least = min((share for share in shares.named.values() if share is not None), default=1.0)
    return min(max(math.ceil(math.log(least) / math.log(FACTOR)), _FEWEST), _MOST)
