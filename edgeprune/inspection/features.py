"""Which input features a run has kept, of every input, and how much the network reads each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.export import ExportedProgram

from edgeprune.graph.groups import ChannelGraph, analyze
from edgeprune.graph.inputs import feature_grids, feature_places
from edgeprune.graph.sources import unit_sizes
from edgeprune.graph.specs import input_specs
from edgeprune.importance import score
from edgeprune.records import InputFeatures, KeptInput


def kept_inputs(dense: ChannelGraph, slim: ExportedProgram, cut: Mapping[str, InputFeatures]) -> tuple[KeptInput, ...]:
    """What is kept of every input that has features, in their order; () where none of them has lost any.

    Args:
        dense: the channel groups of the network before.
        slim: the network after, which takes all features.
        cut: the inputs that lost some, a state that narrows by itself not among them.
    """
    if not cut:
        return ()
    program = dense.analysis.program
    grids = feature_grids(dense.analysis) or feature_grids(analyze(program, inputs=True).analysis)
    whole = {
        name: InputFeatures(len(grid), tuple(np.flatnonzero(grid.units >= 0).tolist()), grid.dim)
        for name, grid in grids.items()
    }
    features, norms = {**whole, **cut}, _norms(slim)
    return tuple(
        KeptInput(
            spec.name,
            spec.example[1:] if spec.batched else spec.example,
            features[spec.name],
            _weights(norms.get(spec.name), features[spec.name], unit_sizes(spec.shape[1:])),
        )
        for spec in input_specs(program)
        if spec.name in features
    )


def kept_fields(dense: ChannelGraph, slim: ExportedProgram, cut: Mapping[str, InputFeatures]) -> dict[str, Any]:
    """The fields of a run that tell of input features: `features` of a network with one input, `inputs` of several."""
    kept = kept_inputs(dense, slim, cut)
    if not kept or len(input_specs(dense.analysis.program)) > 1:
        return {"features": None, "inputs": kept}
    return {"features": kept[0].features, "feature_weights": kept[0].weights}


def feature_weights(slim: ExportedProgram, name: str, features: InputFeatures) -> tuple[float, ...]:
    """The L2 norm of the weights that read each of the `features.keep` of an input, relative to the largest."""
    [sizes] = [unit_sizes(spec.shape[1:]) for spec in input_specs(slim) if spec.name == name]
    return _weights(_norms(slim).get(name), features, sizes)


def _norms(slim: ExportedProgram) -> dict[str, np.ndarray]:
    """Of every input, for each of its elements `(n,)`: the norm of the weights that read it, 0 where none do."""
    graph = analyze(slim, inputs=True)
    found: dict[str, np.ndarray] = {}
    for group, norm in zip(graph.groups, score(slim, graph, "l2"), strict=True):
        for slot in (slot for slot in group.slots if slot.kind == "input"):
            own = found.setdefault(slot.name, np.zeros(len(slot.unit)))
            read = slot.unit >= 0
            own[read] = norm[slot.unit[read]]
    return found


def _weights(norms: np.ndarray | None, features: InputFeatures, sizes: tuple[int, ...]) -> tuple[float, ...]:
    """Those of the kept features of an input with so many units, the largest 1; all 1 where nothing is known of any."""
    last = feature_places(sizes, features.dim)[list(features.keep), -1]
    kept = np.zeros(0) if norms is None else norms[last]
    largest = kept.max(initial=0.0)
    return tuple((kept / largest).round(4).tolist()) if largest > 0 else (1.0,) * len(features.keep)
