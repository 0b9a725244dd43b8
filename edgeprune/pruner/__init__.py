"""Pruning in a training loop of one's own: the networks that it trains, from large to small."""

from edgeprune.pruner.loop import Pruner
from edgeprune.pruner.migration import Migrated

__all__ = ["Migrated", "Pruner"]
