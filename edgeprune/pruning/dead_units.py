"""The plan of what training left dead: units without any influence on an output."""

from __future__ import annotations

from dataclasses import replace

from torch.export import ExportedProgram

from edgeprune.formats.digests import digest
from edgeprune.graph.faults import public
from edgeprune.graph.groups import analyze
from edgeprune.importance import protected
from edgeprune.pruning.folding import alive, fold, has_zeros
from edgeprune.pruning.plan import PruningPlan
from edgeprune.pruning.planner import make_plan
from edgeprune.settings import FeatureRules


@public("plan_dead")
def plan_dead(
    program: ExportedProgram, inputs: bool = False, attention: str = "heads", rules: FeatureRules | None = None
) -> PruningPlan | None:
    """The plan that removes exactly the units that have no influence on an output, or None where all have.

    Constants that units give are folded into what reads them first, see `fold`; a cut by this plan gives the same
    outputs as the dense network does, up to rounding. One unit of every dim stays.

    Args:
        program: as `capture` returns it.
        inputs: whether input features that nothing reads go too.
        attention: "heads" or "head-dim", as in `analyze`.
        rules: input features that stay all the same, as in `analyze`.
    """
    if not has_zeros(program):
        return None
    folded = fold(program)
    graph = analyze(folded, inputs=inputs, attention=attention, rules=rules)
    keep = alive(graph)
    matters = [keep[group.units].astype(float) for group in graph.groups]
    for group, last in zip(graph.groups, protected(graph, matters), strict=True):
        keep[group.units[last]] = True
    if keep.all():
        return None
    return replace(make_plan(folded, graph, keep), source_sha256=digest(program), folded=True)
