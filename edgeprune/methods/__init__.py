"""Methods of training behind one small protocol: gradual pruning, regrowing, N:M, learned shrinkage, gates, sharing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgeprune.catalog import find
from edgeprune.methods.base import Method, Subject
from edgeprune.methods.features import FeatureSelection
from edgeprune.methods.gates import GumbelGates
from edgeprune.methods.gradual import Gradual, WeightMom
from edgeprune.methods.halo import Halo
from edgeprune.methods.n_m import NM
from edgeprune.methods.regrow import Regrow
from edgeprune.methods.schedules import SCHEDULES
from edgeprune.methods.shared_budget import SharedBudget
from edgeprune.methods.shared_weights import SharedTemplates

METHODS: Mapping[str, type[Method]] = {
    kind.name: kind
    for kind in (
        Gradual,
        WeightMom,
        Regrow,
        NM,
        Halo,
        GumbelGates,
        FeatureSelection,
        SharedBudget,
        SharedTemplates,
    )
}
NEED_GROUPS = frozenset(
    {GumbelGates.name, FeatureSelection.name, SharedBudget.name}
)  # channel groups, input features among them


def make_method(name: str | None, subject: Subject) -> Method:
    """The method of a name, or none.

    Raises:
        InputError: an unknown name, or it fits no layer of the network.
    """
    if name is None:
        return Method(subject)
    options = {**find("method", name).defaults, **subject.options}
    return METHODS[name](replace(subject, options=options))


__all__ = ["METHODS", "NEED_GROUPS", "SCHEDULES", "Method", "Subject", "make_method"]
