"""Gates that open or close a channel or an input feature, and learn which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from edgeprune.errors import InputError
from edgeprune.graph.capture import example_inputs
from edgeprune.graph.comparison import outputs, relative_error
from edgeprune.graph.groups import ChannelGroup, Slot
from edgeprune.methods.base import Method, Subject, generator
from edgeprune.methods.schedules import SCHEDULES

_HOT, _COLD = 1.0, 0.05  # temperature at the start and at the end
_RATE = 0.02  # step of Adam on the logits, small beside a temperature of 1
_BETAS = (0.9, 0.999)
_SAME = 1e-4  # relative difference of two outputs that rounding explains, also over many layers
_FLOOR = 1e-3  # of the mean gradient: what is smaller is rounding, and moves no gate
_OPEN = 3.0  # how far above the threshold, in temperatures, logits are where no gate is to be closed


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Indices along one dim of a parameter, and the gate of each: `gate[i]` is that of index `i`, the last for none."""

    name: str
    dim: int
    gate: Tensor

    def spread(self, values: Tensor, param: Tensor) -> Tensor:
        """One number a gate, 1 for none, so that it broadcasts to the parameter."""
        padded = torch.cat([values, values.new_ones(1)])[self.gate]
        return padded.view([-1 if dim == self.dim else 1 for dim in range(param.dim())])

    def gather(self, masses: Tensor, n_gates: int) -> Tensor:
        """What the indices of each gate add up to, `(n_gates,)`."""
        per_index = masses.movedim(self.dim, 0).flatten(1).sum(1) if masses.dim() > 1 else masses
        return masses.new_zeros(n_gates + 1).index_add_(0, self.gate, per_index)[:-1]


