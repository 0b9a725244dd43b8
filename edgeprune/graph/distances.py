"""Distances while a model is exported: PyTorch picks how it computes them by a size, which would bound that size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from edgeprune.graph.sizes import size_hint

_BY_SIZE = (None, "use_mm_for_euclid_dist_if_necessary")
_MANY = 25  # rows of either side above which PyTorch takes a matrix product
_PRODUCT, _DIRECT = "use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist"


class DistancesBySize(TorchFunctionMode):
    """Within it `torch.cdist` of rows of free number is computed as it is for the example's number of them.

    Both forms hold for all numbers of rows; the product of matrices is the faster and the coarser one.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The call, with the form said where it would have been picked by a free size."""
        if func is torch.cdist:
            args, kwargs = (), _with_form(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _with_form(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> dict[str, Any]:
    """All arguments of `torch.cdist`."""
    rows = [x.shape[-2] for x in (x1, x2) if x.dim() > 1]
    if compute_mode in _BY_SIZE and not all(type(size) is int for size in rows):
        compute_mode = _PRODUCT if any(size_hint(size) > _MANY for size in rows) else _DIRECT
    return {"x1": x1, "x2": x2, "p": p, **({} if compute_mode is None else {"compute_mode": compute_mode})}
