"""Gradual pruning: a criterion says which groups go, a schedule how many."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.importance import BY_WEIGHTS
from edgeprune.importance.criteria import effects, random_scores
from edgeprune.methods.base import Subject, generator, make_grouper
from edgeprune.methods.masks import Masked, keep_highest
from edgeprune.methods.schedules import SCHEDULES

ANY_GROUP = ("l1", "l2", "taylor", "lamp", "random")
_COMPARED = ("lamp", "taylor")  # over layers; by the others each layer loses the same share
_AVERAGED = 0.1  # weight of the present step in a running mean
_UPDATES = 100


class Gradual(Masked):
    """Every k steps the groups with the lowest scores go, as many as the schedule says, and stay out.

    Zhu and Gupta, To Prune, or Not to Prune, 2017, with any schedule of `schedules.py` and any criterion: of a group's
    weights the mean of |w| (l1), of w^2 (l2), the running mean of |w times its gradient| (taylor), its part of the
    larger ones in its layer (lamp), or a random number. Channel groups are scored as `edgeprune compress` scores them.
    Each layer, or channel group, loses the same share; by taylor and lamp the share is that of all together.

    Options: sparsity, criterion, structure, prune_schedule, prune_every (default: a hundredth of the training).

    Raises:
        InputError: the criterion does not fit the structure, or the network has no such groups.
    """

    name = "gradual"

    def __init__(self, subject: Subject) -> None:
        options = subject.options
        structure = options.get("structure", "element")
        if structure == "channel":
            raise InputError(
                f"method {self.name}: expected structure element, kernel, input-column or channel-group, got channel, "
                "by which the outputs of the last layer would go too"
            )
        self.criterion = options.get("criterion", "l1")
        by_unit = structure == "channel-group"
        allowed = (*BY_WEIGHTS, "taylor", "random") if by_unit else ANY_GROUP
        if self.criterion not in allowed:
            where = "structure channel-group" if self.criterion in BY_WEIGHTS else f"one of {', '.join(allowed)}"
            raise InputError(f"method {self.name}: criterion {self.criterion}: expected {where}, got {structure}")
        super().__init__(subject, make_grouper(structure, subject.module, subject.graph))
        self.by_unit = by_unit
        self.share = float(options["sparsity"])
        self.schedule = SCHEDULES[options["prune_schedule"]]
        self.every = int(options.get("prune_every", max(1, subject.n_steps // _UPDATES)))
        self.averages: dict[str, Tensor] = {}
        if self._is_averaged():
            self.averages = {name: torch.zeros_like(param) for name, param in self.params.items()}

    def kept(self) -> Mapping[str, Mapping[str, Tensor]]:
        """Also the running means."""
        return {**super().kept(), "averages": self.averages}

    def _choose(self, scale: float) -> None:
        for name, average in self.averages.items():
            average.lerp_(self._sample(self.params[name], scale), _AVERAGED)
        if (self.step + 1) % self.every and self.done < 1:
            return
        share = self.share * self.schedule(self.done)
        inside = [self.inside[block] for block in self.blocks]
        kept = keep_highest(self._scores(), inside, share, self._is_compared())
        self.inside = dict(zip(self.blocks, kept, strict=True))

    def _is_averaged(self) -> bool:
        """Whether the score is a running mean over steps."""
        return self.criterion == "taylor" and not self.by_unit

    def _is_compared(self) -> bool:
        """Whether the scores are compared over layers."""
        return self.criterion in _COMPARED

    def _sample(self, param: Tensor, scale: float) -> Tensor:
        """What the running mean is of."""
        if param.grad is None:
            return torch.zeros_like(param)
        return (param.detach() * param.grad / scale).abs().nan_to_num_(0.0, 0.0)

    def _scores(self) -> Sequence[Tensor]:
        """For each block, shaped as its groups."""
        if self.by_unit:
            return self._unit_scores()
        if self.criterion == "random":
            draws = generator(self.subject.seed, self.step)
            return [torch.rand(own.shape, generator=draws).to(own.device) for own in self.inside.values()]
        masses = list(self.averages.values()) or self._weights()
        if self.criterion in ("l2", "lamp"):
            masses = [mass.square() for mass in masses]
        norms = self.groups.norms(masses, 1)
        means = [norm / size for norm, size in zip(norms, self.groups.sizes, strict=True)]
        return [_lamp(mean) for mean in means] if self.criterion == "lamp" else means

    def _unit_scores(self) -> Sequence[Tensor]:
        graph, tensors = self.subject.graph, dict(self.subject.module.named_parameters(remove_duplicate=False))
        assert graph is not None
        if self.criterion == "taylor":
            scores = effects(graph, tensors)
        elif self.criterion == "random":
            scores = random_scores(graph, self.subject.seed * 1_000_003 + self.step)
        else:
            scores = BY_WEIGHTS[self.criterion](graph, tensors)
        numbers = [int(block.split(" ")[0]) for block in self.groups.blocks]
        device = next(iter(self.params.values())).device
        return [torch.from_numpy(scores[number]).to(device) for number in numbers]


class WeightMom(Gradual):
    """Every k steps the weights go whose size has been smallest over the previous steps, not just now.

    Johnson, Tang and Samudrala, WeightMom, arXiv 2208.05970. A weight's score is the running mean of its size; it is
    compared over all layers, relative to the mean of what its layer has left: that is taken for the layer's importance
    by its relative sparsity.

    Options: sparsity, prune_schedule, prune_every.
    """

    name = "weight-mom"

    def _is_averaged(self) -> bool:
        return True

    def _is_compared(self) -> bool:
        return True

    def _sample(self, param: Tensor, scale: float) -> Tensor:
        return param.detach().abs()

    def _scores(self) -> Sequence[Tensor]:
        averages = list(self.averages.values())
        left = [own.sum().clamp(min=1) for own in self.inside.values()]
        sums = [torch.where(own, score, 0.0).sum() for own, score in zip(self.inside.values(), averages, strict=True)]
        return [
            score * (n / total if total > 0 else math.inf) for score, n, total in zip(averages, left, sums, strict=True)
        ]


def _lamp(scores: Tensor) -> Tensor:
    """Each over the sum of those that are no smaller (Lee et al., ICLR 2021)."""
    order = scores.reshape(-1).argsort(stable=True)
    ranked = scores.reshape(-1)[order].double()
    rest = ranked.flip(0).cumsum(0).flip(0)
    found = torch.empty_like(ranked)
    found[order] = torch.where(rest > 0, ranked / rest, 0.0)
    return found.view(scores.shape)