class GumbelGates(Method):
    """A gate on every channel, input feature or both, drawn anew at each step; what stays closed is removed.

    A gate is open where (logit - threshold) / temperature plus logistic noise is above 0, and its gradient is that of
    the sigmoid of it: Gumbel-softmax over two classes, straight through (Jang, Gu and Poole, ICLR 2017; Maddison, Mnih
    and Teh, ICLR 2017; for channels Herrmann, Bowen and Zabih, ECCV 2020; for features Balin, Abid and Zou, ICML 2019).
    The threshold is where the share of logits below it is the schedule's; the temperature falls from 1 to 0.05, so that
    draws become certain. A closed channel is zero in every layer that reads it, as if it were removed; at the end the
    closed ones are zero over all their slots, and the open ones are what they were. Channels whose removal changes
    the statistics of a normalisation have no gates, and one of each group stays open.

    Options: sparsity, gates (channels, inputs, both), prune_schedule.

    Raises:
        InputError: the network has nothing to put gates on.
    """

    name = "gumbel-gates"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        options = subject.options
        assert subject.graph is not None
        which = options["gates"]
        wanted = {"channels": (False,), "inputs": (True,), "both": (False, True)}[which]
        groups = [group for group in subject.graph.groups if group.exact and group.is_input in wanted]
        self.params = dict(subject.module.named_parameters(remove_duplicate=False))  # tied and frozen ones too
        groups = [group for group in groups if self._slots(group)]
        if not groups:
            what = {"channels": "channels", "inputs": "input features", "both": "channels or input features"}[which]
            raise InputError(f"method {self.name}: expected a network with {what} that can be removed, got none")
        self.share = float(options["sparsity"])
        self.schedule = SCHEDULES[options["prune_schedule"]]
        self.sizes = [group.n_units for group in groups]
        self.every = [place for places in self._places(groups) for place in places]
        self.seen = self._seen(groups)
        zeros = torch.zeros(sum(self.sizes), device=next(iter(self.params.values())).device)
        self.state = {"logits": zeros, "first": zeros.clone(), "second": zeros.clone()}
        self._trained: dict[str, Tensor] = {}
        self._soft = self._hard = zeros.clone()  # of the last draw

    def begin(self, training: bool) -> None:
        """Draw the gates, or take the likeliest where it is measured, and close them."""
        with torch.no_grad():
            gates = self._drawn() if training else self._open().to(torch.float32)
            self._trained = {place.name: self.params[place.name].detach().clone() for place in self.seen}
            self._multiply(self.seen, gates)

    def end(self, scale: float | None) -> None:
        """The weights take the gradients of what was open, the logits those of all gates."""
        with torch.no_grad():
            gradient = torch.zeros_like(self.state["logits"])
            for place in self.seen:
                param = self.params[place.name]
                if scale is not None and param.grad is not None:
                    effect = param.grad * self._trained[place.name]
                    gradient += place.gather(effect, len(gradient)).to(gradient.dtype)
            if scale is not None:
                for place in self.seen:
                    param = self.params[place.name]
                    if param.grad is not None:
                        param.grad.mul_(place.spread(self._hard, param).to(param.dtype))
                self._learn(gradient / scale)
            for name, trained in self._trained.items():
                self.params[name].copy_(trained)
            self._trained = {}

    def finish(self) -> None:
        """What is closed is zero in every slot."""
        with torch.no_grad():
            self._multiply(self.every, self._open().to(torch.float32))

    def kept(self) -> Mapping[str, Mapping[str, Tensor]]:
        """The logits and the moments of their gradients."""
        return {"state": self.state}

    # -- gates -----------------------------------------------------------------------------------------------------

    def _drawn(self) -> Tensor:
        """Zeros and ones `(n_gates,)`; the sigmoids are kept for the gradient."""
        logits = self.state["logits"]
        uniform = torch.rand(len(logits), generator=generator(self.subject.seed, self.step)).clamp_(1e-6, 1 - 1e-6)
        noise = uniform.logit().to(logits.device)
        self._soft = ((logits - self._threshold()) / self._temperature + noise).sigmoid()
        self._hard = (self._soft > 0.5).to(logits.dtype)
        return self._hard

    @property
    def _temperature(self) -> float:
        return _HOT * (_COLD / _HOT) ** self.done

    def _threshold(self) -> float:
        """Between the highest logit that is to be closed now and the lowest that is not."""
        ordered = self.state["logits"].sort().values
        n_closed = min(round(self.share * self.schedule(self.done) * len(ordered)), len(ordered) - 1)
        if n_closed == 0:
            return float(ordered[0]) - _OPEN * self._temperature
        return float(ordered[n_closed - 1] + ordered[n_closed]) / 2

    def _open(self) -> Tensor:
        """Bool `(n_gates,)`: the share that is closed now has the lowest logits, one gate of each group left open."""
        ranks = self.state["logits"].clone()
        for start, size in zip(_starts(self.sizes), self.sizes, strict=True):
            ranks[start + int(ranks[start : start + size].argmax())] = torch.inf
        n_closed = round(self.share * self.schedule(self.done) * len(ranks))
        opened = torch.ones_like(ranks, dtype=torch.bool)
        opened[ranks.argsort(stable=True)[: min(n_closed, len(ranks) - len(self.sizes))]] = False
        return opened

    def _learn(self, gradient: Tensor) -> None:
        """A step of Adam (Kingma and Ba, ICLR 2015); none where half precision has overflowed."""
        gradient = gradient * self._soft * (1 - self._soft) / self._temperature
        if not bool(gradient.isfinite().all()):
            return
        first, second, steps = self.state["first"], self.state["second"], self.step + 1
        first.lerp_(gradient, 1 - _BETAS[0])
        second.lerp_(gradient.square(), 1 - _BETAS[1])
        size = (second / (1 - _BETAS[1] ** steps)).sqrt_()
        size.add_(_FLOOR * size.mean()).clamp_(min=1e-30)
        self.state["logits"].sub_(first / (1 - _BETAS[0] ** steps) / size, alpha=_RATE)

    # -- where they are --------------------------------------------------------------------------------------------

    def _multiply(self, places: list[_Place], gates: Tensor) -> None:
        for place in places:
            param = self.params[place.name]
            param.mul_(place.spread(gates, param).to(param.dtype))

    def _slots(self, group: ChannelGroup) -> list[Slot]:
        return [slot for slot in group.slots if slot.kind == "tensor" and slot.name in self.params]

    def _places(self, groups: list[ChannelGroup]) -> Iterator[list[_Place]]:
        """Every slot of each group."""
        total = sum(self.sizes)
        for start, group in zip(_starts(self.sizes), groups, strict=True):
            places = []
            for slot in self._slots(group):
                gate = torch.from_numpy(slot.unit) + start
                gate[torch.from_numpy(slot.unit < 0)] = total
                places.append(_Place(slot.name, slot.dim or 0, gate.to(self.params[slot.name].device)))
            yield places

    def _seen(self, groups: list[ChannelGroup]) -> list[_Place]:
        """The slots that are closed while it trains, such that the network computes what it does without the units.

        Those that read a unit, since a closed gate has a gradient then. Where a unit is read by something else too (a
        mean over channels), all of its slots: which groups that is, a try on random inputs tells.
        """
        every = list(self._places(groups))
        reading = [[place for place in places if place.dim] or places for places in every]
        if not self._same(reading, every):
            for number, places in enumerate(every):
                if not self._same([reading[number]], [places]):
                    reading[number] = places
        return [place for places in reading for place in places]

    def _same(self, some: list[list[_Place]], others: list[list[_Place]]) -> bool:
        """Whether the network puts out the same with half of the gates closed in some places as in others."""
        module, draws = self.subject.module, generator(self.subject.seed, -1)
        assert self.subject.graph is not None
        device = next(iter(self.params.values())).device
        examples = example_inputs(self.subject.graph.analysis.program)
        inputs = tree_map_only(Tensor, lambda x: _random(x, draws).to(device), examples)
        gates = (torch.rand(sum(self.sizes), generator=draws) > 0.5).to(device, torch.float32)
        was_training, found = module.training, []
        module.eval()
        with torch.no_grad():
            for places in (some, others):
                flat = [place for own in places for place in own]
                trained = {place.name: self.params[place.name].detach().clone() for place in flat}
                self._multiply(flat, gates)
                found.append(outputs(module, inputs))
                for name, before in trained.items():
                    self.params[name].copy_(before)
        module.train(was_training)
        return relative_error(*found) < _SAME


def _random(value: Tensor, draws: torch.Generator) -> Tensor:
    """A floating-point example filled with random numbers."""
    return torch.randn(value.shape, generator=draws).to(value.dtype) if value.is_floating_point() else value


def _starts(sizes: list[int]) -> list[int]:
    return [sum(sizes[:place]) for place in range(len(sizes))]
