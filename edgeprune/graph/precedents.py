"""What was settled before an analysis: a free choice is made once.

Where whole groups of a convolution may go, or else the same channels of each, the number of units decides. A cut may
turn that round, and two cuts that chose differently are no cut of the dense network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from edgeprune.graph import reasons
from edgeprune.graph.analysis import Analysis
from edgeprune.graph.labels import FIXED
from edgeprune.graph.solve import Reason

_KEPT, _GONE = 1, 2
_Units = Mapping[tuple[str, int], np.ndarray]
_Kept = Mapping[tuple[str, int], Sequence[int]]


@dataclass(frozen=True, slots=True, eq=False)
class Precedents:
    """What an analysis follows, by tensor and dim.

    `units` tells of each index that a cut has left which unit it was, `FIXED` where it was locked: what went together
    in the network before goes together. `kept` are the indices that a plan keeps of what it slices: what may be chosen
    is chosen so that the plan is possible.
    """

    units: _Units = field(default_factory=dict)
    kept: _Kept = field(default_factory=dict)


def solve(analysis: Analysis, precedents: Precedents) -> None:
    """Solve an analysis by its precedents."""
    if precedents.kept:
        analysis.possible = _Possible(analysis, precedents.kept)
    if precedents.units:
        analysis.run_pass()  # hands out the units
        _unite(analysis, precedents.units)
    analysis.solve()
    if precedents.units and _lock(analysis, precedents.units):
        analysis.solve()


def _unite(analysis: Analysis, units: _Units) -> None:
    """Indices that were of one unit are of one unit."""
    first: dict[int, int] = {}  # former unit -> a unit of now
    for reader, ids, former in _known(analysis, units):
        of_now = [first.setdefault(unit, own) for unit, own in zip(former.tolist(), ids.tolist(), strict=True)]
        free = former != FIXED
        left, right = torch.tensor(of_now)[free], torch.from_numpy(ids[free])
        analysis.solver.unite(left, right, _reason(reasons.COUPLED_BEFORE, reader))


def _lock(analysis: Analysis, units: _Units) -> bool:
    """Lock what was locked; whether any of it was free until now."""
    for reader, ids, former in _known(analysis, units):
        still_free = analysis.solver.canonical[ids[former == FIXED]]
        analysis.solver.lock(torch.from_numpy(still_free), _reason(reasons.LOCKED_BEFORE, reader))
    return analysis.solver.merge()


class _Possible:
    """Along which dims labels may vary without a unit that is kept in part; all dims where there are no such ones."""

    def __init__(self, analysis: Analysis, kept: _Kept) -> None:
        self._analysis, self._kept = analysis, kept
        self._component, self._said = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int8)

    def __call__(self, labels: Tensor) -> list[int]:
        array = self._said_of_units()[labels.numpy()]
        whole = [dim for dim in range(array.ndim) if not _is_mixed(array, dim)]
        return whole or list(range(array.ndim))

    def _said_of_units(self) -> np.ndarray:
        """Of each unit whether it is kept, gone or both, `(n_ids,)`; the same until units are united."""
        component = self._analysis.solver.component
        if component is not self._component:
            self._component, self._said = component, np.zeros(len(component), dtype=np.int8)
            self._said[FIXED] = _KEPT
            for source in self._analysis.sources.values():
                indices = self._kept.get((source.name, source.dim or 0)) if source.kind == "tensor" else None
                if indices is not None:
                    gone = ~np.isin(np.arange(len(source.ids)), indices)
                    told = np.where(gone, _GONE, _KEPT).astype(np.int8)
                    np.bitwise_or.at(self._said, component[source.ids], told)
        return self._said


def _is_mixed(said: np.ndarray, dim: int) -> bool:
    """Whether a slice along a dim is kept in part."""
    rows = np.moveaxis(said, dim, 0).reshape(said.shape[dim], -1)
    return bool((np.bitwise_or.reduce(rows, axis=1) == _KEPT | _GONE).any())


def _known(analysis: Analysis, units: _Units) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Of each dim of a tensor the placeholder, the ids of its indices, and the units that they were of."""
    for source in analysis.sources.values():
        former = units.get((source.name, source.dim or 0)) if source.kind == "tensor" else None
        if former is not None:
            yield analysis.tensors.reader(source.name), source.ids, former


def _reason(cause: reasons.Cause, reader: str) -> Reason:
    return Reason(f"{reader} {cause.text}", reader, cause.remedy)
