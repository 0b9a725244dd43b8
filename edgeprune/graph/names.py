"""Names of the buffers that surgery adds to a program."""

from __future__ import annotations

ADDED = "edgeprune_"
GATHER = ADDED + "keep_"  # + the input's name: the kept features' indices
