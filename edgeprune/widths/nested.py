"""Several widths of one network: plans that keep ever less of the same units, and the programs that they lead to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeprune.errors import PlanError
from edgeprune.formats.digests import digest
from edgeprune.graph.capture import Program
from edgeprune.pruning.plan import PruningPlan


@dataclass(frozen=True, slots=True, eq=False)
class NestedWidths:
    """One network at several widths, from wide to narrow.

    `programs[0]` is the widest; each of `plans` leads from it to one of the others, and keeps what the next one keeps.
    """

    programs: tuple[Program, ...]
    plans: tuple[PruningPlan, ...]

    def __post_init__(self) -> None:
        for wider, narrower in zip(self.plans, self.plans[1:], strict=False):
            check_nested(wider, narrower)


def check_nested(wider: PruningPlan, narrower: PruningPlan) -> None:
    """Raise PlanError where the narrower network has an index of a tensor that the wider one has not."""
    for name, dims in wider.tensors.items():
        for dim, kept in dims.items():
            own = narrower.tensors.get(name, {}).get(dim)
            if own is None or not set(own) <= set(kept):
                raise PlanError(f"widths: expected the narrower network's units among the wider one's, got others in "
                                f"dim {dim} of {name!r}")  # fmt: skip


def relative(narrow: PruningPlan, wide: PruningPlan, program: Program) -> PruningPlan:
    """The plan that leads from the network of one plan to that of another, which keeps less.

    Args:
        narrow: of the dense network.
        wide: of the dense network.
        program: the wide network.
    """
    check_nested(wide, narrow)
    before = {group.name: group.after for group in wide.groups}
    return replace(
        narrow,
        source_sha256=digest(program),
        tensors={
            name: {dim: _among(kept, wide.tensors.get(name, {}).get(dim)) for dim, kept in dims.items()}
            for name, dims in narrow.tensors.items()
        },
        groups=tuple(replace(group, before=before.get(group.name, group.before)) for group in narrow.groups),
    )


def _among(kept: Sequence[int], wider: Sequence[int] | None) -> tuple[int, ...]:
    """Where kept indices are among those that a wider network keeps."""
    return tuple(kept) if wider is None else tuple(np.searchsorted(wider, kept).tolist())
