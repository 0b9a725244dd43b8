"""How the gate learns: what each width loses on a sample, and the price of a width at which the mean cost is met.

The linear layer is fitted in closed form: ridge regression, on the training split, of how well each width answers a
sample, `exp(-loss / scale)`, which is the probability of the truth in a classification. The width that is picked is the
best one by that, less a price times its cost. The price is the Lagrange multiplier of the mean cost: the least one that
meets it on the validation split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import Dataset

from edgeprune.data import Inputs
from edgeprune.errors import BudgetError, InputError
from edgeprune.graph.capture import Program
from edgeprune.progress import Progress
from edgeprune.tasks.classification import Classification
from edgeprune.tasks.task import Outcomes, Task, joined
from edgeprune.training import Judge, outputs_of
from edgeprune.widths.gate import Gate, Pooled

_MOST_SAMPLES = 10_000  # of the training split
_RIDGE = 1e-3  # of the variance of a feature
_BATCH = 512
_HALVINGS = 200
_SAME = 1e-9  # of a score: no gap to go by
_ROUNDING = 1 + 1e-12  # of a mean of equal numbers


@dataclass(frozen=True, slots=True, eq=False)
class Learnt:
    """What a gate has learnt, and what it comes to on the validation split.

    `weight` `(n_widths, n_features)` and `bias` `(n_widths,)` are those of its linear layer, the price of each width in
    the latter; `cost` is the mean over the samples, `picked` the share of them that each width is picked for.
    """

    weight: np.ndarray
    bias: np.ndarray
    cost: float
    picked: tuple[float, ...]
    value: float

    @property
    def as_plain(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        arrays = {"weight": self.weight.tolist(), "bias": self.bias.tolist()}
        return {**arrays, "cost": self.cost, "picked": list(self.picked), "value": float(self.value)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Learnt:
        """What `as_plain` gave; TypeError, KeyError or ValueError for something else."""
        weight, bias = (np.array(plain[name], dtype=np.float64) for name in ("weight", "bias"))
        picked = tuple(map(float, plain["picked"]))
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or len(picked) != len(bias):
            raise ValueError(f"weight {weight.shape}, bias {bias.shape}")
        return cls(weight, bias, float(plain["cost"]), picked, float(plain["value"]))

    def gate(self, pooled: Pooled) -> Gate:
        """The module that picks so."""
        linear = nn.Linear(self.weight.shape[1], self.weight.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(self.weight))
            linear.bias.copy_(torch.from_numpy(self.bias))
        return Gate(pooled, linear).eval()


def learnt_gate(  # noqa: PLR0913 - the widths, their costs, what they learn from and who is told
    programs: Sequence[Program],
    pooled: Pooled,
    costs: Sequence[float],
    budget: float,
    *,
    judge: Judge,
    splits: tuple[Dataset[Any], Dataset[Any]],
    progress: Progress,
) -> Learnt:
    """Learn which width answers what; the mean cost on the validation split is at most the budget.

    Args:
        programs: the widths, from wide to narrow.
        costs: what a sample costs at each, with the gate.
        budget: the most that the mean may be, in the same unit.
        splits: for training and for validation.

    Raises:
        BudgetError: the narrowest width alone costs more.
    """
    if min(costs) > budget:
        raise BudgetError(
            f"--gate: expected a mean cost of at least {min(costs):.3f} of the widest network, which is what the "
            f"narrowest takes with the gate, got {budget:g}"
        )
    train, val = splits
    some = _spread(len(train), _MOST_SAMPLES)  # type: ignore[arg-type]
    every = torch.arange(len(val))  # type: ignore[arg-type]
    modules = [program.frozen_module() for program in programs]
    progress.stage("train the gate")
    features, losses = _looked_at(modules, pooled, train, some, judge, progress)
    weight, bias = _fitted(features, _goodness(losses, judge.task))
    prices, val_features = np.asarray(costs, dtype=np.float64), _features(pooled, val, every, judge)
    bias, picks = _priced(weight, bias, prices, budget, val_features)
    shares = tuple(float((picks == number).mean()) for number in range(len(programs)))
    outcomes = [judge.outcomes(module, val)[0] for module in modules]
    value = judge.task.value(chosen_outcomes(outcomes, picks))
    return Learnt(weight, bias, float(prices[picks].mean()), shares, value)


def _priced(
    weight: np.ndarray, bias: np.ndarray, costs: np.ndarray, budget: float, features: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The bias with the prices of the widths in it, and what is picked for samples, in float32 as the gate does."""
    scores, asked = features @ weight.T + bias, budget
    while True:
        priced = bias - price_for(scores, costs, max(asked, float(costs.min()))) * costs
        linear = [array.astype(np.float32) for array in (features, weight, priced)]
        picks = (linear[0] @ linear[1].T + linear[2]).argmax(axis=1)
        if costs[picks].mean() <= budget * _ROUNDING or asked <= costs.min():
            return priced, picks
        asked -= float(np.ptp(costs)) / len(scores)  # a sample for which rounding picks a dearer width


