"""Weights that PyTorch stores in parts, with masks of pruning or weight norm, put together as the plain weight."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edgeprune.errors import InputError

_PARAMETRIZED = re.compile(r"(?P<module>(?:.*\.)?)parametrizations\.(?P<name>\w+)\.(?P<part>original[01]?)")


def plain_weights(values: Mapping[str, Any], expected: Mapping[str, Tensor]) -> dict[str, Any]:
    """The values with every weight in one piece, unless the architecture has its parts itself.

    | stored | weight |
    |---|---|
    | `weight_orig`, `weight_mask` (torch.nn.utils.prune) | their product |
    | `weight_g`, `weight_v` (weight_norm), `parametrizations.weight.original0`, `1` | `g v / ||v||` |

    Raises:
        InputError: spectral norm or another parametrisation, which cannot be told from the tensors alone.
    """
    own = {name.rpartition(".")[2] for name in expected}
    found = dict(values)
    for name in values:
        last = name.rpartition(".")[2]
        if last in own:
            continue
        if last.endswith("_orig"):
            _join_original(found, name)
        elif last.endswith("_g") and _is_tensor(found, f"{name[:-2]}_v"):
            found[name[:-2]] = _weight_norm(found.pop(name), found.pop(f"{name[:-2]}_v"), name)
        elif match := _PARAMETRIZED.fullmatch(name):
            _join_parametrized(found, name, match)
    return found


def _join_original(found: dict[str, Any], name: str) -> None:
    base = name.removesuffix("_orig")
    if _is_tensor(found, f"{base}_mask"):
        weight, mask = found.pop(name), found.pop(f"{base}_mask")
        if weight.shape != mask.shape:
            raise InputError(f"state_dict: expected {base}_mask {list(weight.shape)}, got {list(mask.shape)}")
        found[base] = weight * mask.to(weight.dtype)
    elif _is_tensor(found, f"{base}_u"):
        raise _refused("spectral_norm", base, "torch.nn.utils.remove_spectral_norm")


def _join_parametrized(found: dict[str, Any], name: str, match: re.Match[str]) -> None:
    base = f"{match['module']}parametrizations.{match['name']}"
    weight = f"{match['module']}{match['name']}"
    if match["part"] == "original":
        kind = "spectral_norm" if f"{base}.0._u" in found else "parametrisation"
        raise _refused(kind, weight, "torch.nn.utils.parametrize.remove_parametrizations")
    if match["part"] == "original0" and _is_tensor(found, f"{base}.original1"):
        found[weight] = _weight_norm(found.pop(name), found.pop(f"{base}.original1"), weight)


def _weight_norm(g: Any, v: Any, name: str) -> Tensor:
    """`g v / ||v||`, the norm along all dims in which `g` has size 1."""
    wide = [dim for dim, size in enumerate(g.shape) if size > 1] if isinstance(g, Tensor) else [0, 0]
    dim = -1 if g.dim() == 0 else next(iter(wide), 0)
    fits = len(wide) <= 1 and (g.dim() == 0 or (g.dim() == v.dim() and g.shape[dim] == v.shape[dim]))
    if not fits or not v.is_floating_point():
        raise _refused("parametrisation", name, "torch.nn.utils.parametrize.remove_parametrizations")
    return torch._weight_norm(v, g, dim)


def _is_tensor(found: Mapping[str, Any], name: str) -> bool:
    return isinstance(found.get(name), Tensor)


def _refused(kind: str, name: str, remedy: str) -> InputError:
    return InputError(
        f"state_dict: expected plain weights, got {name!r} under a {kind}; make it plain before saving: {remedy}"
    )
