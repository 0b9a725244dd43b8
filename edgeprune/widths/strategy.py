"""How a network becomes one at several widths: planned one within the other, sorted, trained together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeprune.cost.macs import macs
from edgeprune.graph.capture import Program
from edgeprune.search.candidate import Budgets, Candidate, Found
from edgeprune.search.step import Step
from edgeprune.search.trainer import Round, Trainer
from edgeprune.widths.module import WidthsModule
from edgeprune.widths.planning import nested_widths, planned_widths

Check = Callable[[Sequence[Program]], None]


def _taken(programs: Sequence[Program]) -> None:
    """Any widths will do."""


@dataclass(frozen=True, slots=True, eq=False)
class Widths:
    """One network at these shares of the dense MACs, falling; `together` trains them all, by the task `Sandwich`.

    `check` refuses widths that are cut, before they are trained.
    """

    shares: tuple[float, ...]
    together: Trainer
    check: Check = _taken

    @property
    def name(self) -> str:
        """What it is called."""
        return "widths"

    def search(self, step: Step, budgets: Budgets) -> Found:
        """All widths, from wide to narrow; their weights are the first of the widest one's.

        Raises:
            BudgetError: a width cannot be built.
            InputError: two widths are the same network.
        """
        step.begin()
        step.progress.stage("plan the widths")
        planned = planned_widths(step.cutter, self.shares)
        nested, error = nested_widths(step.cutter, planned, step.progress)
        self.check(nested.programs)
        step.progress.stage(f"train {len(self.shares)} widths together")
        module = WidthsModule(nested)
        self.together.finetune(module, Round())
        networks: list[Candidate] = []
        within = (None, *nested.plans)
        for plan, program, own in zip(planned, module.programs(nested), within, strict=True):
            assert step.trainer is not None
            value = step.trainer.evaluation(program.frozen_module())
            networks.append(Candidate(program, plan, macs(program), step.dense.n_features, value, error, within=own))
            step.record(networks[-1], accepted=True, n_left=len(planned) - len(networks))
        return step.found(*networks)
