"""How each kind of contender comes to its network, and what is measured of it."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace

from torch import Tensor, nn

from edgeprune import analyze, cut, plan, plan_dead, prove
from edgeprune.cost.macs import count_parameters, macs
from edgeprune.data import batches, normalize
from edgeprune.errors import InputError
from edgeprune.graph.capture import Program
from edgeprune.graph.single import capture_single
from edgeprune.methods.pcn import principal_components

from .clients import federated
from .experiments import Run
from .inputs import informative_features, n_features, only, random_features, units_sparsity
from .place import Place
from .pretraining import pretrained
from .sparsity import drop_smallest, l1_gradients, zero_share, zeros_held
from .steptime import step_time
from .weightfiles import in_bytes
from .widths import widths

Figures = dict[str, float]
_SCORED, _SCORED_BATCH = 64, 16  # batches, and samples of each, that the Taylor criterion sees


def train(place: Place, l1: float | None = None, sparsity: float | None = None, remove: bool = False) -> Figures:
    """One training, as the config has it.

    Args:
        l1: strength of a plain l1 penalty, by its subgradient.
        sparsity: the share of the weights, the smallest ones, that is set to zero at the end.
        remove: whether the units that are dead are removed, and what is left is measured.
    """
    module = place.build()
    with nullcontext() if l1 is None else l1_gradients(module, l1):
        place.fit(module, place.settings())
    if sparsity is not None:
        drop_smallest(module, sparsity)
    if remove:
        return _without_dead(place, module)
    return {**place.accuracies(module), **_sizes(module, module)}


def one_shot(place: Place, sparsity: float) -> Figures:
    """Half of the epochs dense, then the smallest weights go, then the other half with the learning rate rewound."""
    module, settings = place.build(), place.settings()
    first = max(1, settings.epochs // 2)
    place.fit(module, replace(settings, epochs=first), stage="dense")
    drop_smallest(module, sparsity)
    with zeros_held(module):
        place.fit(module, replace(settings, epochs=max(1, settings.epochs - first)), stage="finetune")
    return {**place.accuracies(module), **_sizes(module, module)}


def principal(place: Place, keep_variance: float) -> Figures:
    """A dense training, then layers on the principal components that hold this share of their inputs' variance."""
    module = place.build()
    place.fit(module, place.settings())
    inputs = (x for x, _ in _score_batches(place))
    small, _ = principal_components(module, inputs, keep_variance)
    return {**place.accuracies(small), **_sizes(small, module)}


def chosen_inputs(place: Place, by: str) -> Figures:
    """The network trained on so many of the input features alone, chosen beforehand, "random" or "information"."""
    assert place.run.at is not None
    if by not in ("random", "information"):
        raise InputError(f"{place.run.name}: by: expected random or information, got {by!r}")
    if by == "random":
        kept = random_features(place.data, place.run.at, place.run.seed)
    else:
        kept = informative_features(place.data, place.run.at)
    data, module = only(place.data, kept), place.build(n_inputs=len(kept))
    place.fit(module, place.settings(), data=data)
    return {**place.accuracies(module, data), **_sizes(module, place.build()), "n_features": len(kept)}


def induced(place: Place, keep_params: float | None = None, finetune: float = 0.4) -> Figures:
    """The network chooses so many of its inputs while it trains; what reads none of them is removed.

    Args:
        keep_params: the share of the dense network's parameters to keep: hidden units go too then, at once, and the
            rest is finetuned with the network before that as its teacher.
        finetune: the share of the epochs for this.
    """
    assert place.run.at is not None
    module, settings = place.build(), place.settings()
    settings = replace(settings, options={**settings.options, "n_features": place.run.at})
    n_after = max(1, round(finetune * settings.epochs)) if keep_params is not None else 0
    place.fit(module, replace(settings, epochs=max(1, settings.epochs - n_after)))
    if keep_params is None:
        return _without_dead(place, module, inputs=True)
    dense = capture_single(module, place.data.input_shape)
    slim = _fewer_units(place, dense, keep_params)
    after = slim.module()
    recipe = replace(settings.for_finetuning(), epochs=n_after, threads=settings.threads, device=settings.device)
    place.fit(after, recipe, stage="finetune", teacher=copy.deepcopy(module))
    figures = {**place.accuracies(after), **_cut_sizes(dense, slim, after)}
    return {**figures, "n_features": float(place.run.at)}


