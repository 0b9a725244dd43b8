"""Operator rules and rewriters; importing this package fills the table."""

from edgeprune.graph.ops import contraction, movement, normalization, pointwise, recurrent, reduction, writing

__all__ = ["contraction", "movement", "normalization", "pointwise", "recurrent", "reduction", "writing"]
