"""Templates in a checkpoint: what its weights are mixtures of, beside the weights in full, which it is loaded with.

"shared": [{"templates": (N, *tile), "coefficients": {name of a weight: (n_tiles, N), ...}}, ...]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from edgeprune.errors import InputError
from edgeprune.formats.plain import check_dense, tensors_of
from edgeprune.graph.templates import Mixture, Tiling
from edgeprune.lines import shown
from edgeprune.records import Templates

KEY = "shared"
_ROUNDING = 1e-5  # of the sum of all |coefficient * template|: another order of the same sum


def with_templates(content: dict[str, Any], shared: Sequence[Templates]) -> dict[str, Any]:
    """A checkpoint's content with templates, where there are any."""
    told = [{"templates": own.templates, "coefficients": dict(own.coefficients)} for own in shared]
    return {**content, KEY: told} if told else content


def templates_in(content: Any, state: Mapping[str, Tensor]) -> tuple[Templates, ...]:
    """The templates that a checkpoint holds for the weights in `state`; none where it has none.

    Raises:
        InputError: they are not what templates are, or the weights are no mixtures of them.
    """
    if not isinstance(content, Mapping) or KEY not in content or "program" not in content:
        return ()
    if not isinstance(content[KEY], (list, tuple)):
        raise InputError(f"{KEY}: expected a list of templates, got a {type(content[KEY]).__name__}")
    found = tuple(_templates(value, number, state) for number, value in enumerate(content[KEY]))
    names = [name for own in found for name in own.coefficients]
    if len(set(names)) < len(names):
        raise InputError(f"{KEY}: expected each weight once, got one twice")
    return found


def _templates(value: Any, number: int, state: Mapping[str, Tensor]) -> Templates:
    where = f"{KEY} {number}"
    templates = value.get("templates") if isinstance(value, Mapping) else None
    if not isinstance(templates, Tensor) or templates.dim() < 3 or not templates.numel():
        raise InputError(f"{where}: expected templates (n_templates, *tile), got {shown(value)}")
    check_dense(templates, f"{where} templates")
    told = tensors_of(value.get("coefficients"), f"{where} coefficients")
    # Whoever trains on may have them as parameters; here they are numbers.
    own = Templates(templates.detach(), {name: tensor.detach() for name, tensor in told.items()})
    for name, coefficients in own.coefficients.items():
        _check_fits(name, coefficients, templates, state, where)
    mixture = Mixture.told(own, {name: tuple(state[name].shape) for name in own.coefficients})
    for name in own.coefficients:
        _check_equal(mixture, name, state[name], where)
    return own


def _check_fits(name: str, coefficients: Tensor, templates: Tensor, state: Mapping[str, Tensor], where: str) -> None:
    weight = state.get(name)
    if weight is None:
        raise InputError(f"{where}: expected weights of the network, got {shown(name)}")
    kinds = {weight.dtype, coefficients.dtype, templates.dtype}
    tiling = Tiling(tuple(weight.shape), tuple(templates.shape[1:]))
    if kinds != {torch.float32} or not tiling.fits:
        raise InputError(
            f"{where} {shown(name)}: expected a float32 weight in tiles {tiling.tile}, got {weight.dtype} "
            f"{tiling.shape}"
        )
    wanted = (tiling.n_tiles, len(templates))
    if tuple(coefficients.shape) != wanted:
        raise InputError(f"{where} {shown(name)}: expected coefficients {wanted}, got {tuple(coefficients.shape)}")


def _check_equal(mixture: Mixture, name: str, weight: Tensor, where: str) -> None:
    """Raise InputError for a weight that was changed without its templates, or holds NaN with them."""
    tiling, sizes = mixture.family.members[name], mixture.templates.flatten(1).abs()
    allowed = tiling.joined(mixture.coefficients[name].abs() @ sizes) * _ROUNDING
    error = (mixture.weight(name) - weight).abs()
    if not bool((error <= allowed).all()):  # also catches NaN
        raise InputError(
            f"{where} {shown(name)}: expected the mixture of the templates that stand beside it, got a weight that is "
            f"off by {error.max().item():.1e}; a network that was trained on is saved without its {KEY!r}"
        )