def price_for(scores: np.ndarray, costs: np.ndarray, budget: float) -> float:
    """The least price of a unit of cost at which the mean cost of the best widths is within the budget.

    It lies between the samples: none is as good at two widths.

    Args:
        scores: `(n_samples, n_widths)`, how good each width is.
        costs: `(n_widths,)`.
    """

    def mean_cost(price: float) -> float:
        return float(costs[(scores - price * costs).argmax(axis=1)].mean())

    if mean_cost(0.0) <= budget * _ROUNDING:
        return _apart(scores, costs, 0.0)
    low, high = 0.0, 1.0
    while mean_cost(high) > budget * _ROUNDING:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_cost(middle) > budget * _ROUNDING else (low, middle)
    return _apart(scores, costs, high)


def _apart(scores: np.ndarray, costs: np.ndarray, price: float) -> float:
    """A price half way to the next at which a sample is picked another width for: rounding decides nothing."""
    net = scores - price * costs
    picks = net.argmax(axis=1)
    rows = np.arange(len(net))
    gaps, saved = net[rows, picks][:, None] - net, costs[picks][:, None] - costs
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where((saved > 0) & (gaps > _SAME), gaps / saved, np.inf)
    return price + (float(steps.min()) / 2 if np.isfinite(steps).any() else 1.0)  # all at the cheapest: any will do


def chosen_outcomes(outcomes: Sequence[Outcomes], picks: np.ndarray) -> Outcomes:
    """For each sample the outcome of the width that is picked; arrays stay arrays."""
    chosen = [outcomes[width][sample] for sample, width in enumerate(picks)]
    if isinstance(outcomes[0], np.ndarray):
        return np.stack(chosen)
    return joined([chosen])


def _spread(n: int, most: int) -> Tensor:
    """The indices of at most so many samples, evenly spaced."""
    return torch.linspace(0, n - 1, min(n, most)).round().long()


def _features(pooled: Pooled, split: Dataset[Any], index: Tensor, judge: Judge) -> np.ndarray:
    """What the gate reads of samples, float64 `(n, n_features)`."""
    answered = outputs_of(pooled, split, judge.normalization, index.split(_BATCH))
    return np.concatenate([features.double().numpy() for _, features, _ in answered])


def _looked_at(  # noqa: PLR0913 - the networks, the samples and who judges
    modules: Sequence[nn.Module],
    pooled: Pooled,
    split: Dataset[Any],
    index: Tensor,
    judge: Judge,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """What the gate reads of samples `(n, n_features)`, and what each width loses on them `(n, n_widths)`."""
    features = _features(pooled, split, index, judge)
    losses = np.empty((len(index), len(modules)))
    done, total = 0, losses.size
    for width, module in enumerate(modules):
        place = 0
        for x, outputs, raw in outputs_of(module, split, judge.normalization, index.split(_BATCH)):
            for loss in _sample_losses(judge, x, outputs, raw):
                losses[place, width] = loss
                place += 1
            progress.advance(done + place, total)
        done += place
    if not np.isfinite(losses).all():
        raise InputError("--gate: expected finite losses of single samples, got NaN or infinity")
    return features, losses


def _sample_losses(judge: Judge, x: Inputs, outputs: Any, raw: Any) -> Iterator[float]:
    """The loss on each sample of a batch alone."""
    targets = judge.targets(x, raw)
    first: Any = x[0] if isinstance(x, tuple) else x
    for row in range(len(first)):
        yield judge.task.summed_loss(_row(outputs, row), _row(targets, row), 1)


def _row(values: Any, row: int) -> Any:
    """One sample of a batch, as a batch."""

    def one(leaf: Any) -> Any:
        return leaf[row : row + 1] if isinstance(leaf, Tensor) and leaf.dim() else leaf

    return one(values) if isinstance(values, Tensor) else tree_map(one, values)


def _goodness(losses: np.ndarray, task: Task) -> np.ndarray:
    """How well each width answers, in [0, 1]: of a classification the probability of the truth."""
    scale = 1.0 if isinstance(task, Classification) else float(np.abs(losses).mean()) or 1.0
    return np.exp(-np.maximum(losses, 0.0) / scale)


def _fitted(features: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ridge regression of `(n, n_widths)` by `(n, n_features)`: weight `(n_widths, n_features)` and bias."""
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    x, centre = (features - mean) / spread, wanted.mean(axis=0)
    gram = x.T @ x / len(x) + _RIDGE * np.eye(x.shape[1])
    weight = np.linalg.solve(gram, x.T @ (wanted - centre) / len(x)).T / spread
    return weight, centre - weight @ mean
