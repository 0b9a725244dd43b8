"""Operator rules and rewriters; importing this package fills the table."""

from edgeprune.graph.ops import (
    complex,
    contraction,
    forms,
    indexing,
    lookups,
    movement,
    normalization,
    padding,
    pointwise,
    positions,
    recurrent,
    reduction,
    writing,
)

__all__ = [
    "complex",
    "contraction",
    "forms",
    "indexing",
    "lookups",
    "movement",
    "normalization",
    "padding",
    "pointwise",
    "positions",
    "recurrent",
    "reduction",
    "writing",
]