def fewer_weights(place: Place, keep_params: float, structure: str = "element") -> Figures:
    """All inputs stay, and weights or hidden units are pruned gradually down to a share of the parameters."""
    module = place.build()
    n_params = sum(param.numel() for param in module.parameters())
    n_fixed = sum(param.numel() for param in module.parameters() if param.dim() < 2)
    if structure == "element":
        sparsity = 1 - (keep_params * n_params - n_fixed) / (n_params - n_fixed)
    else:
        sparsity = units_sparsity(module, int(keep_params * n_params))
    settings = place.settings()
    options = {**settings.options, "structure": structure, "sparsity": sparsity}
    place.fit(module, replace(settings, method="gradual", options=options))
    if structure == "element":
        figures = {**place.accuracies(module), **_sizes(module, module)}
    else:
        figures = _without_dead(place, module)
    return {**figures, "n_features": float(n_features(place.data))}


RECIPES: Mapping[str, Callable[..., Figures]] = {
    "train": train,
    "one-shot": one_shot,
    "principal": principal,
    "chosen-inputs": chosen_inputs,
    "induced": induced,
    "fewer-weights": fewer_weights,
    "step-time": step_time,
    "in-bytes": in_bytes,
    "pretrained": pretrained,
    "federated": federated,
    "widths": widths,
}


def follow(place: Place) -> Figures:
    """What the run's recipe measures.

    Raises:
        InputError: as `recipe_of`.
        TrainingError: the training diverged.
    """
    return recipe_of(place.run)(place, **place.run.how)


def recipe_of(run: Run) -> Callable[..., Figures]:
    """The recipe that a run is made by.

    Raises:
        InputError: there is none of that name, or it takes other arguments.
    """
    if run.recipe not in RECIPES:
        raise InputError(f"{run.name}: recipe: expected one of {', '.join(RECIPES)}, got {run.recipe!r}")
    recipe = RECIPES[run.recipe]
    try:
        inspect.signature(recipe).bind(None, **run.how)
    except TypeError as error:
        taken = ", ".join(list(inspect.signature(recipe).parameters)[1:])
        raise InputError(f"{run.name}: how: expected {taken} for {run.recipe}, got {error}") from error
    return recipe


# -- measuring --------------------------------------------------------------------------------------------------------


def _sizes(module: nn.Module, dense: nn.Module) -> Figures:
    """The share of exact zeros, and that of the dense network's parameters that are not zero."""
    left = sum(int((param != 0).sum()) for param in module.parameters())
    return {"zero_share": zero_share(module), "params_share": left / sum(p.numel() for p in dense.parameters())}


def _without_dead(place: Place, module: nn.Module, inputs: bool = False) -> Figures:
    """Remove the units without influence, prove that nothing changed, and measure what is left."""
    dense = capture_single(module, place.data.input_shape)
    dead = plan_dead(dense, inputs=inputs)
    slim, n_left = dense, n_features(place.data)
    if dead is not None:
        slim = cut(dense, dead)
        prove(dense, slim, dead)
        n_left = next((len(features.keep) for features in dead.inputs.values()), n_left)
    figures = {**place.accuracies(slim.module()), **_cut_sizes(dense, slim, module)}
    return {**figures, "n_features": float(n_left)} if inputs else figures


def _cut_sizes(dense: Program, slim: Program, trained: nn.Module) -> Figures:
    return {
        "zero_share": zero_share(trained),
        "params_share": count_parameters(slim) / count_parameters(dense),
        "macs_share": macs(slim) / macs(dense),
    }


def _fewer_units(place: Place, dense: Program, keep_params: float) -> Program:
    """A cut to the run's features and to a share of the parameters; each parameter but the biases makes one MAC."""
    assert place.run.at is not None
    n_params, n_macs = count_parameters(dense), macs(dense)
    keep_macs = (keep_params * n_params - (n_params - n_macs)) / n_macs
    pruning = plan(
        dense,
        analyze(dense, inputs=True),
        keep_macs=keep_macs,
        criterion="taylor",
        align=1,
        n_features=place.run.at,
        batches=_score_batches(place),
    )
    slim = cut(dense, pruning)
    prove(dense, slim, pruning)
    return slim


def _score_batches(place: Place) -> Iterator[tuple[Tensor, Tensor]]:
    data = place.data
    stream = batches(data.train, _SCORED_BATCH, shuffle=True, seed=place.run.seed)
    for x, y in itertools.islice(stream, _SCORED):
        yield normalize(x, data.normalization), y
