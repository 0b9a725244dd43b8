"""The network on its way: the program, the one plan that leads to it from the dense one, and the next cut of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeprune.cost.device import Device
from edgeprune.cost.macs import macs
from edgeprune.cost.memory import activation_peak
from edgeprune.cost.models import bytes_model, latency_model
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph, analyze
from edgeprune.importance import Scores
from edgeprune.pruning.compose import compose
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.planner import plan
from edgeprune.pruning.precedents import left_by
from edgeprune.pruning.proof import prove
from edgeprune.pruning.surgery import cut
from edgeprune.search.candidate import Budgets, Manner
from edgeprune.search.landing import Shares

Costs = dict[str, float]  # by "macs", "latency" (ms, by a device), "size" (bytes of parameters and buffers) and "ram"


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A program, the plan that makes its shapes of the dense one's, and the largest error of the proofs on the way."""

    program: Program
    plan: PruningPlan | None = None
    proof_error: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """One cut: what came of it, and what it kept of the network before, by the names of that network's tensors."""

    network: Network
    step: PruningPlan


def analyzed(network: Network, manner: Manner, dense: ChannelGraph | None = None) -> ChannelGraph:
    """The channel groups of a network, with input features where these may go.

    With the rows of the ids that are cut while it is the dense one: they go with the first cut. Else they are coupled
    as in those of the `dense` one.
    """
    return analyze(
        network.program,
        inputs=manner.features,
        attention=manner.attention,
        vocabularies=manner.vocabularies if network.plan is None else {},
        precedents=None if network.plan is None or dense is None else left_by(dense, network.plan),
    )


def costs(program: Program, graph: ChannelGraph, budgets: Budgets, device: Device | None) -> Costs:
    """What a program costs by the models of the planner, as far as a budget asks for it."""
    return {
        "macs": float(macs(program)),
        "latency": latency_model(graph, device).total if device is not None else 0.0,
        "size": bytes_model(program, graph).total if budgets.max_bytes is not None else 0.0,
        "ram": activation_peak(graph) if budgets.max_ram is not None else 0.0,
    }


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """The next cut of a network, for whatever shares of the dense network's costs are asked of it.

    `n_features` says how many input features stay, None lets them compete with the channels; `layer_ratios` which
    shares of their units layers keep; `scores` are those of each group where the criterion is fed, None has them made
    of the weights.
    """

    network: Network
    manner: Manner
    dense_costs: Costs
    n_features: int | None
    layer_ratios: Mapping[str, float]
    scores: Scores | None
    graph: ChannelGraph
    own_costs: Costs

    def plan(self, shares: Shares) -> PruningPlan:
        """What is kept for these shares.

        Raises:
            BudgetError: they cannot be met; says which groups stood in the way.
        """
        own = shares.of_own(self.dense_costs.__getitem__, self.own_costs.__getitem__)
        manner = self.manner
        return plan(
            self.network.program,
            self.graph,
            criterion=manner.criterion,
            align=manner.align,
            n_features=self.n_features,
            seed=manner.seed,
            device=manner.device,
            **own.planned,
            appliable=manner.appliable,
            leave=manner.leave,
            layer_ratios=self.layer_ratios,
            scores=self.scores,
        )

    def trial(self, shares: Shares) -> Program:
        """A network that is measured and thrown away; errors as `plan`."""
        return cut(self.network.program, self.plan(shares), self.graph)

    def cut(self, shares: Shares) -> Cut:
        """The cut, proved.

        Raises:
            BudgetError: as `plan`.
            ProofError: it is not the network with the removed channels set to zero.
        """
        network, step = self.network, self.plan(shares)
        slim = cut(network.program, step, self.graph)
        error = max(prove(network.program, slim, step), network.proof_error)
        whole = step if network.plan is None else compose(network.plan, step)
        return Cut(Network(slim, whole, error), step)


def replayed(dense: Program, whole: PruningPlan | None, proof_error: float) -> Network:
    """The network that a plan makes of the dense one, with the dense one's weights."""
    return Network(dense if whole is None else cut(dense, whole), whole, proof_error)
