"""Causal masks while a model is exported: PyTorch asks whether a mask is one by its values, which no export has."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch.nn.modules import transformer

from edgeprune.graph.patches import replaced


def masks_taken_as_given() -> AbstractContextManager[None]:
    """Within it the layers of `nn.Transformer` add a mask as it is, whether or not it is the causal one.

    What they would find out is a hint alone: with it attention makes the very same mask by itself in place of the given
    one. A caller's own `is_causal=True` stays.
    """
    return replaced(transformer, "_detect_is_causal_mask", _as_said)


def _as_said(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    """What the caller says of the mask; nothing is not."""
    return is_causal is True
