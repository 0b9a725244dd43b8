"""A random network is cut by a random plan, and plain PyTorch says what the slim network has to give.

The oracle is the network's own module, run eagerly: every index of every tensor that the plan does not keep is zero,
and so is every input feature. Where the plan removes units that a normalisation takes its statistics over, its layer is
replaced by one that is written here and sees the kept ones alone; the kept ones are read off its own weight. A network
with such units behind a normalisation without weights keeps all of them. Nothing of the oracle is edgeprune's: neither
labels nor `masked`.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import edgeprune
from edgeprune.errors import BudgetError, EdgepruneError, PlanError, ProofError
from edgeprune.graph.capture import Program
from edgeprune.graph.groups import ChannelGraph
from edgeprune.importance import protected
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.planner import make_plan
from edgeprune.pruning.slim_inputs import gathered_inputs, slim_contract
from edgeprune.records import InputFeatures
from tests.random_networks import RandomNetwork, random_network

TOLERANCE = 1e-9
MOVES = 1e-6  # a smaller difference between the dense and the slim network shows nothing
BATCHES = (1, 3, 6)
KINDS = ("right", "vacuous", "refused", "wrong", "crashed")


@dataclass(frozen=True)
class Outcome:
    """How a network went; `reason` is the refusal's or the fault's, `features` how many inputs lost some."""

    kind: str
    network: str
    reason: str = ""
    n_units: int = 0
    n_removed: int = 0
    n_features: int = 0
    n_layers: int = 0
    inexact: bool = False


def layers_of(seed: int) -> int:
    """How many layers the network of a seed has before its heads."""
    return 3 + seed % 14


def tried(seed: int, n_layers: int) -> Outcome:
    """Make a network and take it through capture, analysis, plan, cut, proof and the oracle."""
    network = random_network(Random(seed), n_layers)
    told = Outcome("right", repr(network), n_layers=len(network.names))
    try:
        return _through(network, Random(-seed - 1), told)
    except ProofError as error:
        shows_nothing = str(error).startswith("no proof: ")  # a network that gives the same for whatever comes in
        return replace(told, kind="vacuous" if shows_nothing else "wrong", reason=f"ProofError: {error}")
    except EdgepruneError as error:
        return replace(told, kind="refused", reason=f"{type(error).__name__}: {error}")
    except Exception as error:  # whatever it is, it is this network's result
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "edgeprune" in frame.filename]
        place = f"{frames[-1].filename.rpartition('edgeprune/')[2]}:{frames[-1].lineno}" if frames else ""
        return replace(told, kind="crashed", reason=f"{type(error).__name__}: {error} ({place})")


def _through(network: RandomNetwork, draw: Random, told: Outcome) -> Outcome:
    inputs = draw.random() < 0.5
    program = edgeprune.capture(network, _batch(network, 2))
    graph = edgeprune.analyze(program, inputs=inputs, attention=draw.choice(("heads", "heads", "head-dim")))
    plan = _plan(program, graph, network, draw)
    slim = edgeprune.cut(program, plan, graph if draw.random() < 0.5 else None)
    edgeprune.prove(program, slim, plan)
    told = replace(
        told,
        n_units=sum(group.before for group in plan.groups),
        n_removed=sum(group.before - group.after for group in plan.groups),
        n_features=len(plan.inputs),
        inexact=not plan.exact,
    )
    return replace(told, **_compared(network, program, slim, plan))


def _compared(network: RandomNetwork, program: Program, slim: Program, plan: PruningPlan) -> dict[str, str]:
    """Dense as captured = dense as written; slim = the oracle; both differ from the dense network."""
    oracle, dense, cut = zeroed(network, plan), program.module(), slim.module()
    moved = False
    for n in BATCHES:
        inputs = _batch(network, n)
        want = _run(network, inputs)
        got = _run(cut, inputs)
        masked = _run(oracle, _without_features(program, inputs, plan))
        if _error(want, _run(dense, inputs)) > TOLERANCE:
            return {"kind": "wrong", "reason": "the captured network is not the one that was written"}
        if _error(masked, got) > TOLERANCE:
            return {"kind": "wrong", "reason": f"slim differs from the oracle by {_error(masked, got):.3g}"}
        moved = moved or min(_error(want, got), _error(want, masked)) > MOVES
    if plan.inputs:
        reason = _contract(network, program, slim, plan)
        if reason:
            return {"kind": "wrong", "reason": reason}
    return {"kind": "right" if moved else "vacuous"}


def _contract(network: RandomNetwork, program: Program, slim: Program, plan: PruningPlan) -> str:
    """What is wrong with the slim contract: it takes the kept features alone and gives the same."""
    found = gathered_inputs(slim)
    inputs = _batch(network, 4)
    for name, x in zip(_input_names(program), inputs, strict=True):
        if not torch.equal(_zeros_but(x, found.get(name)), _zeros_but(x, plan.inputs.get(name))):
            return f"the slim contract of {name}: expected {plan.inputs.get(name)}, got {found.get(name)}"
    kept = tuple(_kept(x, found.get(name)) for name, x in zip(_input_names(program), inputs, strict=True))
    error = _error(_run(slim.module(), inputs), _run(slim_contract(slim).module(), kept))
    return f"the slim contract differs by {error:.3g}" if error > TOLERANCE else ""


# -- plans ------------------------------------------------------------------------------------------------------------


def _plan(program: Program, graph: ChannelGraph, network: RandomNetwork, draw: Random) -> PruningPlan:
    """By a budget with random scores, or a random part of every group."""
    if not graph.groups:
        locked = sorted({f"{lock.name}: {lock.reason}" for lock in graph.locked})
        raise BudgetError(f"nothing can be pruned; {'; '.join(locked[:3])}")
    if draw.random() < 0.4:
        features, sizes = graph.features()
        features += sum(int(n.sum()) for n in sizes)
        asked = draw.randint(1, features) if features and draw.random() < 0.5 else None
        share = draw.choice((0.5, 0.7, 0.9))
        try:
            plan = edgeprune.plan(
                program, graph, share, "random", draw.choice((1, 1, 2, 4)), n_features=asked, seed=draw.randrange(99)
            )
        except EdgepruneError:  # a budget that was drawn need not be one that can be met
            pass
        else:
            if _is_readable(plan, network) and any(group.after < group.before for group in plan.groups):
                return plan
    return _random_part(program, graph, network, draw)


def _random_part(program: Program, graph: ChannelGraph, network: RandomNetwork, draw: Random) -> PruningPlan:
    scores = [np.array([draw.random() for _ in range(group.n_units)]) for group in graph.groups]
    last = protected(graph, scores)
    share = draw.choice((0.3, 0.5, 0.7))
    plan = make_plan(program, graph, _keep(graph, scores, last, share, exact_only=False))
    if not _is_readable(plan, network):
        plan = make_plan(program, graph, _keep(graph, scores, last, share, exact_only=True))
    if all(group.after == group.before for group in plan.groups):
        raise PlanError("nothing can be pruned one by one")
    return plan


def _keep(
    graph: ChannelGraph, scores: Sequence[np.ndarray], last: Sequence[np.ndarray], share: float, exact_only: bool
) -> np.ndarray:
    keep = np.ones(len(graph.analysis.solver.canonical), dtype=bool)
    for group, own, stays in zip(graph.groups, scores, last, strict=True):
        if group.exact or not exact_only:
            keep[group.units] = stays | (own > share)
            if keep[group.units].all() and not stays.all():
                keep[group.units[np.argmin(np.where(stays, np.inf, own))]] = False
    return keep


def _is_readable(plan: PruningPlan, network: RandomNetwork) -> bool:
    """Whether the oracle can tell what every normalisation keeps: each has a weight of its own."""
    norms = (m for m in network.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm))
    return plan.exact or all(norm.weight is not None for norm in norms)


# -- the oracle -------------------------------------------------------------------------------------------------------


def zeroed(network: nn.Module, plan: PruningPlan) -> nn.Module:
    """A copy of the module with zeros for what the plan does not keep."""
    oracle = copy.deepcopy(network)
    tensors = {**dict(oracle.named_parameters(remove_duplicate=False)), **dict(oracle.named_buffers())}
    with torch.no_grad():
        for name, dims in plan.tensors.items():
            for dim, kept in dims.items():
                removed = sorted(set(range(tensors[name].shape[dim])) - set(kept))
                tensors[name].index_fill_(dim, torch.tensor(removed), 0.0)
    for name, module in list(oracle.named_modules()):
        kept_of = plan.tensors.get(f"{name}.weight", {})
        if kept_of and isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
            owner, _, attribute = name.rpartition(".")
            setattr(oracle.get_submodule(owner), attribute, _OverKept(module, kept_of))
    return oracle


class _OverKept(nn.Module):
    """A layer norm, RMS norm or group norm of one group over some of its elements; it gives zeros for the others."""

    def __init__(self, norm: nn.LayerNorm | nn.RMSNorm | nn.GroupNorm, kept: Mapping[int, Sequence[int]]) -> None:
        super().__init__()
        self.norm = norm
        self.mask = torch.ones_like(norm.weight)
        for dim, indices in kept.items():
            removed = sorted(set(range(norm.weight.shape[dim])) - set(indices))
            self.mask = self.mask.index_fill(dim, torch.tensor(removed), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        is_group = isinstance(norm, nn.GroupNorm)
        if is_group and norm.num_groups > 1:
            return norm(x)  # whole groups go: the statistics of the others are their own
        first, behind = (1, (1,) * (x.dim() - 2)) if is_group else (x.dim() - norm.weight.dim(), ())
        over = tuple(range(first, x.dim()))
        mask, weight = (t.reshape(*t.shape, *behind) for t in (self.mask, norm.weight))
        count = mask.expand_as(x).sum(over, keepdim=True)
        if not isinstance(norm, nn.RMSNorm):
            x = x - (x * mask).sum(over, keepdim=True) / count
        eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
        result = x / ((x**2 * mask).sum(over, keepdim=True) / count + eps).sqrt() * weight
        bias = getattr(norm, "bias", None)
        return (result if bias is None else result + bias.reshape(*bias.shape, *behind)) * mask


def _without_features(program: Program, inputs: tuple[Tensor, ...], plan: PruningPlan) -> tuple[Tensor, ...]:
    """The inputs with zeros for the features that the plan removes."""
    return tuple(_zeros_but(x, plan.inputs.get(name)) for name, x in zip(_input_names(program), inputs, strict=True))


def _input_names(program: Program) -> list[str]:
    return list(program.graph_signature.user_inputs)  # type: ignore[arg-type]


def _zeros_but(x: Tensor, features: InputFeatures | None) -> Tensor:
    if features is None:
        return x
    shown, dim = _along(x, features)
    keep = torch.tensor(features.keep)
    return torch.zeros_like(shown).index_copy(dim, keep, shown.index_select(dim, keep)).reshape(x.shape)


def _kept(x: Tensor, features: InputFeatures | None) -> Tensor:
    if features is None:
        return x
    shown, dim = _along(x, features)
    return shown.index_select(dim, torch.tensor(features.keep))


def _along(x: Tensor, features: InputFeatures) -> tuple[Tensor, int]:
    """The input as its features are counted, and the dim that they lie along."""
    return (x.flatten(1), 1) if features.dim is None else (x, features.dim)


# -- numbers ----------------------------------------------------------------------------------------------------------


def _batch(network: RandomNetwork, n: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n)
    return tuple(torch.randn(n, *shape, generator=generator, dtype=torch.float64) for shape in network.shapes)


def _run(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(network(*inputs)) if isinstance(leaf, Tensor)]


def _error(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """The largest difference of any output, relative to the largest number expected of it (or to one thousandth)."""
    if [x.shape for x in expected] != [x.shape for x in got] or not all(bool(x.isfinite().all()) for x in got):
        return float("inf")
    return max(float((a - b).abs().max()) / max(float(a.abs().max()), 1e-3) for a, b in zip(expected, got, strict=True))
