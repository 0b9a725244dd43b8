"""Importance: how much each unit matters, by its weights or by their effect on the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgeprune.errors import InputError
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph, Slot

Batches = Iterable[tuple[Tensor, Tensor]]


def magnitude(program: ExportedProgram, graph: ChannelGraph, power: int) -> list[np.ndarray]:
    """L1 (`power` 1) or L2 (`power` 2) norm of everything that goes with a unit, `(n_units,)` for each group.

    Norms are divided by their group's mean, so that layers of different scale can be compared (Li et al., Pruning
    Filters for Efficient ConvNets; Fang et al., DepGraph).
    """
    tensors = {**program.constants, **program.state_dict}

    def mass(slot: Slot) -> np.ndarray:
        assert slot.dim is not None
        weights = tensors[slot.name].detach().double().movedim(slot.dim, 0).reshape(len(slot.unit), -1)
        return np.asarray(weights.abs().pow(power).sum(1).numpy())

    scores = _by_unit(graph, tensors, mass)
    return [_relative(score ** (1 / power)) for score in scores]


def taylor(program: ExportedProgram, graph: ChannelGraph, batches: Batches) -> list[np.ndarray]:
    """First-order effect on the loss of removing a unit, `(n_units,)` for each group, over real batches.

    The mean over batches of `(sum of g w over the unit's weights in a tensor) ** 2`, summed over its tensors (Molchanov
    et al., Importance Estimation for Neural Network Pruning, 2019). `batches` yields normalised inputs and classes.
    """
    module = Program.adopt(program).module()
    assert isinstance(module, fx.GraphModule)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    totals = [np.zeros(group.n_units) for group in graph.groups]
    n_batches = 0
    for x, y in batches:
        module.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(module(x), y).backward()
        n_batches += 1

        def effect(slot: Slot) -> np.ndarray:
            assert slot.dim is not None
            parameter = parameters[slot.name]
            if parameter.grad is None:
                return np.zeros(len(slot.unit))
            product = (parameter * parameter.grad).detach().double().movedim(slot.dim, 0)
            return np.asarray(product.reshape(len(slot.unit), -1).sum(1).numpy())

        for total, step in zip(totals, _by_unit(graph, parameters, effect, squared=True), strict=True):
            total += step
    if n_batches == 0:
        raise InputError("criterion taylor needs real batches: expected at least one, got none; give --data")
    return [total / n_batches for total in totals]


def random_scores(graph: ChannelGraph, seed: int) -> list[np.ndarray]:
    """Uniform random numbers, `(n_units,)` for each group: the baseline that every criterion has to beat."""
    generator = np.random.default_rng(seed)
    return [generator.random(group.n_units) for group in graph.groups]


def score(
    program: ExportedProgram, graph: ChannelGraph, criterion: str, *, batches: Batches = (), seed: int = 0
) -> list[np.ndarray]:
    """Scores `(n_units,)` for each group by the criterion "l1", "l2", "taylor" or "random"; higher matters more."""
    criteria: dict[str, Callable[[], list[np.ndarray]]] = {
        "l1": lambda: magnitude(program, graph, 1),
        "l2": lambda: magnitude(program, graph, 2),
        "taylor": lambda: taylor(program, graph, batches),
        "random": lambda: random_scores(graph, seed),
    }
    if criterion not in criteria:
        raise InputError(f"criterion: expected one of {', '.join(criteria)}, got {criterion!r}")
    return criteria[criterion]()


def _by_unit(
    graph: ChannelGraph,
    tensors: Mapping[str, Tensor],
    measure: Callable[[Slot], np.ndarray],
    squared: bool = False,
) -> list[np.ndarray]:
    """Sum a measure `(size of the dim,)` over the indices of each unit, then (its square) over the group's slots."""
    scores = []
    for group in graph.groups:
        total = np.zeros(group.n_units)
        for slot in group.slots:
            if slot.kind == "tensor" and slot.name in tensors and slot.dim is not None:
                members = slot.unit >= 0
                part = np.bincount(slot.unit[members], measure(slot)[members], minlength=group.n_units)
                total += part**2 if squared else part
        scores.append(total)
    return scores


def _relative(scores: np.ndarray) -> np.ndarray:
    mean = scores.mean()
    return scores / mean if mean > 0 else scores
