"""What candidates cost by the models of the planner, beside what the dense network costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from edgeprune.cost.device import Device
from edgeprune.cost.memory import activation_peak
from edgeprune.cost.models import bytes_model, latency_model
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph
from edgeprune.search.candidate import Candidate
from edgeprune.search.landing import Shares


class Costs:
    """What candidates cost: MACs, milliseconds foretold of a device, bytes, live activations; each worked out once."""

    def __init__(self, dense: Candidate, graph_of: Callable[[Candidate], ChannelGraph], device: Device | None) -> None:
        self._dense, self._graph_of, self._device = dense, graph_of, device
        self._known: dict[tuple[Program, str], float] = {}

    def toward(self, candidate: Candidate, shares: Shares, least: float = 0.0) -> Shares:
        """The shares of a candidate's own costs that come to these of the dense network's, none below `least`."""
        return shares.of_own(partial(self._of, self._dense), partial(self._of, candidate), least)

    def between(self, start: Candidate, shares: Shares, left: Callable[[float], float]) -> Shares:
        """The shares of the dense network's costs on a way down from `start`.

        Args:
            shares: where the way ends.
            left: what is left of a cost there, by the share of it that is left in the end.
        """
        ends = self.toward(start, shares)
        own = {name: None if end is None else left(end) for name, end in ends.named.items()}
        return Shares(**own).of_own(partial(self._of, start), partial(self._of, self._dense))

    def carried(self, before: Candidate, after: Candidate, shares: Shares) -> Shares:
        """The shares of what a candidate costs `after` something went that come to these of what it did `before`."""
        return shares.of_own(partial(self._of, before), partial(self._of, after))

    def saved(self, before: Candidate, after: Candidate) -> float:
        """The share of its cost that went: of its time on the device where there is one, else of its MACs."""
        name = "macs" if self._device is None else "latency"
        return 1 - self._of(after, name) / self._of(before, name)

    def is_over(self, candidate: Candidate, shares: Shares) -> bool:
        """Whether it costs more than one of these shares of the dense network's costs."""
        asked = {name: share for name, share in shares.named.items() if share is not None}
        return any(self._of(candidate, name) > share * self._of(self._dense, name) for name, share in asked.items())

    def _of(self, candidate: Candidate, name: str) -> float:
        if name == "macs":
            return float(candidate.macs)
        key = (candidate.program, name)
        if key not in self._known:
            self._known[key] = self._modelled(candidate, name)
        return self._known[key]

    def _modelled(self, candidate: Candidate, name: str) -> float:
        graph = self._graph_of(candidate)
        if name == "size":
            return bytes_model(candidate.program, graph).total
        if name == "ram":
            return activation_peak(graph)
        assert self._device is not None  # the planner refuses a latency without one
        return latency_model(graph, self._device).total
