"""What makes the networks of a search smaller: units are planned, cut, proved, taken over. Nothing is trained here."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
from torch import Tensor, fx, nn

from edgeprune.cost.limits import Aim
from edgeprune.cost.macs import macs
from edgeprune.cost.models import latency_model, main_step
from edgeprune.cost.widths import Alignment
from edgeprune.data.ranks import ALONE, Ranks, check_same
from edgeprune.formats.digests import digest
from edgeprune.graph.capture import Program, reexport_like
from edgeprune.graph.groups import ChannelGraph
from edgeprune.graph.inputs import count_kept, feature_counts
from edgeprune.graph.names import split_names
from edgeprune.importance import BY_WEIGHTS, Scores, least_features, protected, score
from edgeprune.pruning.blocks import plan_blocks, residual_blocks, without_blocks
from edgeprune.pruning.choosing import Chooser
from edgeprune.pruning.compose import compose
from edgeprune.pruning.dead_units import plan_dead
from edgeprune.pruning.held import held_layers, own_ratios, unit_counts
from edgeprune.pruning.lowrank import DenseLayer, dense_layers, split
from edgeprune.pruning.plan import PlannedBlock, PlannedSplit, PruningPlan
from edgeprune.pruning.planner import Allocate, limits_of, make_plan
from edgeprune.pruning.planner import plan as make_step_plan
from edgeprune.pruning.proof import prove, prove_on_data
from edgeprune.pruning.surgery import cut
from edgeprune.reconstruction.directions import directions
from edgeprune.reconstruction.reconstruct import N_SAMPLES, Reconstructed, reconstructed
from edgeprune.search.allocation import Allocation
from edgeprune.search.candidate import Candidate, Manner
from edgeprune.search.costs import Costs
from edgeprune.search.graphs import Graphs
from edgeprune.search.landing import Shares
from edgeprune.search.losses import Losses, known_losses
from edgeprune.search.trainer import Samples
from edgeprune.tasks.classification import CLASSIFICATION

Piece = PlannedBlock | PlannedSplit
_TRIED = 2  # cuts of a network that are remembered, as one that was looked at may be made next


class Cutter:
    """Makes candidates of the `dense` network and of one another, as its `manner` says; it knows no budgets.

    Units are scored and cuts are proved on the samples, where there are any. What a candidate that was cut
    does is not known yet: its `val` is None. The processes of `ranks` each have a cutter, and share the samples out.
    """

    def __init__(self, dense: Program, manner: Manner, samples: Samples | None, ranks: Ranks = ALONE) -> None:
        self.manner = manner
        self._samples, self._ranks = samples, ranks
        self._graphs = Graphs(dense, manner)
        self.graph = self._graphs.dense
        self.dense = Candidate(dense, None, macs(dense), self.graph.n_features, None)
        self._features = feature_counts(self.graph.analysis)
        self.costs = Costs(self.dense, self.graph_of, manner.device)
        self._latest_scores: tuple[Program, dict[str, Scores]] | None = None
        self._solved: deque[tuple[tuple[Program, str, int], Reconstructed]] = deque(maxlen=_TRIED)
        self._latest_seen: tuple[Program, dict[str, Tensor]] | None = None
        self._losses: Losses | None = None
        self._allocation: Allocation | None = None
        self._dense_units = unit_counts(self.graph, manner.layer_ratios)

    @property
    def least_features(self) -> int:
        """How few input features can be left."""
        return least_features(self.graph)

    def graph_of(self, candidate: Candidate) -> ChannelGraph:
        """Its channel groups, input features among them where they may go."""
        return self._graphs.of(candidate.program, candidate.plan)

    def pruned(
        self, best: Candidate, shares: Shares, n_features: int | None = None, pieces: Sequence[Piece] = ()
    ) -> Candidate:
        """The candidate with less in it, proved: at these shares of its own costs, or with so many input features.

        Blocks go first, then layers are split, and both count. What is left takes over what went, after the proof.
        """
        slim, step = self._cut_with(best, shares, n_features, pieces) if pieces else self._cut(best, shares, n_features)
        made = self._made(best, slim, step, self.proved(best.program, slim, step))
        return self._reconstructed(best, step, made)

    def kept(self, best: Candidate, shares: Shares) -> PruningPlan:
        """What the candidate of these shares would keep of the dense network."""
        return _of_dense(best, self._step(best, shares, None))

    def trial(self, best: Candidate, shares: Shares, pieces: Sequence[Piece] = ()) -> Candidate:
        """As `pruned`, to be looked at and thrown away: not proved."""
        cut_so = self._cut_with(best, shares, None, pieces) if pieces else self._cut(best, shares, None)
        return self._made(best, *cut_so, 0.0)

    def with_pieces(self, best: Candidate, pieces: Sequence[Piece]) -> Candidate:
        """The candidate without blocks and with layers split, to be looked at: not proved, and nothing takes over."""
        return self._made(best, *self._with(best.program, pieces), 0.0)

    def free_blocks(self, best: Candidate) -> tuple[PlannedBlock, ...]:
        """The residual blocks of a candidate that may go: those without a layer that is held."""
        names = (*self.manner.leave, *self.manner.layer_ratios)
        return tuple(block for block in residual_blocks(best.program) if not _is_held(block, names))

    def free_layers(self, best: Candidate) -> tuple[DenseLayer, ...]:
        """The layers of a candidate that may be split, seen on the samples: none that is held or made by a split."""
        names = (*self.manner.leave, *self.manner.layer_ratios)
        made = {half for one in (best.plan.splits if best.plan else ()) for half in split_names(one.weight)}
        layers = (layer for layer in dense_layers(best.program) if layer.weight not in made and layer.worth)
        found = tuple(layer for layer in layers if not _is_named(layer, names))
        self._seen(best.program, [layer.weight for layer in found])
        return found

    def alignment(self, best: Candidate) -> Alignment:
        """Which widths of a candidate are preferred."""
        return self._aligned(self.graph_of(best))

    def tried(
        self, plan: PruningPlan, best: Candidate | None = None, n_samples: int = N_SAMPLES
    ) -> tuple[Program, bool]:
        """A candidate, else the dense network, cut by a plan for it, and whether what is left took over.

        It is to be looked at and thrown away: not proved.
        """
        before = best or self.dense
        slim = cut(before.program, plan, self.graph_of(before))
        made = self._reconstructed(before, plan, self._made(before, slim, plan, 0.0), n_samples)
        return made.program, made.reconstruction is not None and made.reconstruction.helps

    def chooser(self) -> Chooser:
        """The dense network's units in the order in which they go, at the widths that are preferred."""
        how, graph = self.manner, self.graph
        scores = zip(self._scores(self.dense), graph.price_factors(), strict=True)
        return Chooser(graph, [own / factor for own, factor in scores], self._aligned(graph), even=how.appliable)

    @property
    def allots(self) -> bool:
        """Whether widths are chosen by what groups were seen to lose."""
        return self._losses is not None or self._allocation is not None

    @property
    def measures_cuts(self) -> bool:
        """Whether each cut is chosen by measuring it: where nothing is trained, going in steps then brings nothing."""
        return self._allocation is not None

    def allot(self, losses: Losses) -> None:
        """Choose all widths from now on by what the dense network's groups were seen to lose."""
        self._losses = losses

    def score_by(self, criterion: str) -> None:
        """Score units by it from now on."""
        self.manner = replace(self.manner, criterion=criterion)

    def allocate_by(self, allocation: Allocation) -> None:
        """Let it choose all widths from now on."""
        self._allocation = allocation

    def without_dead(self) -> Candidate | None:
        """The dense network without units that are dead, as sparse training leaves them; None where there are none.

        Its outputs are the same.
        """
        how, program = self.manner, self.dense.program
        if how.appliable or how.leave or how.layer_ratios:
            return None  # dead units matter least, and go with the others where they may
        plan = plan_dead(program, inputs=how.features, attention=how.attention, rules=how.rules)
        if plan is None:
            return None
        slim = cut(program, plan)
        return self._made(self.dense, slim, plan, self.proved(program, slim, plan))

    def without_cut_ids(self, best: Candidate) -> Candidate:
        """The candidate without the rows of the ids that are cut, proved; itself where none are."""
        how, program = self.manner, best.program
        graph = self._graphs.analyzed(program, best.plan, how.vocabularies)
        if not graph.rows.vocabularies:
            return best
        plan = make_step_plan(program, graph, None, "random")
        slim = cut(program, plan, graph)
        return self._made(best, slim, plan, self.proved(program, slim, plan))

    def without_unread(self, best: Candidate, trained: nn.Module) -> Candidate:
        """The candidate with the weights of `trained`, without the input features that only feed zeros there."""
        return self._without_zeros(best, trained, channels=False)

    def without_zeros(self, best: Candidate, trained: nn.Module) -> Candidate:
        """The same without the channels that are zero throughout, too; what is left takes over what changes by that."""
        return self._without_zeros(best, trained, channels=True)

    def _without_zeros(self, best: Candidate, trained: nn.Module, channels: bool) -> Candidate:
        program = _exported(trained, best.program)
        graph = self._graphs.analyzed(program, best.plan)
        keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
        scores = BY_WEIGHTS["l1"](graph, dict(program.named_parameters()))  # statistics of what is gone are no weights
        whole = held_layers(graph, self.manner.leave, {}).whole
        groups = zip(graph.groups, scores, protected(graph, scores), strict=True)
        for g, (group, own, last) in enumerate(groups):
            if g not in whole and (group.is_input or (channels and group.given is None)):
                keep[group.units[(own == 0) & ~(last & channels)]] = False
        plan = make_plan(program, graph, keep)
        slim = cut(program, plan, graph)
        error = self.proved(program, slim, plan)
        # The plan is to be replayed on the network as it was before this training.
        made = self._made(best, slim, replace(plan, source_sha256=digest(best.program)), error)
        return made if plan.exact else self._reconstructed(replace(best, program=program), plan, made)

    def aim(self, best: Candidate, shares: Shares) -> Aim:
        """What a training that prunes a candidate is to come down to: these shares of its own costs."""
        graph, device = self.graph_of(best), self.manner.device
        latency = None if device is None else latency_model(graph, device)
        limits = limits_of(best.program, graph, latency, shares.planned)
        return Aim(tuple(limits), latency, self._aligned(graph))

    def free_graph(self, best: Candidate) -> ChannelGraph:
        """The channel groups of a candidate that may lose units, input features among them."""
        graph = self.graph_of(best)
        alone = held_layers(graph, self.manner.leave, {}).whole
        return replace(graph, groups=tuple(group for g, group in enumerate(graph.groups) if g not in alone))

    def cut_by(self, plan: PruningPlan) -> Program:
        """The dense network cut by a plan of somebody else; PlanError where it does not fit."""
        return self._split(cut(self.dense.program, replace(plan, splits=())), plan.splits)

    def made_by(self, plan: PruningPlan) -> Candidate:
        """The same, proved, and what is left takes over what went."""
        slim = self.cut_by(plan)
        made = self._made(self.dense, slim, plan, self.proved(self.dense.program, slim, plan))
        return self._reconstructed(self.dense, plan, made)

    def retrained(self, candidate: Candidate, module: nn.Module) -> Candidate:
        """The candidate with the weights of its own module, which were trained on."""
        return replace(candidate, program=_exported(module, candidate.program))

    def _scores(self, candidate: Candidate) -> Scores:
        """What each unit matters, worked out once for as long as a search goes on from a candidate."""
        program, how = candidate.program, self.manner
        if self._latest_scores is None or self._latest_scores[0] is not program:
            self._latest_scores = (program, {})
        known = self._latest_scores[1]
        if how.criterion not in known:
            samples = self._samples
            own = samples.score_batches(self._ranks.share) if samples else ()
            task = samples.task if samples else CLASSIFICATION
            graph = self.graph_of(candidate)
            known[how.criterion] = score(
                program, graph, how.criterion, batches=own, seed=how.seed, task=task, ranks=self._ranks
            )
        return known[how.criterion]

    def _aligned(self, graph: ChannelGraph) -> Alignment:
        return Alignment.asked(self.manner.align, main_step(graph, self.manner.device))

    def _cut(self, best: Candidate, shares: Shares, n_features: int | None) -> tuple[Program, PruningPlan]:
        plan = self._step(best, shares, n_features)
        return cut(best.program, plan, self.graph_of(best)), plan

    def _step(self, best: Candidate, shares: Shares, n_features: int | None) -> PruningPlan:
        """The plan of a cut, its widths chosen as the search was told."""
        graph, found = self.graph_of(best), self._allocation
        return self.planned(best, shares, n_features, None if found is None else found.at(best, graph, shares))

    def planned(
        self, best: Candidate, shares: Shares, n_features: int | None = None, allocate: Allocate | None = None
    ) -> PruningPlan:
        """The plan of a cut; `allocate` chooses its widths.

        Without a count of features, none of them go unless they compete.
        """
        how, graph = self.manner, self.graph_of(best)
        if n_features is None and not how.compete:
            n_features = graph.n_features
        return make_step_plan(
            best.program,
            graph,
            criterion=how.criterion,
            align=how.align,
            n_features=n_features,
            scores=self._scores(best),
            device=how.device,
            **shares.planned,
            appliable=how.appliable,
            leave=how.leave,
            layer_ratios=own_ratios(how.layer_ratios, self._dense_units, graph),
            losses=None if self._losses is None else known_losses(self._losses, graph),
            allocate=allocate,
        )

    def _cut_with(
        self, best: Candidate, shares: Shares, n_features: int | None, pieces: Sequence[Piece]
    ) -> tuple[Program, PruningPlan]:
        """The same without blocks and with layers split; where that is enough, nothing else goes."""
        program, plan = self._with(best.program, pieces)
        smaller = self._made(best, program, plan, 0.0)
        own = self.costs.carried(best, smaller, shares)
        if n_features is None and all(share in (None, 1.0) for share in own.named.values()):
            return program, plan
        slim, step = self._cut(smaller, own, n_features)
        return slim, compose(plan, step)

    def _with(self, program: Program, pieces: Sequence[Piece]) -> tuple[Program, PruningPlan]:
        """A program without blocks and with layers split, and the plan of that."""
        blocks = [one for one in pieces if isinstance(one, PlannedBlock)]
        splits = [one for one in pieces if isinstance(one, PlannedSplit)]
        slim = without_blocks(program, blocks) if blocks else program
        return self._split(slim, splits), replace(plan_blocks(program, blocks), splits=tuple(splits))

    def _split(self, program: Program, splits: Sequence[PlannedSplit]) -> Program:
        """A program with layers split by what they read of the samples; without any, by their weights."""
        return split(program, splits, self._seen(program, [one.weight for one in splits])) if splits else program

    def _seen(self, program: Program, weights: Sequence[str]) -> Mapping[str, Tensor]:
        """The directions that layers' outputs lie along on the samples, worked out once; none without samples."""
        known = self._latest_seen[1] if self._latest_seen is not None and self._latest_seen[0] is program else {}
        more = set(weights) - known.keys()
        if more and self._samples is not None:
            known = known | directions(program, more, (x for x, _ in self._samples.score_batches()))
        self._latest_seen = (program, known)
        return known

    def proved(self, program: Program, slim: Program, plan: PruningPlan) -> float:
        """The error of a cut, on real inputs where there are data."""
        if self._samples is None:
            return prove(program, slim, plan)
        return prove_on_data(program, slim, plan, self._samples.some_inputs())

    def _reconstructed(
        self, before: Candidate, step: PruningPlan, slim: Candidate, n_samples: int = N_SAMPLES
    ) -> Candidate:
        """A cut candidate whose layers give what those of the network before did, as far as they can.

        Where nothing is trained on the way, the dense network tells what they should give, or each cut would add to
        what those before it lost.
        """
        if not self.manner.reconstruct or self._samples is None:
            return slim
        samples = (x for x, _ in self._samples.score_batches())
        program, plan = (before.program, step) if self._samples.trains else (self.dense.program, slim.plan or step)
        asked = before.program, _sha256(plan), n_samples
        found = next((one for key, one in self._solved if key[0] is asked[0] and key[1:] == asked[1:]), None)
        if found is None:
            found = reconstructed(program, slim.program, plan, samples, n_samples=n_samples, ranks=self._ranks)
            self._solved.append((asked, found))
        return replace(slim, program=found.program, reconstruction=found.record)

    def _made(self, before: Candidate, slim: Program, step: PruningPlan, error: float) -> Candidate:
        """What one more cut has come to, counted from the dense network.

        Raises:
            InputError: another process has cut by another plan.
        """
        check_same(self._ranks, lambda: {"plan": _sha256(step)}, "the plan of")
        plan = _of_dense(before, step)
        n_features = before.n_features
        if plan.inputs:
            n_features = count_kept(self._features, plan.inputs)
        return Candidate(slim, plan, macs(slim), n_features, None, max(error, before.proof_error))


def _sha256(plan: PruningPlan) -> str:
    return hashlib.sha256(plan.to_json().encode()).hexdigest()


def _of_dense(before: Candidate, step: PruningPlan) -> PruningPlan:
    """What a cut of a candidate keeps of the dense network."""
    return step if before.plan is None else compose(before.plan, step)


def _is_held(block: PlannedBlock, names: Sequence[str]) -> bool:
    """Whether a layer of a block is called so."""
    layers = {tensor.rpartition(".")[0] for tensor in block.tensors}
    return any(fnmatchcase(layer, name) for layer in layers for name in names)


def _is_named(layer: DenseLayer, names: Sequence[str]) -> bool:
    """Whether a layer is called so."""
    return any(fnmatchcase(layer.weight.rpartition(".")[0] or layer.weight, name) for name in names)


def _exported(module: nn.Module, program: Program) -> Program:
    assert isinstance(module, fx.GraphModule)
    return reexport_like(module, program)
